"Masks of every kind, every layout of folders and lists, and views that move image and mask together"
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import albumentations as A, cv2, numpy as np, pytest, torch
from PIL import Image
from visionlab.core.checks import InputError
from visionlab.datasets.masks import Fit, MaskTransform, PADDED_PIXEL, find_listed, fit_long_side, read_color_table, read_mask, read_mask_samples, resize_labels
from visionlab.datasets.samples import Report

OFF = dict(scale=(1, 1), rotate=0, flip=0, color_jitter=0)
LABELS = np.zeros((24, 36), np.uint8); LABELS[3:15, 4:20], LABELS[10:20, 22:33] = 1, 2


def save(path, a, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **kw)
    return path


def palette(path, a, colours=(0, 0, 0, 128, 64, 128, 64, 0, 128), **kw):
    im = Image.fromarray(a).convert('P'); im.putpalette(list(colours) + [255]*(768 - len(colours)))
    path.parent.mkdir(parents=True, exist_ok=True); im.save(path, **kw)
    return path


# one mask

@pytest.mark.parametrize('name, make', dict(
    png=lambda p: save(p/'a.png', LABELS), bmp=lambda p: save(p/'a.bmp', LABELS), tif=lambda p: save(p/'a.tif', LABELS), gif=lambda p: palette(p/'a.gif', LABELS),
    palette=lambda p: palette(p/'a.png', LABELS), palette_alpha=lambda p: palette(p/'a.png', LABELS, transparency=0), deep=lambda p: save(p/'a.png', LABELS.astype(np.uint16)),
    stretched=lambda p: save(p/'a.png', LABELS.astype(np.uint16)*257), int32=lambda p: save(p/'a.tif', LABELS.astype(np.int32)), float=lambda p: save(p/'a.tif', LABELS.astype(np.float32)),
    rgb=lambda p: save(p/'a.png', np.dstack([LABELS]*3)), rgba=lambda p: save(p/'a.png', np.dstack([LABELS]*3 + [LABELS*100])), la=lambda p: save(p/'a.png', np.dstack([LABELS, LABELS*0])),
    upper=lambda p: save(p/'A.PNG', LABELS), webp=lambda p: save(p/'a.webp', np.dstack([LABELS]*3), lossless=True)).items(), ids=lambda v: v if isinstance(v, str) else '')
def test_numbers_in_any_file(tmp_path, name, make):
    got = read_mask(make(tmp_path), 3)
    assert got.dtype == np.uint8 and np.array_equal(got, LABELS)


@pytest.mark.parametrize('a', [LABELS.astype(bool), LABELS.clip(0, 1), LABELS.clip(0, 1)*np.uint8(255), LABELS.clip(0, 1)*np.uint16(65535), LABELS.clip(0, 1)*np.uint16(255)], ids=lambda a: f'{a.dtype}{int(a.max())}')
def test_black_and_white(tmp_path, a):
    assert np.array_equal(read_mask(save(tmp_path/'a.png', a), 1), LABELS > 0)
    assert np.array_equal(read_mask(save(tmp_path/'b.png', np.zeros_like(a)), 1), LABELS*0), 'an empty mask is a mask'


@pytest.mark.parametrize('quality', [50, 75, 95])
def test_black_and_white_jpeg(tmp_path, quality):
    big = resize_labels(LABELS > 0, 360, 240).astype(np.uint8)*255
    for a in (big, np.dstack([big]*3)): assert (read_mask(save(tmp_path/'a.jpg', a, quality=quality), 1) == (big > 0)).mean() > .999
    assert np.array_equal(read_mask(save(tmp_path/'cmyk.tif', np.dstack([big]*3)), 1), big > 0)
    Image.fromarray(np.dstack([big]*3)).convert('CMYK').save(tmp_path/'c.jpg', quality=quality)
    assert (read_mask(tmp_path/'c.jpg', 1) == (big > 0)).mean() > .999


