import os,shutil,subprocess,sys
from pathlib import Path
import numpy as np,pytest
from visionlab.core.checks import InputError
from visionlab.core.files import read_image
from visionlab.inference import draw
from visionlab.inference.draw import class_colors,draw_mask,draw_notes,draw_polygons,save_image,save_video
from visionlab.inference.sources import open_video

def test_outline_lies_where_the_polygon_is():
    image = np.zeros((60,80,3), np.uint8)
    drawn = draw_polygons(image, [[[10,20],[50,20],[50,40],[10,40]]], color=(255,0,0))
    ys,xs = np.nonzero(drawn[...,0] > 128)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (10,50,20,40) and not image.any()
    assert not drawn[...,1:].any() and not drawn[25:35,20:40].any()

@pytest.mark.parametrize('shape', [(1,1), (1,1,3), (2,300,3), (300,2), (40,50,1)])
def test_any_size_and_channel_count(shape):
    drawn = draw_polygons(np.zeros(shape, np.uint8), [[[0,0],[9,0],[9,9]], np.zeros((0,2)), [[-1e12,5],[1e12,5],[3,-1e12]]], [.5,1,0], [[[1,1],[2,2]]], [True])
    assert drawn.shape == (*shape[:2],3) and drawn.dtype == np.uint8

def test_strided_views_and_unknown_letters():
    image = np.random.default_rng(0).integers(0, 255, (40,60,3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_polygons(image[::-1,::2], []), image[::-1,::2])
    draw_polygons(image, [[[3,20],[20,20],[20,30]]], texts=['Grüße 漢字'])

@pytest.mark.parametrize('image', [np.zeros((4,4,4), np.uint8), np.zeros((4,4), np.float32), np.zeros((0,4), np.uint8), None])
def test_what_is_no_picture(image):
    with pytest.raises(InputError, match='image'): draw_polygons(image, [])

@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.PNG'])
def test_saved_pixels_come_back(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 255, (30,40,3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save_image(tmp_path/f'a{suffix}', image)), image)
    assert len(list(tmp_path.iterdir())) == 1

def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(self, *args, **kw): raise PermissionError(13, 'Permission denied', str(self))
    monkeypatch.setattr('pathlib.Path.write_bytes', refuse)   # root may write anywhere, so a read-only folder proves nothing for it
    with pytest.raises(InputError, match='cannot write'): save_image(tmp_path/'a.png', np.zeros((4,4,3), np.uint8))
    assert not list(tmp_path.iterdir())


# Masks

def test_every_pixel_of_a_veil_is_what_arithmetic_says():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 255, (31, 47, 3), dtype=np.uint8), rng.integers(0, 6, (31, 47))
    mask[:4], mask[4:6] = 255, -1
    drawn, colors = draw_mask(image, mask, colors=class_colors(5), alpha=.3, background=2), class_colors(5).astype(float)
    for y in range(31):
        for x in range(47):
            c = mask[y, x]
            want = image[y, x] if c in (2, 5, 255, -1) else .7*image[y, x] + .3*colors[c]
            assert np.abs(drawn[y, x] - want).max() <= .51, (y, x, c)

@pytest.mark.parametrize('dtype', [bool, np.uint8, np.int16, np.int32, np.int64, np.uint16])
def test_masks_of_any_whole_kind(dtype):
    image, mask = np.full((20, 30, 3), 100, np.uint8), np.zeros((20, 30), dtype)
    mask[5:9] = 1
    drawn = draw_mask(image, mask)
    assert (drawn[5:9] != 100).any(-1).all() and (drawn[:5] == 100).all() and (image == 100).all()

@pytest.mark.parametrize('shape', [(1, 1), (1, 400), (400, 1), (2, 3)])
def test_masks_of_any_size(shape):
    image = np.zeros(shape, np.uint8)
    assert draw_mask(image, np.ones(shape, np.uint8), names=['a', 'b']).shape == (*shape, 3)
    assert (draw_notes(image, ['a line']) == 0).all()

def test_a_legend_names_what_is_there(monkeypatch):
    seen = []
    monkeypatch.setattr(draw, '_strip', lambda canvas, rows, top, colors: (seen.append((rows, colors.tolist())), canvas)[1])
    mask = np.zeros((200, 200), np.uint8)
    mask[:50], mask[50:60], mask[60:70] = 3, 1, 255
    draw_mask(np.zeros((200, 200, 3), np.uint8), mask, names=['sky', 'road', 'car', 'tree'])
    assert seen == [(['road', 'tree'], class_colors(4)[[1, 3]].tolist())]

