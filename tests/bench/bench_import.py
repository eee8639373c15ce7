"""What `from visionlab.pan import PANLoss` costs beside `import torch`, whole process."""
import subprocess
import sys
import time


def _seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - start


def rows(n=5):
    ours, ref = 'from visionlab.pan import PANLoss', 'import torch'
    _seconds(ref); _seconds(ours)
    pairs = [(_seconds(ours), _seconds(ref)) for _ in range(n)]
    a, b = min(p[0] for p in pairs)*1e3, min(p[1] for p in pairs)*1e3
    return [('import: `from visionlab.pan import PANLoss` / `import torch`', a, b, a/b, 1.25)]
