"PAN's target maps against a slow obvious version, on random words, and in the corners"
import math
import numpy as np, pytest, shapely
from visionlab.core.checks import InputError
from visionlab.geometry.masks import fill_polygons
from visionlab.pan.targets import PANTargets, kernel_offset, kernel_polygons


def rect(x, y, w, h): return np.array([[x, y], [x+w, y], [x+w, y+h], [x, y+h]], float)


def word(rng, size=300):
    w, h, t = rng.uniform(8, 120), rng.uniform(4, 50), rng.uniform(0, 2*np.pi)
    return rect(-w/2, -h/2, w, h) @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) + rng.uniform(0, size, 2)


@pytest.mark.parametrize('ratio', [.1, .5, .7, 1])
@pytest.mark.parametrize('limit', [3, 20])
def test_offset_follows_the_published_formula(ratio, limit):
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, p = rng.uniform(0, 1e5), rng.uniform(1, 2000)
        assert kernel_offset(a, p, ratio, limit) == min(int(a*(1-ratio*ratio)/(p + .001) + .5), limit)


def test_kernels_are_the_words_moved_inwards():
    "shapely's negative buffer is another implementation of the same thing"
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = word(rng)
        s = shapely.Polygon(p)
        inner = s.buffer(-min(int(s.area*.75/(s.length + .001) + .5), 20))
        got = kernel_polygons(p)
        if inner.is_empty: assert len(got) == 1 and (got[0] == p).all(); continue
        k = shapely.unary_union([shapely.Polygon(q) for q in got])
        if inner.area > 20: assert k.symmetric_difference(inner).area < .1*inner.area + 2


def test_maps_of_random_scenes():
    rng = np.random.default_rng(2)
    for _ in range(20):
        polys = [word(rng) for _ in range(rng.integers(0, 15))]
        ignore = rng.random(len(polys)) < .3
        before = [p.copy() for p in polys]
        text, kernel, mask = PANTargets()(polys, ignore, 300, 310)
        want_t, want_m, i = np.zeros((300, 310), int), np.ones((300, 310), int), 0
        for p, ign in zip(polys, ignore):
            inside = fill_polygons([p], 300, 310) > 0
            if ign: want_m[inside] = 0
            else: i += 1; want_t[inside] = i
        assert (text == want_t).all() and (mask == want_m).all()
        assert text.dtype == kernel.dtype == np.int32 and mask.dtype == np.uint8
        assert (kernel[kernel > 0] == text[kernel > 0]).all()
        assert all((a == b).all() for a, b in zip(polys, before))


def test_every_separate_word_has_a_kernel():
    rng = np.random.default_rng(3)
    for _ in range(100):
        p = word(rng, 200) + 60
        text, kernel, _ = PANTargets()([p], [False], 340, 340)
        assert text.any() and kernel.any() and (kernel > 0).sum() <= (text > 0).sum()


@pytest.mark.parametrize('n', [254, 255, 256, 257, 1000])
def test_more_words_than_a_byte_counts(n):
    polys = [rect(12*(i % 50), 8*(i//50), 9, 5) for i in range(n)]
    text, kernel, _ = PANTargets()(polys, [False]*n, 8*(n//50 + 1), 600)
    assert np.unique(text).tolist() == np.unique(kernel).tolist() == list(range(n + 1))


def test_ids_count_readable_words_only():
    polys = [rect(0, 0, 20, 10), rect(30, 0, 20, 10), rect(60, 0, 20, 10)]
    text, kernel, mask = PANTargets()(polys, [False, True, False], 20, 100)
    assert (text[5, 10], text[5, 40], text[5, 70]) == (1, 0, 2) and mask[5, 40] == 0 and mask[0, 30] == 0 and mask[10, 50] == 0
    text, kernel, mask = PANTargets()(polys, [True]*3, 20, 100)
    assert not text.any() and not kernel.any() and not mask.all()


def test_an_ignored_word_hides_what_it_covers():
    text, _, mask = PANTargets()([rect(0, 0, 40, 20), rect(20, 0, 40, 20)], [False, True], 30, 80)
    assert text[10, 30] == 1 and mask[10, 30] == 0 and mask[10, 10] == 1


def test_ratio_and_limit_have_an_effect():
    p = [rect(10, 10, 200, 80)]
    area = lambda **kw: (PANTargets(**kw)(p, [False], 100, 220)[1] > 0).sum()
    assert area(shrink_ratio=1) == 201*81
    assert area(shrink_ratio=.9) > area(shrink_ratio=.5) > area(shrink_ratio=.5, max_shrink=100)
    assert area(max_shrink=0) == 201*81 and area(max_shrink=5) == 191*71


@pytest.mark.parametrize('p', [rect(0, 0, 50, 0), rect(5, 5, 0, 0), [[0, 0], [40, 30], [40, 0], [0, 30]], rect(-30, -30, 20, 20), rect(-10, -10, 500, 500),
                               [[0, 0], [50, 0], [50, 30], [25, 1], [0, 30]]], ids=['line', 'point', 'bow tie', 'outside', 'larger than the image', 'v'])
def test_odd_polygons_are_drawn_and_nothing_breaks(p):
    text, kernel, mask = PANTargets()([np.array(p, float)], [False], 100, 120)
    assert text.shape == (100, 120) and mask.all() and set(np.unique(text)) <= {0, 1}


def test_errors_name_the_argument():
    for bad in (dict(shrink_ratio=0), dict(shrink_ratio=1.1), dict(shrink_ratio=math.nan), dict(max_shrink=-1)):
        with pytest.raises(InputError, match=next(iter(bad))): PANTargets(**bad)
    with pytest.raises(InputError, match='ignore'): PANTargets()([rect(0, 0, 5, 5)], [], 10, 10)
