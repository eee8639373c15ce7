"""Pruning: masked and compact networks agree for all kinds of architectures, pruned checkpoints come back by every road, bad input is one line."""
import copy

import pytest
import torch
from torch import nn

from visionlab.blocks.layers import mac_count
from visionlab.blocks.layers import parameter_count
from visionlab.blocks.widths import layer_widths
from visionlab.blocks.widths import set_widths
from visionlab.core.checks import InputError
from visionlab.core.checks import SavedFileError
from visionlab.training.checkpoint import load_checkpoint
from visionlab.training.checkpoint import load_weights
from visionlab.training.checkpoint import restore_model
from visionlab.training.checkpoint import save_checkpoint

pytest.importorskip('torch_pruning', reason='needs torch-pruning: pip install visionlab[deploy]')
from visionlab.deploy import quantize
from visionlab.deploy.prune import prune_checkpoint
from visionlab.deploy.prune import prune_model


def lively(model):
    "Statistics and biases that hide nothing, as a trained network has them"
    g = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in ((m.running_mean, -.3, .3), (m.running_var, .5, 1.5), (m.weight, .5, 1.5), (m.bias, -.3, .3)): t.data.uniform_(low, high, generator=g)
    return model.eval()


def pan(**kw):
    from visionlab.pan.model import PAN
    return PAN(**kw)


def unet(name='Unet', encoder='resnet18'):
    from visionlab.segmentation.config import SegmentationConfig
    from visionlab.segmentation.model import segmentation_model
    return segmentation_model(SegmentationConfig(model=name, encoder=encoder, classes=4, pretrained=False, train_path=('x',)))


def labels(name):
    from visionlab.multilabel.config import MultilabelConfig
    from visionlab.multilabel.model import multilabel_model
    return multilabel_model(MultilabelConfig(model=name, pretrained=False, input_size=64), 5)


def fots(**kw):
    from visionlab.fots.config import FOTSConfig
    from visionlab.fots.learner import fots_model
    return fots_model(FOTSConfig(pretrained=False, train_path=('x',), **{**dict(backbone='resnet18', width=16, reader_width=16), **kw}))


networks = {**{f'pan {b}': (lambda b=b: pan(backbone=b), .30) for b in ('resnet18', 'resnext50_32x4d', 'shufflenetv2', 'mobilenet_v2')},
            'pan conv1x1': (lambda: pan(backbone='resnet18', head='conv1x1'), .30), 'pan fpn': (lambda: pan(backbone='resnet18', segmentation_head='FPN'), .30),
            'unet resnet18': (unet, .30), 'unet efficientnet': (lambda: unet(encoder='efficientnet-b0'), .30), 'linknet': (lambda: unet('Linknet'), .30), 'fpn': (lambda: unet('FPN'), .45),
            'labels resnet34': (lambda: labels('resnet34'), .30), 'labels convnext': (lambda: labels('convnext_atto'), .65), 'labels vit': (lambda: labels('vit_tiny_patch16_224'), .80),
            'fots': (lambda: fots(rejector=True), .30)}


@pytest.mark.parametrize('name', networks)
def test_masked_and_compact_agree(name):
    build, share = networks[name]
    torch.manual_seed(0)
    model = lively(build())
    size = (64, 64) if 'vit' in name else (96, 128)
    before = copy.deepcopy(model.state_dict())
    done = prune_model(model, torch.randn(1, 3, *size), .5)
    with torch.no_grad():
        x = torch.randn(2, 3, *size)
        for a, b in zip(done.masked(x) if name == 'fots' else [done.masked(x)], done.model(x) if name == 'fots' else [done.model(x)]):
            if a is not None: assert (a - b).abs().max() <= 1e-5*max(1, float(a.abs().max())) and a.shape == b.shape
    assert mac_count(done.model, 1, 3, *size) <= share*mac_count(model, 1, 3, *size)
    assert any((t == 0).flatten(1).all(1).any() for n, t in done.masked.named_parameters() if t.dim() > 1)     # there are zeros to speak of
    for k, v in model.state_dict().items(): torch.testing.assert_close(v, before[k])     # the network itself is untouched
    again = set_widths(build(), done.widths).eval()                                       # widths are all that is needed to build it
    again.load_state_dict(done.model.state_dict())
    with torch.no_grad(): torch.testing.assert_close(nth(again(x)), nth(done.model(x)))


