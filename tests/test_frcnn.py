"""Faster R-CNN as a whole: every backbone, odd batches with finite losses, torchvision's weights with torchvision's answers, exact resume, every setting, the commands."""
import copy
import json
from dataclasses import fields

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
from visionlab.core.settings import RunConfig
from visionlab.core.systems import find_system, system_names
from visionlab.datasets.boxes import read_voc, write_coco_truth
from visionlab.datasets.toy_boxes import make_toy_boxes
from visionlab.frcnn import (AnchorTargetCreator, FasterRCNN, FasterRCNNConfig, FasterRCNNLoss, FasterRCNNTrainer, FRCNNOutput, ProposalCreator, ProposalTargetCreator, evaluate_frcnn, frcnn_dataloaders,
                             frcnn_learner, frcnn_model, frcnn_samples, load_torchvision_frcnn)
from visionlab.frcnn.config import FRCNN_BACKBONES, FRCNNDataConfig
from visionlab.frcnn.learner import FRCNNEvaluator, FRCNNStepTrainer, padded_truth, split_detections
from visionlab.frcnn.anchors import AnchorGrid
from visionlab.frcnn.model import _parts, frcnn_detections
from visionlab.frcnn.targets import first_sampler
from visionlab.inference import load_predictor
from visionlab.training.checkpoint import load_checkpoint, seed_everything

torch.set_num_threads(1)
LIGHT = dict(backbone='resnet18', feature_stride=8, dilate=False, head='mlp', head_width=32, anchor_scales=(1, 2, 3))


def light(num_classes=2, seed=0, first=False, **kwargs):
    "A network that costs little; `first`: nothing in it is drawn at random"
    torch.manual_seed(seed)
    usual = dict(proposals=ProposalCreator(n_post_train=40, n_post_test=20, min_size=2), anchor_targets=AnchorTargetCreator(sampler=first_sampler if first else None),
                 roi_targets=ProposalTargetCreator(n_sample=16, sampler=first_sampler if first else None))
    return FasterRCNN(num_classes, **{**LIGHT, **usual, **kwargs})


