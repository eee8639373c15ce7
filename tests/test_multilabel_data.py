"""Label folders, tables and COCO files as people really have them; a fair division; views; the toy digits; the report."""
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visionlab.core.checks import InputError
from visionlab.datasets.label_folders import (ClassifyTransform, check_label_data, label_matrix, label_vocabulary, parse_label_folder, read_label_coco, read_label_csv, read_label_folders, read_label_parts,
                                              read_label_samples, save_label_split, split_label_samples)
from visionlab.datasets.samples import Report, Sample
from visionlab.datasets.toy_digits import make_toy_digits, toy_digit_scene


def paint(path, i=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (9, 7), (i % 256, i // 256, 77)).save(path)


# names of folders

@pytest.mark.parametrize('name, labels, kinds', [
    ('a+b', ('a', 'b'), []), ('b+a', ('a', 'b'), []), (' a + b ', ('a', 'b'), []), ('a  b+c', ('a b', 'c'), []), ('a', ('a',), []), ('_none', (), []),
    ('a++b', ('a', 'b'), ['empty name part']), ('+a', ('a',), ['empty name part']), ('+', (), ['empty name part']), ('   ', (), ['empty name part']),
    ('a+a', ('a',), ['label named twice']), ('a+ a +b', ('a', 'b'), ['label named twice']), ('a+_none', ('a',), ['no label beside a label']),
    ('Привет+мир', ('Привет', 'мир'), []), ('牛仔裤+蓝色', ('牛仔裤', '蓝色'), []), ('جينز+أزرق', ('أزرق', 'جينز'), []), ('👖+👗', ('👖', '👗'), []), ('e\u0301+é', ('é',), ['label named twice'])])
def test_folder_names(name, labels, kinds):
    got, odd = parse_label_folder(name)
    assert got == tuple(sorted(labels)) and [k for k, _ in odd] == kinds


def test_names_that_are_no_text(tmp_path):
    "Folders and files from the days of Latin-1, on a system that only knows bytes"
    import os
    folder = os.fsencode(tmp_path)+b'/set/caf\xe9'
    try: os.makedirs(folder)
    except OSError: pytest.skip('this file system takes text only')
    paint(tmp_path/'x.png'); paint(tmp_path/'set/b/x.png', 2)
    shutil.copy(os.fsencode(tmp_path/'x.png'), folder+b'/\xe9.png'); open(folder+b'/\xff.png', 'w').close()
    report = check_label_data(tmp_path/'set')
    assert report.names == ('b', 'caf\\udce9') and report.counts == {'folder name in an unknown encoding': 1, 'unreadable image': 1}
    report.save(tmp_path/'r.txt')
    assert r'caf\udce9' in (tmp_path/'r.txt').read_text(encoding='utf-8')


def test_another_word_for_no_label(tmp_path):
    for f in ('leer', 'a', '_none'): paint(tmp_path/f/f'{f}.png', len(f))
    assert {s.path.stem: s.labels for s in read_label_folders(tmp_path, none='leer')[0]} == {'leer': (), 'a': ('a',), '_none': ('_none',)}


def test_folders_of_all_kinds(tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'.hidden').mkdir(); paint(tmp_path/'.hidden'/'x.png', 1)
    paint(tmp_path/'deep+label'/'further'/'down.png', 2)
    paint(tmp_path/'b'/'img 2.PNG', 3); paint(tmp_path/'b'/'img 10.png', 4)
    (tmp_path/'b'/'notes.txt').write_text('x')
    (tmp_path/'link').symlink_to(tmp_path/'b')
    samples, report = read_label_folders(tmp_path)
    assert [(s.path.name, s.labels) for s in samples] == [('img 2.PNG', ('b', 'link')), ('img 10.png', ('b', 'link')), ('down.png', ('deep', 'label'))]
    assert report.counts == {'folder without images': 1, 'image in two folders': 2}


def test_an_image_in_two_folders(tmp_path):
    for f in ('red', 'dress', '_none', 'red+dress'): paint(tmp_path/f/'same.png', 5)
    paint(tmp_path/'red'/'again.png', 5)
    paint(tmp_path/'red'/'other.png', 6)
    samples, report = read_label_folders(tmp_path)
    assert {s.path.relative_to(tmp_path).as_posix(): s.labels for s in samples} == {'_none/same.png': ('dress', 'red'), 'red/other.png': ('red',)}
    assert report.counts == {'image in two folders': 4} and 'with the labels of both: dress, red' in report.summary(9)


def test_two_of_a_kind_in_one_folder(tmp_path):
    paint(tmp_path/'red'/'a.png', 1); paint(tmp_path/'red'/'b.png', 1)
    samples, report = read_label_folders(tmp_path)
    assert len(samples) == 1 and report.counts == {'same image twice': 1}


def test_odd_images(shared, tmp_path):
    "Every unusual picture is read, every broken one is reported by name, and the check finds those whose header is whole"
    (tmp_path/'odd').mkdir()
    for p in (shared/'data/odd-images').iterdir(): shutil.copyfile(p, tmp_path/'odd'/p.name)
    samples, report = read_label_folders(tmp_path)
    lost = {Path(e.path).name for e in report.of('unreadable image')}
    assert {'zero_byte.jpg', 'text_named_jpg.jpg'} <= lost and len(samples) + len(lost) + report.counts.get('same image twice', 0) == len(list((tmp_path/'odd').iterdir()))
    found = check_label_data(tmp_path)
    assert {Path(e.path).name for e in found.of('unreadable image')} == {'broken.png', 'truncated.png', 'zero_byte.jpg', 'text_named_jpg.jpg', 'truncated_photo.jpg', 'truncated_small.jpg'}
    from visionlab.core.files import read_image
    for s in found.parts[0].samples: assert ClassifyTransform(32)(read_image(s.path), 1).shape == (32, 32, 3), s.path.name


@pytest.mark.parametrize('make, said', [
    (lambda d: None, 'no image in a label folder'), (lambda d: paint(d/'x.png'), r'image outside the label folders \(1\)'), (lambda d: (d/'a+b').mkdir(), r'folder without images \(1\)'),
    (lambda d: paint(d/'+'/'x.png'), r'folder name without a label')])
def test_nothing_to_read(make, said, tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match=said): read_label_folders(tmp_path)


# tables

@pytest.fixture
def pictures(tmp_path):
    for i in range(4): paint(tmp_path/'img'/f'{i}.png', i)
    return tmp_path


def table(folder, text, name='t.csv', encoding='utf-8'):
    (folder/name).write_bytes(text.encode(encoding))
    return folder/name


@pytest.mark.parametrize('text', [
    'file,labels\nimg/0.png,b a\nimg/1.png,\n', 'file,labels\r\nimg/0.png,a b\r\nimg/1.png\r\n\r\n', '\ufefffile,labels\nimg/0.png,b  a a\nimg/1.png, \n', 'Labels;File\na;img/0.png\nb;img/0.png\n;img/1.png\n',
    'image\ttags\nimg/0.png\ta b\nimg/1.png\t\n', 'fname,labels\n"img/0.png","b;a"\nimg/1.png,\n', 'filename,label\nimg\\0.png,a+b\nimg/1.png,_none\n', 'file,labels\n/old/place/img/0.png,a|b\nimg/1.png,\n',
    'file,labels\nimg/0.png,"a, b"\nimg/1.png,\n', 'file,labels\nimg/0.png,"[\'b\', \'a\']"\nimg/1.png,[]\n', 'file,labels\nimg/0.png,a b,,\nimg/1.png,,\n'])
def test_tables(text, pictures):
    samples, report = read_label_csv(table(pictures, text))
    assert [(s.path.name, s.labels) for s in samples] == [('0.png', ('a', 'b')), ('1.png', ())] and not len(report)


def test_utf16_and_other_scripts(pictures):
    assert [s.labels for s in read_label_csv(table(pictures, 'file,labels\nimg/0.png,синий джинсы\n', encoding='utf-16'))[0]] == [('джинсы', 'синий')]


@pytest.mark.parametrize('text, said', [
    ('file,labels,width\nimg/0.png,a,5\n', "column 'width' is not known"), ('file,lables\nimg/0.png,a\n', "Did you mean 'labels'"), ('file\nimg/0.png\n', "no column 'labels'"), ('', 'is empty'),
    ('file,labels\n', 'no line below the first'), ('file,labels\nimg/0.png,[a b]\n', "line 2: .* is none"), ('file,labels\nimg/0.png,[5+]\n', 'line 2'), ('file,labels\nimg/0.png,a,b\n', r'line with too many fields \(1\)'),
    ('file,labels\nimg/0.png,"' + 'a'*200_000 + '"\n', 'no table of labels, line 2'), ('file,la\rbels\n', 'no table'), ('img/0.png,a\n', 'The first line of a table'),
    ('file,image,labels\na,b,c\n', 'two columns say the file'), ('file,labels\nx.png,a\n', r'missing image \(1\)'), ('file,labels,part\nimg/0.png,a,dev\n', 'line 2: a part is train, val or test'), ('file,labels\n', 'no image that can be used')])
def test_tables_that_cannot_be_read(text, said, pictures):
    with pytest.raises(InputError, match=said) as e: read_label_csv(table(pictures, text))
    assert 't.csv' in str(e.value)


def test_a_missing_file_is_told_with_its_line(pictures):
    samples, report = read_label_csv(table(pictures, 'file,labels\nimg/0.png,a\nimg/gone.png,a\n,b\nimg/1.png,b\n'))
    assert len(samples) == 2 and [e.line for e in report.of('missing image')] == [3, 4]


def test_fields_too_many_are_told_and_numbers_of_lines_are_those_of_the_file(pictures):
    samples, report = read_label_csv(table(pictures, 'file,labels\nimg/0.png,"a\nb"\nimg/1.png,a,b\nimg/2.png,b\nimg/gone.png,b\n'))
    assert [s.path.name for s in samples] == ['0.png', '2.png'] and [(e.kind, e.line) for e in report.entries] == [('line with too many fields', 4), ('missing image', 6)]


def test_parts_of_a_table(pictures):
    t = table(pictures, 'file,labels,is_valid\nimg/0.png,a,False\nimg/1.png,b,True\nimg/2.png,a,\nimg/0.png,a,True\n')
    parts, report = read_label_parts(t)
    assert {k: [s.path.name for s in v] for k, v in parts.items()} == dict(train=['0.png', '2.png'], val=['1.png']) and report.counts == {'image in two parts': 1}
    with pytest.raises(InputError, match='say which one'): read_label_samples(t)
    with pytest.raises(InputError, match="there is no 'test'"): read_label_samples(t, part='test')


def test_coco(pictures):
    d = dict(images=[dict(id=i, file_name=f'{i}.png') for i in (0, 1, 9)], categories=[dict(id=1, name='a'), dict(id=2, name='b b')], annotations=[dict(image_id=0, category_id=c) for c in (2, 1, 2)] + [dict(image_id=1, category_id=8)])
    for where in (pictures, pictures/'img', pictures/'annotations'):
        where.mkdir(exist_ok=True)
        name = where/'instances_img.json'
        name.write_text(json.dumps(d))
        if where == pictures: samples, report = read_label_coco(name, root=pictures/'img')
        else: samples, report = read_label_coco(name)
        assert [(s.path.name, s.labels) for s in samples] == [('0.png', ('a', 'b b')), ('1.png', ())] and report.counts == {'annotation without image or category': 1, 'missing image': 1}
    for bad, said in (({}, "no list 'images'"), ([], 'no list'), ({**d, 'images': [dict(id=3)]}, "'file_name' is missing"), ({**d, 'images': [dict(id=0, file_name='no.png')]}, 'missing image')):
        name.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=said): read_label_coco(name)


def test_names_have_one_form_in_every_format(pictures):
    d = dict(images=[dict(id=0, file_name='img/0.png')], categories=[dict(id=1, name=' cafe\u0301  noir')], annotations=[dict(image_id=0, category_id=1)])
    (pictures/'c.json').write_text(json.dumps(d))
    assert read_label_coco(pictures/'c.json')[0][0].labels == ('caf\u00e9 noir',) == parse_label_folder('cafe\u0301 noir')[0]


# parts

def test_a_label_called_train(tmp_path):
    paint(tmp_path/'train'/'loco.png', 1); paint(tmp_path/'test'/'tube.png', 2)
    assert label_vocabulary(read_label_parts(tmp_path)[0]['']) == ('test', 'train')
    for p in ('Train', 'validation'): paint(tmp_path/'parts'/p/'a+b'/'x.png', len(p))
    assert list(read_label_parts(tmp_path/'parts')[0]) == ['train', 'val']


def test_folders_beside_the_parts_are_told(tmp_path):
    "A label folder, a second folder of the same part and a loose picture beside train/ and val/ are left out, and a picture in train/ makes no label of it"
    for i, p in enumerate(('train/a', 'val/a', 'valid/b', 'c')): paint(tmp_path/p/'x.png', i)
    for i, p in enumerate(('loose.png', 'train/sheet.png')): paint(tmp_path/p, 9 + i)
    parts, report = read_label_parts(tmp_path)
    assert {k: [s.labels for s in v] for k, v in parts.items()} == dict(train=[('a',)], val=[('a',)])
    assert report.counts == {'folder beside the parts': 2, 'image outside the label folders': 2} and {Path(e.path).name for e in report.entries} == {'valid', 'c', 'loose.png', 'sheet.png'}
    with pytest.raises(InputError, match=f"there is no 'test', for instance '{tmp_path}/train'"): read_label_samples(tmp_path, part='test')


# division

def labelled(n, p, seed):
    rng = np.random.default_rng(seed)
    return [Sample(Path(f'{i}'), labels=tuple(f'{j:02}' for j, q in enumerate(p) if rng.random() < q)) for i in range(n)]


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('ratio', [.1, .25, .5, .8])
def test_division(seed, ratio):
    samples = labelled(211, (.6, .4, .3, .15, .1, .05, .02, .01), seed)
    a, b = split_label_samples(samples, ratio, seed)
    assert len(a) + len(b) == 211 and not {s.path for s in a} & {s.path for s in b} and abs(len(b) - 211*ratio) <= 4
    all_, part = Counter(n for s in samples for n in s.labels), Counter(n for s in b for n in s.labels)
    for n, k in all_.items(): assert abs(part[n] - ratio*k) <= 2, (n, k, part[n])
    assert [s.path for s in split_label_samples(samples, ratio, seed)[1]] == [s.path for s in b]


def test_division_at_its_limits():
    assert split_label_samples([], .5) == ([], []) and [len(x) for x in split_label_samples(labelled(1, (.5,), 0), .5)] == [1, 0]
    assert [len(x) for x in split_label_samples(labelled(20, (.5,), 0), 0)] == [20, 0]
    assert [len(x) for x in split_label_samples(labelled(20, (), 0), .25)] == [15, 5], 'images without labels are divided as well'
    single = [Sample(Path(str(i)), labels=('all',) + (f'only{i}',)*(i < 5)) for i in range(50)]
    a, _ = split_label_samples(single, .1)
    assert set(label_vocabulary(single)) == set(label_vocabulary(a)), 'what occurs once stays where it can be learned'
    for bad in (1., -.1, 'x'):
        with pytest.raises(InputError, match='ratio'): split_label_samples(single, bad)


def test_division_is_kept(tmp_path):
    for i in range(9): paint(tmp_path/'set'/('a+b', 'b', '_none')[i % 3]/f'{i}.png', i)
    samples, _ = read_label_folders(tmp_path/'set')
    a, b = split_label_samples(samples, .3)
    parts, report = read_label_parts(save_label_split(tmp_path/'run'/'split.csv', dict(train=a, val=b)))
    assert {k: [(s.path, s.labels) for s in v] for k, v in parts.items()} == dict(train=[(s.path, s.labels) for s in a], val=[(s.path, s.labels) for s in b]) and not len(report)


@pytest.mark.parametrize('names', [('light blue', 'red'), ('salt+pepper', 'a'), ('a;b', 'c|d'), ('a, b', '[c]'), ("it's", 'say "no"'), ('青', '_none+')])
def test_division_is_kept_whatever_labels_are_called(names, tmp_path):
    "One label an image, so that no plus sign tells blanks in names from blanks between them"
    samples = []
    for i, labels in enumerate(((names[0],), (names[1],), ())): paint(tmp_path/f'{i}.png', i); samples.append(Sample(tmp_path/f'{i}.png', labels=labels))
    parts, report = read_label_parts(save_label_split(tmp_path/'split.csv', dict(train=samples)), none='leer')
    assert [s.labels for s in parts['train']] == [s.labels for s in samples] and not len(report)
    odd = Sample(tmp_path/'bad\udcff.png', labels=('a',))
    assert 'bad' in save_label_split(tmp_path/'odd.csv', dict(train=[odd])).read_text(encoding='utf-8')


def test_matrix_leaves_unknown_labels_out():
    assert label_matrix([Sample(Path('x'), labels=('a', 'z')), Sample(Path('y'), labels=())], ('a', 'b')).tolist() == [[1, 0], [0, 0]]


# views

def test_views_are_those_of_the_table():
    "By hand with torchvision: turned about the centre on black, mirrored, resized"
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F
    import cv2
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (150, 190, 3), np.uint8), (0, 0), 5)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        angle, mirror = rng.uniform(-15, 15), rng.random() < .5
        x = torch.from_numpy(image).permute(2, 0, 1)
        if mirror: x = F.hflip(x)
        want = F.resize(F.rotate(x, -angle, InterpolationMode.BILINEAR), [128, 128]).permute(1, 2, 0).numpy()
        got = ClassifyTransform(128)(image, seed)
        assert np.abs(got.astype(int) - want).mean() < 1.5, seed


