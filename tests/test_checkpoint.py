"""Checkpoints: harmless, whole, complete, and the random generators of a run."""
import os
import pickle
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from visionlab.core.checks import InputError, SavedFileError
from visionlab.training.checkpoint import (PARTS, bare_model, load_checkpoint, load_weights, plain, rng_state, save_checkpoint, seed_everything, set_rng_state, strip_prefixes,
                                           update_checkpoint)


@pytest.fixture
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.fixture
def saved(net, tmp_path):
    save_checkpoint(tmp_path/'latest.pth', system='pan', model=net.state_dict(), config=dict(lr=.1, train_path=('a', 'b')), rng=rng_state(), classes=['text'], normalisation=dict(mean=(.4, .5, .6), std=(.2, .2, .2)),
                    input_size=640, thresholds=dict(min_score=.85), epoch=7, best=dict(metric='hmean', value=.8, epoch=3), stopper=dict(wait=3), history=[dict(epoch=i, hmean=.1*i) for i in range(7)])
    return tmp_path/'latest.pth'


def test_everything_comes_back(saved, net):
    ck = load_checkpoint(saved, 'pan')
    assert set(PARTS) <= set(ck) and ck['format'] == 'visionlab-checkpoint' and ck['version']
    assert (ck['epoch'], ck['input_size'], ck['normalisation']['mean'], len(ck['history'])) == (7, 640, (.4, .5, .6), 7)
    for k, v in net.state_dict().items(): assert torch.equal(ck['model'][k], v)


def test_reads_with_weights_only_and_without_us(saved):
    "Any torch reads it, with no class of ours allowed"
    code = f"import torch, sys; ck = torch.load({str(saved)!r}, weights_only=True); assert ck['system'] == 'pan'; assert 'visionlab' not in sys.modules"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


@pytest.mark.parametrize('share', [0, .01, .1, .5, .9, .999])
def test_cut(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[:int(len(data)*share)])
    with pytest.raises(SavedFileError, match='is cut off' if share else 'is empty') as e: load_checkpoint(saved)
    assert str(saved) in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(SavedFileError): load_weights(nn.Linear(1, 1), saved)


@pytest.mark.parametrize('what', ['text', 'zip', 'image', 'numbers', 'other dict'])
def test_not_a_checkpoint(what, tmp_path):
    f = tmp_path/'a.pth'
    if what == 'text': f.write_text('weights')
    if what == 'image': f.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))
    if what == 'numbers': torch.save([1, 2], f)
    if what == 'other dict': torch.save(dict(model=dict()), f)
    if what == 'zip':
        with zipfile.ZipFile(f, 'w') as z: z.writestr('a.txt', 'b')
    with pytest.raises(SavedFileError, match='a.pth') as e: load_checkpoint(f)
    assert '\n' not in str(e.value)


