"Polygons and masks against slow obvious versions, on many random shapes and on bad ones"
import numpy as np, pytest, shapely
from visionlab.core.checks import InputError
from visionlab.geometry.polygons import (as_polygon, as_shapes, clip_polygon, corner_set_distance, min_area_quad, min_area_quads, order_quad,
                                         pairwise_intersection, polygon_area, polygon_iou, polygon_perimeter, repair_polygon, shrink_polygon)
from visionlab.geometry.masks import fill_polygons, label_components, row_extents


def rotated_box(rng, size=300):
    "A box of text-like proportions at any angle"
    w, h, t = rng.uniform(10, 120), rng.uniform(5, 40), rng.uniform(0, 2*np.pi)
    box = np.array([[-w, -h], [w, -h], [w, h], [-w, h]])/2
    return box @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) + rng.uniform(0, size, 2)


def blob(rng, n=12):
    "A star-shaped outline that does not cross itself"
    t = (np.arange(n) + rng.uniform(0, .8, n))*2*np.pi/n
    return np.c_[np.cos(t), np.sin(t)]*rng.uniform(10, 60, (n, 1)) + rng.uniform(0, 200, 2)


BAD = dict(two_corners=[[0, 0], [5, 5]], one_corner=[[1, 1]], empty=np.zeros((0, 2)), line=[[0, 0], [9, 0], [3, 0]], point=[[1, 1]]*4, closed_line=[[0, 0], [5, 0], [0, 0]],
           nan=[[0, 0], [5, 0], [np.nan, 5]], inf=[[0, 0], [np.inf, 0], [5, 5]], astronomic=[[0, 0], [1e300, 0], [1e300, 1e300]])


@pytest.mark.parametrize('seed', range(20))
def test_measures_agree_with_shapely(seed):
    rng = np.random.default_rng(seed)
    for p in (rotated_box(rng), blob(rng), rotated_box(rng)[::-1], blob(rng) + 1e5):
        ref = shapely.Polygon(p)
        assert polygon_area(p) == pytest.approx(ref.area, rel=1e-9)
        assert polygon_perimeter(p) == pytest.approx(ref.length, rel=1e-9)


@pytest.mark.parametrize('name', BAD)
def test_hopeless_outlines_enclose_nothing(name):
    p = BAD[name]
    shapes, faults = as_shapes([p, [[0, 0], [4, 0], [0, 3]]])
    assert shapes[0].is_empty or shapes[0].area == 0
    assert list(faults) == [0] and shapes[1].area == 6
    assert repair_polygon(p) == [] and clip_polygon(p, 10, 10) == [] and shrink_polygon(p, 1) == []
    assert polygon_iou(p, p) == 0
    if name not in ('line', 'point', 'closed_line'):
        with pytest.raises(InputError): as_polygon(p)


def test_repair_keeps_all_that_is_enclosed():
    bow = [[0, 0], [10, 0], [0, 10], [10, 10]]
    assert sorted(polygon_area(q) for q in repair_polygon(bow)) == [25, 25]
    t = np.linspace(0, 4*np.pi, 6)[:-1]
    star = np.c_[np.cos(t), np.sin(t)]*10
    assert len(repair_polygon(star)) == 1    # its middle is covered twice, and stays
    assert polygon_area(repair_polygon(star)[0]) == pytest.approx(shapely.Polygon(star).buffer(0).area)
    rng = np.random.default_rng(3)
    for _ in range(200):                     # random scribbles
        parts = repair_polygon(rng.uniform(0, 50, (rng.integers(3, 12), 2)))
        assert all(shapely.Polygon(q).is_valid and polygon_area(q) > 0 for q in parts)


@pytest.mark.parametrize('seed', range(10))
def test_clip_agrees_with_pixels(seed):
    rng = np.random.default_rng(seed)
    for p in (rotated_box(rng, 120), blob(rng)):
        parts = clip_polygon(p, 100, 80)
        assert sum(map(polygon_area, parts)) == pytest.approx(shapely.Polygon(p).intersection(shapely.box(0, 0, 100, 80)).area, abs=1e-6)
        for q in parts: assert (q >= 0).all() and (q[:, 0] <= 100).all() and (q[:, 1] <= 80).all()


def test_clip_touching_the_border_only_is_nothing():
    assert clip_polygon([[-10, 0], [0, 0], [0, 10], [-10, 10]], 100, 100) == []


