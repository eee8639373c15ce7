"The data report of segmentation: what it counts, what it guesses, what it warns of"
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import shutil
import numpy as np, pytest
from PIL import Image
from visionlab.core.checks import InputError
from visionlab.datasets.mask_checks import MaskDataReport, MaskValues, check_mask_data, check_segmentation, guess_classes, mask_values
from visionlab.datasets.masks import read_mask, read_mask_samples
from visionlab.datasets.toy_masks import make_toy_masks


@pytest.fixture(scope='module')
def many(tmp_path_factory): return make_toy_masks(tmp_path_factory.mktemp('toy')/'many', n_train=16, n_test=6, size=64)
@pytest.fixture
def copy(many, tmp_path): return shutil.copytree(many, tmp_path/'copy')


def save(path, a, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **kw)
    return path


def pair(root, i, mask, image=None):
    rng = np.random.default_rng(i)
    save(root/f'imgs/{i}.png', rng.integers(0, 256, (*mask.shape[:2], 3), np.uint8) if image is None else image); save(root/f'masks/{i}.png', mask)


def test_counts(many):
    report = check_segmentation(many)
    for part in report.parts:
        masks = [read_mask(s.mask_path, 4) for s in read_mask_samples(many/part.name)[0]]
        assert [part.pixels[v] for v in range(4)] == np.bincount(np.concatenate([m.ravel() for m in masks]), minlength=4).tolist()
        assert [part.images[v] for v in range(4)] == [sum((m == v).any() for m in masks) for v in range(4)]
        assert part.empty == sum(not m.any() for m in masks)
    assert not report.counts and report.classes == 4 and report.guessed and not report.warnings
    assert check_mask_data(many, 4).parts[0].pixels == report.parts[0].pixels


@pytest.mark.parametrize('values, want', [
    ([{0, 1}], (1, None)), ([{0, 255}], (1, None)), ([{0, 1}, {0, 255}], (1, 255)), ([{0}], (1, None)), ([{255}], (1, None)), ([{0, 1, 2}], (3, None)), ([{0, 1, 2, 255}], (3, 255)),
    ([{0, 1, 255}], (1, 255)), ([{0, 5}], (6, None)), ([set()], (1, None))])
def test_guessing(values, want):
    found = [MaskValues(dict.fromkeys(v, 9), bool(v) and (v <= {0, 1} or v <= {0, 255})) for v in values]
    assert guess_classes(found) == want


