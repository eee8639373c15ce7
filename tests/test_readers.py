"""Readers on real data sets and on every kind of damage: what can be used is used, all else is in the report."""
import shutil
import numpy as np
import pytest
from PIL import Image

from visionlab.core.checks import InputError
from visionlab.datasets.readers import parse_icdar_line, read_icdar, read_label_list, read_text_samples, split_samples
from visionlab.datasets.samples import Report, Sample

GOOD = '10,10,50,10,50,30,10,30,word\n'


@pytest.fixture
def folder(tmp_path):
    "img/ and gt/ with one sound image; `put` adds more"
    for d in ('img', 'gt'): (tmp_path/d).mkdir()
    def put(name, labels=None, suffix='.png', size=(64, 48), gt=True):
        Image.new('RGB', size).save(tmp_path/'img'/f'{name}{suffix}')
        if gt: (tmp_path/'gt'/f'gt_{name}.txt').write_bytes(labels if isinstance(labels, bytes) else (labels or '').encode())
    put('img_1', GOOD)
    return tmp_path, put


# ---- real data

@pytest.mark.parametrize('part,images,readable,ignored', [('train', 170, 711, 1120), ('test', 40, 160, 222)])
def test_icdar2015_counts(shared, part, images, readable, ignored):
    samples, report = read_icdar(shared/'data/text-icdar2015'/part)
    skip = np.concatenate([s.ignore for s in samples])
    assert (len(samples), int((~skip).sum()), int(skip.sum())) == (images, readable, ignored)
    assert not set(report.counts) - {'image without text', 'only ignored text', 'point outside image'}
    assert all(len(p) == 4 for s in samples for p in s.polygons)
    assert [s.path.name for s in samples[:2]] == sorted((s.path.name for s in samples), key=lambda n: int(n[4:-4]))[:2]


@pytest.mark.parametrize('part,images,lines', [('train', 150, 8328), ('test', 30, 1501)])
def test_receipt_counts(shared, part, images, lines):
    samples, report = read_icdar(shared/'data/text-receipts'/part)
    assert (len(samples), sum(len(s.polygons) for s in samples)) == (images, lines)
    assert not any(s.ignore.any() for s in samples)
    texts = [t for s in samples for t in s.texts]
    assert any(', ' in t for t in texts) and (part == 'train' or '7,838.80' in texts)   # a price is no fifth point
    assert all(len(p) == 4 for s in samples for p in s.polygons)


def test_a_set_with_splits_says_which_to_give(shared):
    with pytest.raises(InputError, match='give one of them.*train'): read_text_samples(shared/'data/text-icdar2015')


def test_odd_images_are_read_or_reported(shared, tmp_path):
    shutil.copytree(shared/'data/odd-images', tmp_path/'img')
    (tmp_path/'gt').mkdir()
    for p in (tmp_path/'img').iterdir(): (tmp_path/'gt'/f'gt_{p.stem}.txt').write_text('0,0,1,0,1,1,0,1,x\n')
    samples, report = read_icdar(tmp_path)
    bad = {e.path.rsplit('/', 1)[-1] for e in report.of('unreadable image')}
    assert {'broken.png', 'zero_byte.jpg', 'text_named_jpg.jpg'} <= bad
    assert len(samples) + len(bad) + report.counts.get('duplicate image name', 0) == len(list((tmp_path/'img').iterdir()))


# ---- lines

