"Data of segmentation: toy sets, items, loaders, and the data sets for a loop of one's own"
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import albumentations as A, numpy as np, pytest, shutil, torch
from PIL import Image
from visionlab.core.checks import InputError
from visionlab.core.config import replace_config
from visionlab.core.files import read_image
from visionlab.datasets.masks import PADDED_PIXEL, fit_long_side, read_mask, read_mask_samples
from visionlab.datasets.samples import Sample
from visionlab.datasets.toy_masks import MASK_SHAPES, make_toy_masks, toy_mask_scene
from visionlab.segmentation.config import IGNORED_PIXEL, SegmentationConfig
from visionlab.segmentation.data import (AUGMENTATIONS, BinaryDataset, SegmentationDataset, SegmentationItems, read_pair, segmentation_dataloaders, segmentation_samples)

MEAN, STD = torch.tensor([.485, .456, .406])[:, None, None], torch.tensor([.229, .224, .225])[:, None, None]


@pytest.fixture(scope='module')
def many(tmp_path_factory): return make_toy_masks(tmp_path_factory.mktemp('toy')/'many', n_train=14, n_test=5, size=(80, 60))
@pytest.fixture(scope='module')
def discs(tmp_path_factory): return make_toy_masks(tmp_path_factory.mktemp('toy')/'discs', n_train=8, n_test=3, size=(80, 60), classes=1)


def config(folder, **kw):
    return SegmentationConfig(**{**dict(train_path=str(folder/'train'), val_path=str(folder/'test'), classes=4, patch_size=64, batch_size=4, num_workers=0, device='cpu'), **kw})


# the toy set

@pytest.mark.parametrize('classes', [1, 2, 5, 7])
def test_toy_scenes(classes):
    scenes = [toy_mask_scene(i, s, (70, 50), classes) for s in ('train', 'test') for i in range(25)]
    values = set(np.unique([m for _, m in scenes]))
    assert values == set(range(max(2, classes))), 'every class occurs, and no other value'
    assert all(im.shape == (50, 70, 3) and im.dtype == m.dtype == np.uint8 for im, m in scenes)
    assert any(not m.any() for _, m in scenes), 'now and then there is nothing to find'
    assert len({im.tobytes() for im, _ in scenes}) == 50
    again = toy_mask_scene(7, 'test', (70, 50), classes)
    assert all(np.array_equal(a, b) for a, b in zip(again, scenes[32]))


def test_toy_sets_differ_between_parts():
    train, test = ([toy_mask_scene(i, s)[0].reshape(-1, 3).mean(0) for i in range(20)] for s in ('train', 'test'))
    assert not any(np.allclose(a, b) for a in train for b in test)
    assert len(MASK_SHAPES) == 6


def test_toy_folder_is_whole_or_drawn_again(tmp_path):
    f = make_toy_masks(tmp_path/'t', n_train=2, n_test=1, size=48)
    (f/'toy.json').write_text('{"toy": "masks", "unfinished": true}')          # the power went off
    (f/'train/scene_1.jpg').unlink()
    make_toy_masks(f, n_train=2, n_test=1, size=48)
    assert len(read_mask_samples(f/'train')[0]) == 2
    (tmp_path/'file').write_text('')
    with pytest.raises(InputError, match='is a file'): make_toy_masks(tmp_path/'file')
    for bad in (dict(n_train=0), dict(classes=8), dict(size=8)):
        with pytest.raises(InputError, match=next(iter(bad))): make_toy_masks(f, **bad)
    assert len(read_mask_samples(f/'train')[0]) == 2, 'a refused call removes nothing'


# items

def test_items_are_what_the_network_was_trained_on(many):
    "By hand: RGB, divided by 255, ImageNet's mean and deviation; the padding is 0 and 255"
    c = config(many)
    s = read_mask_samples(many/'train')[0][1]
    x, y = SegmentationItems(c, train=False)(s)
    image, mask, fit = fit_long_side(read_image(s.path), 64, read_mask(s.mask_path, 4))
    inside = np.zeros((64, 64), bool); inside[fit.top:fit.top + fit.scaled[1]] = True
    want = (torch.tensor(image).permute(2, 0, 1)/255 - MEAN)/STD
    torch.testing.assert_close(x, want, rtol=1e-5, atol=1e-5)
    assert y.tolist() == mask.tolist() and (y[~inside] == PADDED_PIXEL).all() and PADDED_PIXEL == IGNORED_PIXEL
    assert x[:, ~inside].abs().max() < .01


