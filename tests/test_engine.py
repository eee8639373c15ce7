"""The engine: exact resume after SIGKILL, the same numbers as a bare loop, and an effect of every setting."""
import csv
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback
from engine_toy import DieAt, Report, SpotLoss, run_once, same, spot_config, spot_dls, spot_net, spot_trainer
from visionlab.core.checks import InputError
from visionlab.training.callbacks import NonFiniteLossError, load_run
from visionlab.training.checkpoint import load_checkpoint, save_checkpoint, seed_everything
from visionlab.training.learner import make_learner


by_hmean = dict(lr_scheduler='PolynomialLR', metrics='hmean')     # best in its third epoch of five

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The checkpoint of a run that nobody disturbed"
    trainer = spot_trainer(tmp_path_factory.mktemp('whole'), **by_hmean).train()
    return load_checkpoint(trainer.latest), load_checkpoint(trainer.best)


def in_process(ctx, *args):
    "Exit code of a process that runs `run_once`; -9 if it was killed"
    p = ctx.Process(target=run_once, args=args)
    p.start()
    p.join(120)
    return p.exitcode


# Exact resume

moments = ['start', 'batch', 'validation', 'recorded', 'in best', 'after best', 'in the second name', 'in latest']

@pytest.mark.parametrize('moment', moments)
def test_killed_at(moment, whole, processes, tmp_path):
    kwargs = dict(by_hmean, num_workers=2 if moment == 'batch' else 0)     # workers before the kill, none after
    best = whole[0]['best']['epoch']
    epoch = best if moment in ('in best', 'after best', 'in the second name') else best + 1      # the last best one, of which both files are made, or one that only writes latest.pth
    assert 1 <= best < len(whole[0]['history']) - 1
    assert in_process(processes, tmp_path, '', DieAt(moment, epoch), kwargs) == -signal.SIGKILL
    latest = tmp_path/'run'/'latest.pth'
    assert load_checkpoint(latest, 'spot')['epoch'] == epoch
    assert in_process(processes, tmp_path, str(latest), None, dict(kwargs, num_workers=0)) == 0
    same(load_checkpoint(latest), whole[0])
    same(load_checkpoint(tmp_path/'run'/'best.pth'), whole[1])
    assert sorted(p.name for p in (tmp_path/'run').glob('[!.]*')) == ['best.pth', 'config.json', 'latest.pth']


@pytest.mark.parametrize('disk', ['with links', 'without links', 'best.pth elsewhere'])
def test_the_best_epoch_stays_when_a_worse_one_follows(disk, tmp_path, monkeypatch):
    "One content under two names where the disk can do that, a copy where it cannot; a link in the folder of the run is followed"
    import visionlab.training.callbacks as callbacks
    from types import SimpleNamespace
    def no_link(*args): raise OSError('Operation not supported')
    if disk == 'without links': monkeypatch.setattr(callbacks, 'os', SimpleNamespace(**{**vars(os), 'link': no_link}))
    t = spot_trainer(tmp_path, **by_hmean)
    if disk == 'best.pth elsewhere':
        (tmp_path/'elsewhere').mkdir()
        t.open()
        (t.folder/'best.pth').symlink_to(tmp_path/'elsewhere/good.pth')
    class Same(Callback):
        order = 69
        def after_epoch(self):
            if self.run_state.improved: seen.append((os.path.samefile(t.best, t.latest), t.best.read_bytes() == t.latest.read_bytes(), t.latest.is_symlink()))
    seen = []
    t.learn.add_cb(Same())
    t.train()
    assert len(seen) >= 2 and set(seen) == {(disk != 'without links', True, False)}
    best, latest = load_checkpoint(t.best), load_checkpoint(t.latest)
    assert best['epoch'] == latest['best']['epoch'] + 1 < latest['epoch'] and t.best.is_symlink() == (disk == 'best.pth elsewhere')
    assert not list(t.folder.glob('.*tmp*'))


