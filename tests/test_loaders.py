"Batches that can be had again: by any number of workers, in a fresh process, in any epoch"
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import hashlib, pickle, random, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from fastai.learner import Learner
from visionlab.core.checks import InputError, MissingPathError
from visionlab.core.files import ImageError, read_image
from visionlab.datasets.loaders import SeededDataset, SeededDL, pad_collate, seeded_dataloaders
from visionlab.datasets.transforms import TextTransform, normalise
from visionlab.pan.targets import PANTargets

VIEW, TARGETS = TextTransform(64, noise=.05), PANTargets()


def make_item(sample, rng_seed):
    image, polys, ignore = VIEW(read_image(sample.path), sample.polygons, sample.ignore, rng_seed)
    return normalise(image), *map(torch.from_numpy, TARGETS(polys, ignore, 64, 64))


def make_samples(folder, n=11):
    "n small photographs of one word, always the same ones"
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        path = Path(folder)/f'photo_{i}.png'
        image = rng.integers(150, 255, (60 + 5*i, 120, 3), np.uint8)
        image[20:40, 30:90] = 30
        if not path.exists(): Image.fromarray(image).save(path)
        out.append(SimpleNamespace(path=path, polygons=[np.array([[30, 20], [90, 20], [90, 40], [30, 40]], float)], ignore=np.array([i % 5 == 4])))
    return out


@pytest.fixture(scope='module')
def samples(tmp_path_factory): return make_samples(tmp_path_factory.mktemp('photos'))


def loader(samples, workers=0, seed=7, **kw):
    return SeededDL(SeededDataset(samples, make_item, seed=seed), **{**dict(bs=4, shuffle=True, num_workers=workers), **kw})


def fingerprint(batches):
    h = hashlib.sha256()
    for b in batches:
        for t in b: h.update(t.cpu().numpy().tobytes())
    return h.hexdigest()


def test_workers_make_no_difference(samples):
    prints = {}
    for workers in (0, 1, 2, 3):
        dl = loader(samples, workers)
        prints[workers] = [fingerprint(dl) for _ in range(3)]
    assert all(p == prints[0] for p in prints.values())
    assert len(set(prints[0])) == 3, 'three epochs, three orders and views'


def test_global_generators_make_no_difference(samples):
    out = []
    for s in (1, 2):
        random.seed(s); np.random.seed(s); torch.manual_seed(s)
        out.append(fingerprint(loader(samples, workers=s-1)))
    assert out[0] == out[1]


def test_a_fresh_process_sees_the_same_epoch(samples):
    dl = loader(samples)
    dl.set_epoch(5)
    code = f"from tests.test_loaders import *; dl = loader(make_samples({str(samples[0].path.parent)!r}), workers=2); dl.set_epoch(5); print(fingerprint(dl))"
    got = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300)
    assert got.returncode == 0, got.stderr
    assert got.stdout.split()[-1] == fingerprint(dl)


def test_epoch_reaches_workers_every_time(samples):
    dl = loader(samples, 2, shuffle=False)
    seen = {}
    for e in (0, 3, 0, 1):
        dl.set_epoch(e)
        assert seen.setdefault(e, fingerprint(dl)) == fingerprint(dl)
    assert len(set(seen.values())) == 3


def test_seed_changes_order_and_views(samples):
    a, b = loader(samples, seed=1), loader(samples, seed=2)
    assert a.batch_files(0) != b.batch_files(0)
    assert not torch.equal(a.dataset[0][0], b.dataset[0][0])


def test_batch_files_are_those_of_the_batch(samples):
    name = lambda s, seed: (torch.tensor(int(s.path.stem.split('_')[1])), torch.tensor(0))
    dl = SeededDL(SeededDataset(samples, name, seed=3), bs=4, shuffle=True, num_workers=2)
    for epoch in range(3):
        dl.set_epoch(epoch)
        for i, (x, _) in enumerate(dl):
            assert [int(p.stem.split('_')[1]) for p in dl.batch_files(i)] == x.tolist()
    dl.set_epoch(0)
    assert sorted(p for i in range(3) for p in dl.batch_files(i)) == sorted(s.path for s in samples)


