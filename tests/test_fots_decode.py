"Decoding of FOTS against recorded numbers and slow obvious versions, roi_rotate against a loop, and both on broken input"
from pathlib import Path
import numpy as np
import pytest
import shapely
import torch
from visionlab.core.checks import InputError
from visionlab.fots.decode import decode_fots, group_cells, map_rects, merge_rects, rect_iou, rect_overlap, suppress_rects
from visionlab.fots.rotate import roi_rotate, roi_widths
from visionlab.fots.targets import FOTSMaps, FOTSTargets, level_rects, rect_quads, word_rects
from bench.bench_fots import scene

golden = Path(__file__).parent/'golden'


def recorded(name):
    d = np.load(golden/f'fots_{name}.npz')
    return {k: d[k] for k in d.files}


def logit(p): return np.log(p.clip(1e-6, 1-1e-6)) - np.log1p(-p.clip(1e-6, 1-1e-6))


@pytest.mark.parametrize('name', ['0_two_rotated', '1_empty'])
@pytest.mark.parametrize('overlap', [.3, .5])
def test_seed_convention_gives_the_recorded_boxes(name, overlap):
    d = recorded(name)
    true = FOTSMaps(logit(d['gt_cls'])[None], d['gt_distances'], d['gt_angle'][None] - np.pi/4)
    said = FOTSMaps(*(torch.from_numpy(d[k]) for k in ('pred_confidence_logits', 'pred_distances')), torch.from_numpy(d['pred_angle']) - np.pi/4)
    for maps, least, want in ((true, .5, d['decode_gt_polys']), (said, .9, d['decode_pred_polys'])):
        got = decode_fots(maps, (88, 88), 'seed', least, overlap, overlap)
        assert len(got) == len(want)
        if not len(want): continue
        np.testing.assert_allclose(np.stack(got.polygons).reshape(-1, 8), want[:, :8], atol=1e-4)
        np.testing.assert_allclose(got.scores, want[:, 8], rtol=1e-4)


def test_paper_convention_finds_the_recorded_words_and_scores_are_means():
    d = recorded('0_two_rotated')
    said = FOTSMaps(d['pred_confidence_logits'], d['pred_distances'], d['pred_angle'] - np.pi/4)
    got = decode_fots(said, (88, 88), min_score=.9)
    assert len(got) == 2 and (got.scores > .9).all() and (got.scores < 1).all()
    for p, q in zip(got.polygons, d['decode_pred_polys'][:, :8].reshape(-1, 4, 2)):
        assert np.abs(p - 1.5 - q).max() < 1.5      # a cell is 1.5 px further, corners are not cut to whole px


def slow_iou(a, b):
    a, b = shapely.Polygon(a.reshape(4, 2)), shapely.Polygon(b.reshape(4, 2))
    if not (a.is_valid and b.is_valid): return 0
    both = a.intersection(b).area
    return both/(a.area + b.area - both) if a.area + b.area - both else 0


def slow_seed(maps, least, overlap):
    "The published algorithm, step by step"
    score, (t, r, b, l), angle = 1/(1 + np.exp(-maps.score[0, 0].double().numpy())), maps.distances[0].double().numpy(), maps.angle[0, 0].double().numpy()
    groups, last = [], None
    for y in range(score.shape[0]):
        for x in range(score.shape[1]):
            if score[y, x] < least: continue
            c, s = np.cos(angle[y, x]), np.sin(angle[y, x])
            u, v, p = np.array([c, -s]), np.array([s, c]), np.array([4.*x, 4*y])
            quad = np.trunc(np.stack([p - l[y, x]*u - t[y, x]*v, p + r[y, x]*u - t[y, x]*v, p + r[y, x]*u + b[y, x]*v, p - l[y, x]*u + b[y, x]*v])).ravel()
            if last is not None and slow_iou(quad, last[0]) > overlap:
                total = last[1] + score[y, x]
                last = ((quad*score[y, x] + last[0]*last[1])/total, total)
            else:
                if last is not None: groups.append(last)
                last = (quad, score[y, x])
    groups = sorted(groups + ([last] if last else []), key=lambda g: -g[1])
    kept = []
    for g in groups:
        if all(slow_iou(g[0], k[0]) <= overlap for k in kept): kept.append(g)
    return kept