def some_batch(n=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    lo = torch.rand(n, 3, 2, generator=g)*40
    boxes = torch.cat([lo, lo + 8 + torch.rand(n, 3, 2, generator=g)*40], -1)
    return torch.randn(n, 3, 64, 96, generator=g), boxes, torch.tensor([[0, 1, -1]]).expand(n, 3).clone()


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_boxes(tmp_path_factory.mktemp('boxes')/'toy', n_train=12, n_test=4, size=(96, 80), classes=2)


@pytest.fixture
def config(toy, tmp_path):
    "Settings of a tiny run, with changes"
    base = dict(train_path=(str(toy),), val_path=(str(toy),), input_shape=(64, 64), pretrained=False, epochs=1, batch_size=4, lr=1e-3, rpn_min_size=2, n_pre_train=200, n_post_train=30, n_pre_test=100, n_post_test=10,
                roi_samples=16, num_workers=0, device='cpu', output_dir=str(tmp_path/'runs'), tensorboard=False, csv=False, **LIGHT)
    return lambda **changes: FasterRCNNConfig(**{**base, **changes})


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    c = FasterRCNNConfig(train_path=(str(toy),), val_path=(str(toy),), input_shape=(64, 64), pretrained=False, epochs=2, batch_size=4, lr=1e-3, rpn_min_size=2, n_post_train=60, n_post_test=30, roi_samples=16, show_score=.05,
                         eval_score=.01, num_workers=0, device='cpu', output_dir=str(tmp_path_factory.mktemp('runs')), tensorboard=False, **LIGHT)
    return FasterRCNNTrainer(c, progress='none').train()


# Networks

@pytest.mark.parametrize('name', FRCNN_BACKBONES)
def test_every_backbone_is_built(name):
    for stride, dilate in ((16, True), (8, True), (8, False)):
        with torch.device('meta'): extractor, channels, cut, body, wide = _parts(name, False, False, stride, dilate, 'RoIPool', 'stage', 1024)
        with torch.device('meta'): x, cells = torch.zeros(1, 3, 160, 224), torch.zeros(5, channels, cut.size, cut.size)
        assert extractor(x).shape == (1, channels, 160//stride, 224//stride) and cut.stride == stride and body(cells).shape == (5, wide)


@pytest.mark.parametrize('kwargs', [dict(backbone='vgg16'), dict(backbone='vgg16', feature_stride=8, dilate=False, head='mlp', head_width=16), dict(backbone='resnet50'),
                                    dict(backbone='resnet18', roi_layer='RoIAlign'), dict(backbone='resnet18', feature_stride=8), dict(backbone='resnet18', feature_stride=8, dilate=False),
                                    dict(backbone='resnet50', head='mlp', head_width=16), dict(backbone='resnet18', fpn=True, anchor_scales=(4,))], ids=str)
def test_networks_learn_and_answer(kwargs):
    torch.manual_seed(0)
    net = FasterRCNN(2, **{**dict(anchor_scales=(1, 2, 3), proposals=ProposalCreator(n_post_train=10, n_post_test=3, min_size=1), roi_targets=ProposalTargetCreator(n_sample=4)), **kwargs})
    images, boxes, labels = some_batch()
    out = net(images, boxes, labels)
    assert isinstance(out, FRCNNOutput) and out.roi_scores.shape == (2, 4, 3)
    loss = FasterRCNNLoss()(out)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad(): found = net.eval()(images)
    assert found.shape == (2, 100, 6) and found.isfinite().all()


def test_maps_have_the_size_of_the_paper():
    "600x600: 38x38 for a ResNet, 37x37 for VGG16, nine anchors each"
    for name, n in (('resnet18', 38), ('vgg16', 37)):
        with torch.device('meta'): assert _parts(name, False, False, 16, True, 'RoIPool', 'stage', 1024)[0](torch.zeros(1, 3, 600, 600)).shape[-2:] == (n, n)
    assert len(AnchorGrid()((38, 38))) == 12_996 and len(AnchorGrid()((38, 50))) == 17_100


def test_an_image_is_answered_alone_as_in_a_batch():
    net, (images, *_) = light(score=.0).eval(), some_batch(3)
    with torch.no_grad(): together, alone = net(images), torch.cat([net(x[None]) for x in images])
    torch.testing.assert_close(together[:, :10], alone[:, :10], rtol=1e-3, atol=1e-3)


def test_the_loss_of_a_batch_is_the_mean_of_its_images():
    net, (images, boxes, labels) = light(first=True, freeze_bn=True), some_batch(3)
    loss = FasterRCNNLoss(rpn_sigma=3)
    together = loss.parts(net(images, boxes, labels))
    alone = [loss.parts(net(*(t[i:i + 1] for t in (images, boxes, labels)))) for i in range(3)]
    for k, v in together.items(): torch.testing.assert_close(v, torch.stack([a[k] for a in alone]).mean(), rtol=1e-4, atol=1e-5)


def test_validation_gives_losses_and_detections_from_one_pass():
    net, batch = light(first=True, freeze_bn=True).eval(), some_batch()
    calls = []
    net.extractor.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(): output, found = net(*batch)
    assert len(calls) == 1 and isinstance(output, FRCNNOutput)
    with torch.no_grad(): torch.testing.assert_close(found, net(batch[0]), rtol=1e-4, atol=1e-4)


def test_frozen_parts_stand_still():
    net = light(freeze_bn=True)
    net.freeze_backbone()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    opt = torch.optim.SGD(net.parameters(), .1, weight_decay=.1)
    FasterRCNNLoss()(net(*some_batch())).backward()
    opt.step()
    moved = {k.split('.')[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {'rpn', 'head'}
    net.freeze_backbone(False)
    FasterRCNNLoss()(net(*some_batch())).backward()
    opt.step()
    now = {k: v for k, v in net.state_dict().items() if k.startswith('extractor')}
    still = [k for k, v in now.items() if torch.equal(v, before[k])]
    assert still and all('bn' in k or 'downsample.1' in k for k in still) and not torch.equal(now['extractor.conv1.weight'], before['extractor.conv1.weight'])


# Odd batches: losses stay finite

ODD = dict(no_boxes=(torch.zeros(2, 1, 4), torch.full((2, 1), -1)), no_place=(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.long)),
           one_without=(torch.tensor([[[5., 5, 40, 40]], [[0, 0, 0, 0]]]), torch.tensor([[1], [-1]])),
           no_area=(torch.tensor([[[5., 5, 5, 30]], [[9, 9, 9, 9]]]), torch.zeros(2, 1, dtype=torch.long)),
           inside_out=(torch.tensor([[[30., 30, 5, 5]], [[20, 9, 3, 60]]]), torch.zeros(2, 1, dtype=torch.long)),
           not_numbers=(torch.full((2, 1, 4), float('nan')), torch.zeros(2, 1, dtype=torch.long)), endless=(torch.tensor([[[0., 0, float('inf'), 9]]]*2), torch.zeros(2, 1, dtype=torch.long)),
           outside=(torch.tensor([[[500., 500, 600, 600]], [[-90, -90, -20, -20]]]), torch.ones(2, 1, dtype=torch.long)),
           tiny=(torch.tensor([[[5., 5, 5.01, 5.01]], [[63.9, 63.9, 64, 64]]]), torch.ones(2, 1, dtype=torch.long)),
           huge=(torch.tensor([[[-1e6, -1e6, 1e6, 1e6]]]*2), torch.ones(2, 1, dtype=torch.long)), twice=(torch.tensor([[[5., 5, 40, 40]]*5]*2), torch.tensor([[0, 1, 0, 1, 0]]*2)))


@pytest.mark.parametrize('case', ODD)
def test_odd_boxes(case):
    net, (boxes, labels) = light(), ODD[case]
    loss = FasterRCNNLoss()
    total = loss(net(some_batch()[0], boxes, labels))
    total.backward()
    assert total.isfinite() and all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None), loss.last_parts
    with torch.no_grad(): output, found = net.eval()(some_batch()[0], boxes, labels)
    assert loss(output).isfinite() and found.isfinite().all()


def test_no_anchor_and_no_proposal_is_positive():
    net = light(anchor_targets=AnchorTargetCreator(), roi_targets=ProposalTargetCreator(n_sample=16))
    out = net(some_batch()[0], *ODD['no_boxes'])
    parts = FasterRCNNLoss().parts(out)
    assert (out.anchor_labels < 1).all() and (out.target_labels < 1).all()
    assert parts['rpn_loc'] == 0 and parts['roi_loc'] == 0 and parts['rpn_cls'] > 0 and parts['roi_cls'] > 0


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (7, 3), (33, 65)])
def test_odd_sizes(size):
    net, boxes, labels = light(), torch.tensor([[[0., 0, size[1], size[0]]]]), torch.tensor([[0]])
    assert FasterRCNNLoss()(net(torch.randn(1, 3, *size), boxes, labels)).isfinite()
    with torch.no_grad(): found = net.eval()(torch.randn(1, 3, *size))
    assert (found[..., :4] >= 0).all() and (found[..., [0, 2]] <= size[1]).all() and (found[..., [1, 3]] <= size[0]).all()


