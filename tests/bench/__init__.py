"Speed and quality side by side with other programs; `python -m tests.bench` prints the table"
import time

import numpy as np


def in_turns(*calls, n=40, warm=3, of=np.median):
    "Processor time of each call in ms, taken in turns and in both orders, so that other work on the machine hits all alike: the median, or what `of` makes of `n` rounds"
    times = np.zeros((warm + n, len(calls)))
    for i, row in enumerate(times):
        for k in range(len(calls))[::-1 if i % 2 else 1]:
            start = time.process_time()
            calls[k]()
            row[k] = (time.process_time() - start)*1e3
    return of(times[warm:], axis=0)