def test_a_mask_is_turned_like_its_photograph(tmp_path):
    "A phone's JPEG lies on its side; a mask with the same EXIF is turned with it, one without must be upright"
    exif = Image.Exif(); exif[274] = 6
    big = resize_labels(LABELS, 72, 48).clip(0, 1)*np.uint8(255)
    save(tmp_path/'a.jpg', big, exif=exif, quality=95); save(tmp_path/'a.png', big, exif=exif)
    upright = np.rot90(big, -1) > 0
    assert np.array_equal(read_mask(tmp_path/'a.png', 1), upright) and (read_mask(tmp_path/'a.jpg', 1) == upright).mean() > .99
    root = tmp_path/'set'
    save(root/'imgs/a.jpg', np.dstack([big]*3), exif=exif); save(root/'masks/a.png', big)          # drawn before the photograph was turned
    with pytest.raises(InputError, match='sizes differ'): read_mask_samples(root)
    save(root/'masks/a.png', big, exif=exif)
    (s,), report = read_mask_samples(root)
    assert s.image.shape[:2] == read_mask(s.mask_path, 1).shape and not len(report)


def test_colours(tmp_path):
    table = {(0, 0, 0): 0, (128, 64, 128): 1, (64, 0, 128): 2}
    rgb = np.array(list(table), np.uint8)[LABELS]
    for f in (save(tmp_path/'a.png', rgb), save(tmp_path/'b.png', np.dstack([rgb, LABELS*50])), palette(tmp_path/'c.png', LABELS), palette(tmp_path/'d.gif', LABELS)):
        assert np.array_equal(read_mask(f, 3, table), LABELS)
    (tmp_path/'t.txt').write_text('0 0 0 nothing\n128 64 128 road\n64 0 128 255\n')
    got = read_mask(tmp_path/'a.png', 2, tmp_path/'t.txt', ignore_index=255)
    assert np.array_equal(got, np.where(LABELS == 2, 255, LABELS))
    with pytest.raises(InputError, match='holds 255'): read_mask(tmp_path/'a.png', 2, tmp_path/'t.txt')
    assert np.array_equal(read_mask(tmp_path/'a.png', 1, {(0, 0, 0): 0, (128, 64, 128): 1, (64, 0, 128): 1}), LABELS > 0)
    with pytest.raises(InputError, match=r'not in the table, such as \(128, 64, 128\)'): read_mask(tmp_path/'a.png', 3, {(0, 0, 0): 0, (64, 0, 128): 2})


def test_ignore_index(tmp_path):
    a = LABELS.copy(); a[0] = 255
    f = save(tmp_path/'a.png', a)
    assert np.array_equal(read_mask(f, 3, ignore_index=255), a) and np.array_equal(read_mask(f, 3, ignore_index=255)[1:], LABELS[1:])
    with pytest.raises(InputError, match='holds 255.*black and white'): read_mask(f, 3)
    assert np.array_equal(read_mask(save(tmp_path/'b.png', LABELS), 2, ignore_index=2), LABELS)
    b = LABELS.clip(0, 1)*np.uint8(255); b[0] = 7
    assert read_mask(save(tmp_path/'c.png', b), 1, ignore_index=7)[0].tolist() == [7]*36
    d = LABELS.clip(0, 1); d[0] = 255
    assert set(np.unique(read_mask(save(tmp_path/'d.png', d), 1, ignore_index=255))) == {0, 1, 255}