def test_one_class(discs):
    c = config(discs, classes=1)
    s = read_mask_samples(discs/'train')[0]
    for train in (True, False):
        ys = torch.stack([SegmentationItems(c, train)(a, i)[1] for i, a in enumerate(s)])
        assert ys.dtype == torch.float32 and ys.shape[1:] == (1, 64, 64) and set(ys.unique().tolist()) == {0, 1, 255}


def test_ignored_values_become_255(many, tmp_path):
    s = read_mask_samples(many/'train')[0]
    for a in s[:4]:
        plain, ignored = (SegmentationItems(config(many, ignore_index=i), False)(a)[1] for i in (None, 2))
        assert torch.equal(torch.where(plain == 2, 255, plain), ignored)
    three = SegmentationItems(config(many, classes=3, ignore_index=3), False)
    assert max(int(v) for a in s for v in three(a)[1].unique() if v != 255) <= 2


def test_colour_masks(many, tmp_path):
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    set_ = tmp_path/'set'
    for s in read_mask_samples(many/'train')[0]:
        for d in ('imgs', 'masks'): (set_/d).mkdir(parents=True, exist_ok=True)
        shutil.copy(s.path, set_/'imgs'); Image.fromarray(colours[read_mask(s.mask_path, 4)]).save(set_/'masks'/s.mask_path.name)
    (tmp_path/'colours.txt').write_text(''.join(f'{r} {g} {b} c{i}\n' for i, (r, g, b) in enumerate(colours)))
    painted = config(many, train_path=str(set_), color_table=str(tmp_path/'colours.txt'), search_files=True)
    for a, b in zip(segmentation_dataloaders(painted).train, segmentation_dataloaders(config(many)).train, strict=True): assert torch.equal(a[1], b[1]) and torch.equal(a[0], b[0])
    with pytest.raises(InputError, match='painted in colours'): segmentation_dataloaders(replace_config(painted, color_table='')).one_batch()
    with pytest.raises(FileNotFoundError, match='gone.txt'): segmentation_dataloaders(replace_config(painted, color_table='gone.txt'))


@pytest.mark.parametrize('setting', [dict(scale=(.5, .5)), dict(rotate=45.), dict(flip=1.), dict(flip_vertical=1.), dict(color_jitter=1.), dict(noise=.3), dict(patch_size=96)], ids=lambda d: next(iter(d)))
def test_settings_reach_the_items(many, setting):
    off = config(many, scale=(1., 1.), rotate=0., flip=0., color_jitter=0.)
    s = read_mask_samples(many/'train')[0][0]
    a, b = (SegmentationItems(c)(s, 3) for c in (off, replace_config(off, **setting)))
    assert a[0].shape != b[0].shape or not torch.equal(a[0], b[0])
    moved = a[1].shape != b[1].shape or not torch.equal(a[1], b[1])
    assert moved == (next(iter(setting)) not in ('color_jitter', 'noise')), 'light and noise leave the mask alone'
    if 'patch_size' not in setting: assert torch.equal(SegmentationItems(off, False)(s)[0], SegmentationItems(replace_config(off, **setting), False)(s)[0]), 'validation is not random'


# loaders

@pytest.mark.parametrize('workers', [1, 2])
def test_workers_change_nothing(many, workers):
    one, two = segmentation_dataloaders(config(many)), segmentation_dataloaders(config(many, num_workers=workers))
    for epoch in range(2):
        for a, b in zip(one.train, two.train, strict=True): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    for a, b in zip(one.valid, two.valid, strict=True): assert torch.equal(a[0], b[0])
    two.train.set_epoch(0)
    assert torch.equal(next(iter(two.train))[0], next(iter(segmentation_dataloaders(config(many)).train))[0])


