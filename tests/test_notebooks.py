"""Every notebook runs from top to bottom, each in a process of its own."""
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(p.relative_to(root/'nbs') for p in (root/'nbs').rglob('*.ipynb') if not any(x[0] in '._' for x in p.relative_to(root/'nbs').parts))


LONGEST = 60     # s of processor time for all that a chapter does by default


def _run(path, log):
    resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, 2*LONGEST))
    multiprocessing.set_start_method('fork', force=True)     # for the loaders' workers
    with open(log, 'w') as f:
        os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
        try:
            import matplotlib; matplotlib.use('agg')
            import torch; torch.set_num_threads(1)
            from execnb.shell import CaptureShell
            from nbdev.test import test_nb
            shown, show = [], CaptureShell.showtraceback
            CaptureShell.showtraceback = lambda *args, **kwargs: (shown.append(1), show(*args, **kwargs))      # an object that cannot be shown ends no cell here; in Jupyter it does
            ok, _ = test_nb(path, skip_flags=['gpu', 'data', 'slow'], basepath=root/'nbs', showerr=True, do_print=False)
            ok = ok and not shown
        except BaseException:
            traceback.print_exc(); ok = False
        sys.stdout.flush(); sys.stderr.flush()
    os._exit(0 if ok else 1)


@pytest.mark.parametrize('path', notebooks, ids=str)
def test_runs_top_to_bottom(path, processes, tmp_path):
    log = tmp_path/'log'
    p = processes.Process(target=_run, args=(root/'nbs'/path, log))
    p.start(); p.join(300)
    if p.is_alive(): p.kill(); pytest.fail(f'{path} ran for more than 300 s')
    assert p.exitcode != -signal.SIGXCPU, f'{path} took more than {LONGEST} s of processor time: mark its long cell `slow` and give it a small twin'
    assert p.exitcode == 0, log.read_text()[-6000:]
