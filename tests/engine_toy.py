"""A tiny problem for the tests of the engine: noisy pictures, half of them with a bright spot, and a network of two layers."""
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from visionlab.core.config import from_dict
from visionlab.core.settings import RunConfig
from visionlab.datasets.loaders import SeededDataset, seeded_dataloaders
from visionlab.training.checkpoint import seed_everything
from visionlab.training.learner import Trainer, make_learner

torch.set_num_threads(1)


@dataclass(frozen=True)
class SpotConfig(RunConfig):
    width: int = 4


def make_item(sample, rng_seed):
    image = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(rng_seed % 2**63))
    if sample.spot: image[:, 5:11, 5:11] += 1.5
    return image*sample.factor, torch.tensor(float(sample.spot))


def spot_dls(config, n=26, bad=(), bad_valid=()):
    "`bad`: indices of pictures that are not a number; `bad_valid`: those of the validation alone"
    samples = [SimpleNamespace(path=Path(f'pictures/p{i}.png'), spot=i % 2, factor=float('nan') if i in bad else 1.) for i in range(n)]
    judged = [SimpleNamespace(**{**vars(s), 'factor': float('nan')}) if i in bad_valid else s for i, s in enumerate(samples[:8])]
    return seeded_dataloaders(SeededDataset(samples, make_item, config.seed), SeededDataset(judged, make_item, 9), config.batch_size,
                              config.num_workers, device='cpu', val_batch_size=4, shuffle=config.shuffle)


def spot_net(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(.2), nn.Conv2d(width, 1, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(0))


class SpotLoss(nn.Module):
    def forward(self, pred, targ):
        bce, size = nn.functional.binary_cross_entropy_with_logits(pred, targ), pred.square().mean()
        self.last_parts = dict(bce=bce.detach(), size=size.detach())
        return bce + .01*size


class SpotEvaluator:
    names = ('hmean', 'false_alarms')

    def reset(self): self.found, self.true = [], []
    def add(self, learn):
        self.found += (learn.pred > 0).tolist()
        self.true += (learn.yb[0] > 0).tolist()
    def compute(self):
        hits = sum(f and t for f, t in zip(self.found, self.true))
        return dict(hmean=2*hits/max(1, sum(self.found) + sum(self.true)), false_alarms=sum(self.found) - hits)


def spot_config(folder, **kwargs):
    return from_dict(SpotConfig, dict(dict(name='run', output_dir=str(folder), device='cpu', epochs=5, batch_size=4, num_workers=0, lr=.01, metrics='loss', tensorboard=False, csv=False), **kwargs))


def spot_trainer(folder, cbs=(), say=None, bad=(), trainer=None, dls=None, net=None, loss=None, **kwargs):
    config = spot_config(folder, **kwargs)
    seed_everything(config.seed)
    learn = make_learner(dls or spot_dls(config, bad=bad), net or spot_net(config.width), loss or SpotLoss(), config, 'spot', evaluator=SpotEvaluator(), cbs=cbs, progress='none')
    return Trainer(learn, config, 'spot', model_fields=('width',), meta=dict(classes=['none', 'spot']), say=say or (lambda line: None), **(trainer or {}))


def same(a, b, where='checkpoint'):
    "Assert that two checkpoints are equal to the last bit, but for times and settings that do not matter"
    if isinstance(a, dict):
        a, b = ({k: v for k, v in o.items() if k not in ('seconds', 'config')} for o in (a, b))
        assert list(map(str, a)) == list(map(str, b)), where
        for k in a: same(a[k], b[k], f'{where}.{k}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)): same(x, y, f'{where}[{i}]')
    elif isinstance(a, torch.Tensor): assert a.dtype == b.dtype and torch.equal(a, b), where
    else: assert a == b or (a != a and b != b), (where, a, b)


def die(): os.kill(os.getpid(), signal.SIGKILL)


class DieAt:
    "Kill this very process, without warning, at one moment of a run"
    def __init__(self, moment, epoch): self.moment, self.epoch = moment, epoch

    def __call__(self, trainer):
        from fastai.callback.core import Callback
        me, event = self, dict(batch='after_batch', validation='before_validate', recorded='after_epoch', start='before_epoch').get(self.moment)
        if event:
            def strike(cb):
                if cb.learn.epoch == me.epoch and (event != 'after_batch' or (cb.learn.training and cb.learn.iter == 3)): die()
            trainer.learn.add_cb(type('Killer', (Callback,), {event: strike, 'order': 56})())
            return
        import visionlab.training.callbacks as callbacks
        import visionlab.training.checkpoint as checkpoint
        save, second_name, link = torch.save, callbacks.second_name, os.link

        def half(obj, f, *args, **kwargs):
            "The best epochs are written as best.pth, the others as latest.pth: die in the middle"
            if obj['epoch'] == me.epoch + 1 and me.moment in ('in best', 'in latest'):
                if me.moment[3:] in Path(f.name).name: f.write(b'PK\x03\x04' + bytes(1000)); f.flush(); die()
            return save(obj, f, *args, **kwargs)

        def named(old, new):
            "latest.pth is one more name for best.pth: die before it gets the name, or half-way"
            if trainer.learn.epoch == me.epoch and me.moment == 'after best': die()
            callbacks.os = SimpleNamespace(**{**vars(os), 'link': linked})
            second_name(old, new)

        def linked(old, new):
            link(old, new)
            if trainer.learn.epoch == me.epoch and me.moment == 'in the second name': die()
        checkpoint.torch, callbacks.second_name = SimpleNamespace(**{**vars(torch), 'save': half}), named


class Report:
    "Send a word through a pipe after each batch, so that a killer knows how far the run is"
    def __init__(self, pipe): self.pipe = pipe

    def __call__(self, trainer):
        from fastai.callback.core import Callback
        pipe = self.pipe
        trainer.learn.add_cb(type('Reporter', (Callback,), dict(after_batch=lambda cb: pipe.send((cb.learn.epoch, cb.learn.iter)), order=54))())


def run_once(folder, resume='', killer=None, kwargs=None):
    "A whole process of training; the body of a forked child"
    multiprocessing.set_start_method('fork', force=True)     # for the loaders' workers
    trainer = spot_trainer(folder, resume_checkpoint=resume, **(kwargs or {}))
    if killer: killer(trainer)
    trainer.train()