@pytest.mark.parametrize('seed', range(5))
def test_pairwise_intersection_agrees_with_one_by_one(seed):
    rng = np.random.default_rng(seed)
    a, b = [rotated_box(rng) for _ in range(15)], [blob(rng) for _ in range(9)] + [np.array([[0, 0], [90, 80], [90, 0], [0, 80]], float)]
    area_a, area_b, inter = pairwise_intersection(a, b)
    sa, sb = [shapely.Polygon(p) for p in a], [shapely.Polygon(p).buffer(0) if i < 9 else shapely.make_valid(shapely.Polygon(p)) for i, p in enumerate(b)]
    np.testing.assert_allclose(area_a, [s.area for s in sa]); np.testing.assert_allclose(area_b, [s.area for s in sb])
    np.testing.assert_allclose(inter, [[x.intersection(y).area for y in sb] for x in sa], atol=1e-9)
    iou = inter/(area_a[:, None] + area_b - inter)
    np.testing.assert_allclose(iou[0], [polygon_iou(a[0], y) for y in b], atol=1e-12)


@pytest.mark.parametrize('seed', range(10))
def test_shrunk_lies_inside_at_the_right_distance(seed):
    rng = np.random.default_rng(seed)
    for p in (rotated_box(rng), blob(rng)):
        for offset in (1, 2.5, 6):
            parts, ring = shrink_polygon(p, offset), shapely.Polygon(p).exterior
            for q in parts:
                assert shapely.Polygon(p).covers(shapely.Polygon(q))
                along = np.linspace(q, np.roll(q, -1, 0), 20).reshape(-1, 2)
                off = np.abs(shapely.distance(shapely.points(along), ring) - offset).max()
                assert off < (.03 if len(p) == 4 else .55)      # the grid of 1/64 px; where a corner is concave, chords of Clipper's arcs: half a pixel
            assert shapely.union_all([shapely.Polygon(q) for q in parts]).buffer(1e-9).covers(shapely.Polygon(p).buffer(-offset - .05, quad_segs=64))


