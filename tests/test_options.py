"""Every setting of PAN does something: for each field a test shows its effect on images, models, losses, steps, files or predictions."""
import csv
import json
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from covers import covered, covers
from fastai.callback.core import Callback
from PIL import Image
from torch import nn
from visionlab.core.checks import InputError
from visionlab.core.files import read_image
from visionlab.datasets.samples import Sample
from visionlab.datasets.toy import make_toy_text
from visionlab.inference import load_predictor
from visionlab.pan.config import PANConfig
from visionlab.pan.data import PANItems, pan_dataloaders, pan_samples
from visionlab.pan.learner import PANTrainer, find_words, pan_learner, pan_loss, pan_model
from visionlab.training.callbacks import one_cycle
from visionlab.training.checkpoint import load_checkpoint

torch.set_num_threads(1)
STILL = dict(scale=(1, 1), aspect=(1, 1), rotate=0, flip=0, crop_text=0, color_jitter=0, noise=0)


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_text(tmp_path_factory.mktemp('toy')/'set', n_train=6, n_test=2, size=(96, 96))


@pytest.fixture
def config(toy, tmp_path):
    "Settings of a tiny run, with changes"
    base = dict(train_path=(f'{toy}/train',), val_path=(f'{toy}/test',), input_size=64, test_size=64, batch_size=2, epochs=1, num_workers=0, device='cpu', head='conv1x1',
                pretrained=False, tensorboard=False, csv=False, metrics='loss', output_dir=str(tmp_path/'out'))
    return lambda **changes: PANConfig(**{**base, **changes})


def tiny_net(seed=0):
    "Six maps from one convolution: everything but the model is real"
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6))


@pytest.fixture
def run(config):
    "Train with the tiny network and give the trainer"
    def go(cbs=(), model=None, progress='none', **changes):
        c = config(**changes)
        return PANTrainer(c, model=model or tiny_net(c.seed), progress=progress, cbs=cbs).train()
    return go


def final(trainer): return torch.cat([p.detach().flatten() for p in trainer.learn.model.parameters()])


# The meta test

def test_every_field_is_covered():
    tested, own = covered(globals()), sorted(f.name for f in fields(PANConfig))
    assert sorted(set(tested)) == own, f'no test: {set(own) - set(tested)}, no field: {set(tested) - set(own)}'


# Which data

@covers('train_path', 'val_path')
def test_paths_say_what_is_read(toy, config, tmp_path):
    (tmp_path/'list.txt').write_text(f'{toy}/test/img/img_2.jpg\t{toy}/test/gt/gt_img_2.txt\n')
    train, val, _ = pan_samples(config(train_path=(f'{toy}/train', str(tmp_path/'list.txt')), val_path=(f'{toy}/test', f'{toy}/train')))
    assert [s.path.relative_to(toy).as_posix() for s in train] == [f'train/img/img_{i}.jpg' for i in range(1, 7)] + ['test/img/img_2.jpg']
    assert len(val) == 2 + 6 and val[0].path.name == 'img_1.jpg'
    with pytest.raises(InputError, match='`train_path` is empty'): pan_samples(config(train_path=()))


@covers('train_ratio')
def test_train_ratio_draws_a_share_of_each_set(toy, config):
    def names(ratio, seed=1): return [s.path.as_posix() for s in pan_samples(config(train_path=(f'{toy}/train', f'{toy}/test'), train_ratio=ratio, seed=seed))[0]]
    assert [sum('/train/' in n for n in names(r)) for r in ((), (1, .5), (.5, 1), (.2, .5))] == [6, 6, 3, 1]
    assert [sum('/test/' in n for n in names(r)) for r in ((), (1, .5), (.5, 1), (.2, .5))] == [2, 1, 2, 1]
    assert names((.5, 1)) == names((.5, 1)) and len({tuple(names((.5, 1), seed)) for seed in range(6)}) > 1


