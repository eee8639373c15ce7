"Targets and loss of FOTS: recorded numbers with gradients, slow obvious versions, random words, and the corners"
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from visionlab.core.checks import InputError
from visionlab.fots.loss import FOTSLoss, pick_cells, read_loss, shape_loss
from visionlab.fots.targets import FOTSMaps, FOTSTargets, cell_points, edge_distances, rect_quads, word_rects

golden = Path(__file__).parent/'golden'


def random_words(rng, n, size=200):
    return list(rect_quads(np.c_[rng.uniform(0, size, (n, 2)), rng.uniform(1, 90, n), rng.uniform(.5, 40, n), rng.uniform(-.78, .78, n)]))


# Targets

@pytest.mark.parametrize('convention', ['paper', 'seed'])
def test_distances_and_angles_of_the_recorded_words(convention):
    "The recorded maps hold two words; in the seed's convention the same cells say the same"
    d = np.load(golden/'fots_0_two_rotated.npz')
    for theta, w, h in ((.2, 40, 20), (-.3, 36, 20)):
        cells = np.abs(d['gt_angle'] - np.pi/4 - theta) < 1e-4
        cells &= d['gt_cls'] > 0
        y, x = np.nonzero(cells)
        t, r, b, l = d['gt_distances'][:, y, x]
        u, v = np.array([np.cos(theta), -np.sin(theta)]), np.array([np.sin(theta), np.cos(theta)])
        centre = (np.stack([4*x, 4*y], 1) + ((r-l)/2)[:, None]*u + ((b-t)/2)[:, None]*v).mean(0)
        if convention == 'paper': centre = centre + 1.5
        score, dist, angle, mask = FOTSTargets(border=False, convention=convention)([rect_quads([*centre, w, h, theta])], [False], 88, 88)
        np.testing.assert_allclose(dist[:, cells], d['gt_distances'][:, cells], atol=2e-3)
        np.testing.assert_allclose(angle[cells], theta, atol=1e-4)
        assert score[cells].all() and mask[cells].all()
        if convention == 'paper': assert (score > 0).sum() == cells.sum()       # the very same core