@pytest.mark.parametrize('make, classes, text', [
    (lambda p: save(p/'x.png', LABELS), 2, 'x.png.* holds 2, the classes go from 0 to 1'), (lambda p: save(p/'x.png', LABELS), 1, 'also holds 2'),
    (lambda p: save(p/'x.png', LABELS*100), 3, 'holds 100, 200'), (lambda p: save(p/'x.png', (LABELS > 0)*np.uint8(255)), 2, 'holds 255.*`classes` is 1'),
    (lambda p: save(p/'x.png', LABELS.astype(np.uint16)*300), 3, 'holds 300, 600'), (lambda p: save(p/'x.tif', LABELS.astype(np.int32)*-1), 3, 'holds -2, -1'),
    (lambda p: save(p/'x.tif', LABELS*np.float32(.5)), 3, 'fractions'), (lambda p: save(p/'x.jpg', LABELS*100), 3, 'saved with loss'),
    (lambda p: save(p/'x.png', np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)), 3, 'painted in colours: a `color_table`'),
    (lambda p: save(p/'x.jpg', np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8), 16, 0), 16, 1)), 3, 'painted in colours and saved with loss'),
    (lambda p: save(p/'x.png', np.arange(81, dtype=np.uint8).reshape(9, 9)*3), 1, 'Smooth edges'),
    (lambda p: (p/'x.png').write_bytes(b'') and None or p/'x.png', 3, 'x.png.*empty'), (lambda p: p/'gone.png', 3, 'gone.png'),
    (lambda p: save(p/'x.png', LABELS), 256, '"classes"'), (lambda p: save(p/'x.png', LABELS), 2.5, '"classes"')])
def test_refused_with_the_reason(tmp_path, make, classes, text):
    with pytest.raises(InputError, match=text): read_mask(make(tmp_path), classes)


@pytest.mark.parametrize('text, error', [('128 64 128\n1 2\n', 'line 2'), ('300 0 0 a\n', 'line 1'), ('a b c\n', 'no colour'), ('', 'no colour'), ('1 1 1\n1 1 1\n', 'class 0 already')])
def test_bad_colour_tables(tmp_path, text, error):
    (tmp_path/'t.txt').write_text(text)
    with pytest.raises(InputError, match=error): read_color_table(tmp_path/'t.txt')


# odd files

def test_odd_images_never_crash(shared):
    "Each either is a mask or says in one line why not"
    for f in sorted((shared/'data/odd-images').iterdir()):
        for classes, table in ((1, None), (12, None), (3, {(0, 0, 0): 0})):
            try: m = read_mask(f, classes, table)
            except InputError as e: assert f.name in str(e) and '\n' not in str(e)
            else: assert m.dtype == np.uint8 and m.ndim == 2 and m.max() < max(2, classes)
    assert read_mask(shared/'data/odd-images/one_bit.png', 1).max() == 1


# sets

def photo(path, size=(36, 24), **kw): return save(path, np.full((size[1], size[0], 3), 90, np.uint8), **kw)
def mask(path, size=(36, 24)): return save(path, np.zeros(size[::-1], np.uint8))
def names(samples): return [(s.path.name, s.mask_path.name) for s in samples]


def test_two_folders(tmp_path):
    for n in ('img_10.jpg', 'img_2.jpg', 'Img_3.PNG', 'lonely.jpg', 'big.jpg', 'broken.jpg', 'empty.jpg', 'sub/img_2.jpg', 'img_2.png'): photo(tmp_path/'imgs'/n)
    for n in ('img_10.png', 'img_2_label.png', 'img_3.png', 'big.png', 'broken.png', 'empty.png', 'sub/img_2_mask.png', 'nobody.png'): mask(tmp_path/'masks'/n)
    mask(tmp_path/'masks/big.png', (10, 10)); (tmp_path/'masks/empty.png').write_bytes(b''); (tmp_path/'imgs/broken.jpg').write_text('no picture')
    (tmp_path/'imgs/notes.txt').write_text('x'); (tmp_path/'masks/._img_2.png').write_text('x')
    samples, report = read_mask_samples(tmp_path)
    assert names(samples) == [('img_2.jpg', 'img_2_label.png'), ('Img_3.PNG', 'img_3.png'), ('img_10.jpg', 'img_10.png'), ('img_2.jpg', 'img_2_mask.png')]
    assert report.counts == {'duplicate image name': 1, 'image without mask': 1, 'mask without image': 1, 'sizes differ': 1, 'unreadable image': 1, 'unreadable mask': 1}
    assert '4 of 9 images' in report.notes[0]
    again = Report()
    assert read_mask_samples(tmp_path, again)[1] is again and len(again) == 6