def test_a_full_pass_counts_an_epoch_and_half_a_one_does_not(samples):
    train, val = loader(samples), loader(samples, shuffle=False)
    next(iter(train)); train.one_batch()
    assert train.epoch == 0
    list(train); list(val)
    assert (train.epoch, val.epoch) == (1, 0)


@pytest.mark.parametrize('workers', [0, 2])
def test_user_errors_arrive_clean(samples, tmp_path, workers):
    bad = tmp_path/'half.png'
    bad.write_bytes(samples[0].path.read_bytes()[:200])
    for path, kind in ((bad, ImageError), (tmp_path/'gone.png', InputError)):
        s = SimpleNamespace(path=path, polygons=[], ignore=np.zeros(0, bool))
        with pytest.raises(kind) as e: list(loader([*samples[:5], s], workers, bs=2))
        assert str(path) in str(e.value) and 'Traceback' not in str(e.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_program_errors_keep_their_trace(samples, workers):
    def broken(sample, rng_seed): return {}['no such key']
    with pytest.raises(KeyError) as e: list(SeededDL(SeededDataset(samples, broken), bs=2, num_workers=workers))
    assert 'no such key' in str(e.value)


def test_other_user_errors_get_the_file_name(samples):
    def unhappy(sample, rng_seed): raise InputError('something is wrong')
    with pytest.raises(InputError, match='photo_3.png.*something is wrong'): SeededDataset(samples, unhappy)[3]
    for e in (InputError('a'), MissingPathError('a')): assert str(pickle.loads(pickle.dumps(e))) == 'a'


def test_dataset_is_a_sequence(samples):
    ds = SeededDataset(samples, make_item)
    assert len(ds) == 11 and ds.samples is samples and torch.equal(ds[-1][0], ds[10][0]) and torch.equal(ds[np.int64(2)][0], ds[2][0])
    with pytest.raises(IndexError): ds[11]
    with pytest.raises(InputError, match='seed'): SeededDataset(samples, make_item, seed=-1)


@pytest.mark.parametrize('n, bs, batches, last', [(11, 4, 2, 4), (8, 4, 2, 4), (3, 4, 1, 3), (1, 1, 1, 1), (9, 4, 2, 4)])
def test_last_training_batch(samples, n, bs, batches, last):
    dls = seeded_dataloaders(SeededDataset(samples[:n], make_item), batch_size=bs, device='cpu')
    got = [len(b[0]) for b in dls.train]
    assert (len(got), got[-1], len(dls.train)) == (batches, last, batches)


@pytest.mark.parametrize('n, bs, sizes', [(11, 4, [4, 4, 3]), (9, 4, [4, 4]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])])
def test_last_training_batch_in_a_fixed_order(samples, n, bs, sizes):
    "Without shuffling the same samples would be left out for ever; only a rest of one image is"
    dls = seeded_dataloaders(SeededDataset(samples[:n], make_item), batch_size=bs, shuffle=False, device='cpu')
    assert [len(b[0]) for b in dls.train] == sizes and len(dls.train) == len(sizes)


def test_show_batch_is_the_systems(samples):
    class Items:
        def __call__(self, sample, rng_seed): return make_item(sample, rng_seed)
        def show(self, batch, max_n, **kwargs): return len(batch[0]), max_n, kwargs
    dls = seeded_dataloaders(SeededDataset(samples, Items()), SeededDataset(samples[:3], Items()), batch_size=4, val_batch_size=2, device='cpu')
    assert dls.show_batch() == (4, 9, {}) and dls.valid.show_batch(max_n=1, title='a') == (2, 1, dict(title='a'))
    assert dls.show_batch(dls.valid.one_batch(), max_n=2)[0] == 2 and dls.train.epoch == 0
    with pytest.raises(InputError, match='show'): loader(samples).show_batch()


