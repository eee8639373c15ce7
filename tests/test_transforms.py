"Random views of text images: repeatable, exact for the polygons, and every option does what it says"
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import albumentations as A, numpy as np, pytest, torch
from matplotlib.path import Path
from visionlab.core.checks import InputError
from visionlab.datasets.transforms import (IMAGENET_MEAN, IMAGENET_STD, TextTransform, clip_words, denormalise, fit_short_side,
                                           normalise, sample_seed, warp_image, warp_matrix)
from visionlab.geometry.polygons import polygon_area

OFF = dict(scale=(1, 1), aspect=(1, 1), rotate=0, flip=0, crop_text=0, color_jitter=0)


def scene(rng, w=480, h=300, n=6):
    "A smooth image and n convex polygons of 4 to 8 corners"
    y, x = np.mgrid[:h, :w]
    image = np.stack([x*255/w, y*255/h, 255 - x*255/w], -1).astype(np.uint8)
    polys = []
    for _ in range(n):
        k = rng.integers(4, 9)
        t = np.sort(rng.uniform(0, 2*np.pi/k, k)) + np.arange(k)*2*np.pi/k
        polys.append(np.c_[np.cos(t)*rng.uniform(20, 50), np.sin(t)*rng.uniform(12, 30)] + [rng.uniform(60, w-60), rng.uniform(40, h-40)])
    return image, polys


def paint(polys, h, w):
    "255 where a pixel's centre is inside (cv2.fillPoly adds half a pixel all around, which a scale would double)"
    yx = np.indices((h, w)).reshape(2, -1).T
    inside = np.any([Path(p).contains_points(yx[:, ::-1]) for p in polys] or [np.zeros(h*w, bool)], axis=0)
    return inside.reshape(h, w).astype(np.uint8)*255


def iou(a, b):
    return (a & b).sum()/max((a | b).sum(), 1)


@pytest.mark.parametrize('change', [dict(scale=(.5, 2)), dict(aspect=(.6, 1.7)), dict(rotate=45), dict(flip=1), dict(crop_text=1, scale=(2, 2)),
                                    dict(scale=(.7, 1.3), aspect=(.9, 1.1), rotate=10, flip=.5, crop_text=.625)], ids=lambda d: '+'.join(d))
def test_polygons_follow_the_pixels(change):
    rng, t, seen = np.random.default_rng(0), TextTransform(256, **{**OFF, **change}), 0
    for seed in range(25):
        _, polys = scene(rng)
        for p in polys[:3]:
            warped, moved, _ = t(paint([p], 300, 480)[..., None], [p], None, seed)
            warped, drawn = warped[1:-1, 1:-1, 0] > 128, paint(moved, 256, 256)[1:-1, 1:-1] > 0 # polygons are clipped at the outermost centres
            if warped.sum() < 250: continue
            assert iou(warped, drawn) >= .9, (seed, warped.sum())
            seen += 1
    assert seen > 30


def test_mask_channel_follows_too():
    image, polys = scene(np.random.default_rng(1))
    t = TextTransform(256, color_jitter=0)
    t.pipeline.set_random_seed(4)
    out = t.pipeline(image=image, mask=paint(polys, 300, 480), keypoints=np.concatenate(polys), words=polys)
    moved = np.split(np.asarray(out['keypoints']), np.cumsum([len(p) for p in polys])[:-1])
    assert iou(out['mask'] > 0, paint(moved, 256, 256) > 0) > .9
    assert set(np.unique(out['mask'])) <= {0, 255}


def test_corners_keep_their_number_and_order():
    rng, t = np.random.default_rng(2), TextTransform(256, **{**OFF, 'rotate': 5, 'scale': (.8, .8)})
    _, polys = scene(rng, 300, 300)
    moved = t(np.zeros((300, 300, 3), np.uint8), polys, None, 1)[1]
    whole = [(p, m) for p in polys for m in moved if len(p) == len(m) and polygon_area(m) > .95*polygon_area(p)*(256*.8/300)**2]
    assert whole
    for p, m in whole:
        a = np.linalg.lstsq(np.c_[p, np.ones(len(p))], m, rcond=None)[0]
        if np.linalg.det(a[:2]) > .3: np.testing.assert_allclose(np.c_[p, np.ones(len(p))] @ a, m, atol=1e-2); break
    else: raise AssertionError('no polygon kept its order')


def test_a_seed_is_a_view():
    image, polys = scene(np.random.default_rng(3))
    a, b = TextTransform(128, noise=.1), TextTransform(128, noise=.1)
    views = [a(image, polys, None, s) for s in range(8)]
    for s in (5, 0, 7):
        np.random.seed(s); torch.manual_seed(s)
        again = b(image, polys, None, s)
        assert (again[0] == views[s][0]).all() and all((p == q).all() for p, q in zip(again[1], views[s][1]))
    assert len({v[0].tobytes() for v in views}) == 8
    assert (image == scene(np.random.default_rng(3))[0]).all(), 'the caller keeps its image'