def test_pickled_object_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/trapped',)
    torch.save(dict(format='visionlab-checkpoint', format_version=1, model=Trap()), tmp_path/'new.pth')
    torch.save(dict(format='visionlab-checkpoint', model=Trap()), tmp_path/'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path/'raw.pth').write_bytes(pickle.dumps(Trap()))
    for name in ('new', 'old', 'raw'):
        with pytest.raises(SavedFileError, match='pickled Python objects'): load_checkpoint(tmp_path/f'{name}.pth')
    assert not (tmp_path/'trapped').exists()


def test_whole_models_are_refused_too(net, tmp_path):
    torch.save(net, tmp_path/'net.pth')
    with pytest.raises(SavedFileError, match='pickled Python objects'): load_weights(net, tmp_path/'net.pth')


def test_other_system_version_and_path(saved):
    with pytest.raises(SavedFileError, match="of 'pan', one of 'fots' is needed"): load_checkpoint(saved, 'fots')
    ck = torch.load(saved, weights_only=True)
    torch.save(dict(ck, format_version=99, version='7.0'), saved)
    with pytest.raises(SavedFileError, match='7.0, which is newer'): load_checkpoint(saved)
    torch.save({k: v for k, v in ck.items() if k not in ('system', 'model')}, saved)
    with pytest.raises(SavedFileError, match='lacks system, model'): load_checkpoint(saved)
    with pytest.raises(FileNotFoundError): load_checkpoint(saved.with_name('other.pth'))
    with pytest.raises(InputError, match='is a folder'): load_checkpoint(saved.parent)


@pytest.mark.parametrize('parts', [dict(format_version=None), dict(format_version='1'), dict(format_version=True), dict(format_version=1.5), dict(format_version=2, version=None), dict(system=None), dict(config=[]),
                                   dict(model=3), dict(model={'a': 'text'}), dict(history={}), dict(epoch='7'), dict(thresholds=None)], ids=str)
def test_crafted_checkpoints_are_one_line(saved, parts):
    torch.save({**torch.load(saved, weights_only=True), **parts}, saved)
    with pytest.raises(SavedFileError, match='latest.pth') as e: load_checkpoint(saved)
    assert '\n' not in str(e.value)
    torch.save(dict(format='visionlab-checkpoint'), saved)
    with pytest.raises(SavedFileError, match='format_version is None'): load_checkpoint(saved)


def test_checkpoints_of_before_a_part_was_added_stay_readable(saved, monkeypatch):
    import visionlab.training.checkpoint as checkpoint
    monkeypatch.setitem(checkpoint.PARTS, 'later', dict(a=1))
    ck = load_checkpoint(saved)
    assert ck['later'] == dict(a=1) and ck['later'] is not checkpoint.PARTS['later']


def test_only_plain_things_are_saved(tmp_path):
    for bad in (object(), np.random.default_rng(), {1, 2}, lambda: 0):
        with pytest.raises(TypeError, match=r"'history\[0\].x' is a"): save_checkpoint(tmp_path/'a.pth', history=[dict(x=bad)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="no part 'weights'"): save_checkpoint(tmp_path/'a.pth', weights={})
    got = plain(dict(a=np.float64(1), b=np.int32(2), c=np.array([1.]), d=np.bool_(True), e=(np.str_('x'),)))
    assert [type(v) for v in got.values()] == [float, int, torch.Tensor, bool, tuple] and type(got['e'][0]) is str


def test_failed_save_keeps_the_old_one(saved, monkeypatch):
    before = saved.read_bytes()
    def full(obj, f): f.write(b'PK'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(InputError, match='disk is full.*untouched'): save_checkpoint(saved, model={})
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_wrapped_models(net, tmp_path):
    names = list(net.state_dict())
    assert list(strip_prefixes(nn.DataParallel(net).state_dict())) == names
    assert list(strip_prefixes({f'module._orig_mod.{k}': v for k, v in net.state_dict().items()})) == names
    assert list(strip_prefixes({f'_orig_mod.module.{k}': v for k, v in net.state_dict().items()})) == names
    assert bare_model(nn.DataParallel(net)) is net
    save_checkpoint(tmp_path/'a.pth', model=nn.DataParallel(net).state_dict())
    assert list(load_checkpoint(tmp_path/'a.pth')['model']) == names
    torch.save(nn.DataParallel(net).state_dict(), tmp_path/'b.pth')
    assert len(load_weights(net, tmp_path/'b.pth').loaded) == len(names)


def test_optimiser_state_comes_back(net, tmp_path):
    for make in (lambda p: torch.optim.Adam(p, amsgrad=True), lambda p: torch.optim.SGD(p, .1, momentum=.9)):
        opt = make(net.parameters())
        net(torch.randn(2, 3, 8, 8)).sum().backward(); opt.step()
        save_checkpoint(tmp_path/'a.pth', optimizer=opt.state_dict())
        fresh = make(net.parameters())
        fresh.load_state_dict(load_checkpoint(tmp_path/'a.pth')['optimizer'])
        for a, b in zip(opt.state_dict()['state'].values(), fresh.state_dict()['state'].values()):
            assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_load_weights_reports(net, saved):
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 1, 1))
    got = load_weights(other, saved)
    assert torch.equal(other[0].weight, net[0].weight) and len(got.loaded) == 7
    assert got.missing == ['3.weight', '3.bias'] and not got.unexpected and list(got.mismatched) == ['2.weight', '2.bias']
    assert '2.weight (2, 4, 1, 1) in the file, (5, 4, 1, 1) in the model' in repr(got)
    got = load_weights(nn.Sequential(nn.Conv2d(3, 4, 3)), saved)
    assert len(got.unexpected) == 7 and '7 in the file that the model does not have: 1.weight' in repr(got)
    with pytest.raises(SavedFileError, match='no weight of'): load_weights(nn.Sequential(nn.Linear(9, 9)), saved)


def test_update(saved):
    before = load_checkpoint(saved)
    update_checkpoint(saved, thresholds=dict(min_score=.5))
    after = load_checkpoint(saved)
    assert after['thresholds'] == dict(min_score=.5) and after['history'] == before['history']
    for k, v in before['model'].items(): assert torch.equal(v, after['model'][k])


def draw(): return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), torch.randn(1).item()


def test_generators_stand_where_they_stood(tmp_path):
    old = rng_state()
    seed_everything(4)
    draw()
    random.gauss(0, 1); np.random.randn()     # each generator keeps the second one of a pair
    save_checkpoint(tmp_path/'a.pth', rng=rng_state())
    want = [draw() for _ in range(300)]       # more than one block of the Mersenne twister
    seed_everything(5)
    set_rng_state(load_checkpoint(tmp_path/'a.pth')['rng'])
    assert [draw() for _ in range(300)] == want
    set_rng_state(old)


def test_seed_everything():
    old = rng_state()
    seed_everything(1); a = draw()
    seed_everything(2); b = draw()
    seed_everything(1); assert draw() == a != b
    seed_everything(2**40)
    set_rng_state(old)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_generators_of_gpus():
    s = rng_state()
    a = torch.rand(3, device='cuda')
    set_rng_state(s)
    assert torch.equal(torch.rand(3, device='cuda'), a)