@pytest.mark.parametrize('n, seed', [(1, 0), (4, 1), (9, 2), (16, 3)])
def test_seed_convention_equals_the_slow_version(n, seed):
    maps, _ = scene(n, size=160, seed=seed)
    got, want = decode_fots(maps, (160, 160), 'seed', .9, .5, .5), slow_seed(maps, .9, .5)
    assert len(got) == len(want)
    for p, s, (q, total) in zip(got.polygons, got.scores, want):
        np.testing.assert_allclose(p.ravel(), q, atol=1e-3)
        assert abs(s - total) < 1e-3*total


def test_seed_convention_on_noise_equals_the_slow_version():
    "Random maps, where the chain breaks everywhere and many quads cross themselves"
    g = torch.Generator().manual_seed(0)
    maps = FOTSMaps(torch.randn(1, 1, 12, 12, generator=g)*4, torch.rand(1, 4, 12, 12, generator=g)*20, torch.rand(1, 1, 12, 12, generator=g)*1.5 - .75)
    got, want = decode_fots(maps, (48, 48), 'seed', .5, .3, .3), slow_seed(maps, .5, .3)
    assert len(got) == len(want)
    for p, (q, _) in zip(got.polygons, want): np.testing.assert_allclose(p.ravel(), q, atol=1e-3)


def random_rects(n, rng, span=60):
    return np.c_[rng.uniform(0, span, (n, 2)), rng.uniform(.3, 60, (n, 2)), rng.uniform(-1.6, 1.6, n)]


def test_overlap_of_rectangles_equals_shapely():
    rng = np.random.default_rng(0)
    a, b = random_rects(3000, rng), random_rects(3000, rng)
    b[:300] = a[:300]
    b[300:600] = a[300:600] + rng.normal(0, 1e-9, (300, 5))
    a[600:900, 4] = b[600:900, 4] = 0
    b[900:1200] = a[900:1200]; b[900:1200, 4] += np.pi/2
    b[1200:1400, :2] = a[1200:1400, :2]
    want = shapely.area(shapely.intersection(shapely.polygons(rect_quads(a)), shapely.polygons(rect_quads(b))))
    np.testing.assert_allclose(rect_overlap(a, b), want, atol=1e-3)
    assert (rect_iou(a, b) <= 1 + 1e-9).all()


def test_suppression_equals_the_slow_version():
    rng = np.random.default_rng(1)
    for _ in range(10):
        r, votes = random_rects(60, rng, 150), rng.random(60)
        quads, kept = rect_quads(r), []
        for i in np.argsort(-votes):
            if all(slow_iou(quads[i], quads[k]) <= .3 for k in kept): kept.append(i)
        assert suppress_rects(r, votes).tolist() == [int(k) for k in kept]


@pytest.mark.parametrize('n', [1, 20, 200])
@pytest.mark.parametrize('seed', [0, 1])
def test_words_of_a_scene_are_found(n, seed):
    maps, truth = scene(n, seed=seed)
    got = decode_fots(maps, (640, 640))
    assert len(got) == n
    quads = rect_quads(truth)
    for p in got.polygons: assert min(np.abs(quads - p).max((1, 2))) < 3
    assert (got.scores >= .95).all() and got.labels.shape == (160, 160) and len(got.ids) == n


@pytest.mark.parametrize('angle', np.linspace(-np.pi/4, np.pi/4, 9))
def test_words_at_any_angle_survive_drawing_and_decoding(angle):
    rect = np.array([[100.3, 90.8, 90, 26, angle]])
    for convention in ('paper', 'seed'):
        score, d, a, _ = FOTSTargets(border=False, convention=convention)(list(rect_quads(rect)), [False], 200, 200)
        got = decode_fots(FOTSMaps(score[None]*20. - 10, d, a[None]), (200, 200), convention)
        assert len(got) == 1
        best = min(np.abs(np.roll(got.polygons[0], k, 0) - rect_quads(rect)[0]).max() for k in range(4))
        assert best < (.05 if convention == 'paper' else 1.6)


