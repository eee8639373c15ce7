"""Decoding 640x640 maps, embeddings in use, beside the faster of two compiled implementations.

Those were timed on another day: 42 ms with 20 words and 34 ms with 200 (WenmuZhou/PAN.pytorch, C++), when `cv2.connectedComponents` of a
640x640 map with 400 boxes took 0.43 ms. That yardstick is timed again here, in turns with ours, and scales them to this machine and hour.
"""
import cv2
import numpy as np
from visionlab.pan.decode import decode_pan

from . import in_turns

PEER = {20: 42., 200: 34.}  # ms, single thread
YARDSTICK = .43             # ms, in the same run as the peers


def scene(n, size=640, reach=.85, seed=0):
    "Raw maps with `n` turned words on a grid; `reach` is their length over the distance of their centres"
    rng, side = np.random.default_rng(seed), int(np.ceil(n**.5))
    step = size/side
    ids, kernels = np.zeros((size, size), np.int32), np.zeros((size, size), np.int32)
    for k in range(n):
        center, turn = ((k % side + .5)*step, (k//side + .5)*step), rng.uniform(-12, 12)*(reach < 1)
        for m, less in ((ids, 0), (kernels, step*.21)):
            cv2.fillPoly(m, [np.rint(cv2.boxPoints((center, (step*reach - less, step*.42 - less), turn))).astype(np.int32)], k + 1)
    maps = rng.normal(0, .3, (6, size, size)).astype(np.float32)
    maps[0] += np.where(ids > 0, 5, -5)
    maps[1] += np.where(kernels > 0, 5, -5)
    maps[2:] = rng.normal(0, 3, (n + 1, 4))[ids].transpose(2, 0, 1) + rng.normal(0, .05, (4, size, size))
    return maps


def boxes():
    "The yardstick's map: 400 boxes of 16x8 px"
    m = np.zeros((640, 640), np.uint8)
    for i in range(400): m[i//20*32 + 12:i//20*32 + 20, i % 20*32 + 8:i % 20*32 + 24] = 1
    return m


def rows():
    out, m = [], boxes()  # touching words: kernels share a blob, so growth goes in waves; the peers' scenes had none, hence a limit of our own
    for n, reach, what in ((20, .85, 'words apart'), (200, .85, 'words apart'), (20, 1.02, 'words touching in rows'), (200, 1.02, 'words touching in rows')):
        maps = scene(n, reach=reach)
        assert len(decode_pan(maps, (640, 640))) == n
        ours, yard = in_turns(lambda: decode_pan(maps, (640, 640)), lambda: cv2.connectedComponents(m, connectivity=4))
        peer = PEER[n]*yard/YARDSTICK
        out.append((f'pan decode 640x640, {n} {what}', ours, peer, ours/peer, .25 if reach < 1 else .35))
    return out
