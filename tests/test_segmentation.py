"""Segmentation: nine architectures train and predict, losses equal the peers', a run resumes exactly, and every setting does something."""
import json
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from covers import covered, covers
from fastai.callback.core import Callback
from torch import nn
from torch.nn import functional as F
from engine_toy import same
from visionlab.core.checks import InputError
from visionlab.core.config import replace_config
from visionlab.core.files import read_image
from visionlab.datasets.masks import fit_long_side
from visionlab.datasets.toy_masks import make_toy_masks
from visionlab.geometry.polygons import polygon_area
from visionlab.inference import load_predictor
from visionlab.segmentation import (SegmentationConfig, SegmentationEvaluator, SegmentationTrainer, evaluate_segmentation, segmentation_dataloaders,
                                    segmentation_learner, segmentation_loss, segmentation_model)
from visionlab.segmentation.config import SEGMENTATION_MODELS, segmentation_paths
from visionlab.segmentation.predict import mask_from_maps, mask_regions
from visionlab.training.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)
NINE = ('Unet', 'UnetPlusPlus', 'MAnet', 'Linknet', 'FPN', 'PSPNet', 'PAN', 'DeepLabV3', 'DeepLabV3Plus')
assert set(NINE) < set(SEGMENTATION_MODELS)


SMALL = 'tu-mobilenetv3_small_050'     # the encoder, where it does not matter which one


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    "Toy sets by number of classes"
    made = {}
    def get(classes):
        if classes not in made: made[classes] = make_toy_masks(tmp_path_factory.mktemp('toy')/f'c{classes}', n_train=6, n_test=3, size=(64, 48), classes=classes)
        return made[classes]
    return get


@pytest.fixture
def config(toys, tmp_path):
    "Settings of a tiny run, with changes"
    def make(classes=3, **changes):
        toy = toys(classes)
        train, val = (f'{toy}/train', f'{toy}/test') if (toy/'train').exists() else (str(toy), str(toy))
        base = dict(train_path=(train,), val_path=(val,), classes=classes, patch_size=64, encoder=SMALL, pretrained=False, batch_size=2, epochs=1, num_workers=0, device='cpu',
                    output_dir=str(tmp_path/'runs'), tensorboard=False, csv=False)
        return SegmentationConfig(**{**base, **changes})
    return make


def tiny_net(classes=3, seed=0):
    "A map a class from one convolution: everything but the model is real"
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))


@pytest.fixture
def run(config):
    def go(cbs=(), model=None, **changes):
        c = config(**changes)
        return SegmentationTrainer(c, model=model or tiny_net(c.classes, c.seed), progress='none', cbs=cbs).train()
    return go


def final(trainer): return torch.cat([p.detach().flatten() for p in trainer.learn.model.parameters()])


# Architectures

@pytest.mark.parametrize('name', NINE)
def test_nine_architectures(name, tmp_path):
    "A training step, a forward pass at an odd size, and the same answer out of a checkpoint"
    c = SegmentationConfig(model=name, encoder='resnet18', classes=3, pretrained=False, patch_size=64, device='cpu')
    torch.manual_seed(0)
    net, loss = segmentation_model(c), segmentation_loss(c)
    before = {k: v.clone() for k, v in net.named_parameters()}
    opt = torch.optim.AdamW(net.parameters(), 1e-3)
    value = loss(net.train()(torch.rand(2, 3, 64, 64)), torch.randint(0, 3, (2, 64, 64)))
    value.backward()
    opt.step()
    assert value.isfinite() and sum(not torch.equal(before[k], v) for k, v in net.named_parameters()) > .5*len(before)     # PSPNet leaves the deep half of the encoder unused
    x = torch.rand(1, 3, 45, 77)
    with torch.no_grad(): maps = net.eval()(x)
    assert maps.shape == (1, 3, 45, 77)
    path = tmp_path/'best-checkpoint.pth.tar'
    from visionlab.core.config import to_dict
    save_checkpoint(path, system='segmentation', config=to_dict(c), model=net.state_dict(), classes=['a', 'b', 'c'], normalisation=dict(mean=[.5]*3, std=[.5]*3), input_size=64)
    predictor = load_predictor(path, device='cpu')
    with torch.no_grad(): torch.testing.assert_close(predictor.model(x), maps, rtol=1e-4, atol=1e-5)
    assert predictor(np.zeros((30, 51, 3), np.uint8)).mask.shape == (30, 51)