def slow_targets(polygons, ignore, height, width, stride=4, shrink=.6, least=3.):
    "Cell by cell: the smallest word whose core the cell lies in"
    h, w = -(-height//stride), -(-width//stride)
    score, dist, angle, size = np.zeros((h, w)), np.zeros((4, h, w)), np.zeros((h, w)), np.full((h, w), np.inf)
    for p, ign in zip(polygons, ignore):
        cx, cy, rw, rh, a = word_rects([p])[0]
        if ign or min(rw, rh) < least: continue
        s = shrink*min(rw, rh)
        for i in range(h):
            for j in range(w):
                x, y = j*stride + 1.5, i*stride + 1.5
                if min(x, y, width-1-x, height-1-y) < s: continue
                along, down = (x-cx)*np.cos(a) - (y-cy)*np.sin(a), (x-cx)*np.sin(a) + (y-cy)*np.cos(a)
                limit = [min(max((v-s)/2, stride/2), v/2) + 1e-4 for v in (rw, rh)]
                if abs(along) <= limit[0] and abs(down) <= limit[1] and rw*rh < size[i, j]:
                    size[i, j], score[i, j], angle[i, j] = rw*rh, 1, a
                    dist[:, i, j] = rh/2 + down, rw/2 - along, rh/2 - down, rw/2 + along
    return score, dist, angle


def test_targets_of_random_scenes():
    rng = np.random.default_rng(0)
    for _ in range(6):
        n = rng.integers(0, 9)
        polys, ignore = random_words(rng, n, 120), rng.random(n) < .3
        before = [p.copy() for p in polys]
        score, dist, angle, mask = FOTSTargets()(polys, ignore, 118, 123)
        want = slow_targets(polys, ignore, 118, 123)
        assert (score == want[0]).mean() > .999           # a cell on the very edge of a core may fall either way
        same = score == want[0]
        np.testing.assert_allclose(dist[:, same], want[1][:, same], atol=1e-2)
        np.testing.assert_allclose(angle[same], want[2][same], atol=1e-3)
        assert mask[score > 0].all() and set(np.unique(mask)) <= {0, 1}
        assert all((a == b).all() for a, b in zip(polys, before))


def test_outlines_and_unreadable_words_do_not_count():
    word, other = rect_quads([60, 40, 80, 30, 0]), rect_quads([60, 90, 80, 20, 0])
    score, _, _, mask = FOTSTargets()([word, other], [False, True], 120, 120)
    y, x = np.meshgrid(*(cell_points(30, 30)[k] for k in (1, 0)), indexing='ij')
    def inside(q, grow): return (x > q[0, 0]-grow) & (x < q[2, 0]+grow) & (y > q[0, 1]-grow) & (y < q[2, 1]+grow)
    assert not (mask*(score == 0))[inside(word, -1)].any() and not mask[inside(other, -1)].any()
    assert mask[~(inside(word, 6) | inside(other, 6))].all() and not score[inside(other, 0)].any()


@pytest.mark.parametrize('height', [.05, .5, 1, 2, 2.9])
def test_words_too_thin_are_masked_and_never_crash(height):
    score, d, a, mask = FOTSTargets()([rect_quads([60, 50, 70, height, .3])], [False], 100, 120)
    assert not score.any() and not mask.all() and np.isfinite(d).all()


@pytest.mark.parametrize('convention', ['paper', 'seed'])
def test_words_outside_cut_words_and_broken_words(convention):
    odd = [rect_quads([-60, 50, 70, 20, 0]), rect_quads([500, 900, 70, 20, .2]), rect_quads([119, 99, 70, 30, 0]), np.zeros((4, 2)), np.array([[5, 5], [5, 5], [40, 40.]])]
    score, d, a, mask = FOTSTargets(convention=convention)(odd, [False]*5, 100, 120)
    assert all(np.isfinite(m).all() for m in (d, a)) and score.shape == (25, 30)


def test_many_words_and_every_size():
    rng = np.random.default_rng(1)
    polys = random_words(rng, 300, 640)
    score, *_ = FOTSTargets()(polys, [False]*300, 640, 640)
    assert score.any()
    for height, width in ((1, 1), (3, 5), (4, 4), (33, 279)):
        assert FOTSTargets()(polys[:3], [False]*3, height, width)[0].shape == (-(-height//4), -(-width//4))


@pytest.mark.parametrize('bad', [dict(stride=0), dict(stride=2.5), dict(shrink=-.1), dict(shrink=1), dict(min_word=-1), dict(convention='x')])
def test_bad_settings_are_one_line(bad):
    with pytest.raises(InputError) as e: FOTSTargets(**bad)
    assert '\n' not in str(e.value) and next(iter(bad)) in str(e.value)


def test_edge_distances_add_up():
    rng = np.random.default_rng(2)
    for p in random_words(rng, 20):
        r = word_rects([p])[0]
        t, ri, b, l = edge_distances(r, *rng.uniform(-50, 250, (2, 30)))
        np.testing.assert_allclose(t + b, r[3], atol=1e-3); np.testing.assert_allclose(l + ri, r[2], atol=1e-3)


# Loss

@pytest.mark.parametrize('name', ['0_two_rotated', '1_empty'])
@pytest.mark.parametrize('convention', ['paper', 'seed'])
def test_recorded_loss_and_gradients(name, convention):
    """No more cells than are taken anyhow, so nothing is drawn and both conventions agree.

    The recorded gradients are those of the whole loss. The recorded value lacks the cross-entropy of core cells: on the CPU the program writes zeros
    into it (through an array that shares its memory) after autograd has seen it, on a GPU it writes them into a copy.
    """
    d = {k: torch.from_numpy(v) for k, v in np.load(golden/f'fots_{name}.npz').items()}
    maps = FOTSMaps(*(d[k].clone().requires_grad_() for k in ('pred_confidence_logits', 'pred_distances', 'pred_angle')))
    loss = FOTSLoss(convention=convention)
    total = loss(maps, d['gt_cls'][None], d['gt_distances'][None], d['gt_angle'][None], d['training_mask'][None])
    total.backward()
    core = (d['gt_cls'] > 0) & (d['training_mask'] > 0)
    lost = F.softplus(-d['pred_confidence_logits'][0, 0][core]).sum()/(d['training_mask'] > 0).sum()
    torch.testing.assert_close((total - lost).double(), d['loss'], rtol=1e-5, atol=1e-6)
    for m, k in zip(maps, ('grad_conf', 'grad_dist', 'grad_angle')): torch.testing.assert_close(m.grad, d[k], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('convention', ['paper', 'seed'])
@pytest.mark.parametrize('hard, random', [(0, 0), (5, 0), (0, 7), (5, 7), (40, 40)])
def test_which_cells_are_picked(convention, hard, random):
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        loss, allowed = torch.rand(3, 50, generator=g), torch.rand(3, 50, generator=g) < .6
        allowed[2] = False
        got = pick_cells(loss, allowed, hard, random, convention, g)
        assert not (got & ~allowed).any()
        for l, a, p in zip(loss, allowed, got):
            order = [i for i in l.argsort(descending=True).tolist() if a[i]]
            assert all(p[i] for i in order[:hard])
            extra = [i for i in order[hard:] if p[i]]
            if convention == 'paper': assert len(extra) == min(random, max(0, len(order) - hard))
            else: assert set(extra) <= set(order[hard:hard+random]) and (len(extra) > 0) == (random > 0 and len(order) > hard)


def test_the_random_part_comes_from_all_the_others_and_can_be_had_again():
    loss, allowed = torch.arange(2000.)[None], torch.ones(1, 2000, dtype=torch.bool)
    a, b = (pick_cells(loss, allowed, 50, 50, 'paper', torch.Generator().manual_seed(5)) for _ in range(2))
    assert (a == b).all() and a.sum() == 100
    assert a[0, :1000].sum() > 10                                       # also among the easiest half
    assert not pick_cells(loss, allowed, 50, 50, 'seed')[0, :1900].any()
    torch.manual_seed(3); x = pick_cells(loss, allowed, 50, 50)
    torch.manual_seed(3); assert (x == pick_cells(loss, allowed, 50, 50)).all()     # torch's own generator, as checkpoints save it


def test_hard_cells_differ_image_by_image():
    "The mean is over the cells of the batch that are heard"
    g = torch.Generator().manual_seed(0)
    maps = FOTSMaps(torch.randn(2, 1, 30, 30, generator=g), torch.rand(2, 4, 30, 30, generator=g)*20, torch.randn(2, 1, 30, 30, generator=g)*.1)
    score = torch.zeros(2, 30, 30); score[0, 3:9, 3:20] = 1
    dist, angle, mask = torch.rand(2, 4, 30, 30, generator=g)*20, torch.zeros(2, 30, 30), torch.ones(2, 30, 30)
    parts = FOTSLoss(hard_negatives=20, random_negatives=0, hard_positives=5, random_positives=0).parts(maps, score, dist, angle, mask)
    bce = F.binary_cross_entropy_with_logits(maps.score[:, 0], score, reduction='none')
    want = torch.cat([bce[0][score[0] > 0], bce[0][score[0] == 0].topk(20).values, bce[1].flatten().topk(20).values]).mean()
    torch.testing.assert_close(parts['score_loss'], want)
    raw = shape_loss(maps.distances, dist) + 10*(1 - torch.cos(maps.angle[:, 0]))
    at = raw[0][score[0] > 0].topk(5).indices
    torch.testing.assert_close(parts['shape_loss'], shape_loss(maps.distances, dist)[0][score[0] > 0][at].mean())


def test_reading_is_torchs_ctc_and_unspellable_words_are_left_out():
    g = torch.Generator().manual_seed(0)
    letters, widths = torch.randn(4, 9, 6, generator=g, requires_grad=True), torch.tensor([9, 5, 3, 2])
    texts, lengths = torch.tensor([[1, 2, 3, 3], [4, 5, 0, 0], [1, 1, 2, 0], [5, 0, 0, 0]]), torch.tensor([4, 2, 3, 1])
    got = read_loss(letters, widths, texts, lengths)
    each = F.ctc_loss(letters.log_softmax(-1).transpose(0, 1), texts, widths, lengths, reduction='none')
    assert each[2].isinf()
    torch.testing.assert_close(got, (each/lengths)[[0, 1, 3]].mean())
    got.backward()
    assert letters.grad.isfinite().all() and not letters.grad[2].any()


@pytest.mark.parametrize('words', [0, 1])
def test_no_readable_word_is_no_nan(words):
    "Nothing read, or one word of which nothing can be spelled"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 5, 5, generator=g, requires_grad=True)
    letters = torch.randn(words, 1, 4, generator=g, requires_grad=True)
    pred = SimpleNamespace(letters=letters, widths=torch.ones(words).long(), words=torch.zeros(words, 2).long(), text=x.mean()[None])
    class Answer(tuple): pass
    maps = Answer((x, torch.rand(1, 4, 5, 5), torch.zeros(1, 1, 5, 5)))
    for k, v in vars(pred).items(): setattr(maps, k, v)
    zero = torch.zeros(1, 5, 5)
    total = FOTSLoss()(maps, zero, torch.zeros(1, 4, 5, 5), zero, zero + 1, torch.zeros(1, 1, 4, 2), torch.tensor([[[1, 1]]]), torch.tensor([[2]]))
    total.backward()
    assert total.isfinite() and x.grad.isfinite().all() and (not words or not letters.grad.any())


def test_half_precision_maps_and_typed_tensors():
    from fastai.torch_core import TensorImage, TensorMask
    g = torch.Generator().manual_seed(0)
    maps = FOTSMaps(torch.randn(1, 1, 9, 9, generator=g), torch.rand(1, 4, 9, 9, generator=g)*9, torch.zeros(1, 1, 9, 9))
    truth = torch.randint(0, 2, (1, 9, 9), generator=g), torch.rand(1, 4, 9, 9, generator=g)*9, torch.zeros(1, 9, 9), torch.ones(1, 9, 9)
    want = FOTSLoss()(maps, *truth)
    torch.testing.assert_close(FOTSLoss()(FOTSMaps(*(m.bfloat16() for m in maps[:3])), *truth), want, rtol=.03, atol=.03)
    typed = FOTSLoss()(FOTSMaps(*(TensorImage(m) for m in maps[:3])), TensorMask(truth[0]), *truth[1:3], TensorMask(truth[3]))
    torch.testing.assert_close(typed, want)


def test_the_loss_module_is_light():
    import subprocess, sys
    out = subprocess.run([sys.executable, '-c', "from visionlab.fots import FOTSLoss, FOTSMaps, roi_rotate; import sys; print([m for m in 'fastai torchvision cv2 shapely albumentations matplotlib'.split() if m in sys.modules])"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'