def test_killed_from_outside_at_any_moment(whole, processes, tmp_path):
    "SIGKILL a few batches and milliseconds after each start, with and without workers, until the run is through"
    rng, latest, kills = random.Random(5), tmp_path/'run'/'latest.pth', 0
    for i in range(40):
        if not latest.exists() and (tmp_path/'run').exists(): shutil.rmtree(tmp_path/'run')     # killed before its first checkpoint: start over
        mine, theirs = processes.Pipe(duplex=False)
        p = processes.Process(target=run_once, args=(tmp_path, str(latest) if latest.exists() else '', Report(theirs), dict(by_hmean, num_workers=2*(i % 2))))
        p.start()
        theirs.close()
        try:
            for _ in range(rng.randint(3, 24)): mine.recv()
            time.sleep(rng.random()*.02)
            os.kill(p.pid, signal.SIGKILL)
            kills += 1
        except EOFError: pass     # it came to its end before
        p.join(60)
        if p.exitcode == 0: break
        assert p.exitcode == -signal.SIGKILL
    assert kills > 1
    same(load_checkpoint(latest), whole[0])
    same(load_checkpoint(tmp_path/'run'/'best.pth'), whole[1])


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_resume_with_everything_on(amp, tmp_path):
    "Mixed precision (fp16: with its loss scale), accumulation, clipping, SGD, early stopping"
    class Config:
        def __init__(self, c): self.__dict__.update(c.__dict__, amp=amp)

    def run(folder, stop, resume=False):
        config = Config(spot_config(folder, epochs=4, accumulate=3, clip_grad=1., optimizer='SGD', patience=9))
        seed_everything(99 if resume else 3)
        from visionlab.training.callbacks import CheckpointCallback, load_run
        learn = make_learner(spot_dls(config), spot_net(), SpotLoss(), config, 'spot', progress='none', cbs=[CheckpointCallback(folder)])
        start = load_run(learn, load_checkpoint(folder/'latest.pth')) if resume else 0
        learn.fit(4, start_epoch=start, cbs=StopIn(stop))
        return load_checkpoint(folder/'latest.pth')

    whole = run(tmp_path/'a', 9)
    assert run(tmp_path/'b', 2)['epoch'] == 2
    again = run(tmp_path/'b', 9, resume=True)
    same(again, whole)
    assert (whole['scaler'] or {}).get('_growth_tracker', 0) == (0 if amp == 'bf16' else 4*2)     # one for each step that went well


class StopIn(Callback):
    def __init__(self, epoch): self.stop = epoch
    def after_batch(self):
        if self.epoch == self.stop and self.iter == 2: raise CancelFitException()


def test_loader_of_fastai_resumes_too(tmp_path):
    "A loader that is not ours draws its order from a generator of its own; it goes into the checkpoint"
    from fastai.data.core import DataLoaders, TfmdDL
    config = spot_config(tmp_path)
    data = [(torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(i)), torch.tensor(float(i % 2))) for i in range(16)]

    def run(name, epochs, **kwargs):
        dls = DataLoaders(TfmdDL(data, bs=4, shuffle=True, num_workers=0), TfmdDL(data[:4], bs=4, num_workers=0), device='cpu')
        return spot_trainer(tmp_path, dls=dls, name=name, epochs=epochs, **kwargs).train()

    random.seed(1); a = run('a', 4)
    random.seed(1); b = run('b', 2)
    random.seed(2); b = run('b', 4, resume_checkpoint=str(b.latest))
    same(load_checkpoint(a.latest), load_checkpoint(b.latest))


def test_stopped_run_does_not_train_on(tmp_path):
    "A run that was killed after its last checkpoint and before it stopped, stops at once"
    a = spot_trainer(tmp_path, epochs=30, patience=2, lr=1e-9).train()
    n = len(a.history)
    assert n < 30 and a.learn.run_state.wait == 2
    b = spot_trainer(tmp_path, epochs=30, patience=2, lr=1e-9, resume_checkpoint=str(a.latest)).train()
    same(load_checkpoint(b.latest), load_checkpoint(a.latest))
    assert b.learn.epoch == n or len(b.history) == n
    c = spot_trainer(tmp_path, epochs=n + 1, patience=0, lr=1e-9, resume_checkpoint=str(a.latest)).train()
    assert len(c.history) == n + 1