@pytest.mark.parametrize('name', NINE)
def test_nine_architectures_run_and_resume(name, config):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    c = config(model=name, epochs=2, patch_size=32)
    trainer = SegmentationTrainer(c, progress='none', cbs=Stop()).train()
    assert trainer.stopped_by_hand and trainer.latest.name == 'checkpoint.pth.tar' and load_checkpoint(trainer.latest)['epoch'] == 1
    again = SegmentationTrainer(replace_config(c, resume_checkpoint=str(trainer.latest)), progress='none').train()
    assert [r['epoch'] for r in again.history] == [0, 1] and again.best.exists()


@pytest.mark.parametrize('name, encoder, said', [
    ('UnetPlusPlus', 'mit_b0', 'does not fit UnetPlusPlus'), ('Linknet', 'mit_b0', 'does not fit Linknet'), ('DeepLabV3', 'vgg11', 'does not fit DeepLabV3'), ('PAN', 'densenet121', 'does not fit PAN'),
    ('DeepLabV3Plus', 'vgg16', 'does not fit'), ('Unet', 'resnet19', "Did you mean 'resnet18'"), ('Unet', 'tu-vit_tiny_patch16_224', 'does not fit Unet'), ('FPN', 'tu-no_such', 'does not fit FPN')])
def test_pairs_that_smp_refuses(name, encoder, said):
    with pytest.raises(InputError, match=said) as e: segmentation_model(SegmentationConfig(model=name, encoder=encoder, pretrained=False))
    assert '\n' not in str(e.value) and 'resnet34' in str(e.value) and len(str(e.value)) < 420


@pytest.mark.parametrize('name', ['DeepLabV3', 'DeepLabV3Plus', 'PAN'])
def test_a_batch_of_one(name, config):
    c = config(model=name, batch_size=1, patch_size=64)
    with pytest.raises(InputError, match='Choose `batch_size` 2 or more') as e: SegmentationTrainer(c, progress='none').train()
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name, encoder', [('UPerNet', 'resnet18'), ('UPerNet', 'tu-swin_tiny_patch4_window7_224'), ('Segformer', 'mit_b0'), ('DPT', 'tu-vit_tiny_patch16_224'), ('DPT', 'tu-deit_tiny_patch16_224'), ('Unet', 'tu-resnet18')])
def test_newer_architectures_and_encoders(name, encoder, config):
    "A run at a size that no transformer was made for, then a prediction at an odd one, out of the checkpoint"
    trainer = SegmentationTrainer(config(model=name, encoder=encoder, patch_size=96), progress='none').train()
    assert np.isfinite(trainer.history[0]['train_loss']) and np.isfinite(trainer.history[0]['valid_loss'])
    assert load_predictor(trainer.best, device='cpu')(np.zeros((45, 77, 3), np.uint8)).mask.shape == (45, 77)
    assert load_predictor(trainer.best, device='cpu', tile=64)(np.zeros((145, 77, 3), np.uint8)).mask.shape == (145, 77)


@pytest.mark.parametrize('name, encoder', [('Unet', 'tu-coatnet_nano_rw_224'), ('UPerNet', 'tu-hiera_tiny_224'), ('DPT', 'tu-beit_base_patch16_224'), ('DPT', 'tu-vit_small_patch14_dinov2')])
def test_encoders_of_one_image_size_are_refused_when_they_are_built(name, encoder):
    with pytest.raises(InputError, match='does not take images of any size.*These do, among others') as e: segmentation_model(SegmentationConfig(model=name, encoder=encoder, pretrained=False))
    assert '\n' not in str(e.value) and len(str(e.value)) < 420