@pytest.mark.parametrize('line,n,text', [
    ('1,2,3,2,3,4,1,4', 4, ''),
    ('1,2,3,2,3,4,1,4,', 4, ''),
    ('1,2,3,2,3,4,1,4,a, b,,c', 4, 'a, b,,c'),
    ('1,2,3,2,3,4,1,4,"quoted, text"', 4, '"quoted, text"'),
    ('1,2,3,2,3,4,1,4,12', 4, '12'),
    ('1,2,3,2,3,4,1,4,12,', 4, '12,'),
    ('901,902,943,902,943,914,901,914,12,50', 4, '12,50'),
    ('901,902,943,902,943,914,901,914,1,234,567', 4, '1,234,567'),
    ('1.5, 2e0, 3, 2, 3, 4, 1, 4,\tx\ty', 4, 'x\ty'),
    ('-3,-2,30,-2,30,4,-3,4,edge', 4, 'edge'),
    ('\ufeff1,2,3,2,3,4,1,4,\u4e2d\u6587\r\n', 4, '\u4e2d\u6587'),
    ('0,10,20,0,40,10,40,30,20,20,0,30,six', 6, 'six'),
    ('0,10,20,0,40,10,40,30,20,20,0,30', 6, ''),
    ('0,10,20,0,40,10,40,30,20,20,0,30,77', 6, '77'),
    ('0,0,40,0,50,10,40,20,0,20,five', 5, 'five'),
])
def test_lines(line, n, text):
    polygon, got = parse_icdar_line(line)
    assert (polygon.shape, got) == ((n, 2), text)


@pytest.mark.parametrize('line,what', [('', '0 numbers'), ('###', '0 numbers'), ('1,2,3,4,5,6,7,word', '7 numbers'), ('1,2,3,x,5,6,7,8,word', '3 numbers'),
    ('1,2,inf,4,5,6,7,8,a', '2 numbers'), ('1,2,0x10,4,5,6,7,8,a', '2 numbers'), ('1;2;3;4;5;6;7;8;a', '0 numbers'), ('1e99,2,3,2,3,4,1,4,a', 'cannot be right')])
def test_bad_lines(line, what):
    with pytest.raises(InputError, match=what): parse_icdar_line(line)


BLANKS, YOLO = 'separated by blanks; commas are needed', 'looks like YOLO boxes'
@pytest.mark.parametrize('line,what', [('10 10 60 10 60 30 10 30 hello', BLANKS), ('\ufeff10  10 60 10 60 30 10 30\r\n', BLANKS), ('10,10 60,10 60,30 10,30 svg', BLANKS), ('1\t2\t3\t4\t5\t6\t7\t8\ta', 'separated by tabs'),
    ('1;2;3;4;5;6;7;8;a', 'separated by semicolons'), ('0 0.5 0.5 0.1 0.2', YOLO), ('3,.5,.5,.1,.2', YOLO), ('0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2', YOLO)])
def test_lines_of_other_formats_are_named(line, what):
    with pytest.raises(InputError, match=what) as e: parse_icdar_line(line)
    assert repr(line.strip('\ufeff\r\n')) in str(e.value)
    for plain in ('1,2,3,4,5,6,word', '10 10 60 10 hello', '###', '0.5 0.5 0.1 0.1 0.1', 'x'*500):
        with pytest.raises(InputError) as e: parse_icdar_line(plain)
        assert 'separated' not in str(e.value) and 'YOLO' not in str(e.value) and len(str(e.value)) < 160


def test_curved_polygon_with_price(rng=np.random.default_rng(0)):
    "Fourteen points along an arc stay fourteen, whatever the transcript"
    angle = np.linspace(np.pi, 2 * np.pi, 7)
    ring = np.concatenate([np.c_[200 + 100 * np.cos(angle), 400 + 100 * np.sin(angle)], np.c_[200 + 70 * np.cos(angle[::-1]), 400 + 70 * np.sin(angle[::-1])]])
    head = ','.join(f'{v:.1f}' for v in ring.reshape(-1))
    for text in ('caf\u00e9', '', '1,234', '99', '3,a'):
        polygon, got = parse_icdar_line(f'{head},{text}')
        assert (len(polygon), got) == (14, text)


# ---- folders

