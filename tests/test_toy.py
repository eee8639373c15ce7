"""Toy scenes: the same everywhere, labels that fit the ink, splits that share nothing, sets that survive being cut off; and checks of data sets."""
import json
import subprocess
import sys
import numpy as np
import pytest
from PIL import Image

from visionlab.core.checks import InputError
from visionlab.datasets.checks import check_text_data
from visionlab.datasets.readers import read_icdar
from visionlab.datasets import toy
from visionlab.datasets.toy import WORDS, make_toy_text, threshold_baseline, toy_text_page, toy_text_scene, toy_word
from visionlab.metrics.text import text_hmean


@pytest.fixture(scope='module')
def scenes(): return {s: [toy_text_scene(i, s) for i in range(60)] for s in ('train', 'test')}


def test_a_scene_depends_on_split_and_index_alone():
    code = "import sys, hashlib; from visionlab.datasets.toy import toy_text_scene as t; a = t(int(sys.argv[1]), 'test'); print(hashlib.sha1(a[0].tobytes()).hexdigest(), a[2])"
    fresh = subprocess.run([sys.executable, '-c', code, '7'], capture_output=True, text=True, check=True).stdout
    np.random.seed(1); [toy_text_scene(i) for i in (3, 1)]
    import hashlib
    image, _, texts, _ = toy_text_scene(7, 'test')
    assert fresh.strip() == f'{hashlib.sha1(image.tobytes()).hexdigest()} {texts}'
    assert (toy_text_scene(8, 'test')[0] != image).any() and (toy_text_scene(7, 'train')[0] != image).any()


def test_no_word_is_in_both_splits(scenes):
    assert not set(WORDS['train']) & set(WORDS['test'])
    rng = np.random.default_rng(0)
    drawn = {s: {toy_word(rng, s).lower() for _ in range(4000)} for s in WORDS}
    assert not drawn['train'] & drawn['test']


def test_clear_scenes(tmp_path, monkeypatch):
    "The same words, not one small letter and no wire; a clear set is another set"
    for draw in (toy_text_scene, toy_text_page):
        plain, loud = draw(3)[2], draw(3, clear=True)[2]
        assert plain[0].upper() == loud[0] and any(c.islower() for t in plain for c in t) and not any(c.islower() for t in loud for c in t)
    drawn = []
    monkeypatch.setattr(toy, '_draw_wires', lambda rng, image: drawn.append(image))
    for draw in (toy_text_scene, toy_text_page): draw(3, clear=True)
    assert not drawn
    for draw in (toy_text_scene, toy_text_page): draw(3)
    assert len(drawn) == 2
    monkeypatch.undo()
    make_toy_text(tmp_path/'toy', n_train=3, n_test=1, size=128)
    make_toy_text(tmp_path/'toy', n_train=3, n_test=1, size=128, pages=2, clear=True)
    labels = ''.join(p.read_text() for p in (tmp_path/'toy').rglob('gt_*.txt'))
    assert any(c.isupper() for c in labels) and not any(c.islower() for c in labels)


def test_labels(scenes):
    "Clockwise, inside the image, 10 px or higher where they count, one text and flag each"
    for image, polys, texts, ignore in scenes['train'] + scenes['test']:
        assert image.shape == (320, 320, 3) and image.dtype == np.uint8
        assert len(polys) == len(texts) == len(ignore) and [t == '###' for t in texts] == ignore.tolist()
        for q, skip in zip(polys, ignore):
            x, y = q.T
            assert q.shape == (4, 2) and x @ np.roll(y, -1) > y @ np.roll(x, -1)
            assert q.min() > -.01 and q.max() < 320.01
            assert skip or min(np.hypot(*(q[1] - q[0])), np.hypot(*(q[2] - q[1]))) > 9.8


def test_the_set_holds_every_hard_case(scenes):
    from visionlab.geometry.polygons import pairwise_intersection
    for split, some in scenes.items():
        quads = [q for _, p, _, g in some for q, skip in zip(p, g) if not skip]
        angles = np.array([abs(np.degrees(np.arctan2(*(q[1] - q[0])[::-1]))) for q in quads])
        heights = np.array([np.hypot(*(q[2] - q[1])) for q in quads])
        near = 0
        for _, p, _, _ in some:
            grown = [q + (q - q.mean(0)) * .08 for q in p]
            if p: near += int(((pairwise_intersection(grown, grown)[2] > 0).sum(0) > 1).sum())
        assert ((angles > 10) & (angles < 35)).mean() > .2 and (angles > 55).sum() >= 5
        assert (heights < 14).mean() > .03 and (heights > 30).mean() > .1
        assert near > .06 * len(quads)
        assert 1 <= sum(not p for _, p, _, _ in some) <= 15
        assert .02 < np.mean([t == '###' for _, _, ts, _ in some for t in ts]) < .25


def test_the_baseline_stays_below_030(scenes):
    for split, some in scenes.items():
        found = [threshold_baseline(s[0]) for s in some]
        assert .05 < text_hmean(found, [s[1] for s in some], [s[3] for s in some]).hmean < .3


def test_the_baseline_is_no_straw_man():
    "On black words on white paper it finds nearly all"
    from PIL import ImageDraw
    from visionlab.datasets.toy import _font, _ink
    page, truth = Image.new('RGB', (400, 300), 'white'), []
    for i, word in enumerate(('Harbor', 'window', 'COFFEE', 'Garden', 'travel')):
        x, y = 30 + 40 * i, 20 + 52 * i
        ImageDraw.Draw(page).text((x, y), word, 'black', font=_font('DejaVuSans', 28))
        l, t, r, b = _ink(word, 'DejaVuSans', 28)
        truth.append(np.array([(x + l, y + t), (x + r, y + t), (x + r, y + b), (x + l, y + b)], float))
    assert text_hmean([threshold_baseline(np.array(page))], [truth]).recall >= .8
    assert threshold_baseline(np.full((64, 64, 3), 128, np.uint8)) == []