@covers('pretrained')
def test_pretrained_weights_without_a_network(monkeypatch):
    import visionlab.segmentation.model as model
    asked, real = [], model._build
    def build(name, encoder, weights, classes):
        asked.append(weights)
        if weights: raise OSError('Name or service not known')
        return real(name, encoder, weights, classes)
    monkeypatch.setattr(model, '_build', build)
    with pytest.raises(InputError, match='--no-pretrained'): segmentation_model(SegmentationConfig(encoder='resnet18'))
    segmentation_model(SegmentationConfig(encoder='resnet18', pretrained=False))
    assert asked == ['imagenet', None, None]


# Losses

def random_case(seed=0, n=2, c=4, side=12):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, side, side, generator=g), torch.randint(0, c, (n, side, side), generator=g)


def test_losses_equal_smps():
    logits, target = random_case()
    by = lambda name, **k: segmentation_loss(SegmentationConfig(classes=4, loss=name, **k))(logits, target)
    torch.testing.assert_close(by('dice'), smp.losses.DiceLoss('multiclass')(logits, target))
    torch.testing.assert_close(by('tversky', tversky_beta=.6), smp.losses.TverskyLoss('multiclass', alpha=.4, beta=.6)(logits, target))
    torch.testing.assert_close(by('lovasz'), smp.losses.LovaszLoss('multiclass')(logits, target))
    torch.testing.assert_close(by('ce'), F.cross_entropy(logits, target))
    one, yes = logits[:, :1], (target > 2).float()[:, None]
    binary = lambda name, **k: segmentation_loss(SegmentationConfig(loss=name, **k))(one, yes)
    torch.testing.assert_close(binary('dice'), smp.losses.DiceLoss('binary')(one, yes))
    torch.testing.assert_close(binary('focal'), smp.losses.FocalLoss('binary', alpha=None)(one, yes))
    torch.testing.assert_close(binary('bce'), F.binary_cross_entropy_with_logits(one, yes))
    sure = torch.where(one > 0, 30., -30.)
    inter, union = ((sure > 0) & (yes > 0)).sum(), ((sure > 0) | (yes > 0)).sum()
    torch.testing.assert_close(segmentation_loss(SegmentationConfig(loss='lovasz'))(sure, yes), 1 - inter/union)


@pytest.mark.parametrize('name', ['ce', 'focal', 'dice', 'tversky', 'lovasz', 'ce+0.5*dice'])
def test_gradients(name):
    logits, target = random_case(1, 1, 3, 3)
    loss = segmentation_loss(SegmentationConfig(classes=3, loss=name))
    good = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < .8
    def total(p): return sum(w*loss.functions[k](p, target, good, None) for k, w in loss.terms.items())
    assert torch.autograd.gradcheck(total, logits.double().requires_grad_(), eps=1e-6, atol=1e-5)


@covers('loss', 'class_weights', 'focal_gamma', 'tversky_beta')
def test_loss_settings():
    logits, target = random_case()
    value = lambda **k: segmentation_loss(SegmentationConfig(classes=4, **k))(logits, target).item()
    names = [value(loss=n) for n in ('auto', 'focal', 'dice', 'tversky', 'lovasz', 'ce+dice', 'ce+2*dice')]
    assert len(set(names)) == 7 and names[5] == pytest.approx(names[0] + names[2], abs=1e-6) and names[6] == pytest.approx(names[0] + 2*names[2], abs=1e-6)
    for n in ('ce', 'focal', 'dice', 'tversky', 'lovasz'): assert value(loss=n, class_weights=(1, 5, 0, 1)) != value(loss=n)
    assert value(loss='focal', focal_gamma=4.) < value(loss='focal') < value(loss='focal', focal_gamma=0.) == pytest.approx(value(), abs=1e-6)
    assert value(loss='tversky', tversky_beta=.5) == pytest.approx(value(loss='dice'), abs=1e-6) and value(loss='tversky', tversky_beta=.9) != value(loss='tversky')
    torch.testing.assert_close(segmentation_loss(SegmentationConfig(classes=4, class_weights=(1, 5, 0, 1)))(logits, target), F.cross_entropy(logits, target, torch.tensor([1., 5, 0, 1])))