def make_val(sample, rng_seed):
    image, polys, ignore = TextTransform(64, train=False)(read_image(sample.path), sample.polygons, sample.ignore)
    return normalise(image), *map(torch.from_numpy, TARGETS(polys, ignore, *image.shape[:2]))


def test_validation_of_many_sizes(samples):
    for bs in (1, 4):
        dls = seeded_dataloaders(SeededDataset(samples, make_item), SeededDataset(samples, make_val), batch_size=4, val_batch_size=bs, device='cpu')
        got = list(dls.valid)
        assert sum(len(b[0]) for b in got) == 11 and all(b[0].shape[-2:] == b[1].shape[-2:] == b[3].shape[-2:] for b in got)
        assert all(b[1].dtype == torch.int32 and b[3].dtype == torch.uint8 for b in got)
        assert dls.valid.dataset.samples is samples and dls.valid_ds.samples is samples


def test_pad_collate_keeps_content():
    a, b = torch.rand(3, 5, 9), torch.rand(3, 8, 4)
    x, k = pad_collate([(a, 1.5), (b, 2.5)])
    assert x.shape == (2, 3, 8, 9) and torch.equal(x[0, :, :5], a) and torch.equal(x[1, :, :, :4], b) and x[1, :, :, 4:].eq(0).all()
    assert k.tolist() == [1.5, 2.5]


def test_fastai_learner_trains_predicts_and_asks_for_one_batch(samples):
    dls = seeded_dataloaders(SeededDataset(samples, make_item), SeededDataset(samples[:3], make_val), batch_size=4, device='cpu')
    assert dls.n_inp == 1 and [tuple(t.shape) for t in dls.one_batch()] == [(4, 3, 64, 64), (4, 64, 64), (4, 64, 64), (4, 64, 64)]
    class Loss(torch.nn.Module):
        def forward(self, p, text, kernel, mask): return ((p[:, 0] - (text > 0).float())**2*mask).mean()
    learn = Learner(dls, torch.nn.Conv2d(3, 1, 1), loss_func=Loss())
    with learn.no_logging(): learn.fit(2)
    assert dls.train.epoch == 2
    again = dls.valid.new(shuffle=False, drop_last=False)
    assert isinstance(again, SeededDL) and fingerprint(again) == fingerprint(dls.valid)
    same = SeededDL(SeededDataset(samples[:5], make_item), bs=2, create_batch=pad_collate)
    preds, targs = learn.get_preds(dl=same)
    assert preds.shape == (5, 1, 64, 64) and [tuple(t.shape) for t in targs] == [(5, 64, 64)]*3


def test_pinned_memory_without_a_gpu_is_silent(samples):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = seeded_dataloaders(SeededDataset(samples, make_item), batch_size=4, pin_memory=True, device='cpu')
        b = next(iter(dls.train))
    assert isinstance(b, tuple)


def test_no_shuffle_and_own_collate(samples):
    ds = SeededDataset(samples, lambda s, seed: (torch.tensor(1.), s.path.name))
    dls = seeded_dataloaders(ds, ds, batch_size=2, shuffle=False, device='cpu', collate=lambda items: (torch.stack([x for x, _ in items]), [n for _, n in items]))
    assert [b[1] for b in dls.train][0] == ['photo_0.png', 'photo_1.png']
    assert dls.train.epoch == 0
    assert next(iter(dls.valid))[1] == ['photo_0.png']


@pytest.mark.parametrize('bad', [dict(batch_size=0), dict(num_workers=-1), dict(val_batch_size=1.5), dict(device='gpu')], ids=str)
def test_bad_settings_name_themselves(samples, bad):
    with pytest.raises(InputError, match=next(iter(bad))): seeded_dataloaders(SeededDataset(samples, make_item), **{'device': 'cpu', **bad})
