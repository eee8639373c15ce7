"""The cycle of the learning rate is torch's, evaluations come every N steps, and early stopping follows the peers' traces."""
import json
import math
from pathlib import Path

import pytest
import torch
from engine_toy import same, spot_config, spot_dls, spot_trainer
from fastai.callback.core import Callback, CancelFitException
from visionlab.core.checks import InputError
from visionlab.core.config import from_dict, parse_args
from visionlab.core.settings import RunConfig
from visionlab.training.callbacks import NonFiniteLossError, RunState, StepPlan, one_cycle
from visionlab.training.checkpoint import load_checkpoint

golden = json.loads((Path(__file__).parent/'golden/earlystop.json').read_text())


# One cycle

@pytest.mark.parametrize('total', [1, 2, 3, 4, 7, 10, 40, 1000])
@pytest.mark.parametrize('kind', ['AdamW', 'SGD'])
def test_one_cycle_is_torchs(total, kind):
    opt = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(1))], lr=.1, **(dict(momentum=.9) if kind == 'SGD' else {}))
    try: sched = torch.optim.lr_scheduler.OneCycleLR(opt, .03, total_steps=total)
    except ZeroDivisionError:     # torch cannot make so short a cycle; ours must, with rates that make sense
        assert all(0 < lr <= 1 and .8 < momentum < 1 for lr, momentum in (one_cycle(step, total) for step in range(total)))
        return
    for step in range(total):
        group, (lr, momentum) = opt.param_groups[0], one_cycle(step, total)
        assert .03*lr == pytest.approx(group['lr'], abs=1e-12)
        assert momentum == pytest.approx(group['momentum'] if kind == 'SGD' else group['betas'][0], abs=1e-12)
        opt.step()
        if step < total - 1: sched.step()


def test_lr_is_the_maximum_and_steps_are_optimiser_steps(tmp_path):
    rates = []
    class Rates(Callback):
        order = 20
        def before_step(self): rates.append((self.opt.hypers[0]['lr'], self.opt.hypers[0]['mom']))
    spot_trainer(tmp_path, epochs=5, accumulate=4, lr=.02, lr_scheduler='OneCycleLR', cbs=Rates()).train()
    total = 5*math.ceil(6/4)      # 26 pictures in fours, the incomplete batch left out
    assert rates == [pytest.approx((.02*one_cycle(s, total)[0], one_cycle(s, total)[1]), abs=1e-12) for s in range(total)]
    assert max(r for r, _ in rates) == pytest.approx(.02) and min(r for r, _ in rates) < 1e-6


# Rounds

@pytest.mark.parametrize('batches, accumulate, epochs, every', [(6, 1, 3, 4), (7, 2, 5, 3), (7, 3, 4, 10), (1, 1, 5, 2), (5, 8, 3, 2), (6, 2, 3, 0)])
def test_rounds_hold_every_batch_once_and_in_order(batches, accumulate, epochs, every):
    plan = StepPlan(batches, accumulate, epochs, every)
    seen, ends = [], []
    for i in range(plan.rounds):
        n = sum(b - a for _, a, b in plan.pieces(i))
        seen += [plan.place(i, k) for k in range(n)]
        last = [plan.group(i, k) for k in range(n)]
        assert last[-1][1], 'a round ends with a step'
        ends.append(sum(l for _, l in last))
    assert seen == [(e, b) for e in range(epochs) for b in range(batches)]
    assert sum(ends) == plan.total == epochs*math.ceil(batches/accumulate) and set(ends[:-1]) <= {plan.every}


def test_evaluations_every_n_steps_leave_the_training_alone(tmp_path):
    "The same weights and rates, however often one looks"
    runs = [spot_trainer(tmp_path, epochs=3, eval_step=n, lr_scheduler='OneCycleLR', name=f'n{n}', num_workers=w).train() for n, w in ((0, 0), (5, 0), (5, 2), (6, 0), (100, 0))]
    assert [len(t.history) for t in runs] == [3, 4, 4, 3, 1] and [r['step'] for r in runs[1].history] == [5, 10, 15, 18]
    for t in runs[2:3]: same(load_checkpoint(t.latest), load_checkpoint(runs[1].latest))
    assert runs[3].history[-1]['hmean'] == runs[0].history[-1]['hmean']
    for k, v in runs[0].learn.model.state_dict().items(): assert torch.equal(v, runs[3].learn.model.state_dict()[k]), k
    assert [t.learn.run_state.clock for t in runs] == [3]*5


@pytest.mark.parametrize('stop', [1, 2, 3])
def test_resume_in_the_middle_of_an_epoch(stop, tmp_path):
    settings = dict(epochs=4, eval_step=5, accumulate=2, lr_scheduler='OneCycleLR', clip_grad=1., amp=True)
    class Stop(Callback):
        def after_batch(self):
            if self.epoch == stop and self.training and self.iter == 1: raise CancelFitException()
    settings['eval_step'] = 2
    whole = spot_trainer(tmp_path, name='whole', **settings).train()
    part = spot_trainer(tmp_path, name='part', cbs=Stop(), num_workers=2, **settings).train()
    assert load_checkpoint(part.latest)['epoch'] == stop
    again = spot_trainer(tmp_path, name='part', resume_checkpoint=str(part.latest), **settings).train()
    same(load_checkpoint(again.latest), load_checkpoint(whole.latest))