def test_no_anchor_at_all_is_inside():
    net = light(anchor_scales=(64,))
    loss = FasterRCNNLoss()
    loss(net(*some_batch())).backward()
    assert loss.last_parts['rpn_cls'] == 0 and loss.last_parts['roi_cls'] > 0


# Detections

def slow_detections(rois, valid, locs, scores, size, std, least, nms, most):
    "The same, one image and one class at a time"
    from torchvision.ops import nms as keep_of
    from visionlab.geometry.boxes import clip_boxes, decode_boxes
    out = []
    for b in range(len(rois)):
        p, found = scores[b].softmax(-1), []
        for c in range(scores.shape[-1] - 1):
            boxes = clip_boxes(decode_boxes(rois[b], locs[b, :, 4*c + 4:4*c + 8], std), *size)
            at = torch.where(valid[b] & (p[:, c + 1] >= least))[0]
            at = at[keep_of(boxes[at], p[at, c + 1], nms)]
            found += [(*boxes[i].tolist(), p[i, c + 1].item(), c) for i in at]
        out.append(sorted(found, key=lambda r: -r[4])[:most])
    return out


@pytest.mark.parametrize('most', [5, 1000])
def test_detections_equal_a_slow_version(most):
    g = torch.Generator().manual_seed(3)
    lo = torch.rand(3, 60, 2, generator=g)*80
    rois = torch.cat([lo, lo + 10 + torch.rand(3, 60, 2, generator=g)*40], -1)
    valid, locs, scores = torch.rand(3, 60, generator=g) > .2, torch.randn(3, 60, 20, generator=g)*.5, torch.randn(3, 60, 5, generator=g)*2
    args = (rois, valid, locs, scores, (100, 120), (.1, .1, .2, .2), .1, .4)
    for mine, theirs in zip(frcnn_detections(*args, most), slow_detections(*args, most)):
        torch.testing.assert_close(mine[mine[:, 5] >= 0], torch.tensor(theirs), rtol=1e-4, atol=1e-3)
    assert frcnn_detections(*args, most).shape == (3, most, 6)


def test_nothing_found_is_no_crash():
    net = light(score=.999).eval()
    with torch.no_grad(): found = net(some_batch()[0])
    assert (found[..., 5] == -1).all() and [len(x) for x in split_detections(found[0])] == [0, 0, 0]


# torchvision's weights

