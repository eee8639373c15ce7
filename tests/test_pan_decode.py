"""PAN's decoding against the original programs' numbers, and against a queue that is slow and obvious"""
from collections import deque
from dataclasses import replace
from pathlib import Path
import cv2,numpy as np,pytest,torch
from visionlab.core.checks import InputError
from visionlab.geometry.polygons import corner_set_distance,polygon_area
from visionlab.pan.decode import DECODE_RULES,TextResult,decode_pan,find_kernels,kernel_means

golden = Path(__file__).parent/'golden'
cases = sorted(golden.glob('pan_decode_*.npz'))

def boxes_of(z, name):
    "List of polygons from the golden file's concatenated numbers"
    ends = np.cumsum(z[f'{name}_len'])
    return [p.reshape(-1,2) for p in np.split(z[f'{name}_flat'], ends[:-1])] if len(ends) else []

def same_corners(ours, theirs, tol):
    assert len(ours) == len(theirs)
    for a,b in zip(ours, theirs): assert corner_set_distance(a, b) <= tol

# -- the original programs' numbers

@pytest.mark.parametrize('case', cases, ids=lambda p: p.stem)
@pytest.mark.parametrize('zoom', ['x1', 'x4'])
def test_official_numbers(case, zoom):
    z = np.load(case)
    h,w = z['pred'].shape[1:]
    size,seen = ((h,w), (h,w)) if zoom == 'x1' else ((6*h,5*w), (4*h,4*w))
    rect = decode_pan(z['pred'], size, 'official', input_size=seen)
    np.testing.assert_array_equal(rect.labels, z['whai_label'])
    np.testing.assert_allclose(rect.scores, z[f'whai_{zoom}_rect_scores'], rtol=1e-6)
    same_corners(rect.polygons, boxes_of(z, f'whai_{zoom}_rect'), 1.42)   # theirs are cut to whole numbers: under 1 px in x and in y
    same_corners([np.floor(p+1e-3) for p in rect.polygons], boxes_of(z, f'whai_{zoom}_rect'), 0)
    poly = decode_pan(z['pred'], size, 'official', input_size=seen, kind='polygon')
    same_corners([np.floor(p+1e-3) for p in poly.polygons], boxes_of(z, f'whai_{zoom}_poly'), 0)
    np.testing.assert_allclose(poly.scores, z[f'whai_{zoom}_poly_scores'], rtol=1e-6)

@pytest.mark.parametrize('case', cases, ids=lambda p: p.stem)
def test_seed_numbers(case):
    z = np.load(case)
    found = decode_pan(z['pred'], z['pred'].shape[1:], 'seed')
    np.testing.assert_array_equal(found.labels, z['wz_label'])
    same_corners(found.polygons, z['wz_boxes'], 1e-3)
    text,kernels,n = find_kernels(z['pred'].astype(np.float32), DECODE_RULES['seed'].text_threshold)
    np.testing.assert_array_equal(kernels, z['wz_kernel_components'])

def test_touching_words_part():
    z = np.load(golden/'pan_decode_2_two_touching_asymmetric.npz')
    areas = lambda **kw: np.bincount(decode_pan(z['pred'], z['pred'].shape[1:], **kw).labels.ravel())[1:].tolist()
    assert areas() == [2100,2100]
    assert areas(convention='official') == [1650,2550]
    for d in (.8,1,1.5,2): assert min(areas(distance=d)) >= 2099, d
    assert min(areas(distance=.5)) > 2000
    assert areas(distance=3) != [2100,2100]
    assert DECODE_RULES['paper'].distance <= 2

# -- a slow and obvious queue

def grow_slowly(kernels, text, embedding, means, distance, tested):
    labels = kernels.copy()
    h,w = labels.shape
    queue = deque(zip(*np.nonzero(labels)))
    while queue:
        r,c = queue.popleft()
        k = labels[r,c]
        for y,x in ((r-1,c), (r+1,c), (r,c-1), (r,c+1)):
            if not (0 <= y < h and 0 <= x < w) or not text[y,x] or labels[y,x]: continue
            d = embedding[:,y,x] - means[k]
            if tested[k] and d @ d >= np.float32(distance)**2: continue
            labels[y,x] = k
            queue.append((y,x))
    return labels