def test_draws_of_different_steps_are_not_the_same_number():
    "albumentations seeds every step alike; a big scale would then always come with much light"
    image = np.full((64, 64, 3), 128, np.uint8)
    light, scale = [], []
    t = TextTransform(64, **{**OFF, 'scale': (.5, 1), 'color_jitter': 1})
    for s in range(120):
        out = t(image, [np.array([[10, 10], [50, 10], [50, 50], [10, 50.]])], None, s)
        scale.append(np.ptp(out[1][0][:, 0])); light.append(np.median(out[0][tuple(out[1][0].mean(0).astype(int)[::-1])]))
    assert abs(np.corrcoef(scale, light)[0, 1]) < .35


def test_all_off_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    p = np.array([[10, 10], [60, 12], [58, 40], [11, 39]], float)
    out, polys, ignore = TextTransform(128, **OFF)(image, [p], [True], 9)
    assert (out == image).all() and ignore.tolist() == [True]
    np.testing.assert_allclose(polys[0], p, atol=1e-4)


def views(n=60, size=128, image=None, polys=None, **change):
    image0, polys0 = scene(np.random.default_rng(5), n=1)
    t = TextTransform(size, **{**OFF, **change})
    return [t(image0 if image is None else image, polys0 if polys is None else polys, None, s) for s in range(n)]


def test_scale_sets_the_size_of_words():
    p = np.array([[100, 100], [140, 100], [140, 120], [100, 120]], float)
    width = [np.ptp(q[0][:, 0]) for _, q, _ in views(image=np.zeros((240, 240, 3), np.uint8), polys=[p], scale=(.5, 1)) if q]
    full = 40*128/240
    assert full*.49 < min(width) < full*.55 and full*.95 < max(width) <= full*1.02


def test_aspect_changes_width_over_height():
    p = np.array([[100, 100], [140, 100], [140, 140], [100, 140]], float)
    out = [q[0] for _, q, f in views(image=np.zeros((240, 240, 3), np.uint8), polys=[p], aspect=(.5, 2), scale=(.6, .6)) if q and not f.any()]
    ratio = [np.ptp(q[:, 0])/np.ptp(q[:, 1]) for q in out]
    assert min(ratio) < .65 and max(ratio) > 1.6 and .48 < min(ratio) and max(ratio) < 2.1


def test_rotation_stays_in_its_range():
    p = np.array([[100, 110], [140, 110], [140, 130], [100, 130]], float)
    turn = [np.degrees(np.arctan2(*(q[0][1] - q[0][0])[::-1])) for _, q, _ in views(image=np.zeros((240, 240, 3), np.uint8), polys=[p], rotate=20)]
    assert -20.5 < min(turn) < -14 and 14 < max(turn) < 20.5


def test_flip_is_a_chance():
    p = np.array([[10, 10], [40, 10], [40, 30], [10, 30]], float)
    left = [q[0].mean(0)[0] < 64 for _, q, _ in views(200, image=np.zeros((128, 128, 3), np.uint8), polys=[p], flip=.25)]
    assert .65 < np.mean(left) < .85


def test_crops_prefer_readable_text():
    "One readable word in a corner of a wide image, one unreadable far away"
    image, word, lost = np.zeros((200, 1600, 3), np.uint8), np.array([[30, 20], [90, 20], [90, 45], [30, 45]], float), np.array([[1500, 20], [1560, 20], [1560, 45], [1500, 45]], float)
    share = {}
    for c in (0, .625, 1):
        t = TextTransform(200, **{**OFF, 'crop_text': c})
        share[c] = np.mean([np.any(~t(image, [lost, word], [True, False], s)[2]) for s in range(150)])
    assert share[0] < .3 and .55 < share[.625] < .85 and share[1] == 1


def test_jitter_and_noise_touch_only_colours():
    image, polys = scene(np.random.default_rng(6))
    plain, lit, grainy = (TextTransform(128, **{**OFF, **c})(image, polys, None, 3) for c in ({}, dict(color_jitter=.5), dict(noise=.2)))
    for v in (lit, grainy):
        assert (v[0] != plain[0]).mean() > .5 and all((p == q).all() for p, q in zip(v[1], plain[1]))
    spread = [np.std(TextTransform(128, **{**OFF, 'noise': n})(np.full((128, 128, 3), 128, np.uint8), [], None, s)[0]/255) for n in (.05, .2) for s in range(30)]
    assert max(spread[:30]) < .055 and .12 < max(spread[30:]) < .21


def test_more_transforms_of_the_user():
    image, polys = scene(np.random.default_rng(7))
    a = TextTransform(128, **OFF)(image, polys, None, 1)
    b = TextTransform(128, **OFF, extra=(A.VerticalFlip(p=1),))(image, polys, None, 1)
    assert (b[0] == a[0][::-1]).all() and len(a[1]) == len(b[1])