@pytest.mark.parametrize('eval_step, steps', [(4, [4, 8, 12, 16, 18, 22, 24]), (5, [5, 10, 12, 17, 18, 23, 24]), (30, [12, 18, 24])])
def test_longer_after_a_short_last_round(eval_step, steps, tmp_path):
    "A run that ended within a round goes on with more epochs where it ended: every batch of every epoch once, the weights of a run in one go"
    seen = []
    class Seen(Callback):
        def after_batch(self):
            if self.training: seen.append(self.xb[0].sum().item())
    def run(**settings):
        trainer = spot_trainer(tmp_path, lr_scheduler='none', cbs=Seen(), **settings)
        for m in trainer.learn.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0.      # a validation more or less draws other numbers
        return trainer.train()
    one, want = run(epochs=4, name='one'), list(seen)
    seen.clear()
    short = run(epochs=2, eval_step=eval_step, name='short')
    for epochs in (3, 4): more = run(epochs=epochs, eval_step=eval_step, resume_checkpoint=str(short.latest))
    assert [r['step'] for r in more.history] == steps and more.rounds == len(steps) and more.learn.run_state.clock == 4
    assert seen == want and len(set(seen)) > 20
    for k, v in one.learn.model.state_dict().items(): assert torch.equal(v, more.learn.model.state_dict()[k]), k


def test_resume_with_another_eval_step_is_refused(tmp_path):
    a = spot_trainer(tmp_path, epochs=2, eval_step=4).train()
    with pytest.raises(InputError, match='"eval_step" 4 -> 3'): spot_trainer(tmp_path, epochs=2, eval_step=3, resume_checkpoint=str(a.latest))


# Which is best, and when is it over

def judged(trace, higher, patience=3, cooldown=0):
    "(best, stopped) after each value, as the engine judges"
    run = RunState('score', higher_is_better=higher, cooldown=cooldown)
    run.column, out = 'score', []
    for i, v in enumerate(trace):
        run.judge(dict(epoch=i, score=float('nan') if v is None else v))
        out.append((run.best and run.best['epoch'], run.wait >= patience))
    return out


@pytest.mark.parametrize('name', ['rise_then_flat', 'rise_then_fall'])
def test_early_stopping_follows_ultralytics(name):
    case = golden['ultralytics_fitness_maximised'][name]
    got = judged(case['trace'], True)
    assert [b for b, _ in got] == [b for b, *_ in case['best_epoch_possible_stop']]
    assert next(i for i, (_, s) in enumerate(got) if s) == case['first_stop_epoch']


@pytest.mark.parametrize('name', ['down_then_up', 'up'])
def test_early_stopping_of_a_falling_figure(name):
    case = golden['seed_loss_minimised'][name]
    got = judged(case['trace'], False)
    assert [b for b, _ in got] == [b for b, *_ in case['best_epoch_possible_stop']]
    assert next(i for i, (_, s) in enumerate(got) if s) == case['first_stop_epoch']


def test_where_we_differ_on_purpose():
    "A tie is no improvement, not even at zero or in a loss that stands still; a figure that is not a number is none either"
    stops = lambda group, name, higher: next((i for i, (_, s) in enumerate(judged(golden[group][name]['trace'], higher)) if s), None)
    assert golden['seed_loss_minimised']['down_then_flat']['first_stop_epoch'] is None and stops('seed_loss_minimised', 'down_then_flat', False) == 5
    assert golden['seed_loss_minimised']['flat']['first_stop_epoch'] is None and stops('seed_loss_minimised', 'flat', False) == 3
    assert golden['ultralytics_fitness_maximised']['all_zero']['first_stop_epoch'] is None and stops('ultralytics_fitness_maximised', 'all_zero', True) == 3
    assert [b for b, _ in judged(golden['seed_loss_minimised']['nan_middle']['trace'], False)][:5] == [0, 1, 1, 3, 4]


def test_a_loss_that_is_not_a_number_stops_at_once(tmp_path):
    t = spot_trainer(tmp_path, bad=(3,), eval_step=4, epochs=3, lr_scheduler='OneCycleLR')
    with pytest.raises(InputError, match=r'the loss is nan in evaluation \d, batch \d of \d.*p3.png'): t.train()
    assert all(p.isfinite().all() for p in t.learn.model.parameters())


class Spoilt(Callback):
    "The losses of a golden trace in place of the validation's; None is not a number"
    order = 11
    def __init__(self, trace): self.trace = trace
    def after_loss(self):
        if not self.training: self.learn.loss_grad = self.learn.loss*0 + (float('nan') if self.trace[self.epoch] is None else self.trace[self.epoch]); self.learn.loss = self.learn.loss_grad