def test_share_of_mirrored_and_range_of_turns():
    image = np.zeros((64, 64, 3), np.uint8); image[:, :8] = 255
    left = [ClassifyTransform(64, rotate=0)(image, s)[32, 2, 0] > 0 for s in range(300)]
    assert 120 < sum(left) < 180
    corner = lambda **k: [int(ClassifyTransform(64, flip=0, **k)(np.full((64, 64, 3), 255, np.uint8), s)[0, 0, 0]) for s in range(40)]
    assert min(corner(rotate=0)) == 255 and min(corner(rotate=15)) == 0
    assert np.array_equal(ClassifyTransform(48, train=False)(image, 1), ClassifyTransform(48, train=False)(image, 2))


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (300, 1), (5, 7), (2000, 30)])
def test_any_size_of_image(size):
    for train in (True, False): assert ClassifyTransform(32, train)(np.full((*size, 3), 200, np.uint8), 3).shape == (32, 32, 3)
    assert (ClassifyTransform(32, False)(np.full((*size, 3), 200, np.uint8)) == 200).all()


def test_an_image_becomes_a_tensor_in_one_thread():
    "The same numbers as torch's, without its threads, which wait for each other longer than there is work"
    import torch
    from visionlab.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
    image, (mean, std) = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8), (np.float32(v) for v in (IMAGENET_MEAN, IMAGENET_STD))
    want = torch.from_numpy(image).permute(2, 0, 1).float().sub_(torch.from_numpy(mean*255)[:, None, None]).mul_(torch.from_numpy(1/(std*255))[:, None, None])
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        time.sleep(.3)          # threads of earlier tests go to sleep
        mine, all_ = time.thread_time(), time.process_time()
        for _ in range(200): got = normalise(image)
        mine, all_ = time.thread_time() - mine, time.process_time() - all_
    finally: torch.set_num_threads(before)
    assert torch.equal(got, want) and got.is_contiguous() and all_ < 1.5*mine