def test_shrink_on_whole_pixels_is_plain_clipper():
    import pyclipper
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = np.rint(rotated_box(rng)).astype(int)
        if not repair_polygon(p) or len(repair_polygon(p)) > 1: continue
        pco = pyclipper.PyclipperOffset(); pco.AddPath(p.tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
        want, got = pco.Execute(-3), shrink_polygon(p, 3)
        assert len(want) == len(got)
        for w, g in zip(sorted(want, key=lambda r: -polygon_area(r)), got): assert np.array_equal(w, g)


def test_shrink_by_half_a_pixel_sees_half_a_pixel():
    p = np.array([[0, 0], [20, 0], [20, 10], [0, 10]]) + .25
    assert polygon_area(shrink_polygon(p, .5)[0]) == pytest.approx(19*9)
    np.testing.assert_allclose(np.sort(shrink_polygon(p, 1)[0], 0)[0], [1.25, 1.25])


@pytest.mark.parametrize('angle', [0, 1e-9, .3, np.pi/4 - 1e-9, np.pi/4, np.pi/4 + 1e-9, 1.2, np.pi/2, 2.5])
def test_order_quad_loses_no_corner_and_is_unique(angle):
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for w, h in ((10, 10), (40, 10)):
        q = np.array([[0, 0], [w, 0], [w, h], [0, h]], float) @ turn + [100, 50]
        first = order_quad(q)
        for k in range(4):
            for r in (np.roll(q, k, 0), np.roll(q[::-1], k, 0), np.roll(q, k, 0)[[0, 2, 1, 3]]):
                assert np.array_equal(order_quad(r), first)
        assert len(np.unique(first, axis=0)) == 4
        x, y = first.T
        assert (np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) > 0     # clockwise with y down


def test_order_quad_of_near_ties_is_steady():
    q = np.array([[5, 0], [10, 5], [5, 10], [0, 5]], float)
    rng = np.random.default_rng(0)
    for _ in range(50): assert order_quad(np.roll(q, rng.integers(4), 0) + rng.normal(0, 1e-5, (4, 2)))[0].round().tolist() == [5, 0]


@pytest.mark.parametrize('seed', range(10))
def test_min_area_quad_agrees_with_shapely(seed):
    rng = np.random.default_rng(seed)
    p = rotated_box(rng)
    assert corner_set_distance(min_area_quad(p), p) < 1e-3
    points = blob(rng, 30)
    quad = min_area_quad(points)
    assert polygon_area(quad) == pytest.approx(shapely.MultiPoint(points).minimum_rotated_rectangle.area, rel=1e-4)
    assert shapely.Polygon(quad).buffer(1e-2).covers(shapely.MultiPoint(points))
    assert np.array_equal(min_area_quads([points, p])[0], quad)
    assert min_area_quads([]).shape == (0, 4, 2)


def test_corner_set_distance_finds_the_order():
    rng = np.random.default_rng(1)
    p = blob(rng, 7)
    for k in range(7): assert corner_set_distance(p, np.roll(p[::-1], k, 0)) == 0
    assert corner_set_distance(p, p + [0, 2]) == pytest.approx(2)


# masks

@pytest.mark.parametrize('seed', range(5))
def test_filled_area_is_the_polygon_plus_half_its_outline(seed):
    rng = np.random.default_rng(seed)
    p = np.clip(rotated_box(rng, 200), 1, 250)
    parts = repair_polygon(p)
    area = (fill_polygons([parts], 260, 260) > 0).sum()
    want, border = sum(map(polygon_area, parts)), sum(map(polygon_perimeter, parts))
    assert abs(area - want - border/2) < 2 + border*.5        # the pixels under the outline belong to it


def test_fill_many_values_overlap_and_order():
    polys = [np.array([[x, 0], [x, 3], [x, 3]], float) for x in range(1000)]
    m = fill_polygons(polys, 4, 1000)
    assert m.dtype == np.int32 and np.array_equal(m[0], np.arange(1, 1001))      # far beyond a byte
    big = np.array([[0, 0], [9, 0], [9, 9], [0, 9]], float)
    assert (fill_polygons([big, big], 10, 10) == 2).all()
    assert fill_polygons([big], 10, 10, values=[0], dtype=np.uint8).sum() == 0
    assert fill_polygons([big], 10, 10, dtype=bool).all()
    assert fill_polygons([big, big], 10, 10, dtype=np.float32).dtype == np.float32
    assert (fill_polygons([[[0, 0], [9, 0], [9, 9], [0, 9]]], 10, 10) == 1).all()          # plain lists
    assert (fill_polygons([[0, 0, 9, 0, 9, 9, 0, 9]], 10, 10) == 1).all()                   # one row
    assert (fill_polygons([big.reshape(-1, 1, 2).astype(int)], 10, 10) == 1).all()          # cv2's contours
    assert (fill_polygons(np.stack([big, big]), 10, 10) == 2).all()                         # one array of quads
    assert (fill_polygons([big*1e7 - 1e7], 10, 10) == 1).all()                              # far outside


def flood(binary):
    "Components by hand: a queue for each blob, in reading order"
    labels, n = np.zeros(binary.shape, np.int32), 0
    for y, x in np.argwhere(binary):
        if labels[y, x]: continue
        n += 1; todo = [(y, x)]; labels[y, x] = n
        while todo:
            j, i = todo.pop()
            for b, a in ((j+1, i), (j-1, i), (j, i+1), (j, i-1)):
                if 0 <= b < binary.shape[0] and 0 <= a < binary.shape[1] and binary[b, a] and not labels[b, a]: labels[b, a] = n; todo.append((b, a))
    return labels, n


@pytest.mark.parametrize('seed', range(6))
def test_components_agree_with_a_flood(seed):
    rng = np.random.default_rng(seed)
    binary = rng.random((40, 55)) < (.3, .5, .6, .7, 0, 1.1)[seed]
    labels, n = label_components(binary)
    want, m = flood(binary)
    assert n == m and labels.dtype == np.int32
    assert len(np.unique(np.c_[labels.ravel(), want.ravel()], axis=0)) == n + (~binary).any()     # same blobs, one name each
    for other in (binary.astype(np.int64)*5, binary.astype(float)*.3, binary.astype(np.uint8), np.asfortranarray(binary)):
        assert np.array_equal(label_components(other)[0], labels)


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.int32, np.int64])
def test_row_extents_agree_with_a_loop(dtype):
    rng = np.random.default_rng(2)
    for shape in ((30, 41), (1, 20), (20, 1), (1, 1), (0, 5), (5, 0)):
        for n in (0, 1, 5, 9):
            labels = (rng.integers(0, 8, shape)*(rng.random(shape) < .5)).astype(dtype)
            points, starts = row_extents(labels, n)
            assert points.dtype == np.int32 and len(starts) == n+1 and starts[-1] == len(points)
            for i in range(1, n+1):
                want = [[x, y] for y in range(shape[0]) for xs in [np.flatnonzero(labels[y] == i)] if len(xs) for x in (xs[0], xs[-1])]
                assert points[starts[i-1]:starts[i]].tolist() == want


def test_row_extents_take_negative_labels_for_background():
    points, starts = row_extents(np.array([[-1, -1, 1, 1, -1]]), 1)
    assert points.tolist() == [[2, 0], [3, 0]] and starts.tolist() == [0, 2]