@pytest.mark.parametrize('name', ['nan_middle', 'nan_first'])
def test_a_validation_loss_that_is_not_a_number_stops_at_once(name, tmp_path):
    "The seed's stopper lets it pass (`first_stop_epoch`); ours ends the run there, with the epoch saved"
    trace = golden['seed_loss_minimised'][name]['trace']
    at = trace.index(None)
    t = spot_trainer(tmp_path, epochs=len(trace), patience=3, csv=True, cbs=[Spoilt(trace)])
    with pytest.raises(InputError, match=f'the validation loss is nan in epoch {at + 1}, batch 1 of 2 and 1 more; .*lower `lr`'): t.train()
    assert len(t.history) == at + 1 == load_checkpoint(t.latest)['epoch'] and len((t.folder/'history.csv').read_text().splitlines()) == at + 2
    assert load_checkpoint(t.best)['epoch'] == max(1, at)


@pytest.mark.parametrize('eval_step, num_workers', [(0, 0), (4, 2)])
def test_a_broken_validation_image_is_named_and_the_run_goes_on_without_it(eval_step, num_workers, tmp_path):
    config = dict(epochs=3, eval_step=eval_step, num_workers=num_workers, patience=0)
    whole = spot_trainer(tmp_path, name='whole', **config).train()
    t = spot_trainer(tmp_path, dls=spot_dls(spot_config(tmp_path, **config), bad_valid=(5,)), **config)
    with pytest.raises(NonFiniteLossError, match=f'the validation loss is nan in {"evaluation" if eval_step else "epoch"} 1, batch 2 of 2; the run stopped after it saved this .*Mend or remove.* Files of the batch .*p5.png') as e: t.train()
    assert len(e.value.files) == 4 and '\n' not in str(e.value) and load_checkpoint(t.latest)['epoch'] == 1
    again = spot_trainer(tmp_path, resume_checkpoint=str(t.latest), **config).train()
    for a, b in zip(again.learn.model.parameters(), whole.learn.model.parameters()): assert torch.equal(a, b)


def test_cooldown_and_patience_count_evaluations(tmp_path):
    assert [b for b, _ in judged([.9, .8, .1, .3, .2, .1, .1], True, cooldown=2)] == [None, None, 2, 3, 3, 3, 3]
    t = spot_trainer(tmp_path, epochs=30, eval_step=2, patience=2, check_best_cooldown=3, lr=1e-9).train()
    assert len(t.history) == t.learn.run_state.best['epoch'] + 3 and t.learn.run_state.best['epoch'] >= 3
    lines = []
    none = spot_trainer(tmp_path, epochs=1, check_best_cooldown=5, say=lines.append).train()
    assert not none.best.exists() and 'none of the 1 epochs was judged' in lines[-1]


def test_a_file_of_every_evaluation(tmp_path):
    t = spot_trainer(tmp_path, epochs=2, eval_step=4, save_checkpoints=True).train()
    files = sorted(p.name for p in t.folder.glob('epoch-*'))
    assert files == ['epoch-0001.pth', 'epoch-0002.pth', 'epoch-0003.pth'] and [load_checkpoint(t.folder/f)['epoch'] for f in files] == [1, 2, 3]
    assert not list(spot_trainer(tmp_path, epochs=1).train().folder.glob('epoch-*'))


# Other names

@pytest.mark.parametrize('words, amp', [('', False), ('--use-amp', True), ('--use_amp', True), ('--no-use-amp', False), ('--use-amp False', False), ('--use-amp false', False), ('--use-amp=False', False),
                                        ('--use-amp True', True), ('--amp', True), ('--amp False', False)])
def test_switches_mean_what_they_say(words, amp): assert parse_args(RunConfig, words.split(), prog='x').amp is amp


def test_aliases_everywhere(tmp_path, capsys):
    (tmp_path/'c.json').write_text('{"workers": 5, "use_amp": true}')
    c = parse_args(RunConfig, ['--config', str(tmp_path/'c.json'), '--load-model', 'w.pth'], prog='x')
    assert (c.num_workers, c.amp, c.finetune_checkpoint) == (5, True, 'w.pth')
    with pytest.raises(InputError, match='two names of one'): parse_args(RunConfig, '--workers 2 --num-workers 3'.split(), prog='x')
    with pytest.raises(InputError, match='two names of one'): from_dict(RunConfig, dict(amp=True, use_amp=False))
    with pytest.raises(InputError, match='Did you mean --workers'): parse_args(RunConfig, ['--worker', '2'], prog='x')
    with pytest.raises(SystemExit): parse_args(RunConfig, ['--help'], prog='x')
    said = ' '.join(capsys.readouterr().out.split())
    for name in ('--workers', '--use-amp', '--load-model'): assert f'Also {name}' in said.replace('│ ', '').replace(' │', '') or name in said
