"""What all tests share: a quiet albumentations, no display, and the data sets beside this repository where they are."""
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
