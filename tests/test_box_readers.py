"Readers, writers and views of boxes: real sets, random damage, and every kind of bad input as one line or one entry of a report"
import json
import os
import time
import numpy as np, pytest, torch
from PIL import Image
from visionlab.core.checks import InputError
from visionlab.datasets.boxes import (BoxTransform, fit_image, get_classes, letterbox_fit, read_box_lines, read_box_samples, read_coco, read_voc, read_voc_xml,
                                      short_side_fit, usable_boxes, voc_annotation, voc_parts, write_coco_results, write_coco_truth, write_voc_results)
from visionlab.datasets.samples import Report

OBJECT = '<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'


def picture(path, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def voc(tmp_path):
    "A VOC tree of three images, without lists"
    root = tmp_path/'VOC2012'
    (root/'Annotations').mkdir(parents=True)
    for i, objects in enumerate(([('cat', 0, 1, 2, 30, 30)], [('dog', 0, 5, 5, 50, 35), ('cat', 1, 2, 2, 9, 9)], [])):
        picture(root/'JPEGImages'/f'im {i}.jpg')
        (root/'Annotations'/f'im {i}.xml').write_text(f"<annotation><filename>im {i}.jpg</filename>{''.join(OBJECT.format(*o) for o in objects)}</annotation>")
    return root


def lists(root, **parts):
    (root/'ImageSets/Main').mkdir(parents=True, exist_ok=True)
    for p, names in parts.items(): (root/'ImageSets/Main'/f'{p}.txt').write_text('\n'.join(names) + '\n')


# real sets

def test_bccd(shared):
    root = shared/'data/detection/BCCD'
    train, val = read_voc(root), read_voc(root, 'val')
    assert voc_parts(root) == ['train', 'val', 'trainval']
    assert train.names == val.names == ('Platelets', 'RBC', 'WBC') and (len(train.samples), len(val.samples)) == (205, 87)
    n = [sum((s.labels == k).sum() for d in (train, val) for s in d.samples) for k in range(3)]
    lost = [e for d in (train, val) for e in d.report.entries]
    assert sum(e.kind == 'box without area' for e in lost) == 2
    assert sum(n) + sum('left out' in str(e) for e in lost) == 3350 + 301 + 292
    for s in (*train.samples, *val.samples):
        assert np.isfinite(s.boxes).all() and (s.boxes[:, 2:] > s.boxes[:, :2]).all() and (s.boxes >= 0).all() and (s.boxes <= [640, 480, 640, 480]).all()


def test_cards_through_lines_and_coco(shared, tmp_path):
    root = shared/'data/detection/cards'
    direct = read_voc(root, 'val')
    files, report = voc_annotation(root, tmp_path)
    assert [f.name for f in files] == ['2007_train.txt', '2007_val.txt', '2007_test.txt', 'classes.txt']
    lines = read_box_samples(tmp_path/'2007_val.txt')
    coco = read_box_samples(write_coco_truth(tmp_path/'val.json', direct.samples, direct.names))
    assert direct.names == lines.names == coco.names == ('ace', 'jack', 'king', 'nine', 'queen', 'ten')
    for other in (lines, coco):
        by_name = {s.path.name: s for s in other.samples}
        for s in direct.samples:
            np.testing.assert_allclose(by_name[s.path.name].boxes, s.boxes, atol=1e-3)
            assert by_name[s.path.name].labels.tolist() == s.labels.tolist()


def test_views_of_real_boxes(shared):
    data, view = read_voc(shared/'data/detection/BCCD', 'val'), BoxTransform((240, 320))
    for i, s in enumerate(data.samples[:8]):
        x, b, l = view(s.image, s.boxes, s.labels, i)
        assert x.shape == (240, 320, 3) and len(b) == len(l) and (b >= 0).all() and (b <= [320, 240, 320, 240]).all() and (b[:, 2:] > b[:, :2]).all()


def test_odd_images(shared, tmp_path):
    "Images of every kind, whole or broken, behind one list"
    files = sorted((shared/'data/odd-images').iterdir())
    (tmp_path/'list.txt').write_text(''.join(f'{f} 0,0,5,5,0 -3,-3,2,2,0\n' for f in files))
    data = read_box_lines(tmp_path/'list.txt', ('thing',))
    lost = data.report.counts.get('unreadable image', 0)
    assert 3 <= lost <= 4 and len(data.samples) + lost + data.report.counts.get('missing image', 0) == len(files)
    one = next(s for s in data.samples if s.path.name == 'one_pixel.png')
    assert one.boxes.tolist() == [[0, 0, 1, 1]]
    for s in data.samples:
        try: image = s.image
        except InputError: continue
        for train in (True, False):
            x, b, l = BoxTransform(64, train=train)(image, s.boxes, s.labels, 3)
            assert x.shape == (64, 64, 3) and (b >= 0).all() and (b <= 64).all()


# lines

def test_lines_of_all_kinds(tmp_path):
    for n in ('a.jpg', 'my photos/b c.png', 'sub/d.JPG'): picture(tmp_path/n)
    text = ['a.jpg 1,2,30,20,0 1,2,30,20,0', 'my photos/b c.png 1.5,2.5,30.25,20,1 nan,1,2,3,0 inf,1,2,3,0 5,5,5,9,0 -9,-9,-1,-1,1 30,20,1,2,0', 'C:\\data\\sub\\d.JPG 50,30,99,99,2 1,2,3,4,x 1,2,3,4', '']
    (tmp_path/'t.txt').write_bytes(('\ufeff' + '\r\n'.join(text)).encode())
    data = read_box_lines(tmp_path/'t.txt', ['x', 'y', 'z'])
    assert [s.boxes.tolist() for s in data.samples] == [[[1, 2, 30, 20]], [[1.5, 2.5, 30.25, 20], [1, 2, 30, 20]], [[50, 30, 60, 40], [1, 2, 3, 4]]]
    assert data.report.counts == {'duplicate box': 1, 'box is not a number': 2, 'box without area': 1, 'box outside the image': 1, 'box the wrong way round': 1, 'bad box': 1, 'box clipped': 1}
    assert data.samples[2].labels.tolist() == [2, 0]
    assert all(e.line for e in data.report.entries)


def test_labels_that_count_from_one(tmp_path):
    picture(tmp_path/'a.jpg')
    (tmp_path/'t.txt').write_text('a.jpg 1,2,30,20,1 1,2,9,9,2\n')
    (tmp_path/'classes.txt').write_text('x\ny\n')
    data = read_box_lines(tmp_path/'t.txt')
    assert data.report.counts == {'unknown class': 1} and 'class 2, there are 2, from 0 to 1' in str(data.report.entries[0])


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16', 'latin-1'])
def test_encodings_of_lists(tmp_path, encoding):
    picture(tmp_path/'Bär.jpg')
    (tmp_path/'t.txt').write_bytes('Bär.jpg 1,2,30,20,0\n'.encode(encoding))
    assert len(read_box_lines(tmp_path/'t.txt').samples[0].boxes) == 1


def test_a_long_line_is_quick(tmp_path):
    picture(tmp_path/'a b.jpg')
    (tmp_path/'t.txt').write_text('a b.jpg ' + ' '.join(f'1,2,{k % 50 + 2},30,0' for k in range(5000)) + '\n' + 'gone.jpg ' + '1,2,3,4 '*500)
    start = time.perf_counter()
    assert len(read_box_lines(tmp_path/'t.txt').samples[0].boxes) == 50
    assert time.perf_counter() - start < 5


# VOC

def test_a_tree_without_lists(voc, tmp_path):
    data = read_box_samples(voc)
    assert [s.path.name for s in data.samples] == ['im 0.jpg', 'im 1.jpg', 'im 2.jpg'] and data.names == ('cat', 'dog')
    assert data.samples[1].ignore.tolist() == [False, True] and len(data.samples[2].boxes) == 0
    files, report = voc_annotation(voc, tmp_path/'out')
    assert [f.name for f in files] == ['2012_train.txt', '2012_val.txt', 'classes.txt'] and report.counts == {'difficult box': 1}
    back = [s for f in files[:2] for s in read_box_lines(f).samples]
    assert sorted(s.path.name for s in back) == ['im 0.jpg', 'im 1.jpg', 'im 2.jpg'] and sum(len(s.boxes) for s in back) == 2


def test_devkit_and_flat_folders(voc, tmp_path):
    assert len(read_box_samples(tmp_path).samples) == 3      # the folder that holds VOC2012
    flat = tmp_path/'flat'
    flat.mkdir()
    for f in (*voc.glob('JPEGImages/*'), *voc.glob('Annotations/*')): (flat/f.name).write_bytes(f.read_bytes())
    assert len(read_box_samples(flat).samples) == 3
    os.rename(flat, tmp_path/'VOC2007'); (tmp_path/'VOC2007/Annotations').mkdir()
    for f in (tmp_path/'VOC2007').glob('*.xml'): f.rename(tmp_path/'VOC2007/Annotations'/f.name)
    with pytest.raises(InputError, match='VOC2007/ and VOC2012/: give one of them'): read_box_samples(tmp_path)


def test_numbers_do_not_depend_on_the_part(voc):
    lists(voc, train=['im 0'], val=['im 1'])
    assert read_voc(voc).names == read_voc(voc, 'val').names == ('cat', 'dog')
    assert read_voc(voc, 'val').samples[0].labels.tolist() == [1, 0]
    (voc/'classes.txt').write_text('dog\ncat\n')
    assert read_voc(voc, 'val').samples[0].labels.tolist() == [0, 1]


def test_subset_of_classes_keeps_the_images(voc):
    data = read_box_samples(voc, names=('dog',))
    assert len(data.samples) == 3 and sum(len(s.boxes) for s in data.samples) == 1 and data.report.counts == {'unknown class': 2}


BOMB = '<!DOCTYPE a [<!ENTITY a0 "hahaha">' + ''.join(f'<!ENTITY a{k+1} "{f"&a{k};"*10}">' for k in range(12)) + ']>'


@pytest.mark.parametrize('text, message', [
    (BOMB + '<annotation><filename>&a12;</filename></annotation>', 'DOCTYPE'),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', 'DOCTYPE'),
    ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>', 'DOCTYPE'),
    ('<annotation>&nbsp;</annotation>', 'no valid XML'), ('<annotation>', 'no valid XML'), ('', 'no valid XML'), ('\0\1\2', 'no valid XML'),
    ('<?xml version="1.0" encoding="klingon"?><annotation', 'no valid XML'), ('<kml/>', '<kml>'),
], ids=range(9))
def test_hostile_xml(tmp_path, text, message):
    (tmp_path/'a.xml').write_text(text)
    start = time.perf_counter()
    with pytest.raises(InputError) as e: read_voc_xml(tmp_path/'a.xml')
    assert message in str(e.value) and '\n' not in str(e.value) and time.perf_counter() - start < 1


def test_a_bomb_in_a_tree_costs_one_image(voc):
    (voc/'Annotations/im 0.xml').write_text(BOMB + '<annotation><filename>&a12;</filename></annotation>')
    data = read_box_samples(voc)
    assert len(data.samples) == 2 and data.report.counts == {'unreadable annotation': 1}


def test_deep_and_large_xml(tmp_path):
    (tmp_path/'deep.xml').write_text('<annotation>' + '<a>'*20000 + '</a>'*20000 + '</annotation>')
    assert read_voc_xml(tmp_path/'deep.xml').objects == []
    with open(tmp_path/'large.xml', 'wb') as f: f.truncate(17 << 20)
    with pytest.raises(InputError, match='too much'): read_voc_xml(tmp_path/'large.xml')


@pytest.mark.parametrize('inner, kept, bad', [
    ('<object><name>a</name></object>', 0, 1), ('<object><bndbox/></object>', 0, 1), ('<object><name> </name></object>', 0, 1),
    (OBJECT.format('a', 0, 'x', 1, 2, 3), 0, 1), (OBJECT.format('a', 0, '', 1, 2, 3), 0, 1), (OBJECT.format('a', '', 0, 1, 2, 3), 1, 0),
    ('<object><name>a</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><bndbox><ymax>9</ymax><xmax>8</xmax><ymin>2</ymin><xmin>1</xmin></bndbox></object>', 1, 0),
])
def test_objects_of_all_kinds(tmp_path, inner, kept, bad):
    (tmp_path/'a.xml').write_text(f'<annotation><size><width>x</width></size>{inner}</annotation>')
    a = read_voc_xml(tmp_path/'a.xml')
    assert (len(a.objects), len(a.bad), a.size) == (kept, bad, None)


# COCO

def coco_file(tmp_path, **changes):
    picture(tmp_path/'images/a.jpg')
    d = dict(images=[dict(id=5, file_name='a.jpg')], categories=[dict(id=3, name='cat'), dict(id=90, name='dog')], annotations=[dict(image_id=5, category_id=90, bbox=[1, 2, 10, 12])])
    (tmp_path/'ann.json').write_text(json.dumps({**d, **changes}))
    return tmp_path/'ann.json'


@pytest.mark.parametrize('entry, kind', [
    (dict(category_id=3, bbox=[1, 1, 2, 2]), 'bad entry'), (dict(image_id=5, bbox=[1, 1, 2, 2]), 'bad entry'), (dict(image_id=5, category_id=3), 'bad entry'),
    (dict(image_id=5, category_id=3, bbox=None), 'bad entry'), (dict(image_id=5, category_id=3, bbox='1234x'), 'bad box'), (dict(image_id=5, category_id=3, bbox=[1, 2, 3]), 'bad box'),
    (dict(image_id=5, category_id=3, bbox=7), 'bad box'), (dict(image_id=6, category_id=3, bbox=[1, 1, 2, 2]), 'box without image'), (dict(image_id=5, category_id=0, bbox=[1, 1, 2, 2]), 'unknown class'),
    (dict(image_id=5, category_id=3, bbox=[1, 1, 0, 2]), 'box without area'), (dict(image_id=5, category_id=3, bbox=[1, 1, -3, 2]), 'box the wrong way round'),
    (dict(image_id=[5], category_id=3, bbox=[1, 1, 2, 2]), 'bad entry'), (17, 'bad entry'), (None, 'bad entry'),
])
def test_bad_coco_annotations_are_counted(tmp_path, entry, kind):
    good = dict(image_id=5, category_id=90, bbox=[1, 2, 10, 12])
    data = read_coco(coco_file(tmp_path, annotations=[entry, good]))
    assert kind in data.report.counts and [1, 2, 11, 14] in data.samples[0].boxes.tolist() and data.names == ('cat', 'dog')


@pytest.mark.parametrize('changes', [dict(images=None), dict(annotations={}), dict(categories=[]), dict(categories=[dict(name='cat')]), dict(images=[]), dict(images=[3]), dict(images=[dict(id=5, file_name='gone.jpg')])])
def test_unusable_coco_is_one_line(tmp_path, changes):
    with pytest.raises(InputError) as e: read_coco(coco_file(tmp_path, **changes))
    assert '\n' not in str(e.value) and 'ann.json' in str(e.value)


def test_results_of_images_with_the_same_name(tmp_path):
    for f in ('a', 'b'): picture(tmp_path/f/'1.jpg')
    d = dict(images=[dict(id=5, file_name='a/1.jpg'), dict(id=9, file_name='b/1.jpg')], categories=[dict(id=3, name='cat')], annotations=[dict(image_id=i, category_id=3, bbox=[1, 2, 10, 12]) for i in (5, 9)])
    (tmp_path/'ann.json').write_text(json.dumps(d))
    data = read_coco(tmp_path/'ann.json')
    preds = [([[1, 2, 11, 14]], [0], [.5]), ([[3, 2, 11, 14]], [0], [.6])]
    found = json.loads(write_coco_results(tmp_path/'found.json', data.samples, preds, data.names, truth=tmp_path/'ann.json').read_text())
    assert [f['image_id'] for f in found] == [5, 9]
    lines = write_voc_results(tmp_path/'r', data.samples, preds, data.names)[0].read_text().splitlines()
    assert [l.split()[0] for l in lines] == ['a/1', 'b/1']
    files = write_voc_results(tmp_path/'r', data.samples, [([], [], [])]*2, ('a b', 'a/b'))
    assert len(set(files)) == 2
    (tmp_path/'flat.json').write_text(json.dumps(dict(d, images=[dict(m, file_name='1.jpg') for m in d['images']])))
    with pytest.raises(InputError, match='several times'): write_coco_results(tmp_path/'found.json', data.samples, preds, data.names, truth=tmp_path/'flat.json')


def test_parts_of_coco_share_an_images_folder(tmp_path):
    for part in ('train', 'val'):
        picture(tmp_path/f'coco/{part}2017/{part}.jpg')
        (tmp_path/f'instances_{part}2017.json').write_text(json.dumps(dict(images=[dict(id=1, file_name=f'{part}.jpg'), dict(id=2)], categories=[dict(id=3, name='cat')], annotations=[dict(image_id=i, category_id=3, bbox=[1, 2, 10, 12]) for i in (1, 2, 2)])))
        data = read_coco(tmp_path/f'instances_{part}2017.json', tmp_path/'coco')
        assert data.samples[0].path.name == f'{part}.jpg' and data.report.counts == {'bad entry': 1, 'box without image': 2} and '1 of 2 images' in data.report.summary()


def test_coco_images_folder(tmp_path):
    file = coco_file(tmp_path)
    (tmp_path/'images').rename(tmp_path/'elsewhere')
    with pytest.raises(InputError, match='missing image'): read_coco(file)
    assert len(read_coco(file, tmp_path/'elsewhere').samples) == 1
    assert len(read_box_samples(file, images_folder=tmp_path/'elsewhere').samples) == 1


def test_results_are_what_coco_scores(tmp_path):
    from visionlab.metrics.detection import coco_stats
    data = read_coco(coco_file(tmp_path))
    preds = [(torch.tensor(data.samples[0].boxes), torch.tensor(data.samples[0].labels), torch.tensor([.9]))]
    found = write_coco_results(tmp_path/'found.json', data.samples, preds, data.names, truth=tmp_path/'ann.json')
    assert coco_stats(tmp_path/'ann.json', found).ap50 == 1
    truth = write_coco_truth(tmp_path/'truth.json', data.samples, data.names)
    assert coco_stats(truth, write_coco_results(tmp_path/'found.json', data.samples, preds, data.names)).ap == pytest.approx(1)
    assert [f.name for f in write_voc_results(tmp_path/'r', data.samples, preds, ('cat', 'a/b'))] == ['comp3_det_test_cat.txt', 'comp3_det_test_a_b.txt']


# boxes and views

@pytest.mark.parametrize('seed', range(20))
def test_random_damage_never_passes(seed):
    rng, report = np.random.default_rng(seed), Report()
    b = rng.uniform(-50, 150, (40, 4)).round()
    b[rng.random((40, 4)) < .05] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
    out, l, d = usable_boxes(b, (100, 80), rng.integers(0, 3, 40), rng.random(40) < .2, report, 'x')
    assert len(out) == len(l) == len(d) and np.isfinite(out).all() and (out[:, 2:] > out[:, :2]).all() and (out >= 0).all() and (out <= [100, 80, 100, 80]).all()
    assert len(out) + sum(n for k, n in report.counts.items() if k not in ('box clipped', 'box the wrong way round')) == 40


def test_a_box_that_vanishes_in_float32():
    out = usable_boxes([[1e7, 0, 1e7 + .1, 5]], (20_000_000, 10), [0], [0], Report(), 'x')[0]
    assert (out[:, 2:] > out[:, :2]).all()


@pytest.mark.parametrize('size', [(1, 1), (3, 4000), (640, 480), (481, 639)])
@pytest.mark.parametrize('make', [lambda w, h: letterbox_fit(w, h, (300, 420)), short_side_fit])
def test_there_and_back(size, make):
    fit = make(*size)
    b = np.sort(np.random.default_rng(0).uniform(0, 1, (30, 2, 2)), 1).reshape(30, 4)*[*size, *size]
    np.testing.assert_allclose(fit.undo(fit.apply(b)), b, atol=2e-3*max(1, size[1]/500))
    assert fit_image(np.zeros((size[1], size[0], 3), np.uint8), fit).shape == (fit.size[1], fit.size[0], 3)
    inside = fit.apply(np.array([[0, 0, *size]]))[0]
    assert (inside >= 0).all() and inside[2] <= fit.size[0] and inside[3] <= fit.size[1]


def test_short_side_rule():
    assert short_side_fit(500, 375).size == (800, 600) and short_side_fit(1000, 400).size == (1000, 400) and short_side_fit(100, 300).size == (333, 1000)


def test_views_are_the_same_in_any_process():
    from torch.utils.data import DataLoader
    image, boxes = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8), np.array([[10, 10, 60, 60]], np.float32)
    class Views(torch.utils.data.Dataset):
        view = BoxTransform(64)
        def __len__(self): return 6
        def __getitem__(self, i):
            x, b, l = self.view(image, boxes, [0], i)
            return torch.tensor(x), torch.tensor(b).sum()
    here, there = list(Views()[i] for i in range(6)), list(DataLoader(Views(), num_workers=2, batch_size=None))
    for a, b in zip(here, there): torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(here[0][0], here[1][0])