def torchvision_pair(seed=0, **kwargs):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    torch.manual_seed(seed)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, box_score_thresh=.27, **kwargs).eval()
    for m in theirs.modules():
        if m.__class__.__name__ == 'FrozenBatchNorm2d': m.running_mean.normal_(0, .1); m.running_var.uniform_(.8, 1.2)
    for p in (theirs.rpn.head.bbox_pred.weight, theirs.roi_heads.box_predictor.bbox_pred.weight): nn.init.normal_(p, std=.02)
    return theirs, load_torchvision_frcnn(theirs.state_dict(), score=.27)


@pytest.mark.parametrize('size', [(128, 192), (224, 160)])
def test_torchvision_weights_give_torchvision_answers(size):
    theirs, ours = torchvision_pair(min_size=min(size), max_size=max(size))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    with torch.no_grad(): a, b = theirs(list(images)), ours((images - mean)/std)
    assert sum(len(x['scores']) for x in a) > 10
    for x, y in zip(a, b):
        y = y[y[:, 5] >= 0]
        torch.testing.assert_close(y[:, 4], x['scores'], rtol=1e-3, atol=1e-4)
        assert (y[:, 5].long() == x['labels'] - 1).float().mean() > .98        # two of the same score may change places
        torch.testing.assert_close(y[:, :4], x['boxes'], rtol=1e-3, atol=.05)


def test_torchvision_files_of_other_kinds():
    theirs, ours = torchvision_pair()
    state = theirs.state_dict()
    older = {k.replace('_blocks.0.0.', '_blocks.0.').replace('_blocks.1.0.', '_blocks.1.').replace('_blocks.2.0.', '_blocks.2.').replace('_blocks.3.0.', '_blocks.3.').replace('rpn.head.conv.0.0.', 'rpn.head.conv.'): v for k, v in state.items()}
    assert older.keys() != state.keys()
    for a, b in zip(ours.parameters(), load_torchvision_frcnn(older).parameters()): assert torch.equal(a, b)
    assert {m.eps for m in load_torchvision_frcnn(state, bn_eps=0.).modules() if isinstance(m, nn.BatchNorm2d)} == {0.}
    with pytest.raises(InputError, match='lacks 1 weights'): load_torchvision_frcnn({k: v for k, v in state.items() if k != 'backbone.body.conv1.weight'})
    with pytest.raises(InputError, match='no part of torchvision'): load_torchvision_frcnn({**state, 'head.classification_head.weight': torch.zeros(1)})


# A loop of one's own

def test_the_lines_of_the_scripts():
    model = light(3)
    model_train = nn.DataParallel(model.train())
    optimizer = torch.optim.Adam(model_train.parameters(), 1e-4, weight_decay=5e-4)
    util = FasterRCNNTrainer(model_train, optimizer)
    assert isinstance(util, FRCNNStepTrainer) and isinstance(util, nn.Module) and (util.rpn_sigma, util.roi_sigma, util.loc_normalize_std) == (1, 1, [.1, .1, .2, .2])
    images, boxes, labels = some_batch()
    lists = [b[l >= 0].numpy() for b, l in zip(boxes, labels)], [l[l >= 0].numpy() for l in labels]
    before = [p.detach().clone() for p in model.parameters()]
    losses = util.train_step(images, *lists, 1)
    assert len(losses) == 5 and torch.isclose(losses[4], sum(losses[:4])) and any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert FasterRCNNTrainer(faster_rcnn=model, optimizer=optimizer).optimizer is optimizer


def test_attributes_of_the_step_trainer_count():
    util, (images, boxes, labels) = FRCNNStepTrainer(light(first=True, freeze_bn=True)), some_batch()
    def losses(): return [v.item() for v in util(images, boxes, labels, 1.)]
    plain = losses()
    assert plain == losses()
    util.rpn_sigma = 3
    a = losses()
    assert a[0] != plain[0] and a[1:4] == plain[1:4]
    util.rpn_sigma, util.roi_sigma = 1, .5
    assert [x != y for x, y in zip(losses()[:4], plain)] == [False, False, True, False]
    util.roi_sigma, util.loc_normalize_std = 1, [.2, .2, .4, .4]
    assert losses()[2] != plain[2]
    util.loc_normalize_std = [.1, .1, .2, .2]
    util.anchor_target_creator = AnchorTargetCreator(n_sample=4, sampler=first_sampler)
    assert losses()[1] != plain[1]
    util.proposal_target_creator = ProposalTargetCreator(n_sample=4, sampler=first_sampler)
    assert losses()[3] != plain[3]


def test_padded_truth():
    boxes, labels = padded_truth([np.array([[1, 2, 3, 4]]), np.zeros((0, 4))], [np.array([5]), np.array([])])
    assert boxes.tolist() == [[[1, 2, 3, 4]], [[0]*4]] and labels.tolist() == [[5], [-1]]
    assert padded_truth([[]], [[]])[1].tolist() == [[-1]]
    with pytest.raises(InputError, match='one class for each box'): padded_truth([np.zeros((1, 4))], [[]])


