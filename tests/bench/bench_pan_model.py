"""PAN's network at 320x320, one image: what an FPEM adds, FPN beside it, the light head's trick, half precision, the import."""
import subprocess
import sys
import time

import torch

from visionlab.blocks.layers import stack_levels
from visionlab.pan.model import PAN, Conv1x1Head


def _alternate(*calls, n=5, clock=time.thread_time):
    "Best time of each call in ms, taken in turns so that a busy moment hits all of them; the thread's own time unless told"
    for c in calls: c()
    best = [float('inf')]*len(calls)
    for _ in range(n):
        for i, c in enumerate(calls):
            start = clock(); c()
            best[i] = min(best[i], (clock() - start)*1e3)
    return best


def _process(code):
    return lambda: subprocess.run([sys.executable, '-c', code], check=True)


@torch.no_grad()
def rows():
    x = torch.randn(1, 3, 320, 320)
    two, four, heavy, fpn = (PAN('resnet18', **o).eval() for o in (dict(head='conv1x1'), dict(head='conv1x1', fpem_repeat=4), dict(), dict(segmentation_head='FPN')))
    t2, t4, th, tf = _alternate(lambda: two(x), lambda: four(x), lambda: heavy(x), lambda: fpn(x))
    out = [('PAN resnet18: one more FPEM, share of the whole', (t4 - t2)/2, t2, (t4 - t2)/2/t2, .2),
           ('PAN resnet18: FPEM_FFM x2 / FPN', th, tf, th/tf, .75)]
    head, levels = Conv1x1Head(128), [torch.randn(1, 128, s, s) for s in (80, 40, 20, 10)]
    a, b = _alternate(lambda: head(levels), lambda: head.out(stack_levels(levels)), n=15)
    out.append(('light head: project first / stack first', a, b, a/b, .5))
    last, xl = PAN('resnet18').eval().to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    def half():
        with torch.autocast('cpu', torch.bfloat16): last(xl)
    c, h, f = _alternate(lambda: last(xl), half, lambda: heavy(x))
    out += [('PAN resnet18: channels_last / contiguous', c, f, c/f, None), ('PAN resnet18: channels_last bfloat16 / contiguous', h, f, h/f, None)]
    i, t = _alternate(_process('from visionlab.pan.model import PAN'), _process('import torch'), clock=time.perf_counter)
    return out + [('import: `from visionlab.pan.model import PAN` / `import torch`', i, t, i/t, 1.25)]
