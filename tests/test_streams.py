"""Streams over real RTSP on the loopback: drops, deaths, passwords, back-off, and memory that stays where it is."""
import copy
import functools
import http.server
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from rtsp import Feed, RTSPServer, frame_number, numbered_frame
from visionlab.core.checks import InputError
from visionlab.inference.streams import LoadStreams, StreamReader, load_frames, why_no_picture

QUICK = dict(pause=.05, retries=1, timeout=3.)


def follow(loader, pause=0.):
    "Numbers of the frames by stream, as the pictures themselves say"
    seen = {}
    for f in loader:
        assert f.original.dtype == np.uint8 and f.original.shape == (64, 128, 3) and f.total == 0
        seen.setdefault(f.path, []).append(frame_number(f.original))
        time.sleep(pause)
    return seen


def test_a_stream_that_drops_three_times_is_followed_to_its_end():
    with RTSPServer(door=Feed(80, fps=60, drops=(20, 40, 60))) as server:
        loader = LoadStreams(server.url('door'), **QUICK)
        (numbers,) = follow(loader).values()
        assert server.feeds['door'].connections == 4
    assert numbers == sorted(set(numbers)) and numbers[0] < 20 and numbers[-1] == 79
    assert {n//20 for n in numbers} == {0, 1, 2, 3}                           # something of each connection
    reader = loader.readers[0]
    assert (reader.connections, reader.offered) == (4, reader.taken + reader.replaced) and len(numbers) == reader.taken
    assert loader.report.counts == {'stream that broke off': 1, 'stream that ended': 1} and '3 times' in loader.report.entries[0].detail


def test_of_two_streams_one_dies_and_the_other_loses_nothing():
    with RTSPServer(well=Feed(90, fps=60), ill=Feed(90, fps=60, dies_at=15)) as server:
        loader = LoadStreams([server.url('ill'), server.url('well')], **QUICK)
        seen = follow(loader)
    ill, well = (seen[server.url(n)] for n in ('ill', 'well'))
    assert max(ill) <= 14 and well == sorted(set(well)) and well[-1] == 89
    for r in loader.readers: assert r.offered == r.taken + r.replaced
    assert loader.readers[1].offered == 90 and loader.readers[1].connections == 1     # every frame that was sent was offered
    assert len(well) >= 45                                                              # FFmpeg gives the first ones in one go, newer ones replace them


def test_the_newest_frame_wins_for_a_slow_consumer():
    with RTSPServer(door=Feed(90, fps=60)) as server:
        started, ages = time.monotonic(), []
        for f in LoadStreams(server.url('door'), **QUICK):
            ages.append(server.feeds['door'].sent - frame_number(f.original))
            time.sleep(.1)                       # six frames pass
    assert 8 <= len(ages) <= 30 and np.median(ages) <= 4, ages      # none is older than what the network holds
    assert time.monotonic() - started < 8


def test_a_stream_that_starts_dead_and_one_that_comes_late():
    late = Feed(20, fps=60)
    with RTSPServer(well=Feed(60, fps=60)) as server:
        threading.Timer(.6, lambda: server.feeds.update(late=late)).start()
        loader = LoadStreams([server.url('none'), server.url('well'), server.url('late')], pause=.1, retries=3, timeout=3.)
        seen = follow(loader)
    assert set(seen) == {server.url('well'), server.url('late')} and seen[server.url('late')][-1] == 19
    assert loader.report.counts == {'stream without a picture': 1, 'stream that ended': 2}


def test_no_thread_and_no_connection_is_left():
    before = threading.active_count()
    with RTSPServer(a=Feed(500, fps=60), b=Feed(500, fps=60)) as server:
        for f in LoadStreams([server.url('a'), server.url('b')], **QUICK): break
        del f
        assert not [t for t in threading.enumerate() if t.name.startswith('reader of')]
        def careless():
            for f in LoadStreams(server.url('a'), **QUICK): raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError): careless()
        deadline = time.monotonic() + 5
        while [t for t in threading.enumerate() if t.name.startswith('reader of')] and time.monotonic() < deadline: time.sleep(.05)
        assert not [t for t in threading.enumerate() if t.name.startswith('reader of')]
        assert [len([f for f in LoadStreams(server.url('a'), max_frames=n, **QUICK)]) for n in (1, 4)] == [1, 4]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline: time.sleep(.05)
    assert threading.active_count() <= before


# Logins