def test_everything_that_is_wrong(copy):
    annot = copy/'trainannot'
    a = np.array(Image.open(annot/'scene_1.png'))
    save(annot/'scene_1.png', np.where(a == 0, 77, a).astype(np.uint8)); (annot/'scene_2.png').write_bytes(b''); save(annot/'scene_3.png', a[:9]); save(annot/'scene_4.png', np.dstack([a*50, a, a]))
    whole = (annot/'scene_5.png').read_bytes(); (annot/'scene_5.png').write_bytes(whole[:len(whole)*2//3])
    shutil.copy(copy/'train/scene_6.jpg', copy/'test/scene_1.jpg'); shutil.copy(copy/'train/scene_6.jpg', copy/'train/scene_7.jpg')
    whole = (copy/'train/scene_8.jpg').read_bytes(); (copy/'train/scene_8.jpg').write_bytes(whole[:len(whole)//2])
    (annot/'scene_9.png').unlink(); (copy/'test/scene_2.jpg').unlink()
    report = check_mask_data(copy, 4)
    assert report.counts == {'image without mask': 1, 'unreadable mask': 2, 'sizes differ': 1, 'painted mask': 1, 'unreadable image': 1, 'same image twice': 1, 'mask without image': 1,
                             'same image in two parts': 1, 'values outside the classes': 1}
    told = '\n'.join(report.warnings)
    for text in ('1 image stands in two parts', '5 of 21 images cannot be used', '1 mask holds values that are no class', '1 mask is painted'): assert text in told
    text = report.summary()
    assert any(l.startswith('77 ') and l.endswith('no such class') for l in text.splitlines())
    assert 'WARNING' in text and 'scene_1.png: 77 in' in text and '<table>' in report._repr_html_()
    saved = report.save(copy/'report.txt').read_text()
    assert all(e.path in saved for e in report.entries)


def test_black_and_white_where_classes_were_promised(tmp_path):
    f = make_toy_masks(tmp_path/'d', n_train=10, n_test=3, size=64, classes=1)
    report = check_mask_data(f)
    assert report.classes == 1 and report.names == ('disc',) and '1 disc' in report.summary() and not report.counts
    assert check_mask_data(f, 3).counts['values outside the classes'] > 5
    assert 'values that are no class' in check_mask_data(f, 3).warnings[0]


def test_painted(tmp_path):
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)
    for i in range(4): pair(tmp_path, i, colours[np.random.default_rng(i).integers(0, 3, (20, 20))])
    report = check_mask_data(tmp_path)
    assert report.counts == {'painted mask': 4} and '3 colours' in report.warnings[0] and len(report.tables()) == 1
    (tmp_path/'table.txt').write_text('0 0 0\n200 0 0\n0 200 0\n')
    for table in (tmp_path/'table.txt', str(tmp_path/'table.txt'), {tuple(c): i for i, c in enumerate(colours.tolist())}):
        report = check_mask_data(tmp_path, table=table)
        assert report.classes == 3 and not report.counts and sum(report.parts[0].pixels.values()) == 4*400
    with pytest.raises(InputError, match='not in the table'): check_mask_data(tmp_path, table={(0, 0, 0): 0})


def test_jpeg_masks(tmp_path):
    for i in range(3):
        m = np.zeros((40, 40), np.uint8); m[10:30, 5 + i:25] = 255
        save(tmp_path/f'imgs/{i}.png', np.dstack([m + np.uint8(i)]*3)); save(tmp_path/f'masks/{i}.jpg', m)
    report = check_mask_data(tmp_path)
    assert report.classes == 1 and not report.counts and set(report.parts[0].pixels) == {0, 1}


def test_classes_that_cannot_be_learned(tmp_path):
    for part, top in (('train', 3), ('test', 5)):
        for i in range(6): pair(tmp_path/part, i + 100*top, (np.arange(400).reshape(20, 20) % top).astype(np.uint8))
    report = check_mask_data(tmp_path)
    assert report.classes == 5 and any('classes 3, 4 of "test" never occurs in "train"' in w for w in report.warnings)
    assert any('in no mask at all: 5, 6' == w for w in check_mask_data(tmp_path, 7).warnings)
    tiny = np.zeros((50, 50), np.uint8); tiny[0, :5] = 1
    for i in range(3): pair(tmp_path/'rare', i, tiny)
    assert any('below one pixel in a hundred' in w for w in check_mask_data(tmp_path/'rare').warnings)
    for i in range(3): pair(tmp_path/'empty', i, tiny*0)
    report = check_mask_data(tmp_path/'empty')
    assert any('3 of 3 masks' in w for w in report.warnings) and any('nothing but background' in w for w in report.warnings) and report.parts[0].empty == 3


def test_ignored_values(tmp_path):
    m = np.zeros((20, 20), np.uint8); m[5:9] = 1; m[0] = 255
    n = m.copy(); n[9:12] = 2
    for i, a in enumerate((m, n)): pair(tmp_path, i, a)
    report = check_mask_data(tmp_path)
    assert (report.classes, report.ignore_index) == (3, 255) and sum(report.parts[0].pixels.values()) == 2*380 and '255 does not count' in report.notes[0]
    assert check_mask_data(tmp_path, 2, ignore_index=2).counts['values outside the classes'] == 2
    pair(tmp_path/'void', 0, m*0 + 255); pair(tmp_path/'void', 1, n)
    assert check_mask_data(tmp_path/'void').parts[0].empty == 1, 'nothing but ignored pixels'


def test_lists_and_parts(many, tmp_path):
    for n in ('train.txt', 'test.txt'): shutil.copy(many/n, tmp_path/n)
    for d in ('train', 'trainannot', 'test', 'testannot'): shutil.copytree(many/d, tmp_path/'CamVid'/d)
    (tmp_path/'lists').mkdir()
    for n in ('train', 'test'): (tmp_path/f'lists/{n}.txt').write_text((many/f'{n}.txt').read_text().replace(n, f'{tmp_path}/CamVid/{n}'))
    for path in (tmp_path/'CamVid', tmp_path/'lists'): assert [p.name for p in check_segmentation(path).parts] == ['train', 'test']
    assert [p.name for p in check_segmentation(tmp_path/'CamVid/train').parts] == ['train']
    dirs = tmp_path/'dirs'
    for i, s in enumerate(read_mask_samples(many/'train')[0][:4]):
        for d, p, name in (('Image', s.path, s.path.name), ('Mask', s.mask_path, '0.png')): (dirs/f'{i}'/d).mkdir(parents=True); shutil.copy(p, dirs/f'{i}'/d/name)
    (dirs/'training_dataset.txt').write_text('0\n1\ngone\n'); (dirs/'validation_dataset.txt').write_text('2\n'); (dirs/'test_dataset.txt').write_text('gone\n')
    report = check_segmentation(dirs)
    assert [(p.name, len(p.samples)) for p in report.parts] == [('train', 2), ('val', 1)] and report.counts == {'missing directory': 2, 'part cannot be read': 1}
    (dirs/'test_dataset.txt').unlink(); (dirs/'validation_dataset.txt').write_text('1\n')
    assert check_segmentation(dirs).counts['same image in two parts'] == 1, 'one directory in two lists'


def test_the_same_file_in_two_parts(many, tmp_path):
    for s in read_mask_samples(many/'train')[0][:3]:
        for part in ('train', 'test'):
            for d, p in (('imgs', s.path), ('masks', s.mask_path)): (tmp_path/part/d).mkdir(parents=True, exist_ok=True); shutil.copy(p, tmp_path/part/d)
    report = check_segmentation(tmp_path)
    assert report.counts['same image in two parts'] == 3 and '3 images stand in two parts' in report.warnings[0]


@pytest.mark.parametrize('make, text', [(lambda p: p/'nowhere', 'nowhere'), (lambda p: p, 'imgs/ and masks/ are needed')])
def test_no_set(tmp_path, make, text):
    with pytest.raises(InputError, match=text): check_segmentation(make(tmp_path))


def test_bad_numbers(many):
    for bad in (0, 256, 2.5):
        with pytest.raises(InputError, match='"classes"'): check_mask_data(many, bad)


def test_values_of_odd_files(shared):
    for f in sorted((shared/'data/odd-images').iterdir()):
        v = mask_values(f)
        assert bool(v.values) + bool(v.colours) + bool(v.error) == 1, f.name
        assert '\n' not in v.error


def test_draws(many):
    import matplotlib.pyplot as plt
    report = check_mask_data(many)
    assert report.show().get_xlabel() == '% of the pixels that count'
    plt.close('all')
    empty = MaskDataReport('nothing')
    assert empty.tables()[0][1] == [] and 'nothing to report' in empty.summary()


def test_real_set(shared):
    report = check_segmentation(shared/'data/segmentation-multiclass/CamVid')
    assert [len(p.samples) for p in report.parts] == [184, 51, 31] and report.classes == 12 and report.names[3] == 'Road' and not report.counts
    assert 'Bicyclist' in ' '.join(report.warnings)