def test_every_kind_of_damage_is_counted(folder):
    root, put = folder
    put('img_2', '\ufeff10,10,50,10,50,30,10,30,a, b\r\n###,\r\n1,2,3,short\r\n')
    put('img_3', '10,10,50,30,50,10,10,30,crossed\n10,10,20,10,30,10,40,10,flat\n5,5,5,5,5,5,5,5,dot\n')
    put('img_4', '50,40,90,40,90,60,50,60,out\n-5,0,10,0,10,9,-5,9,###\n')
    put('img_5', '')
    put('img_6', '1,1,20,1,20,9,1,9,###\n')
    put('img_7', gt=False)
    put('img_8', 'rubbish\nmore rubbish\n')
    (root/'img/img_9.jpg').write_bytes(b''); (root/'gt/gt_img_9.txt').write_text(GOOD)
    (root/'gt/gt_img_99.txt').write_text(GOOD)
    put('img_1', GOOD, suffix='.jpg')
    samples, report = read_icdar(root)
    assert [s.path.name for s in samples] == ['img_1.jpg', 'img_2.png', 'img_3.png', 'img_4.png', 'img_5.png', 'img_6.png']
    assert report.counts == {'image without label file': 1, 'duplicate image name': 1, 'label file without image': 1, 'bad label line': 4, 'polygon repaired': 1,
        'polygon dropped': 2, 'point outside image': 2, 'image without text': 1, 'only ignored text': 1, 'no usable label line': 1, 'unreadable image': 1}
    assert samples[1].texts == ['a, b']
    assert samples[3].polygons[0].max() == 90   # kept as it was
    e = report.of('bad label line')[0]
    assert (e.line, e.path) == (2, str(root/'gt/gt_img_2.txt'))
    assert '6 of 9 images' in report.summary() or '6 of 10 images' in report.summary()


def test_crossed_polygons_with_many_points_keep_their_largest_piece(folder):
    root, put = folder
    put('img_2', '0,0,40,0,40,20,20,20,20,-5,0,20,eight\n')
    samples, report = read_icdar(root)
    (p,), = [s.polygons for s in samples if s.path.stem == 'img_2']
    assert len(p) >= 3 and report.counts['polygon repaired'] == 1


@pytest.mark.parametrize('name', ['img_1.txt', 'gt_img_1.txt', 'GT_IMG_1.TXT', 'img_1.jpg.txt'])
def test_names_of_label_files_flat(tmp_path, name):
    Image.new('RGB', (64, 48)).save(tmp_path/'img_1.jpg')
    (tmp_path/name).write_text(GOOD)
    assert len(read_icdar(tmp_path)[0][0].polygons) == 1


@pytest.mark.parametrize('img,gt', [('img', 'gt'), ('images', 'labels'), ('Imgs', 'GT')])
def test_names_of_folders(tmp_path, img, gt):
    for d in (img, gt): (tmp_path/d/'deep').mkdir(parents=True)
    Image.new('RGB', (64, 48)).save(tmp_path/img/'deep/a b.jpg')
    (tmp_path/gt/'deep/gt_a b.txt').write_text(GOOD)
    samples, report = read_icdar(tmp_path)
    assert len(samples) == 1 and not len(report)


def test_label_files_in_other_encodings(folder):
    root, put = folder
    put('img_2', '10,10,50,10,50,30,10,30,caf\u00e9'.encode('latin-1'))
    put('img_3', '\ufeff10,10,50,10,50,30,10,30,caf\u00e9'.encode())
    samples, _ = read_icdar(root)
    assert [s.texts[0] for s in samples[1:]] == ['caf\u00e9', 'caf\u00e9']


