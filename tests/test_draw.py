import numpy as np,pytest
from visionlab.core.checks import InputError
from visionlab.core.files import read_image
from visionlab.inference.draw import draw_polygons,save_image

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
