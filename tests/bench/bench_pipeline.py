"What one training item costs on one core: reading, a view of 640x640 px from 1280x720, targets of 50 words."
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import time
import cv2
import numpy as np
from visionlab.datasets.transforms import TextTransform, normalise
from visionlab.pan.targets import PANTargets


def _best(f, n=15):
    f(0)
    times = []
    for i in range(n):
        start = time.perf_counter()
        f(i)
        times.append(time.perf_counter() - start)
    return 1e3*float(np.median(times))


def _words(rng, w, h, n=50):
    out = []
    for _ in range(n):
        a, t = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])*[rng.uniform(10, 40), rng.uniform(4, 12)], rng.uniform(-.4, .4)
        out.append(a @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) + [rng.uniform(40, w-40), rng.uniform(40, h-40)])
    return out


def rows():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (720, 1280, 3), np.uint8), (0, 0), 2)
    words, ignore = _words(rng, 1280, 720), np.arange(50) % 5 == 0
    view, noisy, targets, square = TextTransform(640), TextTransform(640, noise=.05), PANTargets(), _words(rng, 640, 640)

    def item(i):
        x, polys, ign = view(image, words, ignore, i)
        return normalise(x), targets(polys, ign, 640, 640)

    for name, f, limit in (('view 640x640 of 1280x720, ms', lambda i: view(image, words, ignore, i), 15),
                           ('the same with noise, ms', lambda i: noisy(image, words, ignore, i), 30),
                           ('PAN targets, 50 words at 640x640, ms', lambda i: targets(square, ignore, 640, 640), 5),
                           ('a training item without reading, ms', item, 40)):
        ms = _best(f)
        yield name, ms, None, ms, limit
