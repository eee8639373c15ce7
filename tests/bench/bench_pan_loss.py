"""PAN's loss forward and backward, one thread, beside the faster of two other programs.

Those were timed on another day: 27 ms at 4x6x160x160 (pan_pp.pytorch) and 267 ms at 4x6x640x640 (PAN.pytorch), ten words an image, when
`torch.sort(torch.randn(2**20))` took 91 ms. That sort is timed again here, in turns with ours, and scales them to this machine and hour.
"""
import numpy as np
import torch

from visionlab.pan.loss import PANLoss

from . import in_turns

PEER = {160: 27., 640: 267.}  # ms
YARDSTICK = 91.               # ms, in the same run as the peers


def batch(size, words=10, images=4, seed=0):
    "Logits that are mostly right, ids of turned boxes and of their kernels, and a mask with a blank corner"
    r = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size]/size
    text, kernel = np.zeros((images, size, size), np.int32), np.zeros((images, size, size), np.int32)
    for i in range(images):
        for j in range(1, words+1):
            x, y, turn, half, thick = *r.uniform(.1, .9, 2), r.uniform(-.5, .5), r.uniform(.06, .15), r.uniform(.02, .05)
            u, v = abs((xx-x)*np.cos(turn) + (yy-y)*np.sin(turn)), abs((yy-y)*np.cos(turn) - (xx-x)*np.sin(turn))
            text[i][(u < half) & (v < thick)] = j
            kernel[i][(u < half - thick/2) & (v < thick/2)] = j
    mask = np.ones((images, size, size), np.uint8)
    mask[:, :size//10, :size//5] = 0
    text, kernel, mask = map(torch.from_numpy, (text, kernel, mask))
    g = torch.Generator().manual_seed(seed)
    pred = torch.randn(images, 6, size, size, generator=g)
    pred[:, 0] += (text > 0)*4. - 2
    pred[:, 1] += (kernel > 0)*4. - 2
    pred[:, 2:] += torch.randn(images, 4, 1, 1, generator=g)*text[:, None]*.3
    return pred.requires_grad_(), text, kernel, mask


def rows():
    out = []
    for size in (160, 640):
        pred, *labels = batch(size)
        for convention in ('paper', 'official', 'seed'):
            loss = PANLoss(convention=convention)
            def step():
                pred.grad = None
                loss(pred, *labels).backward()
            ours, yard = in_turns(step, lambda: torch.sort(torch.randn(2**20)), n=15)
            peer = PEER[size]*yard/YARDSTICK
            out.append((f'pan loss fwd+bwd 4x6x{size}x{size}, 10 words, {convention}', ours, peer, ours/peer, .3))
    return out
