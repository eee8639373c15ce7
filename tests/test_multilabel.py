"""Multi-label: losses and steps equal the peers', a freeze holds still, a run resumes exactly, the file keeps its promises, every setting does something, and the commands work."""
import csv
import json
import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from covers import covered, covers
from engine_toy import same
from fastai.callback.core import Callback
from PIL import Image
from torch import nn
from visionlab.cli.app import main
from visionlab.core.checks import InputError
from visionlab.core.config import from_dict, parse_args, replace_config, save_config, to_dict
from visionlab.core.files import read_image
from visionlab.core.settings import RunConfig
from visionlab.core.systems import find_system, system_names
from visionlab.datasets.toy_digits import make_toy_digits
from visionlab.inference import load_predictor
from visionlab.metrics.multilabel import tune_thresholds
from visionlab.multilabel import (AsymmetricLoss, LabelResult, MultilabelConfig, MultilabelDataset, MultilabelTrainer, evaluate_multilabel, multilabel_dataloaders, multilabel_learner, multilabel_loss,
                                  multilabel_model, multilabel_samples, save_labels)
from visionlab.multilabel.learner import TrainingMatch
from visionlab.multilabel.model import RESNETS
from visionlab.training.checkpoint import load_checkpoint
from visionlab.training.learner import make_opt_func

torch.set_num_threads(1)
GOLDEN = json.loads((Path(__file__).parent/'golden/multilabel.json').read_text())
SEED_NAMES = dict(save_model_folder='output_dir', save_model_dir='model_file', checkpoint_dir='checkpoint_file', log_name='log_file', learning_rate='lr', n_epochs='epochs', early_stop_epoch_limit='patience',
                  lr_decrease='gamma', lr_step='step_size')


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_digits(tmp_path_factory.mktemp('toy')/'set', n_train=24, n_test=8, size=48, digits=3)


@pytest.fixture
def config(toy, tmp_path):
    "Settings of a tiny run, with changes"
    base = dict(images_root=f'{toy}/train', val_root=f'{toy}/test', input_size=32, batch_size=6, epochs=1, num_workers=0, device='cpu', pretrained=False, tensorboard=False, csv=False, metrics='loss',
                lr=1e-3, output_dir=str(tmp_path/'runs'))
    return lambda **changes: replace_config(MultilabelConfig(**base), **changes)


class TinyNet(nn.Module):
    "A logit a label from one convolution: everything but the model is real"
    def __init__(self, labels=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, labels)
    def forward(self, x): return self.fc(self.body(x))


@pytest.fixture
def run(config):
    def go(cbs=(), model=None, **changes):
        c = config(**changes)
        return MultilabelTrainer(c, model=model or TinyNet(len(c.labels) or 3, c.seed), progress='none', cbs=cbs).train()
    return go


def final(trainer): return torch.cat([p.detach().flatten() for p in trainer.learn.model.parameters()])


# Numbers of other projects