def test_early_stopping_of_fastai_loses_no_epoch(tmp_path):
    a = spot_trainer(tmp_path, epochs=30, lr=1e-9, cbs=EarlyStoppingCallback(patience=2)).train()
    assert load_checkpoint(a.latest)['epoch'] == len(a.history) < 30


def test_resume_of_a_finished_run_says_so(tmp_path):
    a = spot_trainer(tmp_path, epochs=2).train()
    lines = []
    before = (tmp_path/'run'/'latest.pth').read_bytes()
    spot_trainer(tmp_path, epochs=2, resume_checkpoint=str(a.latest), say=lines.append).train()
    assert lines[0] == 'nothing to do: 2 epochs are trained and "epochs" is 2'
    assert (tmp_path/'run'/'latest.pth').read_bytes() == before


def test_resume_with_a_progress_bar(tmp_path, capsys):
    config = spot_config(tmp_path, epochs=4)
    a = spot_trainer(tmp_path, epochs=2).train()
    learn = make_learner(spot_dls(config), spot_net(), SpotLoss(), config, 'spot', progress='bar')
    assert hasattr(learn, 'progress')
    learn.fit(4, start_epoch=load_run(learn, load_checkpoint(a.latest)))
    assert [r['epoch'] for r in learn.run_state.history] == [0, 1, 2, 3]


def test_resume_along_another_curve_is_told(tmp_path):
    a = spot_trainer(tmp_path, epochs=2, lr_scheduler='PolynomialLR').train()
    for epochs, told in ((2, 0), (3, 1)):
        lines = []
        spot_trainer(tmp_path, epochs=epochs, lr_scheduler='PolynomialLR', resume_checkpoint=str(a.latest), say=lines.append)
        assert len([l for l in lines if 'another curve' in l]) == len(lines) == told


def test_resume_from_weights_only_is_one_line(tmp_path):
    save_checkpoint(tmp_path/'a.pth', system='spot', config={}, model=spot_net().state_dict())
    with pytest.raises(InputError, match='holds no state of optimizer'): spot_trainer(tmp_path, resume_checkpoint=str(tmp_path/'a.pth'))


def test_resume_elsewhere_takes_the_best_along(tmp_path):
    a = spot_trainer(tmp_path/'one', epochs=3).train()
    b = spot_trainer(tmp_path/'two', epochs=3, resume_checkpoint=str(a.latest))
    assert b.folder == tmp_path/'two'/'run'
    b.train()
    assert b.best.exists() and a.latest.exists()


# The same numbers as a bare loop

def bare_loop(config, optimizer, schedule=None, per='epoch', epochs=3, seed=None):
    seed_everything(config.seed)
    dls, net, loss = spot_dls(config), spot_net(config.width).to(memory_format=torch.channels_last), SpotLoss()     # the learner's layout
    opt = optimizer(net.parameters())
    sched = schedule(opt) if schedule else None
    seed_everything(config.seed)
    for epoch in range(epochs):
        dls.train.set_epoch(epoch)
        net.train()
        for x, y in dls.train:
            opt.zero_grad(); loss(net(x), y).backward(); opt.step()
            if sched and per == 'step': sched.step()
        if sched and per == 'epoch': sched.step()
        list(dls.valid)     # draws one number, as a validation does
    return net.state_dict()


T = torch.optim


class OneCycle(T.lr_scheduler.OneCycleLR):
    "torch's, but for the step after the last, which it refuses"
    def step(self):
        if self.last_epoch < self.total_steps - 1: super().step()