@covers('val_ratio')
def test_val_ratio_holds_images_back(config):
    def split(ratio, **more): return [[s.path.name for s in part] for part in pan_samples(config(val_path=(), val_ratio=ratio, **more))[:2]]
    assert [tuple(map(len, split(r))) for r in (0, .17, .5)] == [(6, 0), (5, 1), (3, 3)]
    train, val = split(.5)
    assert set(train) | set(val) == {f'img_{i}.jpg' for i in range(1, 7)} and len({tuple(split(.5, seed=s)[1]) for s in range(6)}) > 1
    assert len(pan_dataloaders(config(val_path=(), val_ratio=0)).loaders) == 1


# What the network sees

@covers('input_size', 'test_size')
def test_sizes(config):
    dls = pan_dataloaders(config(input_size=96, test_size=64))
    assert [tuple(t.shape) for t in dls.train.dataset[0]] == [(3, 96, 96), (96, 96), (96, 96), (96, 96)]
    assert [tuple(t.shape) for t in dls.valid.dataset[0]] == [(3, 64, 64), (64, 64), (64, 64), (64, 64)]
    assert pan_dataloaders(config(input_size=32, test_size=128)).valid.dataset[0][0].shape == (3, 128, 128)


@covers('img_channel')
def test_img_channel(config):
    for n in (1, 3):
        c = config(img_channel=n)
        dls, net = pan_dataloaders(c), pan_model(c)
        assert dls.train.dataset[0][0].shape[0] == dls.valid.dataset[0][0].shape[0] == n
        assert next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels == n
        assert net(dls.train.one_batch()[0]).shape == (2, 6, 64, 64)


# Augmentation: one word in the middle of a gray picture of 96 px

@pytest.fixture(scope='module')
def word(tmp_path_factory):
    path = tmp_path_factory.mktemp('word')/'word.png'
    image = np.random.default_rng(0).integers(90, 110, (96, 96, 3), dtype=np.uint8)
    image[42:54, 30:66] = (220, 60, 30)
    Image.fromarray(image).save(path)
    return Sample(path, [np.array([[30, 42], [66, 42], [66, 54], [30, 54]], float)], ['word'], np.array([False]))


@pytest.fixture
def views(config, word):
    "Training views of the word for some seeds, everything switched off but the changes"
    def make(n=8, size=96, sample=word, **changes):
        items = PANItems(config(input_size=size, **{**STILL, **changes}))
        return [items(sample, seed) for seed in range(n)]
    return make


def box(text):
    "Width and height of the word in a view"
    y, x = np.nonzero(text.numpy())
    return (x.max() - x.min() + 1, y.max() - y.min() + 1) if len(x) else (0, 0)


def test_all_off_is_the_picture_itself(views, word):
    from visionlab.datasets.transforms import denormalise
    for image, text, *_ in views():
        assert (denormalise(image) == read_image(word.path)).all() and abs(int((text > 0).sum()) - 36*12) < 50


@covers('scale')
def test_scale(views):
    (w, h), = {box(v[1]) for v in views()}
    for f in (.5, 2): assert all(abs(a - f*w) <= 2 and abs(b - f*h) <= 2 for a, b in (box(v[1]) for v in views(scale=(f, f), crop_text=1)))
    assert len({box(v[1]) for v in views(scale=(.6, 1.2))}) > 3


@covers('aspect')
def test_aspect(views):
    (w, h), = {box(v[1]) for v in views()}
    for f in (.64, 1.44): assert all(abs((a/b)/(w/h) - f) < .15 for a, b in (box(v[1]) for v in views(aspect=(f, f))))
    assert len({box(v[1]) for v in views(aspect=(.7, 1.4))}) > 2


@covers('rotate')
def test_rotate(views):
    (w, h), = {box(v[1]) for v in views()}
    heights = lambda **k: [box(v[1])[1] for v in views(12, **k)]
    assert max(heights(rotate=10)) > h and max(heights(rotate=90)) > 2*h
    assert max(heights(rotate=10)) <= h*np.cos(np.pi/18) + w*np.sin(np.pi/18) + 2      # never more than asked for


