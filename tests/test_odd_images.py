"""Every unusual and every broken picture of the shared folder, and those that can be made in a few lines"""
import warnings
import numpy as np
import pytest
from PIL import Image
from visionlab.core.checks import InputError
from visionlab.core.files import ImageError, image_size, list_images, read_image

READABLE = {  # width, height of the upright picture
    'UPPERCASE.JPG': (480, 360), 'cmyk_photo.jpg': (480, 360), 'cmyk_small.jpg': (100, 100), 'exif_orientation6_photo.jpg': (576, 768),
    'exif_orientation6_small.jpg': (128, 128), 'gray.jpg': (128, 128), 'gray16.tif': (64, 64), 'gray16_photo.png': (480, 360),
    'gray16_small.png': (64, 64), 'gray_alpha.png': (128, 128), 'name with space.jpg': (240, 180), 'one_bit.png': (500, 500),
    'one_pixel.png': (1, 1), 'one_row.png': (480, 1), 'palette_alpha.png': (162, 150), 'palette_photo.png': (240, 180),
    'photo.gif': (128, 128), 'photo.webp': (128, 128), 'png_named_jpg.jpg': (240, 180), 'rgb16_photo.png': (240, 180),
    'rgba_photo.png': (240, 180), 'very_tall.jpg': (12, 2400), 'very_wide.jpg': (3000, 12)}
BROKEN = {'broken.png': 'starts like a PNG', 'text_named_jpg.jpg': 'no picture', 'truncated.png': 'cut off', 'truncated_photo.jpg': 'cut off',
          'truncated_small.jpg': 'cut off', 'zero_byte.jpg': 'empty'}


@pytest.fixture(scope='module')
def odd(shared): return shared/'data'/'odd-images'


def test_every_file_of_the_folder_is_in_one_of_the_lists(odd):
    assert sorted(p.name for p in odd.iterdir()) == sorted([*READABLE, *BROKEN])
    assert len(list_images(odd)) == len(READABLE) + len(BROKEN)


@pytest.mark.parametrize('name', READABLE)
def test_readable(odd, name):
    w, h = READABLE[name]
    image, gray = read_image(odd/name), read_image(odd/name, gray=True)
    assert image.shape == (h, w, 3) and image.dtype == np.uint8 and image.flags.writeable
    assert gray.shape == (h, w) and gray.dtype == np.uint8
    assert image_size(odd/name) == (w, h)


@pytest.mark.parametrize('name', BROKEN)
def test_broken(odd, name):
    with pytest.raises(ImageError) as e: read_image(odd/name)
    assert str(odd/name) in str(e.value) and BROKEN[name] in str(e.value) and '\n' not in str(e.value)
    assert isinstance(e.value, InputError)


def test_same_photo_in_every_format(odd):
    "The same frame was saved in many ways; at 12 by 9 blocks nothing but compression noise and palettes may differ"
    def blocks(name): return np.asarray(Image.fromarray(read_image(odd/name)).resize((12, 9), Image.Resampling.BOX)).astype(float)
    truth = blocks('UPPERCASE.JPG')
    for name in ('cmyk_photo.jpg', 'name with space.jpg', 'palette_photo.png', 'png_named_jpg.jpg', 'rgb16_photo.png'):
        assert np.abs(blocks(name) - truth).mean() < 3, name
    assert np.abs(blocks('gray16_photo.png').mean(-1) - truth@[.299, .587, .114]).mean() < 3


def test_upright_and_unchanged_where_opencv_agrees(odd):
    import cv2
    for name in ('exif_orientation6_photo.jpg', 'exif_orientation6_small.jpg', 'gray.jpg', 'one_bit.png', 'palette_photo.png', 'rgb16_photo.png', 'very_wide.jpg', 'cmyk_photo.jpg', 'cmyk_small.jpg'):
        ours, theirs = read_image(odd/name), cv2.imread(str(odd/name))[..., ::-1]
        assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).mean() < 1, name


