"""Tiles: the same result as in one piece, at any size, in a memory that does not depend on the height of the image."""
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from visionlab.core.checks import InputError
from visionlab.datasets.transforms import normalise
from visionlab.inference.tiles import predict_tiled, tile_starts, tile_weights

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)).eval()


def untiled(net, image):
    with torch.no_grad(): return net(normalise(image)[None])[0].numpy()


def test_many_sizes_give_what_one_piece_gives(net):
    rng = np.random.default_rng(0)
    for _ in range(25):
        h, w = (int(v) for v in rng.integers(64, 300, 2))
        tile = int(rng.integers(24, 150))
        overlap = int(rng.integers(12, max(13, tile//2)))
        overlap = min(overlap, tile//2)
        image = rng.integers(0, 255, (h, w, 3), dtype=np.uint8)
        got, want = predict_tiled(net, image, tile, overlap, margin=min(6, overlap//2), batch_size=int(rng.integers(1, 5))), untiled(net, image)
        inner = np.s_[:, 3:-3, 3:-3] if min(h, w) < tile else np.s_[:]         # where the image is smaller than a tile, the padding differs
        np.testing.assert_allclose(got[inner], want[inner], atol=1e-5, err_msg=f'{h}x{w} in {tile}, {overlap}')


def test_classes_are_those_of_the_maps(net):
    image = np.random.default_rng(1).integers(0, 255, (230, 170, 3), dtype=np.uint8)
    got = predict_tiled(net, image, 64, 32, result='classes')
    assert got.dtype == np.uint8 and (got == predict_tiled(net, image, 64, 32).argmax(0)).all() and (got == untiled(net, image).argmax(0)).mean() > .9999


@pytest.mark.parametrize('h,w', [(1, 1), (1, 500), (500, 1), (31, 33), (63, 64), (64, 65), (129, 200)])
def test_any_size(net, h, w):
    image = np.random.default_rng(h*w).integers(0, 255, (h, w, 3), dtype=np.uint8)
    sizes = set()
    def watched(x):
        sizes.add(tuple(x.shape[-2:]))
        return net(x)
    out = predict_tiled(watched, image, 64, 16)
    assert out.shape == (5, h, w) and np.isfinite(out).all() and all(a%32 == 0 and b%32 == 0 and max(a, b) <= 64 for a, b in sizes)


@pytest.mark.parametrize('length,tile,overlap,margin', [(1000, 512, 128, 32), (8000, 1024, 256, 0), (97, 20, 7, 3), (300, 64, 32, 16), (40, 64, 16, 4), (65, 64, 32, 16)])
def test_weights_sum_to_one(length, tile, overlap, margin):
    starts, weights = tile_starts(length, tile, overlap), tile_weights(length, tile, overlap, margin)
    total = np.zeros(max(length, tile))
    for s, w in zip(starts, weights):
        total[s:s+tile] += w
        if s > 0: assert not w[:margin].any()
        if s + tile < length: assert not w[tile-margin:].any()
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert all(b - a <= tile - overlap for a, b in zip(starts, starts[1:]))


def test_a_constant_stays_constant_and_inputs_of_any_kind():
    flat = lambda x: torch.full((len(x), 2, *x.shape[-2:]), 7.)
    image = np.zeros((150, 140, 1), np.float64)
    np.testing.assert_allclose(predict_tiled(flat, image, 64, 20, prepare=lambda t: torch.from_numpy(t).permute(2, 0, 1).float()), 7, atol=1e-5)
    before = image.copy()
    assert (image == before).all()


def test_each_tile_is_seen_once_in_batches_of_the_size_wanted(net):
    seen = []
    def watched(x):
        seen.append(len(x))
        return net(x)
    predict_tiled(watched, np.zeros((200, 300, 3), np.uint8), 64, 16, batch_size=3)
    assert max(seen) == 3 and sum(seen) == len(tile_starts(200, 64, 16))*len(tile_starts(300, 64, 16))


def test_memory_does_not_grow_with_the_height(net):
    peaks = []
    for h in (400, 3200):
        image = np.zeros((h, 300, 3), np.uint8)
        tracemalloc.start()
        out = predict_tiled(net, image, 64, 16, result='classes')
        peaks.append(tracemalloc.get_traced_memory()[1] - out.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.2*peaks[0] + 200_000


def test_gradients_and_modes_are_left_alone(net):
    net.train()
    try: out = predict_tiled(net, np.zeros((70, 70, 3), np.uint8), 64, 16); assert net.training and not any(p.grad is not None for p in net.parameters()) and isinstance(out, np.ndarray)
    finally: net.eval()


@pytest.mark.parametrize('change,said', [(dict(image=np.zeros((0, 4, 3), np.uint8)), 'not empty'), (dict(image=None), 'NoneType'), (dict(tile=1), 'at least 2'), (dict(overlap=40), 'at most 32'), (dict(overlap=-1), 'at least 0'), (dict(margin=20), 'at most'),
                                         (dict(batch_size=0), 'at least 1'), (dict(result='labels'), 'is one of'), (dict(model_fn=lambda x: [x]), '`model_fn` gives maps'), (dict(model_fn=lambda x: x[:, :1].repeat(1, 300, 1, 1), result='classes'), '256 classes')])
def test_what_cannot_be(net, change, said):
    with pytest.raises(InputError, match=said): predict_tiled(**{**dict(model_fn=net, image=np.zeros((80, 80, 3), np.uint8), tile=64, overlap=16), **change})