@pytest.mark.parametrize('detach', [True, False])
@pytest.mark.parametrize('name, settings', dict(g4_1_c05=(4, 1, .05), g4_0_c05=(4, 0, .05), g2_2_c0=(2, 2, 0), g0_0_c0=(0, 0, 0)).items())
def test_asymmetric_loss_is_the_authors(name, settings, detach):
    for case in GOLDEN['cases'].values() if isinstance(GOLDEN['cases'], dict) else GOLDEN['cases']:
        x, y = torch.tensor(case['logits'], requires_grad=True), torch.tensor(case['targets'], dtype=torch.float32)
        loss = AsymmetricLoss(*settings, detach_weight=detach, reduction='sum')(x, y)
        loss.backward()
        torch.testing.assert_close(loss, torch.tensor(case[f'asl_sum_{name}_stopgrad={detach}']), rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(x.grad, torch.tensor(case[f'asl_grad_{name}_stopgrad={detach}']), rtol=1e-4, atol=2e-7)
        torch.testing.assert_close(AsymmetricLoss(*settings)(x, y).detach(), torch.tensor(case[f'timm_batchmean_{name}']), rtol=2e-6, atol=1e-6)


@covers('pos_weight', 'loss')
def test_cross_entropy_is_torchs(config):
    for case in GOLDEN['cases'].values() if isinstance(GOLDEN['cases'], dict) else GOLDEN['cases']:
        x, y = torch.tensor(case['logits']), torch.tensor(case['targets'])
        n = x.shape[1]
        assert multilabel_loss(config(), n)(x, y).item() == pytest.approx(case['bce_mean'], abs=1e-6)
        assert multilabel_loss(config(pos_weight=tuple(case['pos_weight'])), n)(x, y).item() == pytest.approx(case['bce_mean_pos_weight'], abs=1e-6)


@covers('weight_decay')
def test_decoupled_weight_decay_is_the_golden_one():
    "p *= 1 - lr*decay before the update, through the engine's own optimiser"
    g = GOLDEN['decoupled_weight_decay']
    c = MultilabelConfig(lr=g['lr'], weight_decay=g['weight_decay'])
    w = nn.Parameter(torch.tensor(g['w0']))
    opt = make_opt_func(c)([w], lr=c.lr)
    by_hand, m, v = torch.tensor(g['w0'], dtype=torch.float64), 0, 0
    for k, (grad, want) in enumerate(zip(g['grads'], g['weights_after_each_step']), 1):
        w.grad = torch.tensor(grad)
        opt.step()
        torch.testing.assert_close(w.detach(), torch.tensor(want), rtol=1e-6, atol=1e-7)
        d = torch.tensor(grad, dtype=torch.float64)
        by_hand = by_hand*(1 - c.lr*c.weight_decay)
        m, v = .9*m + .1*d, .999*v + .001*d*d
        by_hand = by_hand - c.lr*(m/(1 - .9**k))/((v/(1 - .999**k)).sqrt() + 1e-8)
        torch.testing.assert_close(w.detach().double(), by_hand, rtol=1e-5, atol=1e-6)


# The freeze

@covers('freeze_extractor')
@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv3_small_050'])
def test_frozen_means_frozen(name, config):
    "After two epochs with decay, momentum and mixed precision: not a bit of the extractor has moved, the last layer has"
    c = config(model=name, freeze_extractor=True, weight_decay=.9, lr=.05, epochs=2)
    torch.manual_seed(0)
    net = multilabel_model(c, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trainer = MultilabelTrainer(c, model=net, progress='none').train()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f'net.{net.last}.weight', f'net.{net.last}.bias'}
    assert len([p for g in trainer.learn.opt.opt.param_groups for p in g['params']]) == 2
    free = MultilabelTrainer(replace_config(c, freeze_extractor=False, epochs=1), progress='none').train()
    assert any('running_mean' in k for k, v in free.learn.model.state_dict().items() if not torch.equal(v, before[k]))


def test_frozen_resumes_exactly(config):
    def go(name, epochs, **k):
        torch.manual_seed(5)
        c = config(freeze_extractor=True, epochs=epochs, name=name, **k)
        return MultilabelTrainer(c, model=multilabel_model(c, 3), progress='none').train()
    whole, part = go('whole', 2), go('part', 1)
    again = go('part', 2, resume_checkpoint=str(part.latest))
    assert torch.equal(final(again), final(whole))
    with pytest.raises(InputError, match='freeze_extractor'): MultilabelTrainer(config(name='part', epochs=3, resume_checkpoint=str(part.latest)), progress='none')


def test_a_freeze_of_nothing_is_told(config, capsys):
    MultilabelTrainer(config(freeze_extractor=True), progress='lines')
    assert 'the extractor is frozen and has learnt nothing' in capsys.readouterr().out


# A run

def test_exact_resume(config):
    "With augmentation, tuned cuts and all keys of the file"
    class Stop(Callback):
        def after_batch(self):
            if self.epoch == 2 and self.training: raise KeyboardInterrupt
    def train(name, cbs=(), **k): return MultilabelTrainer(config(epochs=3, name=name, metrics='mAP', **k), model=TinyNet(), progress='none', cbs=cbs).train()
    whole, part = train('whole'), train('part', Stop(), num_workers=2)
    assert load_checkpoint(part.latest)['epoch'] == 2
    again = train('part', resume_checkpoint=str(part.latest))
    a, b = load_checkpoint(again.latest), load_checkpoint(whole.latest)
    for k in ('fc', 'state_dict', 'optimizer_state_dict'): same(a.pop(k), b.pop(k))
    same(a, b)
    log = [(t.folder/'train.log').read_text().split('; ') for t in (again, whole)]
    lines = lambda t: [l.rpartition(';')[0] for l in (t.folder/'train.log').read_text().splitlines()]
    assert lines(again) == lines(whole) and len(log[0]) == len(log[1])


@covers('save_model_dir', 'checkpoint_dir', 'log_name', 'save_model_folder', 'model_file', 'checkpoint_file', 'log_file')
def test_files_have_the_names_that_were_given(run, tmp_path):
    t = run(save_model_folder=str(tmp_path/'mine'), save_model_dir='clothes.pth', checkpoint_dir='last.pth', log_name='clothes.log', epochs=2, csv=True, name='one')
    assert t.folder == tmp_path/'mine'/'one'
    assert {p.name for p in t.folder.iterdir()} == {'clothes.pth', 'last.pth', 'clothes.log', 'config.json', 'history.csv', 'report.txt', 'split.csv', 'confused.jpg', 'calibration.png', 'labels.png'}
    assert (t.best.name, t.latest.name) == ('clothes.pth', 'last.pth')
    log = (t.folder/'clothes.log').read_text().splitlines()
    assert len(log) == 3 and 'labels: 0, 1, 2' in log[0] and 'epoch 2 of 2' in log[2] and 'lr ' in log[1]
    rows = list(csv.DictReader(open(t.folder/'split.csv')))
    assert [sum(r['part'] == p for r in rows) for p in ('train', 'val')] == [24, 8]


def test_split_can_be_used_again(config, run):
    a = run(val_root='', val_ratio=.25)
    train, val, names, report = multilabel_samples(config(images_root=str(a.folder/'split.csv'), val_root=''))
    assert [s.path for s in val] == [s.path for s in a.learn.dls.valid.dataset.samples] and len(train) == len(a.learn.dls.train.dataset.samples)


def test_the_final_file(run, config):
    "Its four keys, the one format beside them, no pickled object, weights stored once"
    c = config(weight_decay=.2)
    t = MultilabelTrainer(c, progress='none').train()
    saved = torch.load(t.best, weights_only=True)
    assert {'fc', 'state_dict', 'optimizer', 'optimizer_state_dict', 'model', 'config', 'classes', 'thresholds', 'normalisation', 'input_size', 'history', 'rng', 'best', 'stopper'} <= set(saved)
    import torchvision
    plain = torchvision.models.resnet18(num_classes=3)
    plain.load_state_dict(saved['state_dict'])
    for k in ('weight', 'bias'): assert torch.equal(saved['fc'][k], saved['state_dict'][f'fc.{k}'])
    assert saved['optimizer']['name'] == 'AdamW' and saved['optimizer']['settings']['lr'] == 1e-3 and saved['optimizer']['settings']['weight_decay'] == .2
    opt = torch.optim.AdamW(plain.parameters())
    opt.load_state_dict(saved['optimizer_state_dict'])
    assert opt.param_groups[0]['weight_decay'] == .2 and len(opt.state) == 62
    weights = sum(p.numel() for p in plain.state_dict().values())*4
    assert t.best.stat().st_size < 3.2*weights, 'weights and two moments, each once'
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(plain.eval()(x), load_predictor(t.best, device='cpu').model(x), rtol=1e-4, atol=1e-5)


@covers('n_epochs', 'early_stop_epoch_limit', 'lr_decrease', 'lr_step', 'learning_rate')
def test_schedule_and_early_stop(run):
    rates = lambda **k: [round(r['lr'], 8) for r in run(**k).history]
    assert rates(n_epochs=4, learning_rate=.02, lr_step=2, lr_decrease=.5) == [.02, .02, .01, .01] and rates(n_epochs=3) == [1e-3]*3
    class Told(Callback):
        order = 51
        def after_epoch(self): self.recorder.values[-1][list(self.recorder.metric_names).index('exact_match') - 1] = [.5, .6, .6, .5, .9, .1][self.epoch]
    t = run(n_epochs=6, early_stop_epoch_limit=2, metrics='exact_match', cbs=Told())
    assert len(t.history) == 4 and load_checkpoint(t.best)['epoch'] == 2, 'a tie is no improvement'
    assert (t.folder/'train.log').read_text().splitlines()[-1] == 'stopped early: 2 epochs without a better exact_match'
    assert len(run(n_epochs=6, early_stop_epoch_limit=0, metrics='exact_match', cbs=Told()).history) == 6
    drop = (run(n_epochs=3, lr_step=2).folder/'train.log').read_text()
    assert 'learning rate 0.001 -> 0.0001' in drop


@covers('metrics')
def test_what_decides(run, config):
    for m in ('exact_match', 'mAP', 'f1', 'loss'):
        t = run(metrics=m, epochs=2)
        best = load_checkpoint(t.best)['best']
        assert best['metric'] == m and best['value'] == (min if m == 'loss' else max)(r['valid_loss' if m == 'loss' else m] for r in t.history)
    with pytest.raises(InputError, match='needs validation images'): MultilabelTrainer(config(val_root='', val_ratio=0., metrics='mAP'), progress='none')


def test_training_match_is_that_of_the_batches(config):
    seen = []
    class Keep(Callback):
        run_valid = False
        def after_batch(self): seen.append(((self.pred.detach() >= 0) == (self.y > .5)).all(1))
    c = config()
    learn = multilabel_learner(multilabel_dataloaders(c), c, TinyNet(), progress='none', cbs=[Keep()])
    learn.fit(1)
    assert learn.run_state.history[0]['train_exact_match'] == pytest.approx(torch.cat(seen).float().mean().item())


def test_pictures_and_logs(run, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    t = run(tensorboard=True, show_images_interval=3, display_interval=2, epochs=2)
    events = EventAccumulator(str(t.folder/'tb'), size_guidance=dict(images=0)).Reload()
    assert {'epoch/exact_match', 'epoch/mAP', 'epoch/train_exact_match'} <= set(events.Tags()['scalars']) and {'training 0', 'confused 0'} <= set(events.Tags()['images'])
    for k, v in load_checkpoint(t.latest)['model'].items(): assert torch.equal(v, t.learn.model.state_dict()[k]), 'the last weights survive the pictures'


def test_mixed_precision_computes_the_loss_in_single(run):
    seen = []
    class Types(Callback):
        def after_loss(self): seen.append(self.learn.loss.dtype)
    for loss in ('bce', 'asl'):
        net, inside = TinyNet(), set()
        net.fc.register_forward_hook(lambda m, i, o: inside.add(o.dtype))
        run(amp=True, loss=loss, cbs=Types(), model=net)
        assert torch.bfloat16 in inside
        assert multilabel_loss(MultilabelConfig(loss=loss), 3)(torch.randn(2, 3).bfloat16(), torch.zeros(2, 3).bfloat16()).dtype == torch.float32
    assert set(seen) == {torch.float32}


def test_trainer_takes_what_people_have(config, tmp_path):
    c = config(epochs=3)
    save_config(c, tmp_path/'c.json')
    for given in (c, to_dict(c), str(tmp_path/'c.json')): assert MultilabelTrainer(given, model=TinyNet(), progress='none').config == c
    d = {**{k: v for k, v in to_dict(c).items() if k not in SEED_NAMES.values()}, **{s: to_dict(c)[o] for s, o in SEED_NAMES.items()}}
    (tmp_path/'seed.json').write_text(json.dumps(d))
    assert MultilabelTrainer(str(tmp_path/'seed.json'), model=TinyNet(), progress='none').config == c


# Every setting does something

def test_every_own_field_is_covered():
    inherited = {f.name for f in fields(RunConfig)}
    own, tested = {f.name for f in fields(MultilabelConfig)} - inherited, set(covered(globals()))
    assert own <= tested, f'no test: {own - tested}'
    assert {'images_root', 'batch_size', 'weight_decay', *SEED_NAMES} <= tested


@covers('images_root', 'batch_size', *SEED_NAMES)
def test_names_of_the_table():
    words = dict(images_root='x', save_model_folder='out', save_model_dir='m.pth', checkpoint_dir='c.pth', batch_size=3, learning_rate=.5, n_epochs=7, early_stop_epoch_limit=2, log_name='l.txt', lr_decrease=.2, lr_step=4, weight_decay=.1)
    c = MultilabelConfig(**words)
    for k, v in words.items(): assert getattr(c, k) == v and getattr(c, SEED_NAMES.get(k, k)) == v
    for dash in ('-', '_'): assert parse_args(MultilabelConfig, [w for k, v in words.items() for w in (f'--{k}'.replace('_', dash).replace('--', '--') if dash == '_' else '--' + k.replace('_', '-'), str(v))], prog='t') == c
    assert from_dict(MultilabelConfig, words) == c and replace_config(MultilabelConfig(), **words) == c
    default = MultilabelConfig()
    assert [getattr(default, k) for k in ('batch_size', 'learning_rate', 'n_epochs', 'early_stop_epoch_limit', 'lr_decrease', 'lr_step', 'weight_decay')] == [16, 1e-4, 350, 350, .1, 10, .3]
    with pytest.raises(TypeError): MultilabelConfig(learning_rat=1)
    with pytest.raises(InputError, match='two names of one setting'): from_dict(MultilabelConfig, dict(lr=1, learning_rate=1))


@covers('images_root', 'val_root', 'val_ratio', 'labels', 'none_folder')
def test_which_images(toy, config, tmp_path):
    size = lambda **k: tuple(len(x) for x in multilabel_samples(config(**k))[:2])
    assert size() == (24, 8) and size(val_root='', val_ratio=.25) == (18, 6) and size(val_root='', val_ratio=0.) == (24, 0)
    (tmp_path/'both').mkdir()
    shutil.copytree(toy/'train', tmp_path/'both/train'); shutil.copytree(toy/'test', tmp_path/'both/valid')
    assert size(images_root=str(tmp_path/'both'), val_root='') == (24, 8) and size(val_root=str(tmp_path/'both')) == (24, 8)
    assert size(images_root=f'{toy}/train.csv', val_root=f'{toy}/test.csv') == (24, 8)
    assert multilabel_dataloaders(config(labels=('2', '0'))).vocab == ('2', '0')
    assert multilabel_dataloaders(config(none_folder='nothing')).vocab == ('0', '1', '2', '_none')
    splits = {tuple(s.path for s in multilabel_samples(config(val_root='', val_ratio=.25, seed=s))[1]) for s in range(5)}
    assert len(splits) > 1


@covers('test_root')
def test_which_images_are_evaluated(toy, config, tmp_path):
    t = MultilabelTrainer(config(), model=TinyNet(), progress='none')
    shutil.copytree(toy/'train', tmp_path/'both/train'); shutil.copytree(toy/'test', tmp_path/'both/test')
    for n, k in ((8, {}), (24, dict(test_root=f'{toy}/train')), (8, dict(images_root=str(tmp_path/'both'), val_root='', val_ratio=.5))):
        trainer = MultilabelTrainer(config(**k), progress='none').train()
        assert len(evaluate_multilabel(trainer.best, device='cpu', batch_size=8).samples) == n
    assert t.start == 0
    (tmp_path/'both/test/0/broken.jpg').write_bytes(b'')
    assert evaluate_multilabel(trainer.best, device='cpu', batch_size=8).report.counts == {'unreadable image': 1}, 'what is lost of the test images is told'


@covers('input_size', 'rotate', 'flip')
def test_views(config):
    def items(**k): return multilabel_dataloaders(config(**k)).train.dataset
    assert items(input_size=40)[0][0].shape == (3, 40, 40)
    still = [items(rotate=0., flip=0.)[i][0] for i in range(4)]
    assert all(torch.equal(items(rotate=0., flip=1.)[i][0], still[i].flip(-1)) for i in range(4))
    assert all(not torch.equal(items(rotate=90., flip=0.)[i][0], still[i]) for i in range(4))
    a, b = multilabel_dataloaders(config(rotate=90., flip=1.)).valid.dataset[0][0], multilabel_dataloaders(config(rotate=0., flip=0.)).valid.dataset[0][0]
    assert torch.equal(a, b), 'views to judge by are not random'


@covers('model', 'pretrained')
def test_models(config, monkeypatch):
    for name in RESNETS[:3]: assert multilabel_model(config(model=name), 4)(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    for name, last in (('efficientnet_b0', 'classifier'), ('convnext_atto', 'head.fc'), ('vit_tiny_patch16_224', 'head')):
        net = multilabel_model(config(model=name, input_size=64), 4)
        assert net.last == last and net.fc.out_features == 4 and net(torch.rand(2, 3, 64, 64)).shape == (2, 4)
    for name, said in (('resnet51', "Did you mean 'resnet50'"), ('no such', 'neither torchvision nor timm'), ('', 'neither')):
        with pytest.raises(InputError, match=said): multilabel_model(config(model=name), 4)
    import torchvision
    real, asked = torchvision.models.get_model, []
    def get(name, weights=None):
        asked.append(weights)
        if weights: raise OSError('Name or service not known')
        return real(name)
    monkeypatch.setattr(torchvision.models, 'get_model', get)
    with pytest.raises(InputError, match='--no-pretrained'): multilabel_model(config(pretrained=True), 4)
    multilabel_model(config(), 4)
    assert asked == ['DEFAULT', None]
    trained = MultilabelTrainer(config(), progress='none').train()
    MultilabelTrainer(config(pretrained=True, finetune_checkpoint=str(trained.best)), progress='none')
    assert 'DEFAULT' not in asked[1:], 'weights come from the file, so nothing is fetched'


@covers('loss', 'gamma_neg', 'gamma_pos', 'clip')
def test_loss_settings(config):
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.eye(6, 3)
    value = lambda **k: multilabel_loss(config(**k), 3)(x, y).item()
    values = [value(), *(value(loss='asl', **k) for k in ({}, dict(gamma_neg=2.), dict(gamma_pos=0.), dict(clip=0.)))]
    assert len({round(v, 6) for v in values}) == 5
    with pytest.raises(InputError, match='each of the 3 labels'): value(pos_weight=(1., 2.))


@covers('threshold', 'tune_thresholds')
def test_cuts(run, toy):
    given = lambda **k: int(run(epochs=1, **k).learn.evaluator.score.pred.sum())
    assert given(threshold=.0001) == 24 > given(threshold=.5) >= given(threshold=.9999) == 0
    assert TrainingMatch(.9).cut == pytest.approx(np.log(9)) and TrainingMatch().cut == 0
    assert set(load_checkpoint(run(tune_thresholds=False, threshold=.3).best)['thresholds'].values()) == {.3}
    t = run(epochs=1)
    s = t.learn.evaluator.score
    assert load_checkpoint(t.latest)['thresholds'] == pytest.approx(dict(zip('012', tune_thresholds(s.logits, s.truth))))


# Predictions

@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    c = MultilabelConfig(images_root=f'{toy}/train', val_root=f'{toy}/test', model='mobilenetv3_small_050', input_size=32, batch_size=6, epochs=3, num_workers=0, device='cpu', pretrained=False, tensorboard=False, lr=2e-3, weight_decay=.01,
                         output_dir=str(tmp_path_factory.mktemp('trained')))
    return MultilabelTrainer(c, progress='none').train()


def test_results(trained, toy, tmp_path):
    predictor = load_predictor(trained.best, device='cpu')
    paths = sorted((toy/'test').rglob('*.jpg'))
    results = predictor(paths, batch_size=3)
    for r in results:
        d = json.loads(json.dumps(r.to_dict()))
        assert d['labels'] == r.labels and all(d['confidences'][n] >= dict(zip(r.names, r.thresholds))[n] - 1e-9 for n in r.labels)
        assert r.to_lines() == [f'{n}\t{d["confidences"][n]:.4f}' for n in r.labels] and list(r.to_row()) == ['labels', '0', '1', '2']
        torch.testing.assert_close(torch.tensor(r.probabilities), torch.tensor(r.logits).double().sigmoid())
    assert len({r.picture(read_image(p)).shape for p, r in zip(paths, results)}) == 1
    for suffix in ('.csv', '.jsonl', '.txt'): save_labels(tmp_path/f'l{suffix}', paths, results)
    rows = list(csv.DictReader(open(tmp_path/'l.csv')))
    assert len(rows) == 8 and rows[0]['image'] == str(paths[0]) and float(rows[0]['1']) == pytest.approx(results[0].confidences['1'], abs=1e-4)
    assert [json.loads(l)['labels'] for l in open(tmp_path/'l.jsonl')] == [r.labels for r in results]


def test_labels_called_like_columns(tmp_path):
    "A label called `image` takes no place from the file's name, and one called `labels` no place from the answer"
    r = LabelResult(('image', 'labels', 'frame', 'image (label)'), np.array([1., -1, 2, 3]), .5)
    rows = list(csv.DictReader(open(save_labels(tmp_path/'l.csv', ['a.jpg'], [r]))))
    assert rows == [{'image': 'a.jpg', 'labels': 'frame+image+image (label)', 'image (label) (label)': '0.7311', 'labels (label)': '0.2689', 'frame (label)': '0.8808', 'image (label)': '0.9526'}]
    assert not {'image', 'frame'} & set(r.to_row())


def test_the_nearest_label_is_the_one_nearest_to_its_cut():
    assert 'red 0.12' in repr(LabelResult(('blue', 'red'), np.array([1., -2.]), (.9, .15)))


def test_names_of_files_and_labels_that_cannot_be_printed(trained, toy, tmp_path, capsys):
    image, odd = next((toy/'test').rglob('*.jpg')), tmp_path/'in'/'bad\udcff 図.jpg'
    odd.parent.mkdir()
    try: shutil.copy(image, odd)
    except OSError: pytest.skip('this file system takes text only')
    assert main(['predict', str(trained.best), '--source', str(odd.parent), '--output-dir', str(tmp_path/'out'), '--device', 'cpu']) == 0
    assert '図' in capsys.readouterr().out and r'bad\udcff 図' in (tmp_path/'out/predictions.csv').read_text(encoding='utf-8')
    line = (tmp_path/'out/predictions.jsonl').read_text(encoding='utf-8')
    assert '図' in line and json.loads(line)['image'] == str(odd), 'letters stay letters, and the name of the file can be had back'
    assert save_labels(tmp_path/'l.txt', [odd], [LabelResult(('a',), np.zeros(1), .5)]).exists()


def test_evaluation_is_that_of_training_at_half(trained, toy):
    found = evaluate_multilabel(trained.best, toy/'test', device='cpu', batch_size=3, min_score=.5)
    assert found.score.exact_match == pytest.approx(max(r['exact_match'] for r in trained.history), abs=1e-9)
    assert json.dumps(found.to_dict()) and 'calibration' in repr(found) and len(found.confused(3)) == 3
    tuned = evaluate_multilabel(trained.best, toy/'test', device='cpu')
    assert tuned.score.mean('f1') >= found.score.mean('f1') - 1e-9 and tuned.score.mAP == pytest.approx(found.score.mAP, abs=1e-6)


@pytest.mark.parametrize('option, said', [(dict(model='resnet50'), "whose model is 'mobilenetv3_small_050'"), (dict(encoder='vgg'), "whose model is 'mobilenetv3_small_050'"), (dict(classes=9), 'number of labels is 3'), (dict(tile=9), 'no option `tile`'),
                                          (dict(min_score=0.), 'min_score'), (dict(patch_size=3), 'input_size')])
def test_options_that_contradict_the_checkpoint(option, said, trained):
    with pytest.raises(InputError, match=said): load_predictor(trained.best, device='cpu', **option)


def test_labels_in_other_scripts(tmp_path, monkeypatch):
    for i, f in enumerate(('синий+джинсы', '青', '_none', 'синий')):
        for k in range(4):
            p = tmp_path/'set'/f/f'{k}.png'
            p.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 20, 3), 60*i + k, np.uint8)).save(p)
    c = MultilabelConfig(images_root=str(tmp_path/'set'), val_ratio=.25, model='mobilenetv3_small_050', input_size=32, pretrained=False, epochs=1, batch_size=4, num_workers=0, device='cpu', output_dir=str(tmp_path/'runs'), tensorboard=False)
    from visionlab.core import fonts
    monkeypatch.setattr(fonts, '_home', {'青': None, 'с': fonts._fonts()[0]})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        t = MultilabelTrainer(c, progress='none').train()
    assert not [w for w in said if 'Glyph' in str(w.message) or 'missing from font' in str(w.message)], 'pictures have no boxes'
    assert load_checkpoint(t.best)['classes'] == ['джинсы', 'синий', '青'] and 'синий' in (t.folder/'train.log').read_text(encoding='utf-8')
    assert set(load_predictor(t.best, device='cpu')(tmp_path/'set'/'青'/'0.png').confidences) == {'джинсы', 'синий', '青'}


