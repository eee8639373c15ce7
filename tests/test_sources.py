"""Everything a source can be, and everything that can be wrong with one."""
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rtsp import frame_number, numbered_frame
from visionlab.core.checks import InputError
from visionlab.inference.sources import Frame, LoadImages, hide_login, is_stream, list_sources, read_video, split_sources
from visionlab.datasets.samples import Report


def film(path, n=30, code='MJPG', fps=25):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (128, 64))
    for i in range(n): writer.write(numbered_frame(i))
    writer.release()
    return path


@pytest.fixture
def media(tmp_path):
    "A folder with images and videos, some below it"
    Image.new('RGB', (20, 10), 'red').save(tmp_path/'img_10.png')
    Image.new('RGB', (20, 10), 'blue').save(tmp_path/'img_2.JPG')
    film(tmp_path/'img_3.avi', 4)
    film(tmp_path/'deep'/'walk.MP4', 5, 'mp4v')
    (tmp_path/'notes.txt').write_text('img_10.png\nimg_3.avi\n')
    (tmp_path/'.hidden.avi').touch()
    return tmp_path


def test_what_a_folder_a_pattern_and_a_list_hold(media):
    names = lambda s, **kw: [p.name for p in split_sources(s, **kw)[0]]
    assert names(media) == ['walk.MP4', 'img_2.JPG', 'img_3.avi', 'img_10.png']
    assert names(media, videos=False) == ['img_2.JPG', 'img_10.png']
    assert names(f'{media}/img*') == ['img_2.JPG', 'img_3.avi', 'img_10.png'] and names(f'{media}/**/*.MP4') == ['walk.MP4']
    assert names(media/'notes.txt') == ['img_10.png', 'img_3.avi'] and names([media/'img_2.JPG', str(media/'deep')]) == ['img_2.JPG', 'walk.MP4']
    assert [p.name for p in list_sources(media)] == ['img_2.JPG', 'img_10.png']


def test_frames_of_all_files_in_order(media):
    got = [(f.path.name, f.number, f.total, f.capture is None) for f in LoadImages(media)]
    assert got == [('walk.MP4', i + 1, 5, False) for i in range(5)] + [('img_2.JPG', 1, 1, True)] + [('img_3.avi', i + 1, 4, False) for i in range(4)] + [('img_10.png', 1, 1, True)]
    path, image, original, capture, number, total = next(iter(LoadImages(media/'img_2.JPG')))       # a tuple of six, as documented
    assert image is original and original.dtype == np.uint8 and original[0, 0, 2] > 200 > original[0, 0, 0]     # RGB
    loader = LoadImages(media)
    assert len(loader) == 4 and [f.number for f in loader] == [f.number for f in loader]            # again from the start
    assert isinstance(next(iter(loader)), Frame)