@pytest.mark.parametrize('a, b', [('imgs', 'masks'), ('Images', 'Masks'), ('images', 'labels'), ('img', 'mask'), ('image', 'annotations')])
def test_folder_names(tmp_path, a, b):
    for i in (1, 2): photo(tmp_path/a/f'{i}.jpg'); mask(tmp_path/b/f'{i}.png')
    assert len(read_mask_samples(tmp_path)[0]) == 2


def test_list_of_directories(tmp_path):
    for d in 'abcde': photo(tmp_path/'data'/d/'Image'/f'{d}.jpg'); mask(tmp_path/'data'/d/'Mask/0.png')
    photo(tmp_path/'data/b/Image/second.jpg'); (tmp_path/'data/c/Mask/0.png').unlink(); mask(tmp_path/'data/d/Mask/1.png')
    mask(tmp_path/'data/e/Mask/0.png', (5, 5))
    lines = ['data/a', str(tmp_path/'data/d'), 'data\\b', 'data/c', 'data/e', 'data/gone', '', '  ', 'C:\\work\\data\\a', 'data/a/Image/a.jpg']
    (tmp_path/'training_dataset.txt').write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(lines).encode() + b'\r\n')
    samples, report = read_mask_samples(tmp_path/'training_dataset.txt')
    assert names(samples) == [('a.jpg', '0.png'), ('d.jpg', '0.png')]
    assert report.counts == {'image without mask': 2, 'missing directory': 1, 'listed twice': 1, 'bad list line': 1, 'sizes differ': 1}
    assert {e.kind: e.line for e in report.entries if e.line} == {'image without mask': 4, 'missing directory': 6, 'listed twice': 9, 'bad list line': 10}
    assert [s.path.name for s in read_mask_samples(tmp_path/'data')[0]] == ['a.jpg', 'd.jpg']
    assert names(read_mask_samples(tmp_path/'data/a')[0]) == [('a.jpg', '0.png')]


def test_list_of_pairs(tmp_path):
    for n in ('1', '2', '3', 'with space'): photo(tmp_path/f'train/{n}.jpg'); mask(tmp_path/f'trainannot/{n}.png')
    (tmp_path/'train.txt').write_bytes(b'/SegNet/CamVid/train/1.jpg /SegNet/CamVid/trainannot/1.png\r\ntrain/2.jpg\ttrainannot/2.png\r\ntrain/3.jpg,trainannot/3.png\r\n'
                                       b'train/with space.jpg trainannot/with space.png\r\ntrain/9.jpg trainannot/9.png\r\njust words\r\n')
    samples, report = read_mask_samples(tmp_path/'train.txt')
    assert [s.path.stem for s in samples] == ['1', '2', '3', 'with space'] and all(s.path.stem == s.mask_path.stem for s in samples)
    assert report.counts == {'missing file': 1, 'missing directory': 1}


def test_annotated_folder(tmp_path, monkeypatch):
    for n in ('1', '2'): photo(tmp_path/f'train/{n}.png'); mask(tmp_path/f'trainannot/{n}.png')
    assert len(read_mask_samples(tmp_path/'train')[0]) == 2
    monkeypatch.chdir(tmp_path/'train')
    assert len(read_mask_samples('.')[0]) == 2
    with pytest.raises(InputError, match='train/: give one of them'): read_mask_samples(tmp_path)


