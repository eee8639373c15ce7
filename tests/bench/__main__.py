"""`python -m tests.bench [word ...]`: every benchmark whose name holds one of the words, as one table.

Each `bench_*.py` gives `rows()`: tuples (name, ours in ms, reference in ms or None, value, limit), where value is ours over the
reference (or what the row's name says) and should not exceed the limit. Single thread, so that ratios travel between machines.
"""
import importlib
import sys
from pathlib import Path


def main(words):
    import torch
    torch.set_num_threads(1)
    import cv2
    cv2.setNumThreads(1)
    names = sorted(p.stem for p in Path(__file__).parent.glob('bench_*.py'))
    names = [n for n in names if not words or any(w in n for w in words)]
    print(f'{"what":58}{"ours, ms":>12}{"reference":>12}{"value":>9}{"limit":>8}', flush=True)
    late = 0
    for n in names:
        for name, ours, ref, value, limit in importlib.import_module(f'tests.bench.{n}').rows():
            num = lambda v, f: format(v, f) if v is not None else '-'
            over = limit is not None and value is not None and value > limit
            late += over
            print(f'{name:58}{num(ours, "12.2f"):>12}{num(ref, "12.2f"):>12}{num(value, "9.3f"):>9}{num(limit, "8.2f"):>8}{"  over" if over else ""}', flush=True)
    print(f'{late} row(s) over their limit' if late else 'all rows within their limits')


if __name__ == '__main__': main(sys.argv[1:])