@covers('flip')
def test_flip(views):
    still, = views(1)
    flipped = lambda v: torch.equal(v[0], still[0].flip(-1))
    assert all(map(flipped, views(flip=1))) and not any(map(flipped, views()))
    assert 3 <= sum(map(flipped, views(20, flip=.5))) <= 17
    assert not torch.equal(still[0], still[0].flip(-1))


@covers('crop_text')
def test_crop_text(views):
    def share(p): return np.mean([box(v[1]) != (0, 0) for v in views(24, size=32, scale=(8, 8), crop_text=p)])
    assert share(1) == 1 and share(0) < .5 and share(0) < share(.5) < 1


@covers('color_jitter')
def test_color_jitter(views):
    still, = views(1)
    away = lambda s: [(v[0] - still[0]).abs().mean().item() for v in views(6, color_jitter=s)]
    assert max(away(0)) == 0 and min(away(.5)) > 0 and max(away(1)) > max(away(.1)) > 0
    assert all(torch.equal(v[1], still[1]) for v in views(color_jitter=1))


@covers('noise')
def test_noise(views):
    still, = views(1)
    spread = lambda s: np.mean([(v[0] - still[0]).std().item() for v in views(6, noise=s)])
    assert spread(0) == 0 and 0 < spread(.05) < spread(.3)


# Targets

@covers('shrink_ratio')
def test_shrink_ratio(views):
    area = [int((views(1, shrink_ratio=r)[0][2] > 0).sum()) for r in (.4, .7, 1)]
    assert area[0] < area[1] < area[2] == int((views(1)[0][1] > 0).sum())


@covers('max_shrink')
def test_max_shrink(views):
    item = {m: views(1, shrink_ratio=.1, max_shrink=m)[0] for m in (0, 1, 20)}
    assert torch.equal(item[0][2], item[0][1])
    assert box(item[1][2]) == tuple(v - 2 for v in box(item[1][1])) and (item[20][2] > 0).sum() < (item[1][2] > 0).sum()


# Model

@covers('backbone', 'fpem_repeat', 'segmentation_head', 'head')
def test_model(config):
    def describe(**changes):
        net = pan_model(config(**changes))
        return net.backbone.channels, type(net.neck).__name__, len(getattr(net.neck, 'fpems', ())), type(net.head).__name__, sum(p.numel() for p in net.parameters())
    base = describe()
    assert base[:4] == ((24, 116, 232, 464), 'FPEMNeck', 2, 'Conv1x1Head')
    assert describe(backbone='resnet18')[0] == (64, 128, 256, 512) and describe(backbone='mobilenet_v2')[0] == (24, 32, 96, 320)
    more = describe(fpem_repeat=4)
    assert more[2] == 4 and more[4] > base[4]
    assert describe(fpem_repeat=0)[2] == 0      # settings and network have one range
    assert describe(segmentation_head='FPN')[1:3] == ('FPNNeck', 0)
    other = describe(head='conv3x3')
    assert other[3] == 'Conv3x3Head' and other[4] > base[4]


@covers('pretrained')
def test_pretrained(config, monkeypatch, tmp_path, run):
    from torchvision.models import shufflenet_v2_x1_0
    from urllib.error import URLError
    asked = []
    def offline(url, *args, **kwargs):
        asked.append(url)
        raise URLError('no route to host')
    old = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path/'hub'))
    try:
        monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
        with pytest.raises(InputError, match='(?s)"pretrained".*no route to host.*--no-pretrained'): pan_model(config(pretrained=True))
        assert len(asked) == 1 and 'shufflenet' in asked[0]
        pan_model(config(pretrained=False))
        assert len(asked) == 1
        weights = shufflenet_v2_x1_0().state_dict()
        monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path, *args, **kwargs: torch.save(weights, path))
        net = pan_model(config(pretrained=True))
        assert torch.equal(net.backbone.stages[0][0][0].weight.detach(), weights['conv1.0.weight'])
        assert not torch.equal(pan_model(config()).backbone.stages[0][0][0].weight.detach(), weights['conv1.0.weight'])
        monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
        trained = PANTrainer(config(), progress='none').train().latest
        PANTrainer(config(pretrained=True, finetune_checkpoint=str(trained)), progress='none')      # weights come from the file, so nothing is fetched
        assert len(asked) == 1
    finally: torch.hub.set_dir(old)