def test_transparent_is_white(odd):
    assert (read_image(odd/'rgba_photo.png')[:5] == 255).all()   # its top is transparent
    assert (read_image(odd/'palette_alpha.png')[0, 0] == 255).all()


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_all_eight_orientations(tmp_path, suffix, turn):
    "What the camera stored is turned so that the bright corner comes out top left, the darker one beside it"
    upright = np.full((32, 64), 60, np.uint8)
    upright[:12, :16], upright[:12, -16:] = 250, 150
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
            7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}[turn]
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(np.ascontiguousarray(undo(upright))).convert('RGB').save(tmp_path/f'a.{suffix}', exif=exif, **({'quality': 95} if suffix in ('jpg', 'webp') else {}))
    got = read_image(tmp_path/f'a.{suffix}', gray=True)
    assert got.shape == upright.shape and np.abs(got.astype(int) - upright).max() < 40
    assert image_size(tmp_path/f'a.{suffix}') == (64, 32)


def test_damaged_exif_loses_no_pixels(tmp_path):
    Image.new('RGB', (8, 6), 'red').save(tmp_path/'a.jpg', exif=b'Exif\0\0' + b'XX*\0garbage')
    assert read_image(tmp_path/'a.jpg').shape == (6, 8, 3)


def test_too_many_pixels_are_refused_without_unpacking(tmp_path, monkeypatch):
    Image.new('1', (3000, 3000)).save(tmp_path/'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000)
    with pytest.raises(ImageError, match='bomb.png.*2 million pixels.*MAX_IMAGE_PIXELS'): read_image(tmp_path/'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 6_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_image(tmp_path/'bomb.png').shape == (3000, 3000, 3)


def test_declared_transparent_colours(tmp_path):
    a = np.uint8([[[10, 20, 30], [0, 0, 0]]])
    Image.fromarray(a).save(tmp_path/'rgb.png', transparency=(10, 20, 30))
    Image.fromarray(a[..., 0]).save(tmp_path/'gray.png', transparency=10)
    Image.fromarray(np.uint16([[700, 65535, 0]])).save(tmp_path/'deep.png', transparency=700)
    assert read_image(tmp_path/'rgb.png').tolist() == [[[255]*3, [0]*3]]
    assert read_image(tmp_path/'gray.png').tolist() == [[[255]*3, [0]*3]]
    assert read_image(tmp_path/'deep.png', gray=True).tolist() in ([[255, 255, 0]], [[3, 255, 0]])   # Pillow may not write the declaration for 16 bits


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new('RGB', (5, 4), c) for c in ('red', 'blue')]
    for suffix in ('gif', 'webp', 'png'):
        frames[0].save(tmp_path/f'a.{suffix}', save_all=True, append_images=frames[1:], **({'lossless': True} if suffix == 'webp' else {}))
        assert np.abs(read_image(tmp_path/f'a.{suffix}').astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA', 'CMYK', 'I', 'I;16', 'F'])
def test_every_mode_of_tiff_and_png_gives_three_channels(tmp_path, mode):
    im = Image.new('L', (7, 5), 0).convert(mode) if mode != 'I;16' else Image.fromarray(np.zeros((5, 7), np.uint16))
    saved = 0
    for suffix in ('png', 'tif'):
        try: im.save(tmp_path/f'a.{suffix}')
        except OSError: continue   # a mode that this format does not know
        saved += 1
        assert (read_image(tmp_path/f'a.{suffix}') == (0, 0, 0)).all()
    assert saved or mode == 'PA'


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'gif', 'tif', 'bmp'])
def test_a_cut_at_any_place_is_an_image_error(tmp_path, suffix):
    rng = np.random.default_rng(0)
    whole = tmp_path/f'whole.{suffix}'
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(whole)
    data = whole.read_bytes()
    for part in (1, 3, 10, 30, *rng.integers(40, int(len(data)*.9), 12)):
        (tmp_path/f'cut.{suffix}').write_bytes(data[:part])
        with pytest.raises(ImageError, match='cut'): read_image(tmp_path/f'cut.{suffix}')


def test_not_permitted(tmp_path, monkeypatch):
    Image.new('RGB', (2, 2)).save(tmp_path/'a.png')
    def refuse(*a, **k): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Image, 'open', refuse)
    with pytest.raises(ImageError, match='not permitted'): read_image(tmp_path/'a.png')
