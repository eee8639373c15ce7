"""A sixth system, in a package of its own, goes through every command. Its files are the cells that the chapter on a new system writes."""
import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visionlab.cli.app import main
from visionlab.core.systems import SYSTEM_PARTS, find_system, system_names
from visionlab.inference import load_predictor
from visionlab.training.checkpoint import load_checkpoint
from engine_toy import same

root = Path(__file__).resolve().parent.parent
five = ['fots', 'frcnn', 'multilabel', 'pan', 'segmentation']


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "The package of the chapter, installed by pip under an entry point, for this module alone"
    source, target = tmp_path_factory.mktemp('sixth'), tmp_path_factory.mktemp('installed')
    (source/'colour').mkdir()
    (source/'colour/__init__.py').touch()
    for cell in json.loads((root/'nbs/explanations/04_a_new_system.ipynb').read_text(encoding='utf-8'))['cells']:
        text = ''.join(cell['source'])
        if m := re.match(r'%%writefile (\S+)\n', text): (source/m[1]).write_text(text[m.end():], encoding='utf-8')
    assert sorted(p.stem for p in (source/'colour').glob('[a-z]*.py')) == ['config', 'data', 'learner', 'loss', 'model', 'predict'], 'the same rooms as everywhere'
    subprocess.run([sys.executable, *'-m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --target'.split(), str(target), str(source)], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(target))
        yield target
    for name in [n for n in sys.modules if n.partition('.')[0] == 'colour']: del sys.modules[name]


@pytest.fixture(scope='module')
def data(installed, tmp_path_factory):
    from colour.data import make_colours
    folder = tmp_path_factory.mktemp('walls')
    return make_colours(folder/'train', 48, 1).parent, make_colours(folder/'test', 12, 2)


def words(data, out, name, *more):
    return ['train', 'colour', '--images-root', f'{data[0]}/train', '--output-dir', str(out), '--name', name, '--epochs', '4', '--num-workers', '0', '--device', 'cpu', '--no-tensorboard', *map(str, more)]


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    "A run of four epochs that nobody disturbed; a checkpoint of each epoch is kept"
    out = tmp_path_factory.mktemp('runs')
    assert main(words(data, out, 'whole', '--save-checkpoints')) == 0
    return out/'whole'


def test_announced_and_not_imported(installed):
    code = 'import sys; from visionlab.core.systems import system_names; print(system_names(), "colour.learner" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(installed)!r}); {code}'], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"{sorted(['colour', *five])} False"


def test_brings_what_the_five_bring(installed, capsys):
    given = lambda name: {p for p in SYSTEM_PARTS if getattr(find_system(name), p)}
    needed = set.intersection(*map(given, five))
    assert given('colour') == needed
    for part in needed: assert callable(find_system('colour').load(part))
    assert main(['--help']) == 0 and find_system('colour').title in capsys.readouterr().out


def test_trains_and_leaves_what_every_run_leaves(run):
    assert {'best.pth', 'latest.pth', 'config.json', 'history.csv', 'report.txt'} <= {p.name for p in run.iterdir()}
    rows = list(csv.DictReader(open(run/'history.csv', encoding='utf-8')))
    assert len(rows) == 4 and {'train_hue', 'train_light', 'near', 'levels_off'} <= set(rows[0])
    assert float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_is_bit_identical(run, data, tmp_path, workers):
    "After the second epoch a run dies; what is left of it is one checkpoint"
    left = tmp_path/'second.pth'
    left.write_bytes((run/'epoch-0002.pth').read_bytes())
    assert load_checkpoint(left)['epoch'] == 2
    torch.manual_seed(99)
    assert main(['train', 'colour', '--resume-checkpoint', str(left), '--output-dir', str(tmp_path/'on'), '--num-workers', str(workers)]) == 0
    ends = [load_checkpoint(folder/'latest.pth') for folder in (run, tmp_path/'on/whole')]
    for ck in ends: ck['stopper'].pop('seconds')
    same(*ends)


def test_a_resume_that_does_not_fit_is_a_line(run, capsys):
    assert main(['train', 'colour', '--resume-checkpoint', str(run/'latest.pth'), '--width', '7']) == 2
    assert '"width" 16 -> 7' in capsys.readouterr().err


def test_evaluate(run, data, tmp_path, capsys):
    assert main(['evaluate', str(run/'best.pth'), '--data', str(data[1]), '--batch-size', '5', '--save', str(tmp_path/'figures.json')]) == 0
    figures = json.loads((tmp_path/'figures.json').read_text())
    assert f"{figures['levels_off']:.1f}" in capsys.readouterr().out and 0 < figures['levels_off'] < 128
    assert main(['evaluate', str(run/'best.pth'), '--beam', '4']) == 2 and '--beam' in capsys.readouterr().err