# Runs

def test_a_run_learns_and_leaves_its_files(trained):
    assert {p.name for p in trained.folder.iterdir()} >= {'best.pth', 'latest.pth', 'config.json', 'curves.png', 'confusion.png', 'history.csv', 'report.txt', 'worst.jpg'}
    h = trained.history
    assert h[1]['train_loss'] < h[0]['train_loss'] and all(np.isfinite(list(r.values())).all() for r in h)
    ck = load_checkpoint(trained.best, 'frcnn')
    assert ck['classes'] == ['disc', 'triangle'] and ck['config']['backbone'] == 'resnet18' and ck['input_size'] == [64, 64]


@pytest.mark.parametrize('amp', [False, True])
def test_exact_resume(config, amp):
    "Killed in the second epoch and resumed, with another trainer, ends bit for bit like a run that was not"
    class Crash(Callback):
        order = 90
        def before_batch(self):
            if self.epoch == 1 and self.iter == 1 and self.training: raise RuntimeError('power is off')
    changes = dict(epochs=3, freeze_epochs=1, amp=amp)
    whole = FasterRCNNTrainer(config(name='whole', **changes), progress='none').train()
    part = FasterRCNNTrainer(config(name='part', **changes), progress='none', cbs=Crash())
    with pytest.raises(RuntimeError, match='power is off'): part.train()
    on = FasterRCNNTrainer(config(name='part', resume_checkpoint=str(part.latest), **changes), progress='none').train()
    a, b = (load_checkpoint(t.latest) for t in (whole, on))
    assert all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    for part in ('optimizer', 'rng', 'history', 'best'): same(a[part], b[part])


def test_images_without_boxes_train(toy, config):
    samples = frcnn_samples(config())[0][:4]
    for s in samples[1:]: s.boxes, s.labels, s.ignore = np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool)
    learn = frcnn_learner(frcnn_dataloaders(config(), samples, samples[1:]), config(metrics='loss'), progress='none')
    learn.fit(1)
    row = learn.run_state.history[0]
    assert np.isfinite(row['train_loss']) and np.isfinite(row['valid_loss']) and np.isnan(row['ap50'])


def test_lr_find_and_validate(config):
    learn = frcnn_learner(frcnn_dataloaders(config()), config(), progress='none', path=config().output_dir)
    learn.lr_find(num_it=4, show_plot=False)
    assert len(learn.validate()) == 3


def test_ones_own_model_and_a_batch_of_other_sizes(config):
    c = config(resize='short_side', short_side=48, long_side=80)
    trainer = FasterRCNNTrainer(c, model=light(), progress='none').train()
    assert np.isfinite(trainer.history[0]['train_loss'])


# Settings

def test_every_field_is_covered():
    own = {f.name for f in fields(FasterRCNNConfig)} - {f.name for f in fields(RunConfig)}
    data = {'train_path', 'val_path', 'images_folder', 'val_ratio', 'classes_path', 'class_names', 'keep_difficult', 'resize', 'input_shape', 'short_side', 'long_side', 'scale', 'flip', 'flip_vertical', 'color_jitter'}    # tests/test_frcnn_data.py
    assert data <= {f.name for f in fields(FRCNNDataConfig)}
    assert sorted(set(covered(globals()))) == sorted(own - data), own - data - set(covered(globals()))


@covers('backbone', 'feature_stride', 'dilate', 'head', 'head_width', 'roi_layer', 'fpn', 'fpn_scales', 'anchor_scales', 'anchor_ratios', 'center_offset', 'loc_normalize_std')
def test_settings_of_the_network(config):
    net = lambda **k: frcnn_model(config(**k), 2)
    assert net().extractor.names == ['layer1', 'layer2'] and net(dilate=True).extractor.names[-1] == 'layer3' and net(feature_stride=16).rpn.anchors.strides == [16]
    assert net(backbone='resnet50').rpn.conv.in_channels == 512 and net(head_width=48).head.score.in_features == 48 and net(head='stage').head.score.in_features == 512
    assert net(roi_layer='RoIAlign').head.cut.layer == 'RoIAlign' and net().head.cut.layer == 'RoIPool'
    pyramid = net(fpn=True, feature_stride=16, fpn_scales=(4., 6.), anchor_ratios=(1.,))
    assert pyramid.rpn.anchors.per_cell == 2 and (pyramid.rpn.anchors.bases[0][:, 2] - pyramid.rpn.anchors.bases[0][:, 0]).tolist() == [16, 24]
    assert net(anchor_scales=(1.,)).rpn.anchors.per_cell == 3 and net(anchor_ratios=(1.,)).rpn.anchors.per_cell == 3
    centre = lambda n: n.rpn.anchors.bases[0][0].reshape(2, 2).mean(0).tolist()
    assert centre(net()) == [4, 4] and centre(net(center_offset=False)) == [0, 0]
    assert (net(loc_normalize_std=(1, 1, 1, 1)).std, net(loc_normalize_std=(1, 1, 1, 1)).roi_targets.std) == ((1, 1, 1, 1),)*2