def test_merge_is_the_same_whatever_side_is_called_width():
    rng = np.random.default_rng(2)
    base = np.array([50, 40, 60, 22, .75])
    r = base + rng.normal(0, .3, (40, 5))*[1, 1, 1, 1, .05]
    mixed = r.copy()
    flip = rng.random(40) < .5
    mixed[flip, 4] -= np.pi/2
    mixed[flip, 2:4] = mixed[flip][:, [3, 2]]
    w, g = rng.random(40) + .1, np.zeros(40, int)
    want, got = (level_rects(merge_rects(x, w, g)[0])[0] for x in (r, mixed))
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_touching_words_stay_two():
    rects = np.array([[60, 40, 70, 20, 0], [131, 40, 70, 20, 0], [60, 60.5, 70, 20, 0]])
    score, d, a, _ = FOTSTargets(border=False)(list(rect_quads(rects)), [False]*3, 100, 200)
    assert len(decode_fots(FOTSMaps(score[None]*20. - 10, d, a[None]), (100, 200))) == 3


def test_groups_are_connected_cells():
    maps, _ = scene(9, size=160)
    logits, d, a = maps.score[0, 0].numpy(), maps.distances[0].numpy(), maps.angle[0, 0].numpy()
    y, x = np.nonzero(logits > 3)
    group = group_cells(map_rects(d, a, y, x), np.ones(len(y)), y, x, logits.shape)
    assert sorted(set(group.tolist())) == list(range(group.max() + 1))
    from scipy.ndimage import label
    blobs = label(logits > 3, np.ones((3, 3)))[0][y, x]
    for k in range(group.max() + 1): assert len(set(blobs[group == k].tolist())) == 1


@pytest.mark.parametrize('bad, message', [
    (dict(convention='sead'), 'convention'), (dict(min_score=0), 'min_score'), (dict(min_score=float('nan')), 'min_score'),
    (dict(merge_iou=2), 'merge_iou'), (dict(nms=-1), 'nms'), (dict(size=(0, 5)), 'size'), (dict(input_size=3), 'input_size')])
def test_bad_arguments_are_one_line(bad, message):
    maps, _ = scene(1, size=80)
    with pytest.raises(InputError, match=message) as e: decode_fots(**{**dict(maps=maps, size=(80, 80)), **bad})
    assert '\n' not in str(e.value)


def test_bad_maps_are_one_line():
    for maps in (None, torch.zeros(3), (torch.zeros(1, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)), (torch.zeros(2, 1, 4, 4),)*3):
        with pytest.raises(InputError) as e: decode_fots(maps, (16, 16))
        assert '\n' not in str(e.value)


def test_half_precision_maps_and_no_gradient_needed():
    maps, _ = scene(4, size=160)
    half = FOTSMaps(*(m.bfloat16().requires_grad_() for m in maps[:3]))
    assert len(decode_fots(half, (160, 160))) == 4


# roi_rotate

def slow_rotate(maps, boxes, index, height, max_width, stride=4):
    out = []
    for q, i in zip(boxes.double(), index):
        w = int(roi_widths(q[None], height, max_width))
        m, word = maps[i].double(), torch.zeros(maps.shape[1], height, w, dtype=torch.float64)
        for r in range(height):
            for c in range(w):
                fy, fx = (r + .5)/height, (c + .5)/w
                p = (q[0]*(1-fy) + q[3]*fy)*(1-fx) + (q[1]*(1-fy) + q[2]*fy)*fx
                x, y = (((p + .5)/stride - .5)[k].clamp(0, m.shape[2-k]-1) for k in range(2))
                x0, y0 = int(x), int(y)
                x1, y1 = min(x0+1, m.shape[2]-1), min(y0+1, m.shape[1]-1)
                ax, ay = x - x0, y - y0
                word[:, r, c] = (m[:, y0, x0]*(1-ax) + m[:, y0, x1]*ax)*(1-ay) + (m[:, y1, x0]*(1-ax) + m[:, y1, x1]*ax)*ay
        out.append(word)
    return out