def test_colours_and_order_of_a_video(media):
    frames = [f for f, *_ in read_video(film(media/'n.avi', 12))]
    assert [frame_number(f) for f in frames] == list(range(12))
    writer = cv2.VideoWriter(str(media/'red.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (32, 32))
    writer.write(np.full((32, 32, 3), (0, 0, 250), np.uint8))
    writer.release()
    (red, capture, number, total), = read_video(media/'red.avi')
    assert red[9, 9, 0] > 230 > 30 > red[9, 9, 2] and (number, total) == (1, 1)


def test_size_and_transform(media):
    f = next(iter(LoadImages(media/'img_2.JPG', size=64, transform=lambda im: im.astype(np.float32)/255)))
    assert f.image.shape == (64, 64, 3) and f.image.dtype == np.float32 and f.original.shape == (10, 20, 3)


def test_max_frames_counts_each_video(media):
    assert [f.path.name for f in LoadImages(media, max_frames=2)] == ['walk.MP4']*2 + ['img_2.JPG'] + ['img_3.avi']*2 + ['img_10.png']


@pytest.mark.parametrize('suffix,code', [('.avi', 'MJPG'), ('.mkv', 'MJPG'), ('.avi', 'mp4v')])
@pytest.mark.parametrize('share', [.8, .4])
def test_a_video_that_ends_early(tmp_path, suffix, code, share):
    whole = film(tmp_path/f'whole{suffix}', 40, code)
    cut, report = tmp_path/f'cut{suffix}', Report()
    cut.write_bytes(whole.read_bytes()[:int(whole.stat().st_size*share)])
    n = len(list(read_video(cut, report=report)))
    assert 0 < n < 38 and report.counts == {'video ends early': 1} and report.entries[0].detail == f'after {n} of 40 frames'
    report = Report()
    assert len(list(read_video(whole, report=report))) == 40 and not len(report)
    assert len(list(read_video(cut, 1, report))) == 1 and not len(report)              # who wants one frame is not told about the last


def test_videos_that_are_none(tmp_path):
    film(tmp_path/'no frames.avi', 0)
    film(tmp_path/'no header.mp4', 30, 'mp4v')
    whole = (tmp_path/'no header.mp4').read_bytes()
    (tmp_path/'no header.mp4').write_bytes(whole[:len(whole)//2])
    (tmp_path/'empty.mp4').touch()
    (tmp_path/'letter.mkv').write_text('Dear Sir or Madam')
    Image.new('RGB', (8, 8)).save(tmp_path/'image.png')
    (tmp_path/'image.png').rename(tmp_path/'image.webm')
    loader = LoadImages(tmp_path)
    frames = list(loader)
    assert [f.path.name for f in frames] in ([], ['image.webm'])                     # FFmpeg takes a PNG for a film of one frame
    assert loader.report.counts['video without frames'] == 1 and loader.report.counts['unreadable video'] == 4 - len(frames)
    assert any(e.detail == 'the file is empty (0 bytes)' for e in loader.report.entries)


def test_names_that_ffmpeg_misreads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('holiday:1.avi', 'http:x.avi', '50%d.avi', "it's.avi", '-f.avi', 'with space.avi'):
        film(Path('plain.avi'), 3).rename(name)
        assert len(list(LoadImages(name))) == 3, name


def test_nothing_is_printed_about_damaged_files(tmp_path):
    whole = film(tmp_path/'a.mp4', 30, 'mp4v').read_bytes()
    (tmp_path/'a.mp4').write_bytes(whole[:len(whole)//2])
    code = 'import sys; from visionlab.inference.sources import LoadImages; l = LoadImages(sys.argv[1]); print(len(list(l)), l.report.counts)'
    got = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert (got.stdout, got.stderr) == ("0 {'unreadable video': 1}\n", '')


def test_memory_of_a_long_video_is_that_of_a_frame(tmp_path):
    path = film(tmp_path/'long.avi', 400)
    tracemalloc.start()
    for n, f in enumerate(LoadImages(path)):
        if n == 20: before = tracemalloc.get_traced_memory()[0]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert n == 399 and after - before < 200_000


def test_unreadable_images_are_counted(shared):
    loader = LoadImages(shared/'data'/'odd-images')
    names = {f.path.name for f in loader}
    assert len(names) + len(loader.report) == len(loader) and loader.report.counts == {'unreadable image': 6} and 'broken.png' not in names


def test_real_videos(shared):
    "H.264 of the wild, through to the last frame"
    loader = LoadImages(shared/'data'/'video')
    last = {f.path.name: (f.number, f.total) for f in loader}
    assert last == {'bottles.mp4': (80, 80), 'realshort.mp4': (36, 36), 'street_2fps.mp4': (40, 40), 'text_pan.mp4': (48, 48)} and not len(loader.report)


@pytest.mark.parametrize('text,shown', [
    ('rtsp://ann:pw@h/1', 'rtsp://***@h/1'), ('rtsp://ann@h/1', 'rtsp://***@h/1'), ('rtsp://h/1', 'rtsp://h/1'), ('rtsp://a:b@c@h/1', 'rtsp://***@h/1'), ('RTSP://a:b/c@h', 'RTSP://***@h'),
    ('http://h/x?a=1&TOKEN=z9&b=2', 'http://h/x?a=1&TOKEN=***&b=2'), ('http://h/x?user=a;pwd=b', 'http://h/x?user=***;pwd=***'), ('rtsp://h/1?streamType=u', 'rtsp://h/1?streamType=u'), ('a mail to ann@home', 'a mail to ann@home'),
    ('rtsp:/ann:pw@h/1', 'rtsp:/***@h/1'), ('rtsp:/pw@h/1', 'rtsp:/***@h/1'), ('ann:pw@h/1', '***@h/1'), ("no file '/a/rtsp:/ann:pw@h/1'. '/a' exists", "no file '/a/rtsp:/***@h/1'. '/a' exists"), ('C:/a/b@2x.png', 'C:/a/b@2x.png'), ('at 10:30 @home', 'at 10:30 @home'),
    ('http://h/cgi?usr=ann&pw=z9', 'http://h/cgi?usr=***&pw=***'), ('rtsp://h/user=ann&password=z9&channel=1', 'rtsp://h/user=***&password=***&channel=1'), ('rtsp://h/user=ann_password=z9_channel=1', 'rtsp://h/user=***'), ('a/user_key.png', 'a/user_key.png'),
    ("rtsp://a:'b\n@h", 'rtsp://***@h'), ('http://h/x?api_key=k&access_token=t', 'http://h/x?api_key=***&access_token=***')])
def test_what_is_shown_of_an_address(text, shown): assert hide_login(text) == shown


def test_streams_and_files_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_stream('0') and is_stream(2) and not is_stream('0.jpg')
    Image.new('RGB', (8, 8)).save('0.png'); os.rename('0.png', '0')
    assert not is_stream('0') and not is_stream(0)                  # a file of that name is a file
    Path('cams.streams').write_bytes('\ufeff# yard\r\nrtsp://a/1\r\n\r\n3\r\n'.encode())
    Path('cams.txt').write_text('rtsp://a/1\nhttp://b/2\n')
    assert split_sources(['cams.streams', 'cams.txt', 7]) == ([], ['rtsp://a/1', '3', 'http://b/2', '7'])


@pytest.mark.parametrize('source,said', [('', 'is empty'), ([], 'is empty'), ('nowhere.mp4', 'neither a file'), ('rtspp://a:geheim@h', "Did you mean 'rtsps?'"), ('file:///a.jpg', "begins with 'file://'"), ('cams.streams', 'neither an address'), ('none.streams', 'is empty'), ('rtsp:/a:geheim@h', 'neither a file'), ('a:geheim@h/1', 'neither a file'), ('cams.txt', 'lists images')])
def test_sources_that_are_none(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    Path('cams.streams').write_text('rtsp://a:geheim@h\nmovie\n')
    Path('none.streams').touch()
    Path('cams.txt').write_text('a:geheim@h\n')
    with pytest.raises(InputError, match=said) as e: split_sources(source)
    assert 'geheim' not in str(e.value)