def test_upright_size_decides_what_is_outside(folder):
    root, put = folder
    im, exif = Image.new('RGB', (64, 200)), Image.Exif()
    exif[274] = 6
    im.save(root/'img/img_2.jpg', exif=exif)   # stored 64x200, seen as 200x64
    (root/'gt/gt_img_2.txt').write_text('100,10,190,10,190,60,100,60,wide\n')
    assert 'point outside image' not in read_icdar(root)[1].counts


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): read_text_samples(tmp_path/'nowhere')
    with pytest.raises(InputError, match='no images'): read_text_samples(tmp_path)
    (tmp_path/'img').mkdir(); (tmp_path/'gt').mkdir()
    with pytest.raises(InputError, match='no images'): read_text_samples(tmp_path)
    (tmp_path/'img/a.jpg').write_bytes(b'')
    with pytest.raises(InputError, match='none of the 1 images'): read_text_samples(tmp_path)
    (tmp_path/'list.txt').write_text('\n\n')
    with pytest.raises(InputError, match='is empty'): read_text_samples(tmp_path/'list.txt')


def test_ignore_texts_and_points_are_obeyed(folder):
    root, put = folder
    put('img_2', '0,10,20,0,40,10,40,30,20,20,0,30,*\n')
    assert read_icdar(root, ignore_texts=('###', '*'))[0][1].ignore.tolist() == [True]
    assert read_icdar(root, points=4)[0][1].texts == ['20,20,0,30,*']


def test_one_report_for_several_sources(folder):
    root, put = folder
    put('img_2', '')
    report = Report('both')
    read_icdar(root, report); read_icdar(root, report)
    assert report.counts == {'image without text': 2} and len(report.notes) == 2


# ---- lists

def test_label_lists(folder):
    root, put = folder
    put('img_2', GOOD); put('img 3', GOOD)
    lines = ['\ufeffimg/img_1.png\tgt/gt_img_1.txt', 'img\\img_2.png\tgt\\gt_img_2.txt', f'{root}/img/img 3.png\t{root}/gt/gt_img 3.txt',
             'img/gone.png\tgt/gt_img_1.txt', 'img/img_1.png\tgt/gone.txt', 'C:\\data\\img_1.png\tC:\\data\\gt.txt', 'img/img_1.png', '',
             'img/img_1.png\tgt/gt_img_1.txt']
    (root/'train.txt').write_bytes('\r\n'.join(lines).encode())
    samples, report = read_label_list(root/'train.txt')
    assert [s.path.name for s in samples] == ['img_1.png', 'img_2.png', 'img 3.png']
    assert report.counts == {'missing image': 2, 'image without label file': 1, 'bad list line': 1, 'image listed twice': 1}
    assert [e.line for e in report.of('missing image')] == [4, 6]


# ---- parts

def test_split_is_stable_and_complete():
    items = list(range(101))
    for ratio in (.1, .5, .99):
        a, b = split_samples(items, ratio, seed=3)
        assert sorted(a + b) == items and a == sorted(a) and len(b) == round(101 * ratio)
        assert (a, b) == split_samples(items, ratio, seed=3) != split_samples(items, ratio, seed=4)
    assert split_samples([1], .5) == ([1], []) and split_samples([], .5) == ([], [])
    for bad in (-.1, 1, 1.5, 'a', None):
        with pytest.raises(ValueError): split_samples(items, bad)


def test_sample_checks_its_lists():
    s = Sample('a.jpg', polygons=[[0, 0, 9, 0, 9, 9]])
    assert s.polygons[0].shape == (3, 2) and s.texts == [''] and s.ignore.tolist() == [False]
    with pytest.raises(InputError, match='ignore'): Sample('a.jpg', polygons=[[0, 0, 9, 0, 9, 9]], ignore=[])


def test_report_prints_saves_and_escapes(tmp_path):
    report = Report('<title>')
    for i in range(5): report.add('bad label line', 'a<b>.txt', 'x', line=i + 1)
    assert report.summary().count('a<b>.txt') == 3 and '... and 2 more' in report.summary()
    assert (report.save(tmp_path/'r.txt')).read_text().count('a<b>.txt') == 5
    assert '<b>' not in report._repr_html_() and '<title>' not in report._repr_html_()