# Loss: two images, two words and one of them ignored

@pytest.fixture(scope='module')
def maps():
    g = torch.Generator().manual_seed(0)
    text, kernel, mask = torch.zeros(2, 32, 32, dtype=torch.int32), torch.zeros(2, 32, 32, dtype=torch.int32), torch.ones(2, 32, 32, dtype=torch.uint8)
    for i, (x, y) in enumerate(((2, 2), (17, 2), (2, 20)), 1):
        text[:, y:y+9, x:x+13], kernel[:, y+3:y+6, x+3:x+10] = i, i
    mask[1, 18:, :18] = 0
    return torch.randn(2, 6, 32, 32, generator=g)*1.5, text, kernel, mask


@covers('alpha', 'beta', 'bce_weight')
def test_loss_weights(maps, config):
    loss = pan_loss(config(alpha=.7, beta=.4, bce_weight=.3))
    parts = {k: v.mean() for k, v in loss.parts(*maps).items()}
    assert loss(*maps).item() == pytest.approx((parts['text'] + .7*parts['kernel'] + .4*(parts['agg'] + parts['dis']) + .3*parts['bce']).item(), abs=1e-5)
    values = [pan_loss(config(**k))(*maps).item() for k in ({}, dict(alpha=1), dict(beta=1), dict(bce_weight=1))]
    assert len({round(v, 5) for v in values}) == 4
    assert 'bce' not in pan_loss(config(bce_weight=0)).parts(*maps)


@covers('delta_agg', 'delta_dis', 'ohem_ratio', 'convention')
def test_loss_shape(maps, config):
    def parts(**changes): return {k: round(v.mean().item(), 5) for k, v in pan_loss(config(**changes)).parts(*maps).items()}
    base = parts()
    assert parts(delta_agg=1.5)['agg'] < base['agg'] < parts(delta_agg=0)['agg']
    assert parts(delta_dis=1)['dis'] < base['dis'] < parts(delta_dis=6)['dis']
    for change in (dict(delta_agg=1.5), dict(delta_dis=6)): assert {k for k, v in parts(**change).items() if v != base[k]} == {'agg' if 'delta_agg' in change else 'dis'}
    assert len({parts(ohem_ratio=r)['text'] for r in (.5, 1, 1.5, 3)}) >= 2 and parts(ohem_ratio=1)['kernel'] == base['kernel']
    by = {c: parts(convention=c) for c in ('paper', 'official', 'seed')}
    assert 'reg' in by['official'] and by['official']['kernel'] != by['paper']['kernel']
    assert by['seed']['dis'] != by['paper']['dis'] and by['seed']['kernel'] == by['paper']['kernel']


@covers('reduction')
def test_reduction(maps, config):
    mean, total = (pan_loss(config(reduction=r))(*maps).item() for r in ('mean', 'sum'))
    assert total == pytest.approx(2*mean, rel=1e-5)


# Optimiser

@covers('optimizer', 'lr', 'weight_decay', 'amsgrad', 'momentum')
def test_optimizer(config):
    def torch_optimizer(**changes):
        c = config(**changes)
        learn = pan_learner(pan_dataloaders(c), c, tiny_net(), progress='none')
        learn.create_opt()
        return type(learn.opt.opt).__name__, {k: v for k, v in learn.opt.opt.param_groups[0].items() if k != 'params'}
    name, group = torch_optimizer()
    assert (name, group['lr'], group['weight_decay'], group['amsgrad']) == ('Adam', .001, 0, True)
    name, group = torch_optimizer(optimizer='AdamW', lr=.02, weight_decay=.3, amsgrad=False)
    assert (name, group['lr'], group['weight_decay'], group['amsgrad']) == ('AdamW', .02, .3, False)
    assert torch_optimizer(optimizer='SGD')[1]['momentum'] == .9
    name, group = torch_optimizer(optimizer='SGD', momentum=.5, weight_decay=.1)
    assert (name, group['momentum'], group['weight_decay']) == ('SGD', .5, .1)