@pytest.mark.parametrize('make, text', [
    (lambda p: p/'nowhere', 'nowhere'), (lambda p: photo(p/'a.jpg'), 'is an image'), (lambda p: photo(p/'only/a.jpg').parent, 'imgs/ and masks/ are needed'),
    (lambda p: (p/'e.txt').write_text('\n\n') and p/'e.txt', 'is empty'), (lambda p: (p/'l.txt').write_text('x\ny\n') and p/'l.txt', r'none of the 2 images .*missing directory \(2\)')])
def test_no_set(tmp_path, make, text):
    with pytest.raises(InputError, match=text): read_mask_samples(make(tmp_path))


def test_find_listed_stays_below(tmp_path):
    (tmp_path/'set/a').mkdir(parents=True); (tmp_path/'b').mkdir()
    assert find_listed('a', tmp_path/'set') == tmp_path/'set/a' and find_listed(' "x/y/a" ', tmp_path/'set') == tmp_path/'set/a'
    assert find_listed('x/../../b', tmp_path/'set') is None and find_listed('', tmp_path) is None


def test_real_sets(shared):
    data = shared/'data'
    for part, n in dict(train=184, val=51, test=31).items():
        samples, report = read_mask_samples(data/'segmentation-multiclass/CamVid'/part)
        assert len(samples) == n and not len(report)
        assert names(read_mask_samples(data/f'segmentation-multiclass/CamVid/{part}.txt')[0]) == names(samples)
        assert set(np.unique([read_mask(s.mask_path, 11, ignore_index=11) for s in samples[:9]])) <= set(range(12))
    for name, n in dict(crackforest=79).items():
        samples, report = read_mask_samples(data/'segmentation-binary'/name)
        assert len(samples) == n and not len(report)
        assert .005 < np.mean([read_mask(s.mask_path, 1).mean() for s in samples]) < .03, 'about 1.6 % are crack'


# into a square and back

@pytest.mark.parametrize('shape', [(24, 36), (36, 24), (1, 1), (1, 90), (90, 1), (64, 64), (300, 211), (63, 64), (5, 7)])
@pytest.mark.parametrize('size', [32, 64, 320])
def test_fit_and_undo(shape, size):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 9, shape, np.uint8)
    out, m, fit = fit_long_side(image, size, labels)
    assert out.shape == (size, size, 3) and m.shape == (size, size) and m.dtype == np.uint8 and max(fit.scaled) == size
    assert abs(fit.left - (size - fit.left - fit.scaled[0])) <= 1 and abs(fit.top - (size - fit.top - fit.scaled[1])) <= 1, 'in the middle'
    assert (m == PADDED_PIXEL).sum() == size*size - fit.scaled[0]*fit.scaled[1]
    assert fit.undo(out).shape == image.shape and fit.undo(m).shape == shape
    if size >= max(shape): assert np.array_equal(fit.undo(m), labels)
    if size == max(shape): assert np.array_equal(fit.undo(out), image)


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'uint16', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('channels', [(), (1,), (2,), (5,), (19,)])
def test_undo_takes_every_type(dtype, channels):
    fit = fit_long_side(np.zeros((30, 50, 3), np.uint8), 64)[2]
    a = np.random.default_rng(1).integers(0, 2, (64, 64, *channels)).astype(dtype)
    for nearest in (None, True, False):
        got = fit.undo(a, nearest)
        assert got.shape == (30, 50, *channels) and got.dtype == a.dtype
        t = torch.tensor(np.moveaxis(a, -1, 0) if channels else a)
        back = fit.undo(t, nearest)
        assert tuple(back.shape) == (*channels, 30, 50) and back.dtype == t.dtype
        if nearest or nearest is None and got.dtype.kind != 'f': assert np.array_equal(back.numpy(), np.moveaxis(got, -1, 0) if channels else got)
    assert fit.undo(torch.zeros(2, 3, 64, 64, dtype=torch.bfloat16)).shape == (2, 3, 30, 50)