def test_roi_rotate_equals_a_loop():
    rng = np.random.default_rng(0)
    rects = np.c_[rng.uniform(-10, 130, (12, 2)), rng.uniform(1, 90, 12), rng.uniform(.2, 40, 12), rng.uniform(-.8, .8, 12)]
    boxes, index = torch.from_numpy(rect_quads(rects)).float() + torch.from_numpy(rng.normal(0, 1, (12, 4, 2))).float(), torch.from_numpy(rng.integers(0, 3, 12))
    maps = torch.randn(3, 4, 28, 33, generator=torch.Generator().manual_seed(0))
    got, widths = roi_rotate(maps, boxes, index, height=5, max_width=20)
    for g, w, want in zip(got, widths, slow_rotate(maps, boxes, index, 5, 20)):
        assert want.shape[2] == w
        torch.testing.assert_close(g[:, :, :w], want.float(), atol=2e-4, rtol=1e-3)
        assert not g[:, :, w:].any()


def test_roi_rotate_gradients_of_many_images():
    maps = torch.rand(3, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    boxes = torch.tensor(rect_quads([[12.3, 11, 14, 6, .3], [9, 8.2, 9, 9, -.2], [15, 12, 20, 5.5, .7]])).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, b: roi_rotate(m, b, torch.tensor([2, 0, 2]), height=2, max_width=4)[0], (maps, boxes))


def test_a_box_of_the_whole_map_is_the_map():
    m = torch.rand(1, 3, 8, 20)
    box = torch.tensor([[[-.5, -.5], [79.5, -.5], [79.5, 31.5], [-.5, 31.5]]])
    torch.testing.assert_close(roi_rotate(m, box, torch.tensor([0]))[0], m, atol=1e-5, rtol=0)


def test_no_words_thin_words_and_words_outside():
    m = torch.rand(2, 3, 8, 20, requires_grad=True)
    none, w = roi_rotate(m, torch.zeros(0, 4, 2), torch.zeros(0, dtype=torch.long))
    assert none.shape == (0, 3, 8, 8) and len(w) == 0
    thin = torch.tensor(rect_quads([[30, 12, 40, .01, .2], [30, 12, 0, 0, 0], [30, 12, .3, 20, 0], [-500, 9000, 40, 10, 0]])).float()
    words, w = roi_rotate(m, thin, torch.tensor([0, 1, 0, 1]))
    assert words.isfinite().all() and w.min() >= 1 and w.max() <= 128
    (words.sum() + none.sum()).backward()
    assert m.grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_roi_rotate_on_a_gpu():
    m, boxes = torch.rand(2, 3, 8, 20), torch.tensor(rect_quads([[30, 12, 40, 8, .2], [30, 12, 9, 9, 0]])).float()
    a, b = (roi_rotate(m.to(d), boxes.to(d), torch.tensor([1, 0], device=d))[0] for d in ('cpu', 'cuda'))
    torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-4)


def test_rectangles_of_words():
    rng = np.random.default_rng(3)
    rects = np.c_[rng.uniform(0, 100, (50, 2)), rng.uniform(20, 60, 50), rng.uniform(2, 15, 50), rng.uniform(-.78, .78, 50)]
    np.testing.assert_allclose(word_rects(list(rect_quads(rects))), rects, atol=2e-3)
    turned = rects + [0, 0, 0, 0, np.pi/2]
    np.testing.assert_allclose(rect_quads(level_rects(turned))[:, 0], rect_quads(turned)[:, 1], atol=1e-6)   # the same corners, from another first one