def slowly_tested(kernels, n, text, uneven):
    if not uneven: return np.arange(n+1) > 0
    blobs = cv2.connectedComponents(text.astype(np.uint8), connectivity=4)[1]
    out = np.zeros(n+1, bool)
    area,home = [(kernels == i).sum() for i in range(n+1)], [blobs[kernels == i][0] for i in range(n+1)]
    for i in range(1, n+1):
        for j in range(1, n+1):
            if home[i] == home[j] and area[i]/area[j] > uneven: out[i] = out[j] = True
    return out

def random_maps(seed, h, w, ragged=False):
    "Smooth noise: blobs of text, some with many kernels, some with none, embeddings that wander over all thresholds"
    rng = np.random.default_rng(seed)
    maps = rng.normal(0, 1, (6,h,w)).astype(np.float32)
    if not ragged: maps = np.stack([cv2.GaussianBlur(m, (0,0), s) for m,s in zip(maps, (4,2,3,3,3,3))])
    maps /= maps.std((1,2), keepdims=True)
    maps *= np.float32([6,6,1,1,1,1])[:,None,None]
    maps[0] += 3
    return maps

@pytest.mark.parametrize('convention', DECODE_RULES)
@pytest.mark.parametrize('ragged', [False, True], ids=['smooth', 'ragged'])
def test_waves_are_the_queue(convention, ragged, monkeypatch):
    if convention == 'official': monkeypatch.setitem(DECODE_RULES, 'official', replace(DECODE_RULES['official'], uneven=8))   # so that the test happens at all
    rules = DECODE_RULES[convention]
    crowded = 0
    for seed in range(8):
        maps = random_maps(seed, *((48,65) if seed % 2 else (70,33)), ragged)
        text,kernels,n = find_kernels(maps, rules.text_threshold)
        means = kernel_means(kernels, n, maps[2:])[0]
        tested = slowly_tested(kernels, n, text, rules.uneven)
        want = grow_slowly(kernels, text, maps[2:], means, rules.distance, tested)
        np.testing.assert_array_equal(decode_pan(maps, maps.shape[1:], convention).labels, want)
        crowded += n > 4
    assert crowded >= 6

@pytest.mark.parametrize('convention', DECODE_RULES)
def test_scores_and_quads_are_those_of_all_pixels(convention):
    maps = random_maps(3, 60, 80)
    found = decode_pan(maps, (240,320), convention, min_score=0, min_area=0, min_kernel=0)
    assert len(found) == found.labels.max() == len(set(found.ids.tolist()))
    zoom,stretch = (1,4) if DECODE_RULES[convention].grid == 'map' else (4,1)
    big = np.kron(found.labels, np.ones((zoom,zoom), np.int32))
    for p,s,i in zip(found.polygons, found.scores, found.ids):
        inside = found.labels == i
        np.testing.assert_allclose(s, (1/(1+np.exp(-maps[0][inside].astype(np.float64)))).mean(), rtol=1e-5)
        points = np.argwhere(big == i)[:,::-1].astype(np.float32)
        full = cv2.minAreaRect(points)
        assert abs(polygon_area(p)/stretch**2 - full[1][0]*full[1][1]) < 1e-2*max(1, full[1][0]*full[1][1])
        off = [cv2.pointPolygonTest(p.reshape(-1,1,2), (float(x)*stretch, float(y)*stretch), True) for x,y in points]
        assert min(off) > -.05

# -- what can be chosen, and what can go wrong

def one_word(h=40, w=60, text=4., kernel=4., noise=0):
    maps = np.full((6,h,w), -5, np.float32)
    maps[0,10:30,10:50] = text; maps[1,16:24,18:42] = kernel; maps[2:] = 0
    maps[2,10:30,40:50] = 1.                                       # the right end drifts
    return maps

@pytest.mark.parametrize('convention', DECODE_RULES)
def test_each_number_can_be_replaced(convention):
    maps = one_word(text=3.5)                                      # probability 0.9707
    maps[0,10:30,10:14] = 1.5                                      # a weak end, 0.8176
    run = lambda **kw: decode_pan(maps, maps.shape[1:], convention, **kw)
    base = run()
    assert len(base) == 1
    assert len(run(min_score=.99)) == 0 and len(run(min_area=5000)) == 0 and len(run(min_kernel=500)) == 0
    assert len(run(min_score=.9, min_area=10, min_kernel=1)) == 1
    assert (run(text_threshold=.9).labels > 0).sum() < (base.labels > 0).sum()
    if convention != 'official':
        assert (run(distance=.5).labels > 0).sum() < (run(distance=2).labels > 0).sum()
        assert (run(distance=2).labels > 0).sum() == 800