def test_cards_stay_small_with_many_labels():
    "A network at its start gives hundreds of labels to an image: the picture names the surest"
    from types import SimpleNamespace
    from visionlab.metrics.multilabel import MultilabelScore
    from visionlab.multilabel.learner import training_cards, validation_cards
    names, rng = tuple(f'label {i}' for i in range(400)), np.random.default_rng(0)
    x, y = rng.normal(0, 1, (2, 400)), rng.random((2, 400)) < .01
    image = torch.zeros(2, 3, 32, 32)
    learn = SimpleNamespace(evaluator=SimpleNamespace(score=MultilabelScore(x, y, names)), dls=SimpleNamespace(valid=SimpleNamespace(dataset=[(im,) for im in image]), vocab=names), config=MultilabelConfig(),
                            xb=(image,), yb=(torch.from_numpy(y).float(),), pred=torch.from_numpy(x))
    for card in (*validation_cards(learn, [0, 1]), *training_cards(learn).values()): assert card.shape[1] < 1000


# Bad input

def test_data_that_cannot_be_trained_on(config, toy, tmp_path):
    for k, said in ((dict(val_root='/no/such/place'), '"val_root": no file'), (dict(images_root=f'{toy}/toy.json'), "no list 'images'"), (dict(images_root='/no/such/place'), '"images_root": no file'), (dict(images_root=''), '`images_root` is empty'), (dict(images_root=str(tmp_path)), 'no image in a label folder'), (dict(images_root='/no/such/place'), 'no file'), (dict(labels=('nine',), val_root=''), '')):
        if said:
            with pytest.raises(InputError, match=said): multilabel_samples(config(**k))
    new = make_toy_digits(tmp_path/'new', n_train=2, n_test=12, size=32, digits=5)
    _, val, names, report = multilabel_samples(config(val_root=f'{new}/test'))
    assert names == ('0', '1', '2') and report.counts['label that training never saw'] == 12 - len(val)
    only = tmp_path/'only'/'4'; only.mkdir(parents=True)
    shutil.copy(next((toy/'train').rglob('*.jpg')), only/'x.jpg')
    with pytest.raises(InputError, match='none of the 1 validation images can be judged'): multilabel_samples(config(val_root=str(tmp_path/'only')))