@pytest.mark.parametrize('settings,optimizer,schedule,per', [
    (dict(optimizer='Adam', lr=.01), lambda p: T.Adam(p, .01, amsgrad=True), None, None),
    (dict(optimizer='Adam', lr=.01, amsgrad=False, weight_decay=.1), lambda p: T.Adam(p, .01, weight_decay=.1), None, None),
    (dict(optimizer='AdamW', lr=.01, weight_decay=.2), lambda p: T.AdamW(p, .01, weight_decay=.2, amsgrad=True), None, None),
    (dict(optimizer='SGD', lr=.05, momentum=.7), lambda p: T.SGD(p, .05, momentum=.7), None, None),
    (dict(optimizer='SGD', lr=.05, step_size=1, gamma=.5), lambda p: T.SGD(p, .05, momentum=.9), lambda o: T.lr_scheduler.StepLR(o, 1, .5), 'epoch'),
    (dict(optimizer='SGD', lr=.05, step_size=2), lambda p: T.SGD(p, .05, momentum=.9), lambda o: T.lr_scheduler.StepLR(o, 2, .1), 'epoch'),
    (dict(optimizer='SGD', lr=.05, lr_scheduler='PolynomialLR', power=2.), lambda p: T.SGD(p, .05, momentum=.9), lambda o: T.lr_scheduler.PolynomialLR(o, 18, 2.), 'step'),
    (dict(optimizer='AdamW', lr=.05, lr_scheduler='OneCycleLR', adam_eps=1e-3), lambda p: T.AdamW(p, .05, eps=1e-3, weight_decay=0, amsgrad=True), lambda o: OneCycle(o, .05, 18), 'step'),
    (dict(optimizer='SGD', lr=.05, lr_scheduler='OneCycleLR'), lambda p: T.SGD(p, .05, momentum=.9), lambda o: OneCycle(o, .05, 18), 'step'),
], ids=['adam', 'adam decay', 'adamw', 'sgd', 'steplr 1', 'steplr 2', 'polynomial', 'one cycle adamw', 'one cycle sgd'])
def test_equals_a_bare_loop(settings, optimizer, schedule, per, tmp_path):
    config = spot_config(tmp_path, epochs=3, **settings)
    trainer = spot_trainer(tmp_path, epochs=3, **settings).train()
    want = bare_loop(config, optimizer, schedule, per)
    for k, v in trainer.learn.model.state_dict().items(): torch.testing.assert_close(v, want[k], rtol=0, atol=1e-12 if 'OneCycle' in str(settings) else 0)


# Every setting does something

def final(folder, **kwargs):
    trainer = spot_trainer(folder, **dict(dict(epochs=2), **kwargs)).train()
    return torch.cat([v.flatten().float() for v in trainer.learn.model.state_dict().values()])


@pytest.fixture(scope='module')
def usual(tmp_path_factory):
    "Final weights of the usual settings, and of the usual settings with SGD"
    f = tmp_path_factory.mktemp('usual')
    return {'Adam': final(f), 'SGD': final(f, optimizer='SGD')}


def test_same_settings_same_weights(usual, tmp_path): assert torch.equal(final(tmp_path), usual['Adam'])


@pytest.mark.parametrize('settings', [dict(seed=43), dict(lr=.02), dict(weight_decay=.5), dict(amsgrad=False, lr=.3), dict(optimizer='AdamW', weight_decay=.5), dict(optimizer='SGD', momentum=.1),
                                      dict(step_size=1), dict(step_size=1, gamma=.9), dict(lr_scheduler='PolynomialLR'), dict(lr_scheduler='PolynomialLR', power=3.), dict(clip_grad=.001, optimizer='SGD'),
                                      dict(accumulate=2), dict(amp=True), dict(epochs=3), dict(batch_size=8), dict(shuffle=False), dict(width=5)], ids=str)
def test_setting_changes_the_weights(settings, usual, tmp_path):
    base = {'gamma': dict(step_size=1), 'power': dict(lr_scheduler='PolynomialLR'), 'amsgrad': dict(lr=.3)}
    a, b = final(tmp_path, **settings), usual[settings.get('optimizer', 'Adam')] if settings.get('optimizer') == 'SGD' else usual['Adam']
    for k, v in base.items():
        if k in settings: b = final(tmp_path, **v)
    assert a.shape != b.shape or not torch.equal(a, b)


