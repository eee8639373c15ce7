"""Boxes beside recorded numbers of two other programs and of torchvision, and under odd inputs."""
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from visionlab.core.checks import InputError
from visionlab.geometry.boxes import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, flip_boxes

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent/'golden/frcnn_boxes.npz').items()}
STD = (.1, .1, .2, .2)


def swap(x): return x.unflatten(-1, (-1, 4))[..., [1, 0, 3, 2]].flatten(-2)     # yxyx and xyxy, also of several classes in a row
def close(a, b, tol=1e-5): assert_close(a, b, rtol=tol, atol=tol)


def test_encode_golden():
    src, dst = GOLDEN['src_xyxy'], GOLDEN['dst_xyxy']
    close(encode_boxes(src, dst), GOLDEN['encode_xywh_bubbliiiing'])
    close(encode_boxes(src, dst), swap(GOLDEN['encode_yxhw_chenyuntc']))
    close(encode_boxes(src, dst, STD), GOLDEN['encode_xywh_normalised_std'])
    close(encode_boxes(src, dst, STD), GOLDEN['encode_torchvision_w10_10_5_5'])


def test_decode_golden():
    src, loc = GOLDEN['src_xyxy'], GOLDEN['loc_rand']
    close(decode_boxes(src, loc), GOLDEN['decode_xyxy_bubbliiiing'])
    close(decode_boxes(src, swap(loc)), swap(GOLDEN['decode_yxyx_chenyuntc']))     # that program reads the same numbers as dy, dx, dh, dw
    close(decode_boxes(src[:16], GOLDEN['loc_rand_3class']), GOLDEN['decode_xyxy_bubbliiiing_3class'])
    close(decode_boxes(src[:16], swap(GOLDEN['loc_rand_3class'])), swap(GOLDEN['decode_yxyx_chenyuntc_3class']))
    close(decode_boxes(src, GOLDEN['loc_big']), GOLDEN['decode_torchvision_clipped'])


def test_degenerate_golden():
    "Sides are floored in the source as recorded; where the other program has log 0, ours is finite"
    bad, good = GOLDEN['degenerate_src_xyxy'], GOLDEN['dst_xyxy'][:4]
    close(encode_boxes(bad, good), GOLDEN['encode_degenerate_src_bubbliiiing'])
    ours, theirs = encode_boxes(good, bad), GOLDEN['encode_degenerate_dst_bubbliiiing']
    known = theirs.isfinite()
    assert ours.isfinite().all() and known.sum() == 14
    close(ours[known], theirs[known])


@pytest.mark.parametrize('peer', ['bubbliiiing', 'chenyuntc', 'torchvision'])
def test_iou_golden(peer): close(box_iou(GOLDEN['iou_a_xyxy'], GOLDEN['iou_b_xyxy']), GOLDEN[f'iou_{peer}'], 1e-6)


def random_boxes(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=g)*300
    return torch.cat([corner, corner + torch.rand(*shape, 2, generator=g)*200 + 1], -1)


def test_iou_beside_torchvision():
    from torchvision.ops import box_iou as tv
    for n, m in ((1, 1), (7, 31), (200, 3), (0, 4), (4, 0)):
        a, b = random_boxes(n, seed=n), random_boxes(m, seed=m+1)
        close(box_iou(a, b), tv(a, b), 1e-6)
    a, b = random_boxes(3, 8, seed=1), random_boxes(3, 5, seed=2)
    for i in range(3): assert_close(box_iou(a, b)[i], box_iou(a[i], b[i]))
    assert_close(box_iou(a, b[0]), torch.stack([box_iou(x, b[0]) for x in a]))


def test_numbers_and_kinds():
    assert box_area(np.array([[0, 0, 4, 5]])).tolist() == [20]
    assert box_iou(np.array([[0, 0, 4, 5]]), [[0, 0, 4, 5]]).item() == 1
    assert box_iou(torch.tensor([[0, 0, 4, 4]]), torch.tensor([[0., 0, 4, 8]]).double()).item() == .5
    for x in (encode_boxes(random_boxes(4).double(), random_boxes(4).double()), decode_boxes(random_boxes(4).double(), torch.zeros(4, 4).double())): assert x.dtype == torch.float64


def test_gradients_of_offsets():
    source, loc = random_boxes(6).double(), torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda l: decode_boxes(source, l, STD), loc)
    wild = torch.full((1, 4), 100., requires_grad=True)
    decode_boxes(torch.tensor([[0., 0, 10, 10]]), wild).sum().backward()
    assert wild.grad.isfinite().all()


def test_clip_and_flip_keep_order():
    b = random_boxes(2, 50) - 100
    c = clip_boxes(b, torch.tensor([100., 150]), torch.tensor([120., 90]))
    assert (c[..., 2:] >= c[..., :2]).all() and c.amin() >= 0 and (c[..., 2].amax(1) <= torch.tensor([120, 90])).all()
    f = flip_boxes(c, width=120)
    assert (f[..., 2:] >= f[..., :2]).all()
    close(box_area(f), box_area(c), 1e-4)


@pytest.mark.parametrize('call', [lambda: box_area([[1, 2]]), lambda: encode_boxes([[0, 0, 1]], [[0, 0, 1, 1]]), lambda: decode_boxes([[0., 0, 1, 1]], torch.zeros(1, 5)), lambda: box_iou([1, 2, 3, 4], [[1, 2, 3, 4]])])
def test_wrong_shapes_are_one_line(call):
    with pytest.raises(InputError, match=r'^[^\n]*shape[^\n]*$'): call()
