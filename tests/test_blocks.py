"""Layers, backbones and necks: every network, odd sizes, gradients, weights with and without a network."""
import io
from contextlib import redirect_stdout
from http.client import IncompleteRead
from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from visionlab.blocks.backbones import BACKBONES, Backbone
from visionlab.blocks.layers import ConvBNReLU, SeparableConv, init_convs, mac_count, parameter_count, stack_levels, upsample_like
from visionlab.blocks.necks import FPNNeck
from visionlab.core.checks import InputError

families = {'resnet18': ['layer1', 'layer2', 'layer3', 'layer4'], 'resnext50_32x4d': ['layer1', 'layer2', 'layer3', 'layer4'],
            'shufflenetv2': ['maxpool', 'stage2', 'stage3', 'stage4'],
            'mobilenet_v2': ['features.3', 'features.6', 'features.13', 'features.17'],
            'densenet121': ['features.denseblock1', 'features.denseblock2', 'features.denseblock3', 'relu']}


def dead(module): return [n for n, p in module.named_parameters() if p.grad is None]


def test_names_are_those_of_the_documents():
    assert set(BACKBONES) == set('resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d shufflenetv2 mobilenet_v2 densenet121'.split())


@pytest.mark.parametrize('name', BACKBONES)
def test_maps_channels_and_gradients(name):
    net = Backbone(name)
    maps = net(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, c, 64//s, 96//s) for c, s in zip(net.channels, (4, 8, 16, 32))]
    sum(m.square().mean() for m in maps).backward()
    assert not dead(net)


@pytest.mark.parametrize('name', families)
def test_maps_are_those_inside_torchvision(name):
    "Against torchvision's own feature extractor, which traces the whole classifier"
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor
    torch.manual_seed(1)
    whole = get_model({'shufflenetv2': 'shufflenet_v2_x1_0'}.get(name, name), weights=None).eval()
    torch.manual_seed(1)
    ours = Backbone(name).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for a, b in zip(ours(x), create_feature_extractor(whole, families[name])(x).values()): assert_close(a, b)


@pytest.mark.parametrize('name', families)
@pytest.mark.parametrize('size', [(32, 32), (33, 47), (100, 75)])
def test_any_size(name, size):
    net = Backbone(name).eval()
    with torch.no_grad(): maps = net(torch.randn(1, 3, *size))
    rounded = (lambda v: v//2) if name == 'densenet121' else (lambda v: -(-v//2))
    want = [tuple(-(-v//4) for v in size)]
    for _ in range(3): want.append(tuple(map(rounded, want[-1])))
    assert [tuple(m.shape[-2:]) for m in maps] == want


@pytest.mark.parametrize('name', families)
def test_grey_is_three_equal_colours(name):
    torch.manual_seed(2); grey = Backbone(name, in_channels=1).eval()
    torch.manual_seed(2); colour = Backbone(name).eval()
    assert parameter_count(colour) > parameter_count(grey)
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for a, b in zip(grey(x), colour(x.expand(-1, 3, -1, -1))): assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.fixture
def cache(tmp_path):
    "An empty folder for torch.hub's downloads"
    old = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    yield tmp_path/'checkpoints'
    torch.hub.set_dir(old)


@pytest.mark.parametrize('error', [URLError('no route to host'), TimeoutError('timed out'), ConnectionResetError('reset'), IncompleteRead(b''),
                                   HTTPError('https://x', 503, 'unavailable', None, None), RuntimeError('invalid hash value')], ids=lambda e: type(e).__name__)
def test_no_network_is_one_clear_line(cache, monkeypatch, error):
    def download(*args, **kwargs): raise error
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with redirect_stdout(io.StringIO()), pytest.raises(InputError) as e: Backbone('mobilenet_v2', pretrained=True)
    said = str(e.value)
    assert '"pretrained"' in said and 'pretrained=False' in said and 'mobilenet_v2' in said and str(cache) in said
    assert e.value.__suppress_context__ and '\n' not in said


@pytest.mark.parametrize('channels', [1, 3])
def test_pretrained_weights_arrive(cache, channels):
    "A cache that holds the file is enough; grey sums its first convolution"
    from torchvision.models import ResNet18_Weights, resnet18
    torch.manual_seed(3)
    weights = resnet18().state_dict()
    cache.mkdir()
    torch.save(weights, cache/ResNet18_Weights.DEFAULT.url.rsplit('/', 1)[-1])
    net = Backbone('resnet18', pretrained=True, in_channels=channels)
    stem = weights['conv1.weight']
    assert_close(net.stages[0][0].weight.detach(), stem if channels == 3 else stem.sum(1, keepdim=True))
    assert_close(net.stages[3][0][1].conv2.weight.detach(), weights['layer4.1.conv2.weight'])


def test_bad_images_are_refused_at_the_door():
    net = Backbone('shufflenetv2').eval()
    for bad, word in ((torch.zeros(3, 64, 64), 'B,3,H,W'), (torch.zeros(1, 4, 64, 64), 'B,3,H,W'), (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 'uint8'),
                      (torch.zeros(1, 3, 31, 64), '31x64'), ([1, 2], 'list')):
        with pytest.raises(InputError, match=word): net(bad)


def test_layers_are_what_they_say():
    x = torch.randn(2, 16, 15, 20)
    full, sep = ConvBNReLU(16, 8, 3, 2, groups=4).eval(), SeparableConv(16, 2).eval()
    assert full[0].groups == 4 and full[0].bias is None
    assert_close(full(x), torch.relu(full[1](nn.functional.conv2d(x, full[0].weight, stride=2, padding=1, groups=4))))
    looked = torch.cat([nn.functional.conv2d(x[:, i:i+1], sep[0].weight[i:i+1], stride=2, padding=1) for i in range(16)], 1)
    assert_close(sep(x), torch.relu(sep[2](torch.einsum('oi,bihw->bohw', sep[1].weight[:, :, 0, 0], looked))))


def test_upsampling_agrees_with_opencv():
    import cv2
    x = torch.rand(1, 1, 13, 17)
    want = cv2.resize(x[0, 0].numpy(), (51, 40), interpolation=cv2.INTER_LINEAR)
    assert_close(upsample_like(x, torch.zeros(40, 51))[0, 0], torch.from_numpy(want), rtol=1e-4, atol=1e-4)
    assert stack_levels([x, x[..., ::3, ::3], x[..., :1, :1]]).shape == (1, 3, 13, 17)


def test_counts_do_not_touch_the_network():
    net = init_convs(nn.Sequential(ConvBNReLU(3, 8, 3), SeparableConv(8, 2), nn.Conv2d(8, 5, 1))).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert mac_count(net, 1, 3, 32, 32) == 32*32*3*8*9 + 16*16*(8*9 + 64) + 16*16*40
    assert mac_count(net, 4, 3, 32, 32) == 4*mac_count(net, 1, 3, 32, 32)
    assert net.training and all(p.device.type == 'cpu' for p in net.parameters())
    for k, v in net.state_dict().items(): assert_close(v, before[k])
    assert (net[2].bias == 0).all()


def test_pyramid_against_the_plain_formula():
    neck = FPNNeck((8, 12, 16, 20), width=10).eval()
    maps = [torch.randn(2, c, -(-50//s), -(-77//s)) for c, s in zip((8, 12, 16, 20), (4, 8, 16, 32))]
    up = lambda x, ref: nn.functional.interpolate(x, ref.shape[-2:], mode='bilinear')
    r, s = neck.reduce, neck.smooth
    p5 = r[3](maps[3])
    p4 = s[2](r[2](maps[2]) + up(p5, maps[2]))
    p3 = s[1](r[1](maps[1]) + up(p4, maps[1]))
    p2 = s[0](r[0](maps[0]) + up(p3, maps[0]))
    for a, b in zip(neck.levels(maps), (p2, p3, p4, p5)): assert_close(a, b)
    assert_close(neck(maps), torch.cat([p2, up(p3, p2), up(p4, p2), up(p5, p2)], 1))
    assert neck.out_channels == 40
    neck.train()(maps).square().mean().backward()
    assert not dead(neck)
