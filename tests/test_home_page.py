"""The programs on the home page do what they say: each block runs, on toy data under the names that it uses, with the smallest network and one epoch."""
import json
import re
import shutil
from pathlib import Path

import pytest

import ranks

pytestmark = pytest.mark.xdist_group('home')      # one worker makes the data, once

page = ''.join(''.join(c['source']) + '\n' for c in json.loads((Path(__file__).resolve().parents[1]/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown')
programs = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
SMALL = dict(device='cpu', num_workers=0, pretrained=False, tensorboard=False, batch_size=2)
OWN = dict(pan=dict(input_size=64, test_size=64, head='conv1x1', fpem_repeat=1), fots=dict(short_side=96, input_size=64, test_size=64, width=8, reader_width=8), segmentation=dict(patch_size=64),
           frcnn=dict(input_shape=(64, 64), head='mlp', head_width=32, rpn_min_size=2., n_post_train=60, n_post_test=20, roi_samples=16), multilabel=dict(input_size=32))


def system_of(program): return re.search(r'from visionlab\.(\w+) import', program)[1]


@pytest.fixture(scope='module')
def own_data(tmp_path_factory):
    "Toy sets and a photograph under the names of the page"
    from visionlab.datasets.toy import make_toy_text
    from visionlab.datasets.toy_digits import make_toy_digits
    from visionlab.datasets.toy_masks import make_toy_masks
    folder = tmp_path_factory.mktemp('home')
    ranks.make_data(folder/'toy')
    make_toy_text(folder/'my_words', n_train=8, n_test=2, size=(96, 96))
    make_toy_masks(folder/'toy/discs', n_train=8, n_test=2, size=(64, 64), classes=1)
    make_toy_digits(folder/'toy/many', n_train=40, n_test=2, size=32, digits=3)
    for name, made in (('my_masks', 'discs/train'), ('my_things', 'boxes'), ('my_labels', 'many/train')): shutil.copytree(folder/'toy'/made, folder/name)
    for name in set(re.findall(r"'(\w+\.jpg)'", page)): shutil.copy(folder/'toy/text/test/img/img_1.jpg', folder/name)
    return folder


def test_a_program_for_each_system(): assert sorted(map(system_of, programs)) == sorted(ranks.SYSTEMS)


@pytest.mark.parametrize('program', programs, ids=system_of)
def test_the_programs_of_the_home_page_run(program, own_data, monkeypatch, capsys):
    system = system_of(program)
    assert len(program.strip().splitlines()) == 5
    monkeypatch.chdir(own_data)
    small = ', '.join(f'{k}={v!r}' for k, v in {**SMALL, **OWN[system]}.items())
    text, changed = re.subn(r'Config\(([^()]*(?:\([^()]*\))?[^()]*)\)', lambda m: f'Config({m[1]}, {small})', re.sub(r'epochs=\d+', 'epochs=1', program.replace('resnet50', 'resnet18').replace('resnet34', 'resnet18')))
    assert changed == 1
    exec(compile(text, f'{system} on the home page', 'exec'), {})
    assert capsys.readouterr().out.strip()