@covers('ignore_index')
@pytest.mark.parametrize('name', ['ce', 'focal', 'dice', 'tversky', 'lovasz'])
def test_what_does_not_count(name):
    logits, target = random_case()
    loss, plain = (segmentation_loss(SegmentationConfig(classes=4, loss=name, ignore_index=i)) for i in (2, None))
    marked = torch.where(target == 2, torch.full_like(target, 255), target)
    torch.testing.assert_close(loss(logits, target), plain(logits, marked))
    p = logits.clone().requires_grad_()
    plain(p, torch.full_like(target, 255)).backward()
    assert p.grad.abs().max() == 0


# A run

@covers('metrics', 'name', 'output_dir')
def test_a_run_learns_and_leaves_its_files(run):
    trainer = run(epochs=6, batch_size=3, lr=.05, adam_eps=1e-8, csv=True, tensorboard=True, save_checkpoints=True, show_images_interval=2, loss='ce+dice', name='roads')
    h = trainer.history
    assert h[-1]['train_loss'] < h[0]['train_loss'] and {'iou', 'dice', 'pixel_accuracy', 'train_iou', 'train_dice', 'train_ce_loss', 'valid_dice_loss', 'lr'} <= set(h[0])
    names = {p.name for p in trainer.folder.iterdir()}
    assert {'best-checkpoint.pth.tar', 'checkpoint.pth.tar', 'checkpoint-0001.pth.tar', 'checkpoint-0006.pth.tar', 'config.json', 'confusion.png', 'history.csv', 'report.txt', 'worst.jpg', 'tb'} == {n for n in names if not n.startswith('checkpoint-000') or n in ('checkpoint-0001.pth.tar', 'checkpoint-0006.pth.tar')}
    assert trainer.folder.name == 'roads'
    assert load_checkpoint(trainer.best)['best']['metric'] == 'iou' and h[load_checkpoint(trainer.best)['epoch'] - 1]['iou'] == max(r['iou'] for r in h)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(trainer.folder/'tb'), size_guidance=dict(images=0)).Reload()
    assert {'epoch/iou', 'epoch/dice', 'epoch/train_iou', 'epoch/train_dice', 'epoch/lr', 'train/loss'} <= set(events.Tags()['scalars'])
    assert {'training 0', 'validation 0', 'validation 1'} <= set(events.Tags()['images'])


def test_the_last_weights_survive_the_pictures(run):
    trainer = run(epochs=2)
    for k, v in load_checkpoint(trainer.latest)['model'].items(): assert torch.equal(v, trainer.learn.model.state_dict()[k]), k