@pytest.mark.parametrize('num_workers', [1, 2])
def test_workers_change_nothing(num_workers, usual, tmp_path): assert torch.equal(final(tmp_path, num_workers=num_workers), usual['Adam'])


@pytest.mark.parametrize('settings,message', [
    (dict(device='cuda:7'), 'this machine has no'), (dict(optimizer='Adam', momentum=.9), 'momentum'), (dict(optimizer='SGD', amsgrad=True), 'amsgrad'),
    (dict(metrics='f1'), '"metrics" is one of'), (dict(resume_checkpoint='/nowhere/a.pth'), 'no file'), (dict(finetune_checkpoint='/nowhere/a.pth'), 'no file')])
def test_wrong_setting(settings, message, tmp_path):
    with pytest.raises(InputError, match=message): spot_trainer(tmp_path, **settings).train()


def test_processes_without_torchrun_are_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(InputError, match='start them with torchrun'): spot_trainer(tmp_path)


def test_schedule_none_keeps_the_rate(tmp_path):
    rows = spot_trainer(tmp_path, epochs=3, lr_scheduler='none', step_size=1).train().history
    assert [r['lr'] for r in rows] == [.01]*3


def test_amp_where_it_cannot_be(tmp_path):
    learn = spot_trainer(tmp_path, amp=True).learn
    learn.model.to('meta')
    with pytest.raises(InputError, match='"amp" works on the CPU and on CUDA devices'): learn.mixed_precision.before_fit()


def test_evaluator_judges_its_own_samples_only(tmp_path):
    t = spot_trainer(tmp_path, epochs=1).train()
    own, train, other = t.learn.validate(), t.learn.validate(0), t.learn.validate(dl=spot_dls(t.config).valid)
    assert all(np.isfinite(own)) and own[1] == t.history[-1]['hmean']
    for v in (train, other): assert np.isfinite(v[0]) and np.isnan(v[1:]).all()


def test_show_results_and_export(tmp_path):
    from fastai.learner import load_learner
    learn = spot_trainer(tmp_path, epochs=1).train().learn
    with pytest.raises(InputError, match='has no `show'): learn.show_results()
    learn.evaluator.show = lambda learn, max_n, **kwargs: (max_n, kwargs)
    assert learn.show_results(max_n=3, min_score=.5) == (3, dict(min_score=.5))
    del learn.evaluator.show
    learn.path = tmp_path
    learn.export()
    with pytest.warns(UserWarning, match='pickle'): again = load_learner(tmp_path/'export.pkl')
    assert len(again.dls.train_ds) == 0 and len(learn.dls.train_ds) == 26
    learn.fit(1)     # the learner goes on


def test_metrics_chooses_the_best(tmp_path):
    class Fixed(Callback):
        order = 51     # after the Recorder, before the state of the run
        def after_epoch(self): self.recorder.values[-1][1:3] = [[3., 1., 2.][self.epoch], [.2, .1, .9][self.epoch]]
    for metric, best in (('loss', 1), ('hmean', 2)):
        t = spot_trainer(tmp_path, epochs=3, metrics=metric, cbs=Fixed()).train()
        assert load_checkpoint(t.best)['epoch'] == best + 1 and load_checkpoint(t.latest)['best']['epoch'] == best


def test_patience(tmp_path):
    assert [len(spot_trainer(tmp_path, epochs=12, lr=1e-12, weight_decay=0., patience=p, cbs=Flat()).train().history) for p in (0, 1, 3)] == [12, 2, 4]


class Flat(Callback):
    order = 51
    def after_epoch(self): self.recorder.values[-1][1] = 1.