def test_image_mask_and_undo_share_one_grid():
    "A disc is where it was, to a fraction of a pixel, in the square and back"
    for shape, size in (((300, 420), 128), ((90, 60), 256), ((333, 200), 333)):
        y, x = np.mgrid[:shape[0], :shape[1]]
        disc = (np.hypot(y - shape[0]*.4, x - shape[1]*.6) < min(shape)/4).astype(np.uint8)
        out, m, fit = fit_long_side(np.dstack([disc*255]*3), size, disc, fill=(0, 0, 0), empty=0)
        centre = lambda a: np.array([(a*i).sum()/a.sum() for i in np.indices(a.shape)])
        assert np.abs(centre(out[..., 0].astype(float)) - centre(m.astype(float))).max() < .1
        back = fit.undo(out[..., 0].astype(np.float32)/255)
        assert np.abs(centre(back) - centre(disc.astype(float))).max() < .5 and abs(back.sum()/disc.sum() - 1) < .03
        assert (fit.undo(m) == disc).mean() > .98


def test_undo_wants_the_square():
    fit = Fit(50, 30, (64, 38), 0, 13, 64)
    for a in (np.zeros((38, 64)), np.zeros((3, 64, 64)), torch.zeros(64, 64, 3)):
        with pytest.raises(InputError, match=r'\(64,64\)'): fit.undo(a)


def test_nearest_is_exact():
    a = np.arange(12).reshape(3, 4)
    assert np.array_equal(resize_labels(a, 8, 6), a.repeat(2, 0).repeat(2, 1)) and np.array_equal(resize_labels(resize_labels(a, 12, 9), 4, 3), a)
    b = np.random.default_rng(0).integers(0, 9, (40, 60), np.uint8)
    for w, h in ((20, 10), (61, 41), (180, 120)): assert np.array_equal(resize_labels(b, w, h), cv2.resize(b, (w, h), interpolation=cv2.INTER_NEAREST_EXACT))


# views

def scene():
    image, labels = np.full((120, 200, 3), 200, np.uint8), np.zeros((120, 200), np.uint8)
    cv2.circle(image, (60, 60), 35, (40, 90, 160), -1); cv2.circle(labels, (60, 60), 35, 1, -1)
    cv2.rectangle(image, (120, 20), (180, 100), (160, 40, 40), -1); cv2.rectangle(labels, (120, 20), (180, 100), 2, -1)
    return image, labels


@pytest.mark.parametrize('change', [dict(scale=(.4, 2.5)), dict(rotate=180), dict(flip=1), dict(flip_vertical=1), dict(flip=.5, flip_vertical=.5, rotate=45, scale=(.5, 2))], ids=lambda d: '+'.join(d))
def test_mask_follows_the_image(change):
    image, labels = scene()
    t, seen = MaskTransform(128, **{**OFF, **change}), set()
    for seed in range(30):
        x, m = t(image, labels, seed)
        assert x.shape == (128, 128, 3) and m.shape == (128, 128) and m.dtype == np.uint8 and set(np.unique(m)) <= {0, 1, 2, 255}
        blue, red = x[..., 2].astype(int) - x[..., 0] > 60, x[..., 0].astype(int) - x[..., 2] > 60
        assert ((blue == (m == 1)) & (red == (m == 2))).mean() > .985, seed
        fill = (x == np.array([124, 116, 104])).all(2)
        assert (fill == (m == 255)).mean() > .98
        seen.add(m.tobytes())
    assert len(seen) == 1 if 1 in change.values() else len(seen) > 20     # a sure mirror image, in the middle, is always the same


def test_flips_are_exact():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, 5, (64, 64), np.uint8)
    for kw, f in ((dict(), lambda a: a), (dict(flip=1), lambda a: a[:, ::-1]), (dict(flip_vertical=1), lambda a: a[::-1]), (dict(flip=1, flip_vertical=1), lambda a: a[::-1, ::-1])):
        x, m = MaskTransform(64, **{**OFF, **kw})(image, labels, 3)
        assert np.array_equal(x, f(image)) and np.array_equal(m, f(labels))


