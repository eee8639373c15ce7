"A 10-minute video the way `visionlab predict --save-video` goes, with a threshold for a network: memory at the end against that after the first 10 seconds, and the price of each step. In a process of its own."
import json
import subprocess
import sys
import tempfile

CODE = '''
import json, os, sys, time
import cv2, numpy as np
from pathlib import Path
from types import SimpleNamespace
from visionlab.cli.app import PredictOptions, _Answers, _answer_all
from visionlab.inference.draw import VideoFile, draw_mask
from visionlab.inference.streams import load_frames
cv2.setNumThreads(1)
folder, minutes, fps = Path(sys.argv[1]), 10, 25
resident = lambda: int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20
y, x = np.mgrid[:180, :320]
with VideoFile(folder/'long.mp4', fps) as video:
    for i in range(minutes*60*fps): video.add(np.uint8(np.stack([x + 3*i, y + i, x + y - 2*i], -1) & 255))

class Threshold:
    "A predictor without a network: what is red"
    n, at = 0, {}
    def batch(self, images, batch_size):
        self.n += len(images)
        if self.n % (10*fps) == 0: self.at[self.n//fps] = resident()
        return [SimpleNamespace(to_dict=dict, notes=lambda: ['half is red'], picture=lambda im, m=(im[..., 0] > 128).astype(np.uint8): draw_mask(im, m, names=('no', 'yes'))) for im in images]

predictor, options = Threshold(), PredictOptions(save_video=True)
start = time.perf_counter()
(folder/'out').mkdir()
with _Answers(folder/'out', options) as answers: _answer_all(predictor, load_frames(folder/'long.mp4'), answers, options)
seconds, at, frames = time.perf_counter() - start, predictor.at, predictor.n
print(json.dumps(dict(first=at[10], last=at[minutes*60], most=max(at.values()), frames=frames, written=answers.count, ms=1000*seconds/frames)))
'''


def rows():
    with tempfile.TemporaryDirectory() as folder:
        got = subprocess.run([sys.executable, '-c', CODE, folder], capture_output=True, text=True)
    if got.returncode: raise RuntimeError(got.stderr)
    m = json.loads(got.stdout.splitlines()[-1])
    if (m['frames'], m['written']) != (15000, 15000): raise RuntimeError(f'frames are missing: {m}')
    yield '10 minutes of video: memory at the end above that at 10 s, MiB', None, None, m['last'] - m['first'], 50
    yield 'the most in between above that at 10 s, MiB', None, None, m['most'] - m['first'], 50
    yield 'read, mask, notes and write a frame of 320x180, ms', m['ms'], None, m['ms'], 10
