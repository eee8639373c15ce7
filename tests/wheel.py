"""The wheel in an environment of its own: no development extras, the newest fastai and fastcore, outside the tree. `make wheel` runs it; it needs a network, some GB of disk and minutes, so `make test` does not."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent


def run(*words, **kwargs):
    r = subprocess.run([str(w) for w in words], capture_output=True, text=True, **kwargs)
    assert r.returncode == 0, f'{" ".join(map(str, words))}\n{r.stdout[-3000:]}{r.stderr[-5000:]}'
    return r.stdout


@pytest.fixture(scope='module')
def second(tmp_path_factory):
    "Python of a fresh environment that has the wheel and what it asks for"
    home = tmp_path_factory.mktemp('wheel')
    reached = subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', home/'probe', 'fastcore'], capture_output=True, text=True)
    if reached.returncode: pytest.skip(f'needs a package index, and pip cannot reach one: {reached.stderr.strip().splitlines()[-1]}')
    for name in ('setup.py', 'settings.ini', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md'): (home/'src').mkdir(exist_ok=True); shutil.copy(root/name, home/'src')
    shutil.copytree(root/'visionlab', home/'src/visionlab', ignore=shutil.ignore_patterns('__pycache__'))
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', home/'dist', home/'src')
    run(sys.executable, '-m', 'venv', home/'venv')
    run(home/'venv/bin/pip', 'install', '-q', '--no-compile', next((home/'dist').glob('*.whl')))
    yield home/'venv/bin/python'
    shutil.rmtree(home, ignore_errors=True)      # some GB


def test_the_newest_engine(second):
    out = run(second, '-c', 'from importlib.metadata import version; print(version("fastai"), version("fastcore"))').split()
    assert tuple(map(int, out[0].split('.')[:2])) >= (2, 8) and int(out[1].split('.')[0]) >= 2, out
    assert not [n for n in ('nbdev', 'pytest', 'onnx') if subprocess.run([second, '-c', f'import {n}'], capture_output=True).returncode == 0]


def test_every_system_runs(second, tmp_path):
    for name in ('wheel_run.py', 'ranks.py'): shutil.copy(root/'tests'/name, tmp_path)
    said = run(second, 'wheel_run.py', tmp_path/'out', cwd=tmp_path, env=dict(os.environ, NO_ALBUMENTATIONS_UPDATE='1', MPLBACKEND='Agg'))
    assert 'modules imported' in said and all(f'\n{n}: ' in said for n in ('pan', 'fots', 'segmentation', 'frcnn', 'multilabel')), said


def test_the_command(second, tmp_path):
    said = run(second.with_name('visionlab'), '--help', cwd=tmp_path)
    assert 'SYSTEM is one of' in said and 'multilabel' in said
