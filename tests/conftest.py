"""What all tests share: a quiet albumentations, no display, new processes, and the data sets beside this repository where they are."""
import multiprocessing
import multiprocessing.forkserver
import os
from pathlib import Path
import pytest

os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'
os.environ['MPLBACKEND'] = 'Agg'


@pytest.fixture(scope='session')
def shared() -> Path:
    "The folder `shared` beside the repository, with data and golden numbers; skips the test where there is none"
    folder = Path(__file__).resolve().parents[2]/'shared'
    if not (folder/'data').is_dir(): pytest.skip(f"needs the data sets in '{folder}'")
    return folder


@pytest.fixture(scope='session')
def processes():
    """
    New processes in a tenth of a second: forked from a server that has imported everything and done nothing.
    A fork of the tests' own process will not do: once torch has computed gradients there with a GPU in sight (fake tensors, as `torch.export` makes them, are enough), no fork of it can.
    """
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['albumentations', 'fastai.vision.all', 'matplotlib.pyplot', 'torchvision', 'visionlab.cli.app', 'visionlab.training.learner', 'visionlab.datasets.loaders'])
    multiprocessing.forkserver.ensure_running()
    return ctx