@pytest.mark.parametrize('size', [64, (96, 200), (640, 360)])
def test_sizes(size):
    w, h = (size, size) if isinstance(size, int) else size
    for i in range(4):
        image, polys, _, _ = toy_text_scene(i, size=size)
        assert image.shape == (h, w, 3) and all((q >= -.01).all() and (q <= (w + .01, h + .01)).all() for q in polys)


@pytest.mark.parametrize('bad', [dict(split='val'), dict(size=10), dict(size=(320, 0)), dict(size=1e9)])
def test_bad_arguments(bad):
    with pytest.raises(InputError): toy_text_scene(0, **bad)


# ---- on disk

def test_a_set_is_written_once_and_reads_back(tmp_path):
    folder = make_toy_text(tmp_path/'toy', n_train=5, n_test=3, size=128)
    when = {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}
    assert make_toy_text(folder, n_train=5, n_test=3, size=128) == folder
    assert when == {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}
    samples, report = read_icdar(folder/'train')
    assert len(samples) == 5 and not set(report.counts) - {'image without text', 'only ignored text'}
    for i, s in enumerate(samples):
        _, polys, texts, ignore = toy_text_scene(i, 'train', 128)
        assert s.texts == texts and s.ignore.tolist() == ignore.tolist()
        assert all(np.abs(a - b).max() <= .51 for a, b in zip(s.polygons, polys))
    raw = (folder/'train/gt/gt_img_1.txt').read_bytes()
    assert not raw.startswith(b'\xef\xbb\xbf') and b'\r' not in raw


def test_a_half_written_set_is_completed(tmp_path):
    folder = make_toy_text(tmp_path/'toy', n_train=4, n_test=2, size=96)
    whole = {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*.*')}
    (folder/'toy.json').write_text(json.dumps(dict(toy='text', unfinished=True)))   # as a kill leaves it
    (folder/'train/img/img_2.jpg').write_bytes(b'half')
    (folder/'train/gt/gt_img_4.txt').unlink()
    make_toy_text(folder, n_train=4, n_test=2, size=96)
    assert whole == {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*.*')}
    make_toy_text(folder, n_train=2, n_test=1, size=96)
    assert len(list(folder.rglob('*.jpg'))) == 3


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(InputError, match='other files'): make_toy_text(tmp_path, 1, 1)
    (tmp_path/'b/train/img').mkdir(parents=True); (tmp_path/'b/train/img/img_1.jpg').write_text('mine')
    with pytest.raises(InputError, match='no toy set'): make_toy_text(tmp_path/'b', 1, 1)
    assert (tmp_path/'b/train/img/img_1.jpg').read_text() == 'mine'
    with pytest.raises(InputError, match='is a file'): make_toy_text(tmp_path/'notes.txt', 1, 1)
    with pytest.raises(InputError, match='n_train'): make_toy_text(tmp_path/'c', 0, 1)


# ---- checks

def test_check_of_real_sets(shared):
    report = check_text_data(shared/'data/text-icdar2015', decode=False)
    assert [(p.name, len(p.samples), p.words, p.ignored) for p in report.parts] == [('train', 170, 711, 1120), ('test', 40, 160, 222)]
    assert '61 %' in report.summary() and '1280x720' in report.summary()
    report = check_text_data(shared/'data/text-receipts/test')
    assert report.parts[0].words == 1501 and not report.warnings


def test_check_finds_damage(tmp_path):
    folder = make_toy_text(tmp_path/'toy', n_train=12, n_test=6, size=96)
    assert not check_text_data(folder).warnings
    (folder/'test/img/img_1.jpg').write_bytes((folder/'train/img/img_1.jpg').read_bytes())
    cut = (folder/'train/img/img_5.jpg').read_bytes()
    (folder/'train/img/img_5.jpg').write_bytes(cut[:len(cut)//2])
    report = check_text_data(folder)
    assert report.counts['same image in two parts'] == 1 and report.counts['unreadable image'] == 1
    assert any('two parts' in w for w in report.warnings) and 'WARNING' in report.summary() and 'Warning' in report._repr_html_()
    for p in (folder/'train/gt').iterdir(): p.write_text('1,1,20,1,20,20,1,20,###\n')
    assert any('no readable word' in w for w in check_text_data(folder).warnings)
    for p in (folder/'test/gt').iterdir(): p.unlink()
    report = check_text_data(folder)
    assert report.counts['part cannot be read'] == 1 and [p.name for p in report.parts] == ['train']


def test_check_of_nothing(tmp_path):
    with pytest.raises(InputError, match='no images'): check_text_data(tmp_path)
    with pytest.raises(FileNotFoundError): check_text_data(tmp_path/'gone')


def test_check_says_in_one_line_that_nothing_decodes(tmp_path):
    folder = make_toy_text(tmp_path/'toy', n_train=2, n_test=1, size=96)
    for p in (folder/'train/img').iterdir(): p.write_bytes(p.read_bytes()[:1500])
    with pytest.raises(InputError, match='can be decoded') as e: check_text_data(folder/'train')
    assert '\n' not in str(e.value)