# toy set

def test_toy_digits(tmp_path):
    scenes = [toy_digit_scene(i, s) for s in ('train', 'test') for i in range(60)]
    assert len({im.tobytes() for im, _ in scenes}) == 120 and {d for _, ls in scenes for d in ls} == set('0123456789') and any(not ls for _, ls in scenes)
    assert max(len(ls) for _, ls in scenes) >= 3
    f = make_toy_digits(tmp_path/'t', n_train=12, n_test=5, size=(64, 48), digits=4)
    assert len(read_label_csv(f/'test.csv')[0]) == 5 and check_label_data(f).parts[0].name == 'train'
    (f/'toy.json').write_text('{"toy": "digits", "unfinished": true}'); next((f/'train').rglob('*.jpg')).unlink()
    assert len(list(make_toy_digits(f, n_train=12, n_test=5, size=(64, 48), digits=4).rglob('*.jpg'))) == 17
    for bad in (dict(n_train=0), dict(digits=1), dict(size=8)):
        with pytest.raises(InputError, match=next(iter(bad))): make_toy_digits(f, **bad)
    (tmp_path/'file').write_text('')
    with pytest.raises(InputError, match='is a file'): make_toy_digits(tmp_path/'file')


# the report

def test_report_on_a_good_set(tmp_path):
    f = make_toy_digits(tmp_path/'t', n_train=120, n_test=60, size=32, digits=3)
    report = check_label_data(f)
    assert [p.name for p in report.parts] == ['train', 'test'] and not report.warnings and not len(report)
    assert report.names == ('0', '1', '2') and 'label sets' in report.summary() and '<table>' in report._repr_html_()
    assert report.show().get_xlabel() == '% of the images'
    report.save(tmp_path/'r.txt')
    assert 'label sets' in (tmp_path/'r.txt').read_text()