def nth(out): return out if isinstance(out, torch.Tensor) else out[0]


def test_full_fots_figures():
    "36.8 M parameters less an unused layer, 35.8 GMACs; at sparsity 0.5 at most 0.30 of them"
    model = fots(backbone='resnet34', width=64, read=False).eval()
    assert parameter_count(model)/1e6 == pytest.approx(36.26, abs=.02) and mac_count(model, 1, 3, 640, 640)/1e9 == pytest.approx(35.8, abs=.05)
    done = prune_model(model, torch.randn(1, 3, 64, 64), .5)
    assert mac_count(done.model, 1, 3, 640, 640) <= .30*mac_count(model, 1, 3, 640, 640)


def test_least_channels_go():
    "The channels of the smallest weights, by hand"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        for i, v in enumerate((3., .1, 2., .2)): net[0].weight[i], net[2].weight[:, i] = v, v
    done = prune_model(net, torch.randn(1, 3, 8, 8), .5)
    assert done.model[0].weight[:, 0, 0, 0].tolist() == [3., 2.]
    assert (done.masked[0].weight.abs().sum((1, 2, 3)) == 0).tolist() == [False, True, False, True]


def test_skip_and_multiple():
    net = lively(pan(backbone='resnet18'))
    whole = prune_model(net, torch.randn(1, 3, 64, 64), .5, skip=['backbone.stages.3', 'neck.fpems.*'])
    assert not any(w[1] != layer_widths(net)[k][1] for k, w in whole.widths.items() if k.startswith(('backbone.stages.3', 'neck.fpems')) and len(w) > 1)
    assert {w[-2] if len(w) > 1 else w[0] for k, w in prune_model(net, torch.randn(1, 3, 64, 64), .3, multiple=16).widths.items() if 'conv' in k and 'bn' not in k and k != 'backbone.stages.0.0'} <= set(range(0, 4096, 16))


@pytest.mark.parametrize('kw, said', [(dict(sparsity=1.), 'below 1'), (dict(sparsity='half'), 'number'), (dict(multiple=0), 'at least 1'), (dict(skip=['neckk']), 'no part of the network')])
def test_bad_arguments(kw, said):
    with pytest.raises(InputError, match=said): prune_model(pan(backbone='resnet18').eval(), torch.randn(1, 3, 64, 64), **kw)


def test_mixed_channels_are_refused_or_left():
    "GroupNorm sees its channels together: nothing that feeds it is cut"
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    done = prune_model(net, torch.randn(1, 3, 8, 8), .5)
    assert layer_widths(done.model)['0'] == [3, 8, 1] and layer_widths(done.model)['2'] == [8, 4, 1]


def test_layers_that_cannot_be_followed_are_one_line():
    "Channels that are picked by number in Python: the compact network fails, and that is said"
    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        def forward(self, x): return self.b(self.a(x).view(len(x), 8, *x.shape[2:]))
    with pytest.raises(InputError, match='cannot be pruned as a whole') as e: prune_model(Picks().eval(), torch.randn(1, 3, 8, 8), .5)
    assert '\n' not in str(e.value)


@pytest.fixture(scope='module')
def label_checkpoint(tmp_path_factory):
    from visionlab.multilabel.config import MultilabelConfig
    torch.manual_seed(0)
    path, config = tmp_path_factory.mktemp('prune')/'best.pth', MultilabelConfig(images_root='x', model='resnet18', pretrained=False, input_size=64)
    save_checkpoint(path, system='multilabel', config=vars(config), model=lively(labels('resnet18')).state_dict(), classes=list('abcde'), normalisation=dict(mean=[.5]*3, std=[.2]*3), input_size=64, thresholds=dict(a=.4))
    return path