@pytest.mark.parametrize('convention', DECODE_RULES)
def test_what_an_area_is_measured_on(convention):
    "800 px of the map are 12,800 px of an input of four times its size, and say nothing about the photo it came from"
    count = lambda size, area, **kw: len(decode_pan(one_word(), size, convention, distance=2, min_area=area, **kw))
    on_map = DECODE_RULES[convention].grid == 'map'
    assert count((40,60), 800) == 1 and count((40,60), 801) == 0
    assert count((160,240), 800) == 1 and count((160,240), 801) == (not on_map)
    assert count((160,240), 12_800) == (not on_map) and count((160,240), 12_801) == 0
    assert count((1600,2400), 12_801, input_size=(160,240)) == 0

def test_official_looks_at_embeddings_of_uneven_kernels():
    maps = np.full((6,64,200), -5, np.float32); maps[2:] = 0
    maps[0,4:60,4:196] = 5
    maps[1,6:58,6:150] = 5; maps[1,30,170] = 5                     # 7488 px beside 1 px
    maps[2,:,160:] = 5
    far,near = (decode_pan(maps, (64,200), 'official', distance=d).labels for d in (3,100))
    assert (far[4:60,160:196] == far[30,170]).all() and (far[4:60,4:160] == far[30,30]).all()
    assert not (near[4:60,160:196] == near[30,170]).all()