@pytest.mark.parametrize('shape', [(50, 700), (700, 50), (3, 5), (1, 1), (20, 20), (1500, 2000)])
@pytest.mark.parametrize('channels', [1, 3])
def test_any_size_in_one_size_out(shape, channels):
    image = np.full((*shape, channels), 200, np.uint8)
    p = np.array([[0, 0], [shape[1], 0], [shape[1], shape[0]], [0, shape[0]]], float)
    for s in range(4):
        out, polys, ignore = TextTransform(96)(image, [p], None, s)
        assert out.shape == (96, 96, channels) and out.dtype == np.uint8 and len(polys) == len(ignore)
        assert all((q >= 0).all() and (q <= 96).all() for q in polys)
    v, polys, _ = TextTransform(96, train=False)(image, [p])
    assert v.shape[0] % 32 == 0 and v.shape[1] % 32 == 0 and max(v.shape[:2]) <= 8*96     # a strip is not blown up without end
    assert min(v.shape[:2]) >= 96 or max(shape) > 8*min(shape)


def test_polygons_beyond_the_image_and_none():
    t = TextTransform(96)
    far = np.array([[-500, -500], [-400, -500], [-400, -450], [-500, -450]], float)
    for s in range(5):
        out, polys, ignore = t(np.zeros((100, 100, 3), np.uint8), [far], None, s)
        assert polys == [] and ignore.shape == (0,)
        assert t(np.zeros((100, 100, 3), np.uint8), [], [], s)[1] == []


def test_slivers_are_ignored_and_the_rest_is_clipped():
    box = lambda x: np.array([[x, 10], [x+100, 10], [x+100, 30], [x, 30]], float)
    left, flags = clip_words([box(x) for x in (-75, -65, -10, 30, 300)], [False]*5, 200, 100, min_visible=.3)
    assert flags.tolist() == [True, False, False, False]
    assert [np.ptp(p[:, 0]) for p in left] == [25, 35, 90, 100]
    arch = np.array([[0, 50], [0, -50], [100, -50], [100, 50], [80, 50], [80, -30], [20, -30], [20, 50]], float)
    legs, flags = clip_words([arch], [False], 200, 100)
    assert len(legs) == 2 and flags.all(), 'an arch whose top is outside leaves two legs'


def test_strong_reduction_is_averaged():
    stripes = np.tile(np.uint8([0, 255])[:, None], (512, 1024, 1)).reshape(512, 2048, 1)
    m, size = warp_matrix(2048, 512, (1/8, 1/8))
    assert abs(warp_image(stripes, m, size)[2:-2, 2:-2].astype(float) - 127.5).max() < 3


def test_reduction_does_not_shift():
    blob = np.zeros((640, 640, 1), np.uint8)
    blob[200:361, 300:421] = 255
    for s in (.9, .5, .3, .15):
        m, size = warp_matrix(640, 640, (s, s))
        out = warp_image(blob, m, size)[..., 0].astype(float)
        y, x = np.mgrid[:size[1], :size[0]]
        got = np.array([(out*x).sum(), (out*y).sum()])/out.sum()
        assert np.abs(got - (np.array([360, 280]) @ m[:2, :2].T + m[:2, 2])).max() < .15, s


def test_fit_short_side_maps_back():
    image = np.zeros((333, 517, 3), np.uint8)
    out, s = fit_short_side(image, 736)
    assert out.shape == (736, 1152, 3) and np.allclose(np.array([517, 333])*s, [round(517*736/333), 736])
    p = np.array([[5, 5], [100, 5], [100, 60.]])
    v, moved, _ = TextTransform(736, train=False)(image, [p])
    np.testing.assert_allclose(moved[0]/s, p)
    assert fit_short_side(image, 0, multiple=1)[0].shape == image.shape


def test_normalise_agrees_with_its_formula():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    want = (torch.tensor(image).permute(2, 0, 1).double()/255 - torch.tensor(IMAGENET_MEAN)[:, None, None])/torch.tensor(IMAGENET_STD)[:, None, None]
    torch.testing.assert_close(normalise(image), want.float(), rtol=1e-5, atol=1e-5)
    assert normalise(image).is_contiguous() and (denormalise(normalise(image)) == image).all()
    assert normalise(image[:, ::-1]).shape == (3, 9, 7), 'views with negative strides too'


def test_seeds_do_not_collide():
    seeds = {sample_seed(s, e, i) for s in range(3) for e in range(20) for i in range(200)}
    assert len(seeds) > 3*20*200 - 5
    assert all(0 <= s < 2**32 for s in seeds)


@pytest.mark.parametrize('bad', [dict(size=0), dict(size=64.5), dict(scale=(0, 1)), dict(scale=(1.3, .7)), dict(scale=(1, 2, 3)), dict(aspect=-1), dict(rotate=-5), dict(flip=1.5),
                                 dict(crop_text=-.1), dict(color_jitter=2), dict(noise=-1), dict(min_visible=1.1)], ids=str)
def test_bad_settings_name_themselves(bad):
    with pytest.raises(InputError, match=next(iter(bad))): TextTransform(**bad)