def test_checkpoint_roads(label_checkpoint, tmp_path):
    "A pruned checkpoint predicts, fine-tunes, is pruned again and holds no pickled object"
    import numpy as np
    from visionlab.inference.predictor import load_predictor
    report = prune_checkpoint(label_checkpoint, tmp_path/'small.pth')
    assert report.parameters[1] < .3*report.parameters[0] and report.sizes[1] < .3*report.sizes[0] and report.difference < 1e-5 and report.mac_share < .3
    found = torch.load(tmp_path/'small.pth', weights_only=True)
    assert found['pruned']['sparsity'] == .5 and found['thresholds'] == dict(a=.4) and found['optimizer'] is None
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    first = load_predictor(tmp_path/'small.pth', 'cpu')(image)
    fresh = labels('resnet18')
    assert not load_weights(fresh, tmp_path/'small.pth').mismatched and fresh.pruned['sparsity'] == .5
    prune_checkpoint(tmp_path/'small.pth', tmp_path/'smaller.pth', sparsity=.25)
    second = load_predictor(tmp_path/'smaller.pth', 'cpu')
    assert layer_widths(second.model)['net.layer1.0.conv1'] == [24, 24, 1] and second(image).logits.shape == first.logits.shape


def test_damaged_widths_are_one_line(label_checkpoint, tmp_path):
    prune_checkpoint(label_checkpoint, tmp_path/'small.pth')
    ck = load_checkpoint(tmp_path/'small.pth')
    build = lambda: labels('resnet18')
    for wrong, kind in ((dict(ck, pruned=dict(sparsity=.5)), SavedFileError), (dict(ck, pruned=dict(widths={'net.conv9': [3, 4, 1]})), InputError), (dict(ck, pruned=None), SavedFileError)):
        with pytest.raises(kind) as e: restore_model(build, wrong)
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='itself'): prune_checkpoint(label_checkpoint, label_checkpoint)
    with pytest.raises(InputError, match='"output" is needed'): prune_checkpoint(ck)


def test_fine_tuning_and_resume(tmp_path):
    "A run that starts from a pruned checkpoint stays pruned, and its own checkpoint resumes bit by bit"
    from visionlab.datasets.toy_digits import make_toy_digits
    from visionlab.multilabel.config import MultilabelConfig
    from visionlab.multilabel.learner import MultilabelTrainer
    toy = make_toy_digits(tmp_path/'toy', n_train=24, n_test=8, digits=3)
    config = lambda **kw: MultilabelConfig(images_root=f'{toy}/train', model='resnet18', pretrained=False, input_size=32, batch_size=8, num_workers=0, patience=0, output_dir=str(tmp_path/'out'), **{**dict(epochs=1, device='cpu'), **kw})
    first = MultilabelTrainer(config(name='first'), progress='none')
    first.train()
    prune_checkpoint(first.latest, tmp_path/'small.pth')
    run = MultilabelTrainer(config(name='second', epochs=2, finetune_checkpoint=str(tmp_path/'small.pth')), progress='none')
    run.train()
    ck = load_checkpoint(run.latest)
    assert ck['pruned']['widths'] == load_checkpoint(tmp_path/'small.pth')['pruned']['widths']
    half = MultilabelTrainer(config(name='third', epochs=1, finetune_checkpoint=str(tmp_path/'small.pth')), progress='none')
    half.train()
    on = MultilabelTrainer(config(name='third', epochs=2, resume_checkpoint=str(half.latest)), progress='none')
    on.train()
    assert layer_widths(on.learn.model)['net.layer1.0.conv1'] == [32, 32, 1]
    for k, v in load_checkpoint(on.latest)['model'].items(): assert torch.equal(v, ck['model'][k]), k
    with pytest.raises(InputError, match='cannot be resumed'): MultilabelTrainer(config(name='fourth', epochs=2, resume_checkpoint=str(tmp_path/'small.pth')), progress='none')


def test_scores_before_and_after_are_figures(monkeypatch):
    "Neither the cut nor the seconds that stand beside them, and those of both protocols of a detector"
    class Score:
        def to_dict(self): return dict(hmean=.5, min_score=.8, seconds=3., images=4, classes=dict(cat=dict(ap=.1)), voc=dict(map=.4, iou=.5, images=4))
    class Other:
        def load(self, part): return lambda checkpoint, data, device: Score()
    monkeypatch.setattr(quantize, 'find_system', lambda name: Other())
    assert quantize.checkpoint_figures(dict(system='other'), ['x']) == {'hmean': .5, 'voc map': .4}
