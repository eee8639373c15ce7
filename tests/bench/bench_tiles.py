"An image of 8000x8000 px in tiles: memory above the image and its result, seams, and the price of overlap. Each measurement runs in a process of its own."
import json
import subprocess
import sys

CODE = '''
import json, os, threading, time
import numpy as np, torch
from torch import nn
from visionlab.inference.tiles import predict_tiled
torch.set_num_threads(1); torch.manual_seed(0)
side, classes, tile, overlap = {args}
net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, classes, 3, padding=1)).eval()
image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
predict_tiled(net, image[:1024, :1024], tile, overlap, result='classes')
resident = lambda: int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')
before, peak, done = resident(), [0], threading.Event()
def watch():
    while not done.wait(.01): peak[0] = max(peak[0], resident())
threading.Thread(target=watch).start()
start = time.perf_counter()
out = predict_tiled(net, image, tile, overlap, result='classes')
seconds = time.perf_counter() - start
done.set()
part = image[500:1300, 600:1500]
from visionlab.datasets.transforms import normalise
with torch.no_grad(): whole = net(normalise(part)[None])[0].numpy()
worst = float(abs(predict_tiled(net, part, tile, overlap) - whole).max())
print(json.dumps(dict(mib=(peak[0] - before - out.nbytes)/2**20, seconds=seconds, worst=worst)))
'''


def measure(*args):
    "What a process of its own finds out about (side, classes, tile, overlap)"
    got = subprocess.run([sys.executable, '-c', CODE.replace('{args}', repr(args))], capture_output=True, text=True, check=True)
    return json.loads(got.stdout)


def rows():
    for side, classes, tile, overlap in ((2000, 12, 512, 128), (8000, 12, 512, 128)):
        m = measure(side, classes, tile, overlap)
        yield f'{side}x{side} px, {classes} classes: memory above it, MiB', 1000*m['seconds'], None, m['mib'], 1024
    yield 'tiles against one piece, three convolutions, times 1e5', None, None, 1e5*m['worst'], 1