def test_report_on_bad_ones(tmp_path):
    for i in range(12): paint(tmp_path/'s/train/always+a'/f'{i}.png', i); paint(tmp_path/'s/train/always+b'/f'{i}.png', 50 + i)
    paint(tmp_path/'s/val/always+new'/'x.png', 300); paint(tmp_path/'s/val/always+a'/'y.png', 3)
    warnings = ' | '.join(check_label_data(tmp_path/'s').warnings)
    for i in range(3): paint(tmp_path/'t/_none'/f'{i}.png', i)
    assert 'no image of "t" has a label' in ' '.join(check_label_data(tmp_path/'t').warnings)
    for said in ('new never occurs in "train"', 'no image of "val" has b', 'on every image of "train": always', '1 image stands in two parts'): assert said in warnings, said


def test_real_sets(shared):
    data = shared/'data/multilabel'
    parts, report = read_label_parts(data/'clothes')
    assert (len(parts['train']), len(parts['val']), label_vocabulary(parts['train'])) == (900, 210, ('black', 'blue', 'dress', 'jeans', 'red', 'shirt')) and not len(report)
    train, val = split_label_samples(parts['train'], .1, 3)
    assert set(Counter(s.labels for s in val).values()) == {15} and len(val) == 90
    streets, _ = read_label_parts(data/'street')
    assert (len(streets['train']), len(streets['val'])) == (362, 101)
    a, b = split_label_samples(streets['train'], .2, 0)
    all_, part = (Counter(n for s in x for n in s.labels) for x in (streets['train'], b))
    assert all(abs(part[n] - .2*k) <= 1.5 for n, k in all_.items()) and abs(len(b) - 72) <= 3
    assert len(check_label_data(data/'clothes').parts) == 2


def test_thousands_of_labels_are_compared_at_once():
    from visionlab.datasets.label_folders import LabelDataReport, LabelPart, _label_warnings
    report, start = LabelDataReport('x'), time.perf_counter()
    report.parts.append(LabelPart('train', [Sample(Path(f'{i}'), labels=(f'{i % 3000:04}', f'twin{i % 2}', f'twin{i % 2 + 2}')) for i in range(6000)], Counter()))
    assert 'twin0 and twin2' in ' '.join(_label_warnings(report)) and time.perf_counter() - start < 10


def test_report_is_continued():
    r = Report('mine')
    with pytest.raises(InputError): read_label_samples('/nowhere/at/all', r)
    with pytest.raises(InputError, match='is empty'): read_label_parts('')