@pytest.mark.parametrize('convention', DECODE_RULES)
@pytest.mark.parametrize('kind', ['quad', 'polygon'])
def test_a_thousand_words(convention, kind):
    maps = np.full((6,640,640), -5, np.float32); maps[2:] = 0
    for i in range(1000):
        y,x = (i//25)*16, (i%25)*25
        maps[0,y+1:y+15,x+1:x+24] = 5; maps[1,y+4:y+12,x+5:x+20] = 5
    found = decode_pan(maps, (640,640), convention, kind=kind)
    assert len(found) == 1000 == found.labels.max() and found.labels.dtype == np.int32
    want = lambda i: [[i%25*25+1,i//25*16+1], [i%25*25+23,i//25*16+1], [i%25*25+23,i//25*16+14], [i%25*25+1,i//25*16+14]]
    for i in (0,255,256,300,999): assert corner_set_distance(found.polygons[i], want(i)) < 1e-3

@pytest.mark.parametrize('convention', DECODE_RULES)
@pytest.mark.parametrize('kind', ['quad', 'polygon'])
@pytest.mark.parametrize('shape', [(1,1), (1,7), (7,1), (2,2), (3,640)])
@pytest.mark.parametrize('text,kernel', [(9,9), (9,-9), (-9,9), (-9,-9)])
def test_maps_of_one_value_and_tiny_maps(convention, kind, shape, text, kernel):
    maps = np.zeros((6,*shape), np.float32); maps[0] = text; maps[1] = kernel
    found = decode_pan(maps, (4*shape[0],4*shape[1]), convention, kind=kind, min_area=0, min_kernel=0)
    assert len(found) == (text > 0 and kernel > 0) == found.labels.max()
    assert found.labels.shape == shape and found.scores.dtype == np.float32 and found.scores.shape == (len(found),)
    for p in found.polygons: assert p.dtype == np.float32 and p.shape[1] == 2 and len(p) > 2

def test_all_text_one_word_fills_the_image():
    found = decode_pan(np.full((6,50,70), 5.), (200,280))
    assert corner_set_distance(found.polygons[0], [[0,0],[279,0],[279,199],[0,199]]) < 1e-3

def test_text_without_kernel_and_kernel_without_text():
    maps = one_word(kernel=-5); maps[1,0:5,0:5] = 5
    assert not decode_pan(maps, (40,60)).labels.any()

@pytest.mark.parametrize('make', [lambda m: torch.tensor(m), lambda m: torch.tensor(m).half(), lambda m: torch.tensor(m).bfloat16(), lambda m: torch.tensor(m).double().requires_grad_(),
    lambda m: m.astype(np.float16), lambda m: m.astype(np.float64), lambda m: np.asfortranarray(m), lambda m: m.astype(int), lambda m: torch.tensor(m).permute(1,2,0).contiguous().permute(2,0,1)])
def test_any_kind_of_numbers(make):
    maps = np.rint(one_word())
    want,got = decode_pan(maps, (160,240)), decode_pan(make(maps), (160,240))
    np.testing.assert_array_equal(got.labels, want.labels)
    same_corners(got.polygons, want.polygons, 1e-4)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_maps_on_a_gpu():
    assert len(decode_pan(torch.tensor(one_word()).cuda(), (40,60))) == 1

def test_maps_are_not_changed():
    maps = random_maps(0, 40, 50); before = maps.copy()
    for c in DECODE_RULES: decode_pan(maps, (40,50), c, kind='polygon')
    np.testing.assert_array_equal(maps, before)

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('channel', range(6))
def test_not_a_number_is_an_error(value, channel):
    maps = one_word(); maps[channel,20,20] = value
    with pytest.raises(InputError, match='1 values that are NaN or infinite'): decode_pan(maps, (40,60))

@pytest.mark.parametrize('bad', [np.zeros((5,4,4)), np.zeros((6,4)), np.zeros((1,6,4,4)), np.zeros((6,0,4)), np.full((6,2,2), 'a'), None, [1,2]])
def test_what_is_no_map(bad):
    with pytest.raises(InputError, match='maps'): decode_pan(bad, (4,4))

@pytest.mark.parametrize('name,value', [('min_score',2), ('min_score','high'), ('min_area',-1), ('distance',0), ('distance',np.nan), ('text_threshold',0), ('text_threshold',1), ('min_kernel',1.5),
    ('kind','box'), ('convention','official2'), ('size',(4,)), ('size',(0,4)), ('size',(4.5,4)), ('input_size','ab')])
def test_bad_arguments_are_named(name, value):
    args = dict(size=(40,60)); args[name] = value
    with pytest.raises(InputError, match=name): decode_pan(one_word(), **args)

def test_outlines_in_a_larger_photo():
    "A photo of twice the size gives twice the numbers, and the same words"
    maps = random_maps(5, 60, 80)
    for kind in ('quad', 'polygon'):
        small,large = decode_pan(maps, (240,320), kind=kind), decode_pan(maps, (480,640), kind=kind, input_size=(240,320))
        assert len(small) == len(large) > 1
        for a,b in zip(small.polygons, large.polygons): np.testing.assert_allclose(2*a, b, rtol=1e-5)

@pytest.mark.parametrize('size', [(50,70), (333,517), (37,41), (20,20)])
def test_sizes_that_are_no_multiple(size):
    maps = np.full((6,40,60), -5, np.float32); maps[2:] = 0
    maps[0,10:30,12:48] = 5; maps[1,16:24,18:42] = 5
    fy,fx = size[0]/40, size[1]/60
    want = [[12*fx,10*fy],[48*fx-1,10*fy],[48*fx-1,30*fy-1],[12*fx,30*fy-1]]
    for kind in ('quad', 'polygon'): assert corner_set_distance(decode_pan(maps, size, kind=kind).polygons[0], want) < 1.5

def test_polygons_follow_a_curve():
    y,x = np.mgrid[:80,:120]
    r = np.hypot(x-60, y-90)
    maps = np.zeros((6,80,120), np.float32)
    maps[0] = np.where((r < 80) & (r > 60), 5, -5); maps[1] = np.where((r < 74) & (r > 66), 5, -5)
    quad,poly = (decode_pan(maps, (320,480), kind=k) for k in ('quad', 'polygon'))
    Y,X = (np.mgrid[:320,:480] + .5)/4 - .5
    true = np.hypot(X-60, Y-90); true = (true < 80) & (true > 60)
    def iou(p):
        m = np.zeros((320,480), np.uint8); cv2.fillPoly(m, [np.rint(p).astype(np.int32)], 1)
        return (true & (m > 0)).sum()/(true | (m > 0)).sum()
    assert iou(poly.polygons[0]) > .93 > .7 > iou(quad.polygons[0]) and len(poly.polygons[0]) < 40

# -- the result

def test_result_shows_itself():
    found = decode_pan(one_word(), (160,240))
    assert repr(found) == 'TextResult(1 word in 240x160 px, scores 0.98-0.98)' and len(found) == 1
    assert found._repr_png_().startswith(b'\x89PNG')
    image = np.zeros((160,240,3), np.uint8)
    assert found.picture(image).shape == image.shape and found.picture(image).any() and not image.any()
    import matplotlib; matplotlib.use('Agg')
    assert found.show(image) is not None
    empty = decode_pan(one_word(text=-5), (160,240))
    assert repr(empty) == 'TextResult(0 words in 240x160 px)' and empty._repr_png_().startswith(b'\x89PNG')
    assert repr(TextResult([], np.zeros(0, np.float32), np.zeros((4,4), np.int32))) == 'TextResult(0 words)'