@covers('optimizer', 'lr', 'weight_decay')
def test_optimizer_moves_the_weights(run):
    ends = [final(run(**k)) for k in ({}, dict(lr=.01), dict(weight_decay=.5), dict(optimizer='SGD'), {})]
    assert torch.equal(ends[0], ends[4]) and all(not torch.equal(ends[0], e) for e in ends[1:4])


@covers('lr_scheduler', 'step_size', 'gamma', 'power', 'plateau', 'epochs')
def test_schedule(run):
    def rates(**changes): return [round(r['lr']/.001, 4) for r in run(epochs=4, **changes).history]
    assert rates() == [1, 1, 1, 1]
    assert rates(step_size=2) == [1, 1, .1, .1] and rates(step_size=1, gamma=.5) == [1, .5, .25, .125]
    steps = np.array([2, 5, 8, 11])/12      # the last of three steps of each epoch
    assert rates(lr_scheduler='PolynomialLR') == pytest.approx((1 - steps)**.9, abs=1e-4)
    assert rates(lr_scheduler='PolynomialLR', power=2.) == pytest.approx((1 - steps)**2, abs=1e-4)
    assert rates(lr_scheduler='OneCycleLR') == pytest.approx([one_cycle(s, 12)[0] for s in (2, 5, 8, 11)], abs=1e-4)
    still = lambda n: [r['lr']/1e-12 for r in run(model=nn.Conv2d(3, 6, 3, stride=4, padding=1), epochs=4, lr=1e-12, lr_scheduler='ReduceLROnPlateau', plateau=n, gamma=.5).history]
    assert still(3) == pytest.approx([1, 1, 1, 1]) and still(0) == pytest.approx([1, 1, .5, .25])      # weights that hardly move, so a loss that does not either


# The run

@covers('batch_size', 'epochs')
def test_batches_and_epochs(run, config):
    assert pan_dataloaders(config(batch_size=3)).one_batch()[0].shape[0] == 3
    seen = []
    class Count(Callback):
        def after_step(self): seen.append((self.epoch, self.iter))
    trainer = run(cbs=Count(), batch_size=3, epochs=2)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)] and len(trainer.history) == load_checkpoint(trainer.latest)['epoch'] == 2


def norms(run, **changes):
    "Norm of the gradients and batch at each step"
    found = []
    class Norm(Callback):
        order = 20      # after clipping
        def before_step(self): found.append((self.iter, torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item()))
    run(cbs=Norm(), **changes)
    return found


@covers('clip_grad')
def test_clip_grad(run):
    assert max(n for _, n in norms(run)) > .02
    assert max(n for _, n in norms(run, clip_grad=.01)) <= .0101


@covers('accumulate')
def test_accumulate(run):
    assert [len(norms(run, batch_size=1, accumulate=n)) for n in (1, 2, 6)] == [6, 3, 1]


@covers('amp')
def test_amp(run):
    def types(**changes):
        net, seen = tiny_net(), set()
        net[0].register_forward_hook(lambda m, i, o: seen.add(o.dtype))
        run(model=net, **changes)
        return seen, {p.dtype for p in net.parameters()}
    assert types() == ({torch.float32}, {torch.float32})
    assert types(amp=True) == ({torch.bfloat16}, {torch.float32})


class Told(Callback):
    "Puts figures of its own in the place of validation loss and hmean"
    order = 51
    def __init__(self, loss=(1.,), hmean=(0.,)): self.figures = dict(valid_loss=loss, hmean=hmean)
    def after_epoch(self):
        for k, v in self.figures.items(): self.recorder.values[-1][list(self.recorder.metric_names).index(k) - 1] = v[min(self.epoch, len(v) - 1)]


