"""FOTS on one thread: decoding maps of 160x160 cells beside the program behind the seed, roi_rotate beside torchvision's roi_align.

That program (Wovchena/text-detection-fots.pytorch, Python) was timed on another day: 150-180 ms with 20 words and 1,040 ms with 200, when
`cv2.connectedComponents` of a 640x640 map with 400 boxes took 0.43 ms. That yardstick is timed again here, in turns with ours, and scales
its times to this machine and hour.
"""
import cv2
import numpy as np
import torch
from visionlab.fots.decode import decode_fots
from visionlab.fots.rotate import roi_rotate
from visionlab.fots.targets import FOTSMaps, FOTSTargets, rect_quads

from . import in_turns
from .bench_pan_decode import YARDSTICK, boxes

PEER = {20: 150., 200: 1040.}   # ms, single thread


def scene(n, size=640, seed=0):
    "Maps (160x160 cells) of `n` turned words on a grid, as a good network would say them, and the words"
    rng, side = np.random.default_rng(seed), int(np.ceil(n**.5))
    step, k = size/side, np.arange(n)
    rects = np.stack([(k % side + .5)*step, (k//side + .5)*step, rng.uniform(.6, .8, n)*step, rng.uniform(.3, .42, n)*step, rng.uniform(-.2, .2, n)], 1)
    score, distances, angle, _ = FOTSTargets(border=False)(list(rect_quads(rects)), np.zeros(n, bool), size, size)
    noisy = lambda x, s: torch.from_numpy((x + rng.normal(0, s, x.shape)).astype(np.float32))[None]
    return FOTSMaps(noisy(score[None]*12. - 6, .5), noisy(distances, .7).clamp(min=0), noisy(angle[None], .02)), rects


def words(n=200, w=128, h=16):
    "Quads of `n` turned words in a 640x640 image, and upright boxes of the same places and sizes"
    g = torch.Generator().manual_seed(0)
    c, t = torch.rand(n, 2, generator=g)*490 + 75, (torch.rand(n, generator=g) - .5)*.8
    quads = torch.from_numpy(rect_quads(torch.cat([c, torch.tensor([[w, h]]).expand(n, 2), t[:, None]], 1).numpy())).float()
    return quads, torch.cat([torch.zeros(n, 1), c - torch.tensor([w/2, h/2]), c + torch.tensor([w/2, h/2])], 1)


def rows():
    from torchvision.ops import roi_align
    out, m = [], boxes()
    for n in (20, 200):
        maps, rects = scene(n)
        assert len(decode_fots(maps, (640, 640))) == n
        ours, yard = in_turns(lambda: decode_fots(maps, (640, 640)), lambda: cv2.connectedComponents(m, connectivity=4))
        peer = PEER[n]*yard/YARDSTICK
        out.append((f'fots decode 160x160 cells, {n} words', ours, peer, ours/peer, .1))
    quads, rois = words()
    x, index, grad = torch.randn(1, 32, 160, 160).requires_grad_(), torch.zeros(200, dtype=torch.long), torch.randn(200, 32, 8, 64)
    def rotate(): roi_rotate(x, quads, index)[0].backward(grad)
    def align(): roi_align(x, rois, (8, 64), .25, sampling_ratio=1, aligned=True).backward(grad)
    assert roi_rotate(x, quads, index)[0].shape == (200, 32, 8, 64)
    ours, ref = in_turns(rotate, align, n=15)
    out.append(('fots roi_rotate 200 words 8x64x32, both ways', ours, ref, ours/ref, .7))
    return out