def test_get_classes_takes_odd_files(tmp_path):
    (tmp_path/'c.txt').write_bytes('\ufeffcat \r\n\r\n dog'.encode())
    assert get_classes(tmp_path/'c.txt') == (['cat', 'dog'], 2)
    with pytest.raises(FileNotFoundError): get_classes(tmp_path/'d.txt')


def test_lines_are_written_whole_or_not_at_all(voc, tmp_path, monkeypatch):
    out = tmp_path/'out'
    voc_annotation(voc, out)
    before = {f.name: f.read_text() for f in out.iterdir()}
    import visionlab.datasets.boxes as B
    def fails(sample): raise OSError('no space')
    monkeypatch.setattr(B, '_box_line', fails)
    with pytest.raises(OSError): voc_annotation(voc, out)
    assert {f.name: f.read_text() for f in out.iterdir()} == before


def test_convert_from_the_command_line(voc, tmp_path, capsys):
    from visionlab.cli.app import main
    lists(voc, train=['im 0', 'im 1'], val=['im 2'])
    assert main(['convert', 'voc', str(voc), '--output-dir', str(tmp_path/'out')]) == 0
    assert sorted(f.name for f in (tmp_path/'out').iterdir()) == ['2012_train.txt', '2012_val.txt', 'classes.txt'] and 'difficult box' in capsys.readouterr().out
    (tmp_path/'names.txt').write_text('dog\ncat\n')
    assert main(['convert', 'voc', str(voc), '--output-dir', str(tmp_path/'out'), '--classes-path', str(tmp_path/'names.txt')]) == 0
    assert (tmp_path/'out/2012_train.txt').read_text().splitlines()[0].endswith(' 1,2,30,30,1')
    capsys.readouterr()
    for words in (['convert'], ['convert', 'coco', 'x'], ['convert', 'voc'], ['convert', 'voc', str(tmp_path/'nowhere')], ['convert', 'voc', str(tmp_path/'out')], ['convert', 'voc', str(voc), '--val-ratio', '2'],
                  ['convert', 'voc', str(voc), '--classes-path', 'nowhere.txt'], ['convert', 'voc', str(voc), '--output-dir', str(tmp_path/'names.txt')]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1, err