def test_wandb_offline_with_images(run, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    folder = run(wandb=True, show_images_interval=1).folder
    assert list(folder.rglob('*.wandb')) and list(folder.rglob('*.png'))


@pytest.mark.parametrize('classes', [1, 3])
def test_exact_resume(classes, config):
    "Augmentation, one cycle, clipping, evaluations in the middle of epochs"
    class Stop(Callback):
        def after_batch(self):
            if self.epoch == 2 and self.training: raise KeyboardInterrupt
    def train(name, cbs=(), **k):
        c = config(classes, epochs=3, name=name, eval_step=2, patience=0, **k)
        return SegmentationTrainer(c, model=tiny_net(classes), progress='none', cbs=cbs).train()
    whole, part = train('whole'), train('part', Stop(), num_workers=2)
    assert load_checkpoint(part.latest)['epoch'] == 2
    again = train('part', resume_checkpoint=str(part.latest))
    same(load_checkpoint(again.latest), load_checkpoint(whole.latest))


def test_training_scores_are_those_of_the_batches(config):
    c = config(classes=3)
    seen = []
    class Keep(Callback):
        run_valid = False
        def after_batch(self): seen.append((self.pred.detach().argmax(1), self.y))
    learn = segmentation_learner(segmentation_dataloaders(c), c, tiny_net(3), progress='none', cbs=[Keep()])
    learn.fit(1)
    from visionlab.metrics.segmentation import segmentation_score
    score = segmentation_score(torch.cat([p for p, _ in seen]), torch.cat([y for _, y in seen]), 3, ignore_index=255)
    assert learn.run_state.history[0]['train_iou'] == pytest.approx(score.iou, abs=1e-9) and learn.run_state.history[0]['train_dice'] == pytest.approx(score.dice, abs=1e-9)


@pytest.mark.parametrize('classes, said', [(2, 'holds 2, the classes go from 0 to 1'), (1, 'More than one class')])
def test_masks_with_other_classes_leave_no_folder(classes, said, config):
    c = replace_config(config(3), classes=classes, tensorboard=True, csv=True)
    with pytest.raises(InputError, match=said) as e: SegmentationTrainer(c, model=tiny_net(classes), progress='none').train()
    assert '\n' not in str(e.value) and not list(Path(c.output_dir).glob('*'))


def test_a_broken_batch_names_its_files(run):
    class Poison(Callback):
        order, run_valid = 0, False
        def before_batch(self): self.learn.xb = (self.x*float('nan'),)
    with pytest.raises(InputError, match=r'the loss is nan in epoch 1, batch 1 of 3.*Files of the batch'): run(cbs=Poison())


def test_trainer_takes_what_people_have(config, tmp_path):
    c = config(epochs=3)
    from visionlab.core.config import save_config, to_dict
    save_config(c, tmp_path/'c.json')
    for given in (c, to_dict(c), str(tmp_path/'c.json')): assert SegmentationTrainer(given, check_best_cooldown=2, model=tiny_net(), progress='none').config == replace_config(c, check_best_cooldown=2)


# Every setting does something

def test_every_own_field_is_covered():
    "Fields about data and augmentation have their tests beside the data"
    from dataclasses import fields
    from visionlab.core.settings import RunConfig
    data = {'train_path', 'val_path', 'test_path', 'val_ratio', 'search_files', 'color_table', 'scale', 'rotate', 'flip', 'flip_vertical', 'color_jitter', 'noise'}
    own = {f.name for f in fields(SegmentationConfig)} - {f.name for f in fields(RunConfig)} - data
    assert own <= set(covered(globals())), f'no test: {own - set(covered(globals()))}'


@covers('model', 'encoder', 'classes')
def test_model_settings():
    def shape(**k):
        net = segmentation_model(SegmentationConfig(pretrained=False, **k))
        return type(net.net).__name__, net.net.segmentation_head[0].out_channels, sum(p.numel() for p in net.parameters())
    a, b, c = shape(encoder='resnet18'), shape(encoder='mobilenet_v2', classes=5), shape(model='FPN', encoder='resnet18')
    assert (a[0], b[0], c[0]) == ('Unet', 'Unet', 'FPN') and (a[1], b[1]) == (1, 5) and len({a[2], b[2], c[2]}) == 3


@covers('class_names', 'protocol', 'conf_thres', 'patch_size')
def test_scores(config, toys):
    dls = segmentation_dataloaders(config(patch_size=96))
    assert dls.one_batch()[0].shape[-2:] == (96, 96)
    g = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(4, 3, 16, 16, generator=g), torch.randint(0, 3, (4, 16, 16), generator=g)
    truth[2:] = 0
    values = {}
    for p in ('macro', 'micro', 'imagewise', 'imagewise-micro'):
        judge = SegmentationEvaluator([], config(protocol=p, class_names=('ground', 'disc', 'box')))
        judge.add_batch(logits, truth)
        values[p] = judge.compute()['iou']
        assert judge.score.protocol == p and 'disc' in str(judge.score)
    assert len({round(v, 6) for v in values.values()}) == 4
    found = []
    for t in (.1, .5, .9):
        judge = SegmentationEvaluator([], config(1, conf_thres=t))
        judge.add_batch(logits[:, :1], (truth > 0).float()[:, None])
        judge.compute()
        found.append(int((judge.score.tp + judge.score.fp).sum()))
    assert found[0] > found[1] > found[2]


# Predictions

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "Checkpoints of short runs, for one class and for three"
    folder, made = tmp_path_factory.mktemp('trained'), {}
    for classes in (1, 3):
        toy = make_toy_masks(folder/f'toy{classes}', n_train=12, n_test=4, size=(64, 48), classes=classes)
        train, val = (f'{toy}/train', f'{toy}/test') if (toy/'train').exists() else (str(toy), str(toy))
        c = SegmentationConfig(name=f'c{classes}', train_path=(train,), val_path=(val,), classes=classes, patch_size=64, encoder=SMALL, pretrained=False, batch_size=4, epochs=2, num_workers=0, device='cpu',
                               lr=3e-3, adam_eps=1e-6, output_dir=str(folder/'runs'), tensorboard=False, csv=False)
        made[classes] = SegmentationTrainer(c, progress='none').train()
    return made


@pytest.mark.parametrize('classes', [1, 3])
def test_predictions_are_in_pixels_of_the_image(classes, trained):
    predictor = load_predictor(trained[classes].best, device='cpu')
    rng = np.random.default_rng(0)
    for size in ((48, 64), (131, 57), (7, 200), (1, 1)):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        r = predictor(image)
        assert r.mask.shape == r.size == size and r.mask.dtype == np.uint8 and r.mask.max() <= max(1, classes - 1)
        p = r.probabilities
        assert p.shape == (classes, *size)
        want = (p[0] >= .5) if classes == 1 else p.argmax(0)
        assert (want == r.mask).mean() > .999
        assert r.picture(image).shape == (*size, 3) and json.dumps(r.to_dict()) and len(r.to_lines()) == len(r)


@covers('conf_thres', 'patch_size', 'tile', 'overlap')
def test_prediction_options(trained, monkeypatch):
    image = read_image(trained[1].learn.dls.valid.dataset.samples[0].path)
    on = [int(load_predictor(trained[1].best, device='cpu', conf_thres=t)(image).mask.sum()) for t in (.01, .5, .99)]
    assert on[0] >= on[1] >= on[2] and on[0] > on[2]
    assert int(load_predictor(trained[1].best, device='cpu', min_score=.01)(image).mask.sum()) == on[0]
    seen = []
    def sizes(**k):
        predictor = load_predictor(trained[1].best, device='cpu', **k)
        predictor.model.register_forward_pre_hook(lambda m, x: seen.append(tuple(x[0].shape)))
        seen.clear(); predictor(np.zeros((100, 160, 3), np.uint8))
        return list(seen)
    assert sizes() == [(1, 3, 64, 64)] and sizes(patch_size=96) == [(1, 3, 96, 96)]
    assert {s[2:] for s in sizes(tile=64)} == {(64, 64)} and len(sizes(tile=64, overlap=.5)) > len(sizes(tile=64, overlap=0.))


@pytest.mark.parametrize('option, said', [(dict(encoder='resnet50'), "`encoder` is 'resnet50', but the checkpoint's encoder is 'tu-mobilenetv3_small_050'"), (dict(classes=1), "`classes` is 1, but the checkpoint's number of classes is 3"),
                                          (dict(model='FPN'), "`model` is 'FPN', but the checkpoint's architecture is 'Unet'"), (dict(min_area=3), 'has no option `min_area`'),
                                          (dict(conf_thres=2.), 'conf_thres'), (dict(patch_size=3), 'patch_size'), (dict(tile=5), 'tile')])
def test_options_that_contradict_the_checkpoint(option, said, trained):
    with pytest.raises(InputError, match=said.replace('(', r'\(')): load_predictor(trained[3].best, device='cpu', **option)
    load_predictor(trained[3].best, device='cpu', encoder=SMALL, classes=3, model='Unet')


def test_a_threshold_that_does_nothing_is_told(trained, recwarn):
    for settings in (dict(conf_thres=.9), dict(min_score=.9)):
        with pytest.warns(UserWarning, match='`conf_thres` does nothing here: of 3 classes'): load_predictor(trained[3].best, device='cpu', **settings)
    recwarn.clear()
    load_predictor(trained[3].best, device='cpu', patch_size=96), load_predictor(trained[1].best, device='cpu', conf_thres=.9)
    assert not [w for w in recwarn if 'conf_thres' in str(w.message)]


def test_a_bad_choice_is_not_called_the_checkpoints(trained):
    with pytest.raises(InputError, match='^"patch_size" must be a whole number, at least 32') as e: load_predictor(trained[3].best, device='cpu', patch_size=8)
    assert 'checkpoint' not in str(e.value)


def test_evaluation(trained, tmp_path):
    best, toy = trained[3].best, trained[3].config.val_path[0]
    a, b = evaluate_segmentation(best, toy, device='cpu'), evaluate_segmentation(best, device='cpu', batch_size=3)
    assert a.to_dict()['iou'] == pytest.approx(b.to_dict()['iou'], abs=2e-3) and len(a.samples) == 4 and a.score.protocol == 'macro' and len(a.worst(2)) == 2
    predictor, want = load_predictor(best, device='cpu'), []
    from visionlab.datasets.masks import read_mask
    from visionlab.metrics.segmentation import ConfusionMatrix
    matrix = ConfusionMatrix(3, 255)
    for s in a.samples: matrix.add(predictor(s.path).mask, read_mask(s.mask_path, 3))
    assert matrix.score().iou == pytest.approx(a.score.iou, abs=1e-9)
    with pytest.raises(InputError, match='number of classes'): evaluate_segmentation(best, toy, device='cpu', classes=5)


def test_demo(tmp_path, capsys):
    from visionlab.segmentation import segmentation_demo
    found = segmentation_demo(str(tmp_path), n_train=8, n_test=3, epochs=1, device='cpu', patch_size=32)
    said = capsys.readouterr().out
    assert len(found.samples) == 3 and 'visionlab predict' in said and 'IoU' in said and (tmp_path/'segmentation-demo'/'masks.jpg').exists()


def test_mask_regions_are_the_pixels():
    rng = np.random.default_rng(1)
    for _ in range(30):
        mask = np.zeros((24, 31), np.uint8)
        for c in (1, 2, 3):
            y, x = rng.integers(0, 20, 2)
            mask[y:y+rng.integers(1, 9), x:x+rng.integers(1, 9)] = c
        for c in (1, 2, 3):
            from scipy.ndimage import binary_fill_holes, label
            filled = [binary_fill_holes(label(mask == c, np.ones((3, 3)))[0] == i) for i in range(1, label(mask == c, np.ones((3, 3)))[1] + 1)]
            want = sorted(f.sum() for f in filled)
            got = sorted(polygon_area(p) for k, p in mask_regions(mask, 0) if k == c)
            assert len(want) == len(got)
            for w, g in zip(want, got): assert abs(w - g) <= max(2, .1*w), (want, got)
    full = np.full((5, 9), 4, np.uint8)
    (c, p), = mask_regions(full)
    assert c == 4 and polygon_area(p) == 45 and len(p) == 4


def test_no_work_is_spent_on_specks(monkeypatch):
    import visionlab.segmentation.predict as predict
    mask, made, real = np.random.default_rng(0).integers(0, 3, (300, 300)).astype(np.uint8), [], predict._edge_polygon
    monkeypatch.setattr(predict, '_edge_polygon', lambda c: made.append(1) or real(c))
    every = mask_regions(mask, 0)
    assert len(made) == len(every) > 4000
    for least in (4., 16., 100.):
        made.clear()
        some = mask_regions(mask, least)
        want = [(c, p.tolist()) for c, p in every if polygon_area(p) >= least]
        assert [(c, p.tolist()) for c, p in some] == want and len(made) < 3*len(want)


def test_letterbox_way_back():
    rng = np.random.default_rng(0)
    for h, w in ((40, 90), (90, 41), (64, 64), (200, 130)):
        truth = np.zeros((h, w), np.uint8)
        truth[h//4:h//2, w//4:3*w//4] = 1
        _, square, fit = fit_long_side(np.zeros((h, w, 3), np.uint8), 128, truth)
        maps = torch.from_numpy(np.where(square == 1, .9, .1).astype(np.float32))[None]
        back = mask_from_maps(maps, fit)
        assert back.shape == (h, w) and (back != truth).mean() < .05


# Settings

def test_usual_list_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match='training_dataset.txt'): segmentation_paths(SegmentationConfig())
    for n in ('training', 'validation', 'test'): (tmp_path/f'{n}_dataset.txt').write_text('x\n')
    assert segmentation_paths(SegmentationConfig()) == dict(train=('training_dataset.txt',), val=('validation_dataset.txt',), test=('test_dataset.txt',))
    assert segmentation_paths(SegmentationConfig(search_files=True)) == dict(train=('.',), val=(), test=())


@pytest.mark.parametrize('change, said', [(dict(class_weights=(1, float('nan'), 1)), '`class_weights` are numbers'), (dict(class_weights=(1, float('inf'), 1)), '`class_weights` are numbers'), (dict(class_weights=(1, -1, 1)), '`class_weights` are numbers'),
                                          (dict(loss='0*ce'), 'leave the term out'), (dict(loss='ce+0.0*dice'), 'leave the term out'), (dict(lr=float('inf')), '`lr` must be above 0')])
def test_numbers_that_are_none(change, said):
    with pytest.raises(InputError, match=said): SegmentationConfig(classes=3, **change)


def test_empty_text_names_no_data_set():
    from visionlab.pan import PANConfig
    for cls in (SegmentationConfig, PANConfig): assert (cls(train_path='', val_path=('',)).train_path, cls(val_path=('a', '')).val_path, cls(val_path='').val_path) == ((), ('a',), ())


def test_the_users_own_command_line():
    from visionlab.core.config import parse_args
    words = '--model=UnetPlusPlus --encoder=resnext101_32x8d --epochs=300 --batch-size=8 --patch-size=928 --weight-decay=1e-3 --save-checkpoints --use-amp --workers 4 --pin-memory --eval-step 50 --adam-eps 1e-3 --lr 1e-3 --classes 1 --search-files False --load-model w.pth.tar'
    c = parse_args(SegmentationConfig, words.split(), prog='train')
    assert (c.model, c.encoder, c.epochs, c.patch_size, c.save_checkpoints, c.amp, c.num_workers, c.pin_memory, c.eval_step, c.search_files, c.finetune_checkpoint) == ('UnetPlusPlus', 'resnext101_32x8d', 300, 928, True, True, 4, True, 50, False, 'w.pth.tar')
    assert (c.lr, c.adam_eps, c.weight_decay, c.clip_grad, c.patience, c.conf_thres, c.optimizer, c.lr_scheduler, c.output_dir) == (1e-3, 1e-3, 1e-3, 255, 10, .5, 'AdamW', 'OneCycleLR', 'checkpoints')