def test_clip_grad_limits_the_step(tmp_path):
    def largest(**kwargs):
        norms = []
        class Norm(Callback):
            order = 20     # after clipping
            def before_step(self): norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())
        spot_trainer(tmp_path, epochs=1, cbs=Norm(), **kwargs).train()
        return max(norms)
    assert largest() > .1 and largest(clip_grad=.05) <= .0501 and largest(clip_grad=.05, accumulate=2) <= .0501


def test_accumulate_makes_fewer_steps(tmp_path):
    def steps(n):
        seen = []
        class Steps(Callback):
            def after_step(self): seen.append(self.iter)
        spot_trainer(tmp_path, epochs=1, accumulate=n, cbs=Steps()).train()
        return seen
    assert (steps(1), steps(4), steps(9)) == ([0, 1, 2, 3, 4, 5], [3, 5], [5])


def test_amp_is_bfloat16_inside(tmp_path):
    def types(**kwargs):
        net, seen = spot_net(), set()
        net[4].register_forward_hook(lambda m, i, o: seen.add(o.dtype))
        spot_trainer(tmp_path, epochs=1, net=net, **kwargs).train()
        return seen, {p.dtype for p in net.parameters()}
    assert types() == ({torch.float32}, {torch.float32})
    assert types(amp=True) == ({torch.bfloat16}, {torch.float32})


def test_display_interval(capsys, tmp_path):
    for interval, lines in ((1, 6), (2, 3), (10, 0)):
        config = spot_config(tmp_path, epochs=1, display_interval=interval)
        make_learner(spot_dls(config), spot_net(), SpotLoss(), config, progress='lines').fit(1)
        out = capsys.readouterr().out
        assert len(re.findall('batch ', out)) == lines and 'epoch 1/1 took' in out and '\r' not in out


def test_tensorboard_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    def steps(show=2, **kwargs):
        t = spot_trainer(tmp_path, epochs=2, show_images_interval=show, trainer=dict(show_images=lambda learn: {'input': np.zeros((8, 8, 3), np.uint8)}), **kwargs).train()
        if not (t.folder/'tb').exists(): return None
        acc = EventAccumulator(str(t.folder/'tb'), size_guidance=dict(images=0)); acc.Reload()
        tags = acc.Tags()
        return [e.step for e in acc.Scalars('train/bce')] if 'train/bce' in tags['scalars'] else [], [e.step for e in acc.Images('input')] if tags['images'] else []
    assert steps(tensorboard=False) is None
    assert steps(tensorboard=True, display_interval=4) == ([4, 8, 12], [2, 4, 6, 8, 10, 12])
    assert steps(0, tensorboard=True, display_interval=5) == ([5, 10], [])


def test_csv(tmp_path):
    assert not (spot_trainer(tmp_path, epochs=1).train().folder/'history.csv').exists()
    a = spot_trainer(tmp_path, epochs=2, csv=True, name='a').train()
    b = spot_trainer(tmp_path, epochs=3, csv=True, name='a', resume_checkpoint=str(a.latest)).train()
    rows = list(csv.DictReader(open(b.folder/'history.csv')))
    assert [r['epoch'] for r in rows] == ['0', '1', '2'] and float(rows[2]['hmean']) == b.history[2]['hmean']
    assert float(rows[1]['valid_bce']) > 0


def test_wandb(monkeypatch, tmp_path):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    t = spot_trainer(tmp_path, epochs=1, wandb=True).train()
    assert list(t.folder.rglob('*.wandb'))
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(InputError, match="wandb=true needs the package 'wandb': pip install wandb"): spot_trainer(tmp_path, epochs=1, wandb=True).train()


def test_two_runs_of_one_name(tmp_path):
    names = [spot_trainer(tmp_path, epochs=1).train().folder.name for _ in range(3)]
    assert names == ['run', 'run-2', 'run-3'] and (tmp_path/'run'/'latest.pth').exists()


def test_report_is_saved(tmp_path):
    class Report:
        def save(self, path): Path(path).write_text('2 images without label file')
    assert (spot_trainer(tmp_path, epochs=1, trainer=dict(report=Report())).train().folder/'report.txt').read_text().startswith('2 images')


