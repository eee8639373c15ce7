"""The network of FOTS: its published size, any image size, words that are read, frames that are skipped."""
import math

import pytest
import torch

from visionlab.blocks.layers import mac_count, parameter_count
from visionlab.core.checks import InputError
from visionlab.fots.config import FOTS_BACKBONES, FOTSConfig
from visionlab.fots.model import FOTS, frames_with_text
from visionlab.fots.reader import CTCReader
from visionlab.fots.targets import FOTSMaps, FOTSTargets

quad = lambda x, y, w, h: [[x, y], [x+w, y], [x+w, y+h], [x, y+h]]


class Maps(torch.nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return tuple(self.net(x)[:3])


def test_published_size():
    net = FOTS()
    assert parameter_count(net) == 36_769_966 - 513_000      # the program's own count less its unused classifier
    assert mac_count(Maps(net), 1, 3, 640, 640)/1e9 == pytest.approx(35.8, abs=.05)
    assert FOTSMaps._fields == net.eval()(torch.zeros(1, 3, 32, 32))._fields[:4]


@pytest.mark.parametrize('name', FOTS_BACKBONES)
def test_every_backbone_and_odd_sizes(name):
    net = FOTS(name, width=4).eval()
    with torch.no_grad():
        for h, w in ((32, 47), (77, 130)):
            a = net(torch.randn(2, 3, h, w))
            assert a.score.shape == (2, 1, *FOTSTargets()([], [], h, w)[0].shape)
            assert 0 <= a.distances.min() and a.distances.max() <= 640 and a.angle.abs().max() <= math.pi/4 + 1e-6


def test_words_are_read_at_their_places():
    torch.manual_seed(0)
    net = FOTS('resnet18', width=8, reader=CTCReader('abc', width=4)).eval()
    images = torch.randn(2, 3, 96, 128)
    boxes = torch.tensor([[quad(4, 4, 60, 20), quad(10, 50, 40, 16), quad(0, 0, 0, 0)], [quad(20, 30, 80, 24), quad(0, 0, 0, 0), quad(5, 5, 100, 20)]], dtype=torch.float32)
    lengths = torch.tensor([[3, 0, 0], [2, 0, 1]])
    with torch.no_grad():
        a = net(images, boxes, lengths)
        assert a.words.tolist() == [[0, 0], [1, 0], [1, 2]] and a.widths.tolist() == [24, 27, 40] and a.letters.shape == (3, 40, 4)
        for k, (i, j) in enumerate(a.words.tolist()):      # one image, one word: the same
            alone, w = net.read(net(images[i:i+1]).features, boxes[i, j][None], torch.tensor([0]))
            torch.testing.assert_close(alone[0], a.letters[k, :int(w)], rtol=1e-3, atol=1e-4)
        net.max_words = 2                                   # a limit for training alone
        assert (len(net(images, boxes, lengths).words), len(net.train()(images, boxes, lengths).words)) == (3, 2)
    with pytest.raises(InputError, match='without a reader'): FOTS('resnet18', width=4).read(a.features, boxes[0], torch.tensor([0, 0, 0]))


def test_batches_without_a_word_train_the_detector():
    net = FOTS('resnet18', width=4, reader=CTCReader('abc', width=4))
    for boxes in (torch.zeros(2, 0, 4, 2), torch.zeros(2, 3, 4, 2)):
        a = net(torch.randn(2, 3, 64, 64), boxes, torch.zeros(boxes.shape[:2], dtype=torch.long))
        (a.score.square().sum() + a.letters.sum()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
        assert len(a.words) == 0 and net.last[0].weight.grad.abs().sum() > 0


def test_words_thinner_than_a_pixel():
    net = FOTS('resnet18', width=4, reader=CTCReader('abc', width=4))
    thin = torch.tensor([[quad(10, 10, 40, .2), quad(10, 10, .1, .1), quad(10, 10, 0, 0), quad(-90, -90, 4, 30)]])
    a = net(torch.randn(1, 3, 96, 96), thin, torch.ones(1, 4, dtype=torch.long))
    assert a.letters.isfinite().all()
    a.letters.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_nothing_is_dead():
    net = FOTS('shufflenetv2', width=8, reader=CTCReader('abc', width=4), rejector=True)
    a = net(torch.randn(2, 3, 96, 96), torch.tensor([[quad(4., 4., 60, 20)]]*2), torch.ones(2, 1, dtype=torch.long))
    sum(t.square().sum() for t in (a.score, a.distances, a.angle, a.letters, a.text)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_the_rejector_is_not_heard_by_the_detector():
    net = FOTS('resnet18', width=4, rejector=True)
    net(torch.randn(2, 3, 64, 64)).text.sum().backward()
    assert all(p.grad is None for n, p in net.named_parameters() if not n.startswith('rejector'))


def test_frames_are_skipped():
    torch.manual_seed(1)
    net, images = FOTS('resnet18', width=4, rejector=True, reader=CTCReader('abc', width=4)).eval(), torch.randn(3, 3, 80, 101)
    with torch.no_grad():
        whole, (all_, p), (none, _) = net(images), frames_with_text(net, images, 0.), frames_with_text(net, images, 1.)
        for a, b in zip(whole[:4], all_[:4]): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(p, whole.text.sigmoid())
        assert (none.score == -20).all() and none.features.shape == whole.features.shape
        cut = float(p.sort().values[:2].mean())
        some, _ = frames_with_text(net, images, cut)
        for i in range(3): assert (some.score[i] == -20).all() == (p[i] < cut)


def test_settings_refuse():
    for bad, why in ((dict(charset='aa'), 'twice'), (dict(ngpus=2), 'torchrun'), (dict(prune=True), 'pretrain_model'), (dict(detect=False, read=False), 'nothing to learn'),
                     (dict(width=2), 'width'), (dict(metrics='end_to_end', read=False), 'found and read'), (dict(save_dir='a', output_dir='b'), 'two names')):
        with pytest.raises(InputError, match=why): FOTSConfig(**bad)