def test_predict(run, data, tmp_path, capsys):
    assert main(['predict', str(run/'best.pth'), '--source', str(data[1]), '--output-dir', str(tmp_path), '--text', '--batch-size', '4']) == 0
    rows = [json.loads(line) for line in open(tmp_path/'predictions.jsonl', encoding='utf-8')]
    assert len(rows) == 12 and all(len(r['colour']) == 3 for r in rows)
    assert {p.name for p in tmp_path.glob('0*.jpg')} == {f'{i:03}.jpg' for i in range(12)} and (tmp_path/'res_000.txt').read_text().startswith('#')
    alone = load_predictor(run/'best.pth', 'cpu')(data[1]/'000.png')
    assert alone.to_dict()['colour'] == pytest.approx(rows[0]['colour'], abs=.2)


def test_an_option_it_does_not_know_is_a_line(run, data, tmp_path, capsys):
    assert main(['predict', str(run/'best.pth'), '--source', str(data[1]), '--output-dir', str(tmp_path), '--tile', '512']) == 2
    assert '--tile' in capsys.readouterr().err


def test_check(data, tmp_path, capsys):
    (tmp_path/'colours.csv').write_text(f'missing.png,1,2,3\nodd\n')
    assert main(['check', 'colour', str(tmp_path), '--save', str(tmp_path/'report.txt')]) == 0
    out = capsys.readouterr().out
    assert 'line without an image' in out and 'bad line' in out and (tmp_path/'report.txt').read_text().strip() in out.strip()


def test_demo(installed, tmp_path, capsys):
    assert main(['demo', 'colour', '--output-dir', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'On 40 unseen images' in out and Path(re.search(r'picture: (.*)', out)[1]).is_file()


def test_leaves_python_and_loses_channels(run, data, tmp_path, capsys):
    "Neither is written anywhere in the package: a system that needs nothing special has both"
    for package in ('onnx', 'onnxruntime', 'onnxscript', 'torch_pruning'): pytest.importorskip(package, reason=f'needs {package}: pip install visionlab[deploy]')
    assert main(['export', str(run/'best.pth'), '--output', str(tmp_path/'best.onnx')]) == 0
    assert main(['evaluate', str(tmp_path/'best.onnx'), '--data', str(data[1])]) == 0
    assert main(['prune', str(run/'best.pth'), '--output', str(tmp_path/'small.pth'), '--sparsity', '.5']) == 0
    whole, small = (sum(w.numel() for w in load_checkpoint(p)['model'].values()) for p in (run/'best.pth', tmp_path/'small.pth'))
    assert small < .6*whole and len(load_predictor(tmp_path/'small.pth', 'cpu')(data[1]/'000.png').to_dict()['colour']) == 3


def test_gone_again(): assert set(five) <= set(system_names())


@pytest.mark.parametrize('name', five)
def test_the_same_things_are_called_the_same(name):
    "What the front door of each system offers, and the headings that its chapter on training shares with the others, in their order"
    door, word = importlib.import_module(f'visionlab.{name}'), dict(pan='PAN', fots='FOTS', segmentation='Segmentation', multilabel='Multilabel', frcnn='FRCNN')[name]
    for n in (f'{name}_system', f'{name}_samples', f'{name}_dataloaders', f'show_{name}_batch', f'{name}_model', f'{name}_learner', f'{name}_predictor', f'evaluate_{name}', f'{name}_demo',
              f'{word}Items', f'{word}Evaluator', f'{word}Evaluation'): assert callable(getattr(door, n)) or n == f'{name}_system', n
    long = 'FasterRCNN' if name == 'frcnn' else word      # the name that its users gave it
    for n in (f'{long}Config', f'{long}Trainer', f'{long}Loss'): assert n in dir(door) or (name, n) == ('multilabel', 'MultilabelLoss'), n      # two losses there, chosen by `multilabel_loss`
    (chapter,) = (root/'nbs'/name).glob('*_learner.ipynb')
    text = '\n'.join(''.join(c['source']) for c in json.loads(chapter.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown')
    shared = ['Judging an epoch', 'Scores of training batches', 'Pictures', 'The learner', 'The trainer', 'All together']
    found = [h for h in re.findall(r'^## (.+)$', text, re.M) if h in shared]
    assert found == [h for h in shared if h in found] and {'Judging an epoch', 'The learner', 'The trainer', 'All together'} <= set(found)