def test_finetune(tmp_path):
    a = spot_trainer(tmp_path, epochs=1).train()
    b = spot_trainer(tmp_path, epochs=1, finetune_checkpoint=str(a.best))
    for k, v in b.learn.model.state_dict().items(): assert torch.equal(v, load_checkpoint(a.best)['model'][k])
    assert b.start == 0 and b.folder.name == 'run-2'
    lines = []
    spot_trainer(tmp_path, epochs=1, width=6, finetune_checkpoint=str(a.best), say=lines.append)
    assert '0.weight (4, 1, 3, 3) in the file, (6, 1, 3, 3) in the model' in lines[0]


# Accidents

@pytest.mark.parametrize('num_workers', [0, 2])
def test_non_finite_loss(num_workers, tmp_path):
    t = spot_trainer(tmp_path, epochs=2, bad=(5,), num_workers=num_workers)
    start = {k: v.clone() for k, v in t.learn.model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r'^the loss is nan in epoch 1, batch \d of 6; the run stopped before it changed the weights. Files of the batch in .pictures.: .*p5.png') as e: t.train()
    assert len(e.value.files) == 4 and '\n' not in str(e.value)
    assert all(v.isfinite().all() for v in t.learn.model.parameters())
    assert not t.latest.exists() and isinstance(e.value, InputError)


@pytest.mark.parametrize('at, left', [(0, False), (1, True)])
def test_an_error_before_the_first_checkpoint_leaves_no_folder(at, left, tmp_path):
    class BadLabel(Callback):
        broken = True
        def before_batch(self):
            if self.broken and self.epoch == at and self.iter == 1: raise InputError('a label with a class too many')
    label = BadLabel()
    t = spot_trainer(tmp_path, epochs=2, csv=True, tensorboard=True, cbs=label)
    with pytest.raises(InputError, match='^a label with a class too many$'): t.train()
    assert t.folder.exists() == left and t.latest.exists() == left
    label.broken = False
    t.train()                                                  # the same trainer, after the label was mended
    assert t.folder.name == 'run' and len(t.history) == 2 and load_checkpoint(t.latest)['epoch'] == 2 and len((t.folder/'history.csv').read_text().splitlines()) == 3


def test_an_error_in_a_resumed_run_takes_nothing_away(tmp_path):
    class BadLabel(Callback):
        def before_batch(self): raise InputError('a label with a class too many')
    whole = spot_trainer(tmp_path, epochs=1).train()
    before = {p.name: p.read_bytes() for p in whole.folder.iterdir() if p.is_file() and p.name != 'config.json'}
    with pytest.raises(InputError): spot_trainer(tmp_path, epochs=2, resume_checkpoint=str(whole.latest), cbs=BadLabel()).train()
    assert before.items() <= {p.name: p.read_bytes() for p in whole.folder.iterdir() if p.is_file()}.items()


def test_non_finite_gradient(tmp_path):
    class Poison(Callback):
        def before_step(self):
            if self.iter == self.n_iter - 1 and self.epoch == 1: self.model[0].weight.grad.fill_(float('inf'))
    t = spot_trainer(tmp_path, epochs=3, cbs=Poison())
    with pytest.raises(NonFiniteLossError, match="'0.weight' first, are not finite after epoch 2"): t.train()
    assert all(v.isfinite().all() for v in load_checkpoint(t.latest)['model'].values())


def full_disk(folder, out):
    "Train in a process that may write files of up to 12 kB only"
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.dont_write_bytecode = True     # or what is imported now leaves half a file of bytecode for everybody
    trainer = spot_trainer(folder, epochs=3)

    class Shrink(Callback):
        def before_epoch(self):
            if self.epoch == 1: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
    trainer.learn.add_cb(Shrink())
    try: trainer.train()
    except Exception as e: out.send((type(e).__name__, isinstance(e, InputError), str(e)))