def test_a_seed_is_a_view():
    image, labels = scene()
    a, b = (MaskTransform(96, noise=.1, flip_vertical=.5) for _ in range(2))
    views = [a(image, labels, s) for s in range(8)]
    for s in (5, 0, 7):
        np.random.seed(s); torch.manual_seed(s)
        x, m = b(image, labels, s)
        assert np.array_equal(x, views[s][0]) and np.array_equal(m, views[s][1])
    assert len({v[0].tobytes() for v in views}) == 8
    assert all(np.array_equal(x, y) for x, y in zip((image, labels), scene())), 'the caller keeps its arrays'


def test_zoom_turn_and_light_reach_their_ends():
    image, labels = scene()
    area = [(m == 1).sum()/np.pi/(35*100/200)**2 for s in range(60) for _, m in [MaskTransform(100, **{**OFF, 'scale': (.5, 1)})(image, labels, s)]]
    assert min(area) < .35 and max(area) > .85 and max(area) < 1.1
    angle = []
    for s in range(60):
        _, m = MaskTransform(200, **{**OFF, 'rotate': 20, 'scale': (.6, .6)})(image, labels, s)
        (y1, x1), (y2, x2) = (np.argwhere(m == k).mean(0) for k in (1, 2))
        angle.append(np.degrees(np.arctan2(y2 - y1, x2 - x1)))
    assert -21 < min(angle) < -13 and 13 < max(angle) < 21
    gray = np.full((32, 32, 3), 128, np.uint8)
    light = [MaskTransform(32, **{**OFF, 'color_jitter': 1})(gray, gray[..., 0]*0, s)[0].mean() for s in range(60)]
    assert min(light) < 90 and max(light) > 160
    assert max(MaskTransform(32, **{**OFF, 'noise': .2})(gray, gray[..., 0]*0, s)[0].std() for s in range(20)) > 25


def test_draws_of_different_steps_are_not_the_same_number():
    image, labels = scene()
    t = MaskTransform(200, **{**OFF, 'scale': (.5, 1), 'color_jitter': 1})
    area, light = zip(*[((m == 1).sum(), x[m == 1].mean()) for s in range(120) for x, m in [t(image, labels, s)]])
    assert abs(np.corrcoef(area, light)[0, 1]) < .35


def test_more_transforms_of_the_user():
    image, labels = scene()
    a, b = MaskTransform(96, **OFF)(image, labels, 1), MaskTransform(96, **OFF, extra=(A.VerticalFlip(p=1),))(image, labels, 1)
    assert np.array_equal(b[0], a[0][::-1]) and np.array_equal(b[1], a[1][::-1])


@pytest.mark.parametrize('shape', [(50, 700), (700, 50), (3, 5), (1, 1), (1500, 2000)])
@pytest.mark.parametrize('channels', [1, 3])
def test_any_size_in_one_size_out(shape, channels):
    for train in (True, False):
        x, m = MaskTransform(96, train, color_jitter=0)(np.full((*shape, channels), 200, np.uint8), np.ones(shape, np.uint8), 1)
        assert x.shape == (96, 96, channels) and m.shape == (96, 96) and set(np.unique(m)) <= {1, 255}
    x, m = MaskTransform(96, empty=0)(np.full((50, 300, 3), 9, np.uint8), np.ones((50, 300), np.uint8), 1)
    assert set(np.unique(m)) == {0, 1}


@pytest.mark.parametrize('bad', [dict(size=0), dict(size=64.5), dict(scale=(0, 1)), dict(scale=(1.3, .7)), dict(scale=(1, 2, 3)), dict(rotate=-5), dict(flip=1.5), dict(flip_vertical=-1),
                                 dict(color_jitter=2), dict(noise=-1), dict(empty=300)], ids=str)
def test_bad_settings_name_themselves(bad):
    with pytest.raises(InputError, match=next(iter(bad))): MaskTransform(**bad)