LEAK = '''
import sys, logging
logging.basicConfig(level=0)
from visionlab.inference.streams import LoadStreams, load_frames
for address in sys.argv[1:]:
    loader = load_frames(address, pause=.05, retries=1, timeout=2.)
    print(loader)
    try:
        for f in loader: print(f.path, f.number)
    except ValueError as e: print('refused:', e)
'''


@pytest.mark.parametrize('talkative', [{}, {'OPENCV_VIDEOIO_DEBUG': '1', 'OPENCV_LOG_LEVEL': 'VERBOSE'}, {'OPENCV_FFMPEG_DEBUG': '1', 'OPENCV_FFMPEG_LOGLEVEL': '48'}], ids=['usual', 'opencv', 'ffmpeg'])
def test_a_password_shows_nowhere(talkative):
    with RTSPServer(door=Feed(10, fps=60, user='ann', password='Geheim9')) as server:
        port = server.server_address[1]
        addresses = [server.url('door', 'ann:Falsch7'), server.url('none', 'ann:Falsch7'), 'rtsp://ann:Falsch7@127.0.0.1:1/a', 'rtsp://ann:Falsch7@no.such.host.invalid/a', 'rtsp://ann:Falsch7@127.0.0.1:99999/a',
                     f'http://ann:Falsch7@127.0.0.1:{port}/a?password=Falsch7', server.url('door', 'ann:Geheim9')]
        got = subprocess.run([sys.executable, '-c', LEAK, *addresses], capture_output=True, text=True, env={**os.environ, **talkative}, timeout=120)
        assert server.feeds['door'].refused >= 2 or 'OPENCV_FFMPEG_DEBUG' in talkative
    said = got.stdout + got.stderr
    assert got.returncode == 0, got.stderr
    assert 'Falsch7' not in said and 'Geheim9' not in said and 'QW5u' not in said       # the last one: Basic authorisation of "ann:..."
    if 'OPENCV_FFMPEG_DEBUG' in talkative: assert got.stdout.count('OPENCV_FFMPEG_DEBUG is set: unset it') == 7; return
    assert got.stdout.count('refused:') == 6 and 'wrong name or password' in got.stdout and 'refused' in got.stdout
    assert f'rtsp://***@127.0.0.1:{port}/door 1' in got.stdout or f'rtsp://***@127.0.0.1:{port}/door 10' in got.stdout       # the right password opens
    if not talkative: assert got.stderr == ''


def test_two_accounts_of_one_camera_are_two_streams():
    assert LoadStreams(['rtsp://a:b@cam/1', 'rtsp://c:d@cam/1', 'rtsp://cam/1']).names == ['rtsp://***@cam/1 (1)', 'rtsp://***@cam/1 (2)', 'rtsp://cam/1']


def test_a_camera_that_is_not_there_is_one_line(capfd):
    with pytest.raises(InputError, match='no camera number 97'): list(LoadStreams(97, retries=0))
    assert capfd.readouterr().err == ''


# Things that look like streams

class Line:
    "A capture of one's own"
    def __init__(self, frames, total=0): self.frames, self.total = list(frames), total
    def isOpened(self): return True
    def get(self, what): return float(self.total)
    def release(self): pass
    def read(self):
        if not self.frames: return False, None
        return self.frames.pop(0)


def test_only_pictures_are_given():
    "What a decoder calls a picture and is none never arrives"
    real = np.full((4, 4, 3), 7, np.uint8)
    for odd in ((True, None), (True, np.zeros((0, 0, 3), np.uint8)), (False, real)):
        reader = StreamReader(lambda: Line([(True, real), odd, (True, real)]), retries=0, pause=.01)
        assert reader._follow() == 1


def test_errors_of_opencv_are_a_drop_and_others_the_end():
    class Angry(Line):
        def read(self):
            if self.frames: return self.frames.pop()
            cv2.cvtColor(None, cv2.COLOR_RGB2GRAY)
    real, calls = (True, np.zeros((4, 4, 3), np.uint8)), []
    def connect():
        calls.append(1)
        if len(calls) > 3: raise ZeroDivisionError('bug')
        return Angry([real])
    reader = StreamReader(connect, retries=9, pause=.01).start()
    reader.thread.join(5)
    assert reader.over and reader.connections == 3 and reader.why == 'ZeroDivisionError: bug'


def test_the_pause_grows_to_its_limit(monkeypatch):
    waits = []
    reader = StreamReader(lambda: Line([]), retries=6, pause=.5, longest=4.)
    reader._stop.wait = lambda s: waits.append(s)
    reader._run()
    assert waits == [.5, 1, 2, 4, 4, 4] and reader.over