@covers('adam_eps')
def test_adam_eps(run):
    ends = [final(run(adam_eps=e)) for e in (1e-8, 1e-8, 1e-2)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
    with pytest.raises(InputError, match='`adam_eps` belongs to Adam'): run(adam_eps=1e-3, optimizer='SGD')


@covers('eval_step')
def test_eval_step(run):
    trainer = run(epochs=2, eval_step=4)       # three steps an epoch
    assert [r['step'] for r in trainer.history] == [4, 6] and all('hmean' in r for r in trainer.history)
    assert 'step' not in run(epochs=2).history[0]


@covers('check_best_cooldown')
def test_check_best_cooldown(run):
    best = [load_checkpoint(run(cbs=Told((1., 2., 3.)), epochs=3, check_best_cooldown=n).best)['epoch'] for n in (0, 1, 2)]
    assert best == [1, 2, 3] and not run(check_best_cooldown=1).best.exists()


@covers('save_checkpoints')
def test_save_checkpoints(run):
    assert sorted(p.name for p in run(epochs=2, save_checkpoints=True).folder.glob('epoch-*.pth')) == ['epoch-0001.pth', 'epoch-0002.pth']
    assert not list(run(epochs=2).folder.glob('epoch-*.pth'))


@covers('patience')
def test_patience(run): assert [len(run(cbs=Told(), epochs=5, patience=p).history) for p in (0, 1, 3)] == [5, 2, 4]


@covers('metrics')
def test_metrics_decides_what_is_best(run, config):
    for metric, best in (('loss', 2), ('hmean', 3)):
        trainer = run(cbs=Told((3., 1., 2.), (.2, .1, .9)), epochs=3, metrics=metric)
        assert load_checkpoint(trainer.best)['epoch'] == best
    with pytest.raises(InputError, match='needs validation images'): run(metrics='hmean', val_path=(), val_ratio=0)


@covers('seed')
def test_seed(run, config):
    a, b, c = (final(PANTrainer(config(seed=s), progress='none').train()) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    batches = [pan_dataloaders(config(seed=s)).train.one_batch()[0] for s in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


@covers('shuffle')
def test_shuffle(config):
    def order(epoch, **changes):
        dls = pan_dataloaders(config(**changes))
        dls.train.set_epoch(epoch)
        return list(dls.train.get_idxs())
    assert order(0, shuffle=False) == order(1, shuffle=False) == list(range(6))
    orders = {tuple(order(e)) for e in range(4)}
    assert len(orders) > 1 and all(sorted(o) == list(range(6)) for o in orders)


@covers('num_workers')
def test_num_workers_changes_who_works_and_nothing_else(config):
    import os
    def batches(n):
        dls, makers = pan_dataloaders(config(num_workers=n)), []
        make = dls.train.dataset.make_item
        dls.train.dataset.make_item = lambda sample, seed: (*make(sample, seed), torch.tensor(os.getpid()))
        return list(dls.train)
    here, there = batches(0), batches(2)
    for a, b in zip(here, there, strict=True): assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4]))
    pids = {p for b in there for p in b[4].tolist()}
    assert {p for b in here for p in b[4].tolist()} == {os.getpid()} and os.getpid() not in pids and len(pids) == 2


@covers('pin_memory')
def test_pin_memory_reaches_the_loader(config, monkeypatch):
    assert not pan_dataloaders(config(pin_memory=True)).train.pin_memory       # there is nothing to copy to
    monkeypatch.setattr('visionlab.datasets.loaders.check_device', lambda device: torch.device('cuda'))
    for pin in (False, True):
        dls = pan_dataloaders(config(pin_memory=pin))
        assert dls.train.pin_memory is dls.valid.pin_memory is pin


@covers('device')
def test_device(config):
    trainer = PANTrainer(config(), model=tiny_net(), progress='none')
    assert {p.device.type for p in trainer.learn.model.parameters()} == {'cpu'} and trainer.learn.dls.device.type == 'cpu'
    for device, said in (('cuda:99', "no 'cuda:99', it has"), ('gpu', "Did you mean 'cuda'")):
        with pytest.raises(InputError, match=said): PANTrainer(config(device=device), model=tiny_net(), progress='none')
    best = torch.cuda.is_available()
    assert pan_dataloaders(config(device='auto')).device.type == ('cuda' if best else 'mps' if torch.backends.mps.is_available() else 'cpu')