def test_full_disk_keeps_the_last_checkpoint(processes, tmp_path):
    mine, theirs = processes.Pipe()
    p = processes.Process(target=full_disk, args=(tmp_path, theirs))
    p.start(); assert mine.poll(60)
    name, is_input, text = mine.recv()
    p.join(60)
    assert is_input and '\n' not in text and 'untouched' in text, (name, text)
    assert load_checkpoint(tmp_path/'run'/'latest.pth')['epoch'] == 1
    assert not list((tmp_path/'run').glob('.*tmp*'))


def test_ctrl_c_and_on(tmp_path, whole):
    class CtrlC(Callback):
        def after_batch(self):
            if self.epoch == 2 and self.training: self.learn.remove_cb(self); raise KeyboardInterrupt
    lines = []
    t = spot_trainer(tmp_path, cbs=CtrlC(), say=lines.append, **by_hmean).train()
    assert lines[-1] == f"stopped by hand; 2 of 5 epochs are saved. To go on: resume_checkpoint='{t.latest}'"
    t.train()
    same(load_checkpoint(t.latest), whole[0])


def test_interrupted_lr_find_leaves_callbacks_alive(tmp_path):
    "fastai's trackers stay switched off in the fit after an aborted `lr_find`"
    t = spot_trainer(tmp_path, epochs=1)
    class CtrlC(Callback):
        def after_batch(self): self.learn.remove_cb(self); raise KeyboardInterrupt
    t.learn.path = tmp_path
    t.learn.add_cb(CtrlC())
    with pytest.raises(KeyboardInterrupt): t.learn.lr_find(num_it=6, show_plot=False)
    if hasattr(t.learn, 'lr_finder'): t.learn.remove_cb(t.learn.lr_finder)
    assert load_checkpoint(t.train().latest)['epoch'] == 1


def test_no_validation_set(tmp_path):
    from visionlab.datasets.loaders import seeded_dataloaders
    full = spot_dls(spot_config(tmp_path))
    dls = seeded_dataloaders(full.train.dataset, None, 4, device='cpu')
    t = spot_trainer(tmp_path, dls=dls, epochs=2).train()
    assert t.learn.run_state.column == 'train_loss' and load_checkpoint(t.latest)['epoch'] == 2


def test_model_of_other_shape_is_no_resume(tmp_path):
    t = spot_trainer(tmp_path, epochs=1).train()
    with pytest.raises(InputError, match='"width" 4 -> 5'): spot_trainer(tmp_path, width=5, resume_checkpoint=str(t.latest))
    save_checkpoint(tmp_path/'other.pth', system='fots', model=t.learn.model.state_dict())
    with pytest.raises(InputError, match="checkpoint of 'fots', one of 'spot' is needed"): spot_trainer(tmp_path, resume_checkpoint=str(tmp_path/'other.pth'))


def test_loader_errors_are_one_line(tmp_path):
    from types import SimpleNamespace
    from visionlab.datasets.loaders import SeededDataset, seeded_dataloaders
    def item(s, seed): raise InputError('cannot be read')
    ds = SeededDataset([SimpleNamespace(path=Path(f'a/{i}.png')) for i in range(8)], item)
    for workers in (0, 2):
        with pytest.raises(InputError) as e: spot_trainer(tmp_path, dls=seeded_dataloaders(ds, ds, 4, num_workers=workers, device='cpu')).train()
        assert re.fullmatch(r"'a/\d.png': cannot be read", str(e.value))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('amp', [False, True])
def test_on_a_gpu(amp, tmp_path):
    t = spot_trainer(tmp_path, device='cuda', epochs=2, amp=amp).train()
    assert next(t.learn.model.parameters()).is_cuda
    b = spot_trainer(tmp_path, device='cuda', epochs=3, amp=amp, resume_checkpoint=str(t.latest)).train()
    assert len(load_checkpoint(b.latest)['rng']['cuda']) == torch.cuda.device_count()
    with pytest.raises(NonFiniteLossError, match='p5.png'): spot_trainer(tmp_path, device='cuda', bad=(5,), amp=amp).train()