@covers('rpn_nms', 'n_pre_train', 'n_post_train', 'n_pre_test', 'n_post_test', 'rpn_min_size')
def test_settings_of_the_proposals(config):
    def proposals(train=False, **k):
        torch.manual_seed(0)
        net = frcnn_model(config(**k), 2).train(train)
        x = torch.randn(1, 128, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(): _, _, rois, valid, _ = net.rpn(x, (64, 64))
        return rois[valid]
    assert len(proposals()) == 10 and len(proposals(True)) == 30 and len(proposals(n_post_test=4)) == 4 and len(proposals(True, n_post_train=7)) == 7
    assert len(proposals(n_pre_test=2)) <= 2 and len(proposals(True, n_pre_train=3)) <= 3
    few, many = (len(proposals(rpn_nms=v, n_post_test=100)) for v in (.2, .9))
    assert few < many
    assert ((proposals(rpn_min_size=30)[:, 2:] - proposals(rpn_min_size=30)[:, :2]) >= 30).all() and ((proposals()[:, 2:] - proposals()[:, :2]) < 30).any()


@covers('rpn_samples', 'rpn_pos_ratio', 'rpn_pos_iou', 'rpn_neg_iou', 'anchors_inside', 'roi_samples', 'roi_pos_ratio', 'roi_pos_iou', 'roi_neg_high', 'roi_neg_low')
def test_settings_of_the_targets(config):
    images, boxes, labels = some_batch()
    def output(**k):
        seed_everything(0)
        return frcnn_model(config(rpn_samples=10_000, rpn_pos_ratio=1., **k) if 'rpn_samples' not in k else config(**k), 2)(images, boxes, labels)
    count = lambda v, **k: (output(**k).anchor_labels == v).sum().item()
    pos, neg = count(1), count(0)
    assert count(1, rpn_pos_iou=.4) > pos and count(0, rpn_neg_iou=.1) < neg and count(0, anchors_inside=False) > neg
    small = output(rpn_samples=8, rpn_pos_ratio=.25)
    assert ((small.anchor_labels >= 0).sum(1) == 8).all() and ((small.anchor_labels > 0).sum(1) <= 2).all()
    assert output(roi_samples=5).target_labels.shape == (2, 5)
    assert ((output(roi_pos_ratio=.1).target_labels > 0).sum(1) <= 2).all()
    positive = lambda **k: (output(roi_samples=64, roi_pos_ratio=1., **k).target_labels > 0).sum()
    assert positive(roi_pos_iou=.1, roi_neg_high=.1) >= positive(roi_pos_iou=.3, roi_neg_high=.3) >= positive(roi_pos_iou=.95)
    negative = lambda **k: (output(roi_samples=64, **k).target_labels == 0).sum()
    assert negative(roi_neg_high=.2) < negative() and negative(roi_neg_low=.2) < negative()


@covers('rpn_sigma', 'roi_sigma', 'normalise')
def test_settings_of_the_loss(config):
    c = config(rpn_sigma=3., roi_sigma=2., normalise='samples')
    loss = frcnn_learner(frcnn_dataloaders(c), c, progress='none').loss_func
    assert (loss.rpn_sigma, loss.roi_sigma, loss.normalise) == (3, 2, 'samples')


@covers('eval_score', 'eval_nms', 'max_detections')
def test_settings_of_the_scores(config):
    net = frcnn_model(config(eval_score=.2, eval_nms=.6, max_detections=7), 2)
    assert (net.score, net.nms, net.max_detections) == (.2, .6, 7) and net.eval()(some_batch()[0]).shape == (2, 7, 6)


@covers('eleven_point')
def test_settings_of_the_judge(toy, config):
    samples = frcnn_samples(config())[1]
    def judged(**k):
        judge = FRCNNEvaluator(samples, config(**k), frcnn_dataloaders(config()).valid.dataset.make_item.view.fit, ('disc', 'triangle'))
        for i, s in enumerate(samples):
            rows = [[*b, .9 - .1*i, l] for b, l in zip(s.boxes, s.labels)] + [[0, 0, 5, 5, .95 - .1*i, 0]]
            rows = torch.tensor(rows)
            rows[:, :4] = torch.as_tensor(judge.fit(96, 80).apply(rows[:, :4]))
            judge.add_batch(rows[None])
        return judge.compute()['ap50'], judge.score.method
    (area, a), (points, b) = judged(), judged(eleven_point=True)
    assert (a, b) == ('area', '11point') and area != points and .4 < area < 1
    trainer = FasterRCNNTrainer(config(metrics='ap75'), progress='none').train()
    assert trainer.learn.run_state.best['metric'] == 'ap75'


@covers('freeze_bn', 'pretrained', 'freeze_epochs')
def test_what_is_frozen(config):
    norms = lambda **k: {m.training for m in FasterRCNNTrainer(config(**k), progress='none').learn.model.train().modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms() == {True} and norms(freeze_bn=True) == {False}
    class Watch(Callback):
        def __init__(self): self.seen = []
        def after_batch(self):
            if self.training: self.seen.append(self.model.backbone_frozen)
    trainer = FasterRCNNTrainer(config(epochs=3, freeze_epochs=2), progress='none', cbs=Watch()).train()
    assert trainer.learn.watch.seen == [True]*6 + [False]*3 and not trainer.learn.model.backbone_frozen
    with pytest.raises(InputError, match='pretrained'):
        from unittest.mock import patch
        with patch('torchvision.models.get_model', side_effect=OSError('no network')): frcnn_model(config(pretrained=True), 2)


@covers('start_epoch')
def test_start_epoch_goes_on_with_the_schedule(config, trained):
    trainer = FasterRCNNTrainer(config(epochs=5, start_epoch=3, step_size=2, gamma=.5, finetune_checkpoint=str(trained.best)), progress='none').train()
    assert [r['lr'] for r in trainer.history] == [pytest.approx(1e-3*.5), pytest.approx(1e-3*.25)]
    on = FasterRCNNTrainer(config(epochs=6, start_epoch=3, step_size=2, gamma=.5, resume_checkpoint=str(trainer.latest)), progress='none').train()
    assert len(on.history) == 3 and on.history[2]['lr'] == pytest.approx(1e-3*.25)
    with pytest.raises(InputError, match='"start_epoch" 3 -> 0'): FasterRCNNTrainer(config(resume_checkpoint=str(trainer.latest)), progress='none')


@covers('test_path', 'show_score', 'show_nms')
def test_evaluation_and_prediction(trained, toy, tmp_path):
    best = load_checkpoint(trained.best)
    best['config']['test_path'] = [f'{toy}/ImageSets/Main/train.txt']
    assert len(evaluate_frcnn(best, device='cpu').samples) == 12 and len(evaluate_frcnn(trained.best, device='cpu').samples) == 4
    image = np.asarray(Image.open(next((toy/'JPEGImages').glob('*.jpg'))))
    many, few = (load_predictor(trained.best, device='cpu', show_score=s)(image) for s in (.01, .4))
    assert len(few) < len(many) and (few.scores >= .4).all()
    loose, strict = (len(load_predictor(trained.best, device='cpu', min_score=.01, show_nms=v)(image)) for v in (.9, .05))
    assert strict < loose
    ours = load_predictor(trained.best, device='cpu')
    assert (ours.model.score, ours.model.nms) == (.05, .3)


def test_evaluation_speaks_of_what_it_cannot_use(trained, toy, tmp_path):
    with pytest.raises(InputError, match='has no option `tile`'): evaluate_frcnn(trained.best, device='cpu', tile=3)
    with pytest.raises(FileNotFoundError): evaluate_frcnn(trained.best, tmp_path/'nowhere', device='cpu')
    found = evaluate_frcnn(trained.best, toy, device='cpu', min_score=.9)
    assert sum(len(p[0]) for p in found.preds) == 0 and found.voc.map == 0 and found.coco.ap == 0       # nothing found: 0, no crash
    files = found.save(tmp_path/'results')
    assert json.loads(files[0].read_text()) == [] and all(f.read_text() == '' for f in files[1:])


# The commands

def test_system_is_known():
    assert 'frcnn' in system_names()
    for part in ('config', 'trainer', 'predictor', 'check', 'demo', 'evaluate'): assert callable(find_system('frcnn').load(part))


def test_front_door_has_every_name():
    import visionlab.frcnn as door
    for n in door._all_: assert getattr(door, n) is not None
    assert set(dir(door)) == set(door._all_)


def test_commands(toy, tmp_path, capsys):
    assert main(['check', 'frcnn', str(toy)]) == 0 and 'anchors' in capsys.readouterr().out
    words = f'train frcnn --train_annotation_path {toy} --val-annotation-path {toy} --input_shape 64 64 --backbone resnet18 --feature-stride 8 --no-dilate --head mlp --head-width 32 --anchors_size 1 2 3 --no-pretrained --end-epoch 1 '\
            f'--batch-size 4 --n-post-train 30 --n-post-test 20 --roi-samples 16 --rpn-min-size 2 --num-workers 0 --device cpu --no-tensorboard --output-dir {tmp_path}/runs'
    assert main(words.split()) == 0 and 'visionlab predict' in capsys.readouterr().out
    best = tmp_path/'runs/frcnn/best.pth'
    assert main(['evaluate', str(best), '--data', str(toy), '--device', 'cpu', '--save', str(tmp_path/'s.json')]) == 0
    assert 'COCO' in capsys.readouterr().out and {'voc', 'coco'} <= set(json.loads((tmp_path/'s.json').read_text()))
    data = read_voc(toy, 'test')
    truth = json.loads(write_coco_truth(tmp_path/'truth.json', data.samples, data.names).read_text())
    for m in (*truth['images'], *truth['annotations']): m['id' if 'file_name' in m else 'image_id'] += 70
    for m in truth['images']: m['file_name'] = m['file_name'].rpartition('/')[2]
    (tmp_path/'truth.json').write_text(json.dumps(truth))
    assert main(['evaluate', str(best), '--data', str(tmp_path/'truth.json'), '--images-folder', str(toy/'JPEGImages'), '--results', str(tmp_path/'results'), '--device', 'cpu', '--min-score', '0']) == 0
    found = json.loads((tmp_path/'results/detections.json').read_text())
    assert found and {f['image_id'] for f in found} <= {m['id'] for m in truth['images']} and {f.name for f in (tmp_path/'results').glob('comp3*')} == {f'comp3_det_test_{n}.txt' for n in data.names}
    capsys.readouterr()
    out = tmp_path/'out'
    assert main(['predict', str(best), '--source', str(toy/'JPEGImages'), '--output-dir', str(out), '--device', 'cpu', '--min-score', '.01', '--text', '--batch-size', '4']) == 0
    lines = [json.loads(l) for l in (out/'predictions.jsonl').read_text().splitlines()]
    assert len(lines) == 16 and all({'label', 'score', 'box'} <= set(o) for l in lines for o in l['objects'])
    assert len(list(out.glob('*.jpg'))) == 16 and len(list(out.glob('res_*.txt'))) == 16
    assert main(['train', 'frcnn', '--resume-checkpoint', str(tmp_path/'runs/frcnn/latest.pth'), '--epochs', '2']) == 0
    capsys.readouterr()
    for bad, word in ((['train', 'frcnn'], 'train_path'), (['predict', str(best), '--source', str(toy/'JPEGImages'), '--classes', '20'], 'number of classes is 2'), (['train', 'frcnn', '--backbone', 'resnet19'], 'resnet1')):
        assert main(bad) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize('command,said', [('export', 'Faster R-CNN cannot be exported to ONNX'), ('prune', 'Faster R-CNN cannot be pruned')])
def test_what_leaves_python_says_so_in_one_line(trained, tmp_path, capsys, command, said):
    assert main([command, str(trained.best), '--output', str(tmp_path/('a.onnx' if command == 'export' else 'a.pth'))]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f'visionlab: {said}') and err.count('\n') == 1 and not out and not list(tmp_path.iterdir())


# A GPU, where there is one

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_training_step_waits_no_more_for_many_images_than_for_one():
    import warnings
    net = light().cuda()
    def waits(b):
        batch = [t.cuda() for t in some_batch(b)]
        FasterRCNNLoss()(net(*batch)).backward()
        torch.cuda.set_sync_debug_mode('warn')
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter('always')
                FasterRCNNLoss()(net(*batch)).backward()
        finally: torch.cuda.set_sync_debug_mode('default')
        return sum('synchroniz' in str(w.message) for w in seen)
    assert waits(8) == waits(1) <= 4


def test_what_is_frozen_does_not_thaw():
    "Neither by `train()` nor by whoever sets `requires_grad` of everything, as fastai's `unfreeze` does"
    from visionlab.frcnn.model import FrozenBatchNorm2d, frozen_norms
    net = frozen_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False))).train()
    assert [type(m) for m in net[1::2]] == [FrozenBatchNorm2d]*2 and not any(m.training for m in net[1::2])
    before = copy.deepcopy(net.state_dict())
    for p in net.parameters(): p.requires_grad_()
    net(torch.randn(2, 3, 9, 9)).sum().backward()
    assert net[0].weight.grad is not None and net[1].weight.grad is None and net[1].bias.grad is None
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