def test_labels_without_positives_or_negatives(config, run, toy, tmp_path, capsys):
    t = MultilabelTrainer(config(labels=('0', '1', '2', 'seven')), model=TinyNet(4), progress='lines')
    assert 'label on no training image (1)' in capsys.readouterr().out
    t.train()
    assert np.isfinite(t.history[-1]['mAP']) and load_checkpoint(t.best)['thresholds']['seven'] == .5
    every = tmp_path/'every'
    for p in (toy/'train').rglob('*.jpg'):
        to = every/('+'.join(['digit', *(p.parent.name.split('+') if p.parent.name != '_none' else [])]))/p.name
        to.parent.mkdir(parents=True, exist_ok=True); shutil.copy(p, to)
    t = run(images_root=str(every), val_root='', val_ratio=.25, model=TinyNet(4))
    assert 'label on every training image' in (t.folder/'report.txt').read_text()
    assert t.learn.evaluator.score.ap[3] == 1 and np.isfinite(t.history[-1]['exact_match'])


def test_a_broken_image_names_itself(config, toy, tmp_path):
    shutil.copytree(toy/'train', tmp_path/'t')
    dls = multilabel_dataloaders(config(images_root=str(tmp_path/'t')))
    bad = dls.train.dataset.samples[0].path
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(InputError, match=bad.name): list(dls.train)
    with pytest.raises(InputError, match=bad.name): MultilabelDataset(dls.train.dataset.samples, size=32)[0]
    assert bad not in [s.path for s in MultilabelDataset(tmp_path/'t').samples], 'read again, it is left out and reported'