@pytest.mark.parametrize('change,said', [(dict(mask=np.zeros((9, 9), np.uint8)), 'H=20, W=30'), (dict(mask=np.zeros((20, 30))), 'whole numbers'), (dict(alpha=2), 'at most 1'), (dict(names=[str(i) for i in range(256)]), 'at most 255')])
def test_masks_that_do_not_fit(change, said):
    with pytest.raises(InputError, match=said): draw_mask(**dict(dict(image=np.zeros((20, 30, 3), np.uint8), mask=np.ones((20, 30), np.uint8)), **change))


# Videos

def frames_of(path):
    capture, out = open_video(Path(path)), []
    while (got := capture.read())[0]: out.append(got[1][..., ::-1])
    return out

@pytest.mark.parametrize('suffix', ['.mp4', '.MP4', '.m4v', '.mov', '.mkv', '.avi'])
@pytest.mark.parametrize('shape', [(48, 64), (47, 65), (1, 1), (3, 200)])
def test_films_can_be_played(tmp_path, suffix, shape):
    path = save_video(tmp_path/f'a{suffix}', (np.full((*shape, 3), (200, 40*i, 10), np.uint8) for i in range(6)), fps=12.5)
    back = frames_of(path)
    assert len(back) == 6 and back[0].shape == (shape[0] + shape[0]%2, shape[1] + shape[1]%2, 3) and len(list(tmp_path.iterdir())) == 1
    if min(shape) > 2: assert all(np.abs(b[:, :, 1].mean() - 40*i) < 8 and b[..., 0].mean() > 170 for i, b in enumerate(back))

def test_a_folder_that_takes_no_film():
    "Even root writes nothing into /proc; it is said before the first frame is asked for"
    def never():
        raise AssertionError('work began')
        yield
    if not Path('/proc/self').exists(): pytest.skip('needs /proc, a folder that nobody can write to')
    with pytest.raises(InputError, match='cannot write'): save_video('/proc/film.mp4', never())

def test_a_broken_film_is_noticed(tmp_path, monkeypatch):
    import cv2
    class FullDisk:
        fourcc = cv2.VideoWriter.fourcc
        def __init__(self, *args): pass
        def isOpened(self): return True
        def write(self, frame): pass
        def release(self): pass
    monkeypatch.setattr(cv2, 'VideoWriter', FullDisk)
    (tmp_path/'film.mp4').write_text('the old one')
    with pytest.raises(InputError, match='cannot be read back'): save_video(tmp_path/'film.mp4', [np.zeros((8, 8, 3), np.uint8)])
    assert (tmp_path/'film.mp4').read_text() == 'the old one' and len(list(tmp_path.iterdir())) == 1


# Windows

WATCH = "import numpy as np; from visionlab.inference.draw import ImageWindow\nwith ImageWindow() as w: print([w.show(np.zeros((20, 30, 3), np.uint8)) for _ in range(3)])"

@pytest.mark.parametrize('display', ['', ':93'])
def test_without_a_display_it_is_said_once(display):
    "Also where DISPLAY names one that is not there, for which OpenCV would end the process"
    env = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')} | ({'DISPLAY': display} if display else {})
    got = subprocess.run([sys.executable, '-c', WATCH], capture_output=True, text=True, env=env)
    assert got.returncode == 0 and got.stdout.count('not shown') == 1 and '[True, True, True]' in got.stdout

def test_a_real_window():
    if not shutil.which('xvfb-run'): pytest.skip('needs xvfb-run, a display without a screen')
    got = subprocess.run(['xvfb-run', '-a', sys.executable, '-c', WATCH], capture_output=True, text=True, timeout=120)
    assert got.stdout == '[True, True, True]\n' and got.returncode == 0

def test_an_opencv_without_windows(monkeypatch):
    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: subprocess.CompletedProcess(a, 1, '', 'cv2.error: The function is not implemented. Rebuild the library'))
    assert 'opencv-python-headless' in draw.why_no_window()

def test_keys_and_the_closed_window_end_it(monkeypatch):
    import cv2
    monkeypatch.setattr(draw, 'why_no_window', lambda: '')
    for name in ('namedWindow', 'resizeWindow', 'imshow', 'destroyWindow'): monkeypatch.setattr(cv2, name, lambda *a: None)
    picture, waited = np.zeros((8, 8, 3), np.uint8), []
    for key, visible, goes_on in ((-1, 1., True), (ord('x'), 1., True), (ord('q'), 1., False), (27, 1., False), (-1, 0., False)):
        monkeypatch.setattr(cv2, 'waitKey', lambda ms, key=key: (waited.append(ms), key)[1])
        monkeypatch.setattr(cv2, 'getWindowProperty', lambda *a, v=visible: v)
        assert draw.ImageWindow().show(picture, seconds=.25) == goes_on
    assert waited == [250]*5