def test_a_film_behind_http_loses_no_frame_and_is_read_once(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path/'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 25, (128, 64))
    for n in range(30): writer.write(numbered_frame(n))
    writer.release()
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        frames = []
        for f in LoadStreams(f'http://127.0.0.1:{server.server_address[1]}/film.avi', **QUICK):
            frames.append((frame_number(f.original), f.number, f.total))
            time.sleep(.005)
        server.shutdown()
    assert frames == [(n, n + 1, 30) for n in range(30)]


def test_memory_does_not_grow_with_a_stream_nobody_reads():
    big = np.zeros((500, 500, 3), np.uint8)
    reader = StreamReader(lambda: Line([(True, big.copy()) for _ in range(3)] if reader.connections < 150 else []), retries=0, pause=.0001)
    tracemalloc.start()
    reader.start().thread.join(20)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.offered == 450 and peak < 12*big.nbytes


@pytest.mark.parametrize('settings,said', [(dict(retries=-1), 'at least 0'), (dict(timeout=0), 'above 0'), (dict(pause=0), 'above 0'), (dict(max_frames=-1), 'at least 0'), (dict(size=0), 'at least 1'), (dict(transform=3), 'is a function')])
def test_settings_out_of_range(settings, said):
    with pytest.raises(InputError, match=said): LoadStreams('rtsp://cam/1', **settings)


def test_why():
    assert 'no host of the name' in why_no_picture('rtsp://no.such.host.invalid/a') and 'names no host' in why_no_picture('rtsp:///a') and 'nothing comes' in why_no_picture('udp://cam')


def test_files_and_streams_in_one_go(tmp_path):
    cv2.imwrite(str(tmp_path/'still.png'), numbered_frame(5))
    with RTSPServer(door=Feed(900, fps=60)) as server:                  # a short feed would be over where the machine is slow: newer frames replace older ones
        frames = list(load_frames([tmp_path/'still.png', server.url('door')], max_frames=4, **QUICK))
    assert [f.path.name if isinstance(f.path, Path) else 'door' for f in frames] == ['still.png'] + ['door']*4
    assert frame_number(frames[0].original) == 5 and frames[0].capture is None and frames[1].capture is not None


def test_the_rate_outlives_the_connection():
    "A film is begun with the rate of its camera even if the line breaks between a frame and the question"
    with RTSPServer(door=Feed(900, fps=30)) as server:
        stream = iter(LoadStreams([server.url('door')]))
        capture = next(stream).capture
        assert capture.isOpened() and capture.get(cv2.CAP_PROP_FPS) == 30 and capture.get(cv2.CAP_PROP_FRAME_WIDTH) > 0
        stream.close()
        capture.release()
        assert not capture.isOpened() and capture.get(cv2.CAP_PROP_FPS) == 30


class Film:
    "A capture of a film behind an address, which gives fewer frames than it promises"
    def __init__(self, frames, total, fails=False): self.left, self.total, self.fails = frames, total, fails
    def isOpened(self): return True
    def get(self, what): return {cv2.CAP_PROP_FRAME_COUNT: self.total, cv2.CAP_PROP_FPS: 25}.get(what, 0)
    def release(self): pass
    def read(self):
        if not self.left and self.fails: raise RuntimeError('the decoder gave up')
        self.left -= 1
        return (True, np.zeros((8, 8, 3), np.uint8)) if self.left >= 0 else (False, None)


@pytest.mark.parametrize('address, film, wanted, kinds', [
    ('http://a/b.mp4', lambda: Film(5, 100), 0, {'video ends early': 1}), ('http://a/b.mp4', lambda: Film(100, 100), 0, {}), ('http://a/b.mp4', lambda: Film(100, 100), 3, {}),
    ('rtsp://a/b', lambda: Film(5, 0, fails=True), 0, {'stream that ended': 1}), ('rtsp://a/b', lambda: Film(10**9, 0), 3, {})])
def test_how_it_ended_is_told(monkeypatch, address, film, wanted, kinds):
    "A film that is cut short, a camera that is gone for good; and nothing where we were the ones who left"
    loader = LoadStreams([address], max_frames=wanted, retries=0, pause=.01)
    monkeypatch.setattr(LoadStreams, 'connect', lambda self, a: film())
    frames = list(loader)
    assert len(frames) >= (wanted or 1) and loader.report.counts == kinds
    if address[:4] == 'rtsp' and kinds: assert 'the decoder gave up' in loader.report.summary()
    copy.copy(frames[0].capture)