# The commands

def test_system_is_known():
    assert 'multilabel' in system_names()
    for part in ('config', 'trainer', 'predictor', 'check', 'demo', 'evaluate'): assert callable(find_system('multilabel').load(part))


def test_commands(toy, tmp_path, capsys):
    assert main(['check', 'multilabel', str(toy)]) == 0 and 'label sets' in capsys.readouterr().out
    words = f'train multilabel --images-root {toy}/train --val-root {toy}/test --model mobilenetv3_small_050 --input-size 32 --no-pretrained --n-epochs 1 --batch-size 6 --num-workers 0 --device cpu --no-tensorboard --save-model-folder {tmp_path}/runs --save-model-dir m.pth'
    assert main(words.split()) == 0
    assert 'visionlab predict' in capsys.readouterr().out
    best = tmp_path/'runs/multilabel/m.pth'
    assert main(['evaluate', str(best), '--data', f'{toy}/test', '--device', 'cpu', '--save', str(tmp_path/'s.json')]) == 0
    assert 'exact match' in capsys.readouterr().out and 0 <= json.loads((tmp_path/'s.json').read_text())['mAP'] <= 1
    (tmp_path/'list.txt').write_text('\n'.join(str(p) for p in sorted((toy/'test').rglob('*.jpg'))[:3]))
    from visionlab.inference.draw import save_video
    save_video(tmp_path/'film.mp4', [read_image(p) for p in sorted((toy/'test').rglob('*.jpg'))[:4]], 4)
    image = next((toy/'test').rglob('*.jpg'))
    for source, n in ((image, 1), (toy/'test', 8), (f'{toy}/test/*/*.jpg', 8), (tmp_path/'list.txt', 3), (tmp_path/'film.mp4', 4)):
        out = tmp_path/'out'
        assert main(['predict', str(best), '--source', str(source), '--output-dir', str(out), '--device', 'cpu', '--batch-size', '3', '--text', '--save-video']) == 0
        said = capsys.readouterr().out
        assert len((out/'predictions.jsonl').read_text().splitlines()) == n and len(list(csv.DictReader(open(out/'predictions.csv')))) == n
        assert said.count('.jpg  ') == (0 if 'film' in str(source) else n)
        shutil.rmtree(out)
    assert main(['predict', str(best), '--source', str(image), '--encoder', 'resnet50']) == 2 and "whose model is 'mobilenetv3_small_050'" in capsys.readouterr().err
    for bad, said in ((['check', 'multilabel', '/nowhere'], '/nowhere'), (['train', 'multilabel'], '`images_root` is empty'), (['train', 'multilabel', '--images-root', str(toy), '--log-name', 'a/b'], 'log_file')):
        assert main(bad) == 2
        err = capsys.readouterr().err
        assert said in err and err.count('\n') == 1
