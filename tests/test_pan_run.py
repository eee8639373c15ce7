"""PAN runs from end to end: a killed and resumed run is bit-identical to an undisturbed one, whatever the workers; a short one learns."""
import contextlib
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch

from visionlab.cli.app import main
from visionlab.core.config import replace_config
from visionlab.datasets.toy import make_toy_text
from visionlab.inference import load_predictor
from visionlab.pan import PANConfig, PANTrainer, evaluate_pan
from visionlab.training.checkpoint import load_checkpoint

common = dict(input_size=96, test_size=96, batch_size=2, backbone='shufflenetv2', head='conv1x1', fpem_repeat=1, pretrained=False, device='cpu',
              tensorboard=False, num_workers=0, val_ratio=0.25, show_images_interval=0)


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_text(tmp_path_factory.mktemp('toy'), n_train=12, n_test=4, size=(128, 128))


def same(a, b, path=''):
    "Both hold the same numbers, bit for bit"
    if isinstance(a, torch.Tensor): assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a: same(a[k], b[k], f'{path}.{k}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)): same(x, y, f'{path}[{i}]')
    elif isinstance(a, float) and a != a: assert b != b, path
    else: assert a == b, (path, a, b)


def command(toy, out, name, epochs, workers, *more):
    flags = {k.replace('_', '-'): v for k, v in dict(common, num_workers=workers, epochs=epochs, output_dir=out, name=name, train_path=f'{toy}/train').items()}
    return ['train', 'pan', *(w for k, v in flags.items() for w in (f'--{k}', str(v))), *more]


def in_a_group_of_its_own(words):
    "The command in a process that can be killed together with its loaders' workers"
    os.setsid()
    multiprocessing.set_start_method('fork', force=True)
    torch.set_num_threads(1)
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere): sys.exit(main(words))


@pytest.mark.parametrize('before, after', [(0, 2), (2, 0)])
def test_killed_and_resumed_is_bit_identical(toy, tmp_path, processes, before, after):
    def start(*words):
        p = processes.Process(target=in_a_group_of_its_own, args=(command(*words),))
        p.start()
        return p
    whole = start(toy, tmp_path, 'whole', 3, before)
    whole.join()
    latest = tmp_path/'killed'/'latest.pth'
    p = start(toy, tmp_path, 'killed', 3, before)
    while not latest.exists() and p.is_alive(): time.sleep(0.005)
    time.sleep(0.05)
    os.killpg(p.pid, signal.SIGKILL)
    p.join()
    assert load_checkpoint(latest)['epoch'] < 3, 'the run was over before it was killed'
    on = start(toy, tmp_path, 'killed', 3, after, '--resume-checkpoint', str(latest))
    on.join()
    assert (whole.exitcode, p.exitcode, on.exitcode) == (0, -signal.SIGKILL, 0)
    a, b = (load_checkpoint(tmp_path/n/'latest.pth') for n in ('whole', 'killed'))
    for ck in (a, b): ck['stopper'].pop('seconds')   # how long epochs took may differ, nothing else
    for part in ('model', 'optimizer', 'rng', 'epoch', 'best', 'stopper', 'history', 'thresholds'): same(a[part], b[part], part)


def test_a_short_run_learns(toy, tmp_path):
    config = PANConfig(**{**common, **dict(train_path=(f'{toy}/train',), val_path=(f'{toy}/train',), epochs=12, lr=3e-3, output_dir=str(tmp_path), batch_size=4, rotate=0., color_jitter=0.,
                                           scale=(1., 1.), aspect=(1., 1.), flip=0.)})
    trainer = PANTrainer(config, progress='none').train()
    losses = [h['train_loss'] for h in trainer.history]
    assert losses[-1] < 0.8*losses[0]
    assert evaluate_pan(trainer.best, device='cpu').text_iou > 0.2


def test_seed_decides_everything(toy, tmp_path):
    config = PANConfig(**{**common, **dict(train_path=(f'{toy}/train',), epochs=1, output_dir=str(tmp_path))})
    a, b, c = (PANTrainer(replace_config(config, seed=s), progress='none').train() for s in (1, 1, 2))
    same(*(load_checkpoint(t.latest)['model'] for t in (a, b)))
    with pytest.raises(AssertionError): same(*(load_checkpoint(t.latest)['model'] for t in (a, c)))


def test_predictions_need_the_checkpoint_alone(toy, tmp_path):
    config = PANConfig(**{**common, **dict(train_path=(f'{toy}/train',), epochs=1, output_dir=str(tmp_path), backbone='mobilenet_v2', result_kind='polygon')})
    best = PANTrainer(config, progress='none').train().best
    moved = tmp_path/'elsewhere.pth'
    moved.write_bytes(best.read_bytes())
    predictor = load_predictor(moved, device='cpu')
    images = sorted((toy/'test'/'img').iterdir())
    assert len(predictor(images, batch_size=2)) == len(images)
    assert type(predictor.model.backbone).__name__ == 'Backbone' and predictor.checkpoint['system'] == 'pan'