# What is written

@covers('output_dir', 'name')
def test_folders(run, tmp_path):
    a, b, c = run(output_dir=str(tmp_path/'x')), run(output_dir=str(tmp_path/'x')), run(output_dir=str(tmp_path/'y'), name='receipts')
    assert [t.folder for t in (a, b, c)] == [tmp_path/'x'/'pan', tmp_path/'x'/'pan-2', tmp_path/'y'/'receipts']
    for t in (a, b, c): assert {'config.json', 'report.txt', 'latest.pth', 'best.pth'} <= {p.name for p in t.folder.iterdir()}
    assert json.loads((c.folder/'config.json').read_text())['name'] == 'receipts'


@covers('display_interval')
def test_display_interval(run, capsys):
    for interval, lines in ((1, 6), (2, 3), (4, 1), (10, 0)):
        run(batch_size=1, display_interval=interval, progress='lines')
        assert len(re.findall(r'^epoch 1/1, batch \d/6: ', capsys.readouterr().out, re.M)) == lines


@covers('tensorboard', 'show_images_interval', 'display_interval')
def test_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    def steps(**changes):
        folder = run(batch_size=1, **changes).folder/'tb'
        if not folder.exists(): return None
        events = EventAccumulator(str(folder), size_guidance=dict(images=0)).Reload()
        tags = events.Tags()
        assert {'train/text', 'train/kernel', 'train/agg', 'train/dis', 'train/bce', 'train/lr', 'epoch/hmean'} <= set(tags['scalars'])
        return [e.step for e in events.Scalars('train/loss')], [e.step for e in events.Images('validation 0')] if tags['images'] else []
    assert steps(tensorboard=False) is None
    assert steps(tensorboard=True, display_interval=2, show_images_interval=3) == ([2, 4, 6], [3, 6])
    assert steps(tensorboard=True, display_interval=3, show_images_interval=0) == ([3, 6], [])


@covers('csv')
def test_csv(run):
    assert not (run().folder/'history.csv').exists()
    rows = list(csv.DictReader(open(run(csv=True, epochs=2).folder/'history.csv')))
    assert [r['epoch'] for r in rows] == ['0', '1'] and {'train_text', 'valid_kernel', 'hmean', 'lr', 'seconds'} <= set(rows[0])