def test_which_images(many, discs, tmp_path, monkeypatch):
    c = config(many)
    train, val, report = segmentation_samples(c)
    assert (len(train), len(val)) == (14, 5) and not len(report)
    a, b = (segmentation_samples(replace_config(c, val_path='', val_ratio=.3))[:2] for _ in range(2))
    assert [s.path for s in a[1]] == [s.path for s in b[1]] and len(a[0]) + len(a[1]) == 14 and len(a[1]) == 4 and not {s.path for s in a[0]} & {s.path for s in a[1]}
    assert {s.path for s in segmentation_samples(replace_config(c, val_path='', val_ratio=.3, seed=1))[1]} != {s.path for s in a[1]}
    assert len(segmentation_samples(replace_config(c, train_path=(str(many/'train'), str(many/'test.txt')), val_path='', val_ratio=0.))[0]) == 19
    assert len(segmentation_dataloaders(replace_config(c, val_path='', val_ratio=0.)).loaders) == 1
    dls = segmentation_dataloaders(c, train[:6], None)
    assert len(dls.loaders) == 1 and len(dls.train.dataset) == 6
    shutil.copytree(discs/'train', tmp_path/'work'); monkeypatch.chdir(tmp_path/'work')
    assert len(segmentation_samples(SegmentationConfig(search_files=True, val_ratio=0.))[0]) == 8, 'imgs/ and masks/ of this folder'


def test_usual_lists(many, tmp_path, monkeypatch):
    samples = read_mask_samples(many/'train')[0]
    for i, s in enumerate(samples):
        for d, p, name in (('Image', s.path, s.path.name), ('Mask', s.mask_path, '0.png')): (tmp_path/f'd{i}'/d).mkdir(parents=True); shutil.copy(p, tmp_path/f'd{i}'/d/name)
    (tmp_path/'training_dataset.txt').write_bytes(''.join(f'd{i}\r\n' for i in range(9)).encode() + b'gone\r\n'); (tmp_path/'validation_dataset.txt').write_text('d10\nd11\n')
    monkeypatch.chdir(tmp_path)
    train, val, report = segmentation_samples(SegmentationConfig(classes=4))
    assert (len(train), len(val), report.counts) == (9, 2, {'missing directory': 1})
    assert len(SegmentationDataset(classes=4)) == 9


def test_a_file_that_changes_is_named(many, tmp_path):
    shutil.copytree(many, tmp_path/'m')
    c = config(tmp_path/'m', shuffle=False)
    dls = segmentation_dataloaders(c)
    bad = dls.train.dataset.samples[1]
    Image.new('L', (9, 9)).save(bad.mask_path)
    with pytest.raises(InputError, match='is 80x60 px, its mask 9x9'): list(dls.train)
    bad.mask_path.write_bytes(b'')
    with pytest.raises(InputError, match=bad.mask_path.name): list(dls.train)
    Image.fromarray(np.full((60, 80), 9, np.uint8)).save(bad.mask_path)
    with pytest.raises(InputError, match='holds 9, the classes go from 0 to 3'): list(segmentation_dataloaders(replace_config(c, num_workers=1)).train)


def test_pictures(many, discs):
    import matplotlib.pyplot as plt
    for f, kw in ((many, dict(class_names=('ground', 'disc', 'triangle', 'square'))), (discs, dict(classes=1, class_names=('disc',))), (many, {})):
        dls = segmentation_dataloaders(config(f, **kw))
        dls.show_batch(max_n=2); dls.valid.show_batch(max_n=9)
        assert len(plt.gcf().axes) == 2*len(dls.valid.one_batch()[0])
    plt.close('all')


# for a loop of one's own

def test_load_sample(discs, many):
    ds = BinaryDataset(discs/'train', 64)
    assert len(ds) == 8 and ds.paths == [s.path for s in ds.samples] and not len(ds.report)
    for i in range(8):
        image, mask = ds.load_sample(i)
        want = fit_long_side(read_image(ds.paths[i]), 64, read_mask(ds.samples[i].mask_path, 1), empty=0)
        assert np.array_equal(image, want[0]) and np.array_equal(mask, want[1]) and set(np.unique(mask)) <= {0, 1}
        x, y = ds[i]
        torch.testing.assert_close(x, (torch.tensor(image).permute(2, 0, 1)/255 - MEAN)/STD, rtol=1e-5, atol=1e-5)
        assert y.dtype == torch.float32 and y[0].numpy().tolist() == mask.tolist()
    assert torch.equal(ds[-1][0], ds[7][0])
    with pytest.raises(IndexError): ds[8]
    multi = SegmentationDataset(many/'train', 4, 64)
    assert multi[0][1].dtype == torch.int64 and set(multi[0][1].unique().tolist()) - {0, 1, 2, 3} == {255}
    assert len(SegmentationDataset([many/'train', many/'test.txt'], 4)) == 19 and len(SegmentationDataset(multi.samples[:3], 4)) == 3