@covers('wandb')
def test_wandb(run, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    assert list(run(wandb=True).folder.rglob('*.wandb')) and not list(run().folder.rglob('*.wandb'))


@covers('wandb')
def test_wandb_that_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(InputError, match='pip install wandb'): run(wandb=True)


@covers('resume_checkpoint')
def test_resume(run, tmp_path):
    whole = run(epochs=3, name='whole', lr_scheduler='PolynomialLR')
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    part = run(cbs=Stop(), epochs=3, name='part', lr_scheduler='PolynomialLR')
    assert load_checkpoint(part.latest)['epoch'] == 2
    on = run(epochs=3, name='part', lr_scheduler='PolynomialLR', resume_checkpoint=str(part.latest))
    assert on.folder == part.folder and [r['epoch'] for r in on.history] == [0, 1, 2] and torch.equal(final(on), final(whole))
    assert on.history == whole.history


@covers('finetune_checkpoint')
def test_finetune(run, config):
    first = run(lr=.05)
    second = PANTrainer(config(finetune_checkpoint=str(first.latest), batch_size=1), model=tiny_net(7), progress='none')
    assert torch.equal(final(second), final(first)) and not torch.equal(final(second), torch.cat([p.detach().flatten() for p in tiny_net(7).parameters()]))
    assert second.start == 0 and second.train().folder.name == 'pan-2' and [r['epoch'] for r in second.history] == [0]
    with pytest.raises(InputError, match='give one of them'): config(resume_checkpoint='a', finetune_checkpoint='b')


# From maps to words

def scene():
    "Maps (6,32,64) of a large word, a small one, one that is bent and one that is unsure"
    m = np.full((6, 32, 64), -5., np.float32)
    m[2:] = 0
    for y, x, h, w, sure in ((2, 2, 8, 24, 5.), (2, 36, 3, 6, 5.), (14, 2, 8, 24, 1.)):
        m[0, y:y+h, x:x+w] = sure
        m[1, y+1:y+h-1, x+1:x+w-1] = 5
    for s in ((slice(14, 28), slice(36, 42)), (slice(22, 28), slice(36, 60))): m[0][s] = 5
    for s in ((slice(16, 26), slice(38, 40)), (slice(24, 26), slice(38, 58))): m[1][s] = 5
    return m


@covers('decode_convention', 'min_score', 'min_area', 'result_kind')
def test_decoding(config):
    def words(cut=None, **changes): return find_words(scene(), config(test_size=128, **changes), (128, 256), cut)
    assert [len(words(decode_convention=c)) for c in ('paper', 'official', 'mmocr', 'seed')] == [4, 3, 4, 2]
    assert [len(words(s)) for s in (.1, .5, .9)] == [4, 4, 3]
    assert [len(words(min_area=a)) for a in (None, 400, 2500, 100_000)] == [4, 3, 3, 0]
    quads, outlines = words(), words(result_kind='polygon')
    assert {len(p) for p in quads.polygons} == {4} and max(len(p) for p in outlines.polygons) >= 6


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    "Checkpoints of a real network, one with a tuned cut, one without, one with a cut of its own"
    def make(name, **changes):
        c = PANConfig(name=name, train_path=(f'{toy}/train',), val_path=(f'{toy}/test',), input_size=64, test_size=64, batch_size=2, epochs=1, num_workers=0, device='cpu', head='conv1x1',
                      pretrained=False, tensorboard=False, csv=False, metrics='loss', output_dir=str(tmp_path_factory.mktemp('trained')), **changes)
        return PANTrainer(c, progress='none').train().latest
    return dict(tuned=make('tuned'), own=make('own', tune_score=False), set=make('set', min_score=.4), official=make('official', tune_score=False, decode_convention='official', result_kind='polygon'))


@covers('tune_score', 'min_score')
def test_the_score_cut_in_a_checkpoint(trained):
    cuts = {k: load_checkpoint(v)['thresholds'] for k, v in trained.items()}
    assert 0 <= cuts['tuned']['min_score'] <= 1 and cuts['own'] == {} and cuts['set'] == {'min_score': .4}


@covers('min_score', 'tune_score', 'decode_convention', 'min_area', 'result_kind')
def test_the_checkpoint_decides_about_predictions(trained, toy, monkeypatch):
    "What training was told is what decoding is asked for"
    asked = []
    import visionlab.pan.learner as learner
    real = learner.decode_pan
    monkeypatch.setattr(learner, 'decode_pan', lambda maps, size, convention, **k: asked.append((convention, k['min_score'], k['kind'], k['min_area'])) or real(maps, size, convention, **k))
    image = read_image(toy/'test/img/img_1.jpg')
    for name in ('own', 'set', 'official'): load_predictor(trained[name], device='cpu')(image)
    load_predictor(trained['own'], device='cpu', min_score=.2, min_area=7)(image)
    assert asked == [('paper', None, 'quad', None), ('paper', .4, 'quad', None), ('official', None, 'polygon', None), ('paper', .2, 'quad', 7)]
    cut = load_checkpoint(trained['tuned'])['thresholds']['min_score']
    load_predictor(trained['tuned'], device='cpu')(image)
    assert asked[-1][1] == cut


@covers('test_size')
def test_the_size_of_prediction(trained, toy):
    seen = []
    for size, want in ((None, 64), (96, 96), (160, 160)):
        predictor = load_predictor(trained['own'], device='cpu', min_score=0., **({} if size is None else dict(test_size=size)))
        predictor.model.register_forward_pre_hook(lambda m, x: seen.append(tuple(x[0].shape[-2:])))
        result = predictor(toy/'test/img/img_1.jpg')
        assert seen[-1] == (want, want) and result.size == (96, 96)        # results stay in px of the image
        assert all((p >= 0).all() and (p <= 96).all() for p in result.polygons)