@pytest.mark.parametrize('name, value', dict(scale=(.5, .6), rotate=90, flip=1, flip_vertical=1, color_jitter=1, noise=.3).items())
def test_each_augmentation(discs, name, value):
    assert name in AUGMENTATIONS
    plain, changed = BinaryDataset(discs/'train', 64, dict(flip=0)), BinaryDataset(discs/'train', 64, {name: value})
    assert any(not np.array_equal(plain.load_sample(i, 1)[0], changed.load_sample(i, 1)[0]) for i in range(8))


def test_own_transforms(discs):
    plain, turned = BinaryDataset(discs/'train', 64, dict(flip=0)), BinaryDataset(discs/'train', 64, dict(upside=A.VerticalFlip(p=1)))
    for i in range(8):
        a, b = plain.load_sample(i, 1), turned.load_sample(i, 1)
        assert np.array_equal(a[0][::-1], b[0]) and np.array_equal(a[1][::-1], b[1])


def test_views_differ_by_epoch_and_worker_and_follow_the_seed(discs):
    ds = BinaryDataset(discs/'train', 64, dict(rotate=20, scale=(.7, 1.3)))
    def epoch(): return torch.cat([x for x, _ in torch.utils.data.DataLoader(ds, 2, num_workers=2)])
    with torch.random.fork_rng():
        torch.manual_seed(5); a, b = epoch(), epoch()
        torch.manual_seed(5); assert torch.equal(epoch(), a)
    assert not any(torch.equal(x, y) for x, y in zip(a, b))
    same = BinaryDataset([ds.samples[0]]*4, 64, dict(rotate=20))
    x = torch.cat([x for x, _ in torch.utils.data.DataLoader(same, 1, num_workers=2)])
    assert len({v.numpy().tobytes() for v in x}) == 4, 'two workers do not make the same views'


@pytest.mark.parametrize('call, text', [
    (lambda d, m: BinaryDataset(d/'train', 64, dict(rotatoin=3)), "Did you mean 'rotate'"), (lambda d, m: BinaryDataset(d/'train', 64, dict(rotate=-3)), '"rotate"'),
    (lambda d, m: BinaryDataset(d/'nowhere'), 'nowhere'), (lambda d, m: BinaryDataset(m/'train.txt', search_files=True), '`search_files`'), (lambda d, m: BinaryDataset([]), '"source" is empty'),
    (lambda d, m: list(BinaryDataset(m/'train', 64)), 'also holds'), (lambda d, m: SegmentationDataset(m/'train', 0), '"classes"'), (lambda d, m: SegmentationDataset(m/'train', 4, 8), '"patch_size"'),
    (lambda d, m: read_pair(Sample(m/'train/scene_1.jpg'), 4), 'has no mask'), (lambda d, m: SegmentationDataset(m/'train', 4, color_table='gone.csv'), 'gone.csv')])
def test_what_cannot_be_used_says_so(discs, many, call, text):
    with pytest.raises(InputError, match=text): call(discs, many)


def test_real_sets(shared):
    data = shared/'data'
    c = SegmentationConfig(train_path=str(data/'segmentation-multiclass/CamVid/train'), val_path=str(data/'segmentation-multiclass/CamVid/val.txt'), classes=11, ignore_index=11, patch_size=128,
                           batch_size=8, num_workers=0, device='cpu')
    dls = segmentation_dataloaders(c)
    x, y = dls.one_batch()
    assert set(y.unique().tolist()) <= {*range(11), 255} and x.shape == (8, 3, 128, 128) and len(dls.report) == 0
    assert len(dls.valid.dataset) == 51
    with pytest.raises(InputError, match='holds 11, the classes go from 0 to 10'): segmentation_dataloaders(replace_config(c, ignore_index=None)).one_batch()
    crack = SegmentationConfig(train_path=str(data/'segmentation-binary/crackforest'), search_files=True, patch_size=128, batch_size=8, num_workers=0, device='cpu')
    y = segmentation_dataloaders(crack).one_batch()[1]
    assert set(y.unique().tolist()) == {0, 1, 255} and .001 < (y == 1).float().mean() < .05


def test_paths_that_are_not_there_are_told_before_the_training(many, tmp_path):
    for change, name in ((dict(test_path='nowhere'), 'test_path'), (dict(val_path='nowhere'), 'data set'), (dict(train_path='nowhere'), 'data set')):
        with pytest.raises(FileNotFoundError, match=f'"{name}": no file or folder .*nowhere'): segmentation_samples(config(many, **change))
    segmentation_samples(config(many, test_path=str(many/'test')))
