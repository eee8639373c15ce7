"""`torchrun` with two processes on the CPU: every system ends with equal weights, writes its checkpoints once, resumes exactly, and steps like one process with the doubled batch."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from visionlab.datasets.toy import make_toy_text
from visionlab.training.checkpoint import load_checkpoint

root = Path(__file__).resolve().parent.parent
torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_addr', 'localhost', '--master_port', '0', '--rdzv_backend', 'c10d', '--rdzv_endpoint', 'localhost:0']
pytestmark = pytest.mark.xdist_group('processes')      # one launch serves all tests of this file
quiet = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')} | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(root), NO_ALBUMENTATIONS_UPDATE='1')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    ranks.make_data(folder)
    return folder


@pytest.fixture(scope='module')
def both(data, tmp_path_factory):
    "What the two processes say of themselves, and the folder of their runs"
    out = tmp_path_factory.mktemp('runs')
    r = subprocess.run([*torchrun, str(root/'tests/ranks.py'), str(data), str(out)], env=quiet, capture_output=True, text=True, timeout=1800)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-6000:]
    return [json.loads((out/f'rank{i}.json').read_text()) for i in range(2)], out


@pytest.mark.parametrize('system', ranks.SYSTEMS)
class TestSystem:
    def test_both_end_with_equal_weights_and_one_history(self, both, system):
        first, second = (r[system] for r in both[0])
        assert first['weights'] == second['weights'] and first['history'] == second['history'] and len(first['history']) == 2

    def test_checkpoints_are_written_once(self, both, system):
        first, second = (r[system] for r in both[0])
        assert first['saved'] == 2 and second['saved'] == 0 and first['folder'] == second['folder']
        ck = load_checkpoint(Path(first['folder'])/first['latest'], system)
        assert ranks.fingerprint(ck['model']) == first['weights'] and ck['epoch'] == 2
        assert not [p.name for p in both[1].iterdir() if p.name.startswith(f'{system}-half-')], 'two processes made two folders'

    def test_a_resumed_run_ends_alike(self, both, system):
        for r in both[0]: assert r[system]['resumed'] == r[system]['weights'] and r[system]['epochs'] == 2 and r[system]['resumed_folder'].endswith('-half')

    def test_steps_of_the_doubled_batch(self, both, system, data, tmp_path):
        first, second = (r[system] for r in both[0])
        assert first['steps'] == second['steps']
        got = torch.load(both[1]/f'{system}.steps', weights_only=True)
        start, want = ranks.equal_steps(system, data, tmp_path, 4)
        moved = max((want[k] - start[k]).abs().max().item() for k in want if want[k].is_floating_point())
        assert moved > 1e-4, 'nothing was learnt, so nothing is compared'
        for k in want: torch.testing.assert_close(got[k], want[k], rtol=1e-5, atol=1e-5, msg=lambda m, k=k: f'{k}: {m}')


def test_the_command_line_under_torchrun(data, tmp_path):
    words = ['train', 'multilabel', '--images-root', f'{data}/digits/train', '--val-root', f'{data}/digits/test', '--input-size', '32', '--no-pretrained', '--no-tensorboard', '--epochs', '1',
             '--batch-size', '2', '--num-workers', '0', '--device', 'cpu', '--output-dir', str(tmp_path)]
    r = subprocess.run([*torchrun, '--no-python', str(Path(sys.executable).with_name('visionlab')), *words], env=quiet, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.count('Everything is in') == 1 and r.stdout.count('run folder') == 1 and [p.name for p in tmp_path.iterdir()] == ['multilabel']


def test_ngpus_starts_as_many_processes(tmp_path):
    "The option of FOTS' script, which becomes torchrun with the same command; on a machine without GPUs the processes share the CPU"
    toy = make_toy_text(tmp_path/'toy', n_train=4, n_test=2, size=(96, 96))
    words = f'train fots --ngpus 2 --train-path {toy}/train --val-path {toy}/test --short-side 96 --input-size 96 --test-size 96 --batch-size 2 --epochs 1 --num-workers 0 --backbone shufflenetv2 --width 4 --reader-width 4 --no-pretrained --no-tensorboard --device cpu'
    r = subprocess.run([str(Path(sys.executable).with_name('visionlab')), *words.split(), '--output-dir', str(tmp_path/'out')], env=quiet, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.count('Everything is in') == 1 and r.stdout.count('run folder') == 1 and [p.name for p in (tmp_path/'out').iterdir()] == ['fots']
    ck = load_checkpoint(tmp_path/'out/fots/latest.pth')
    assert ck['config']['ngpus'] == 1 and {int(v['step']) for v in ck['optimizer']['state'].values()} == {1}, 'four images in twos are two steps of one process, and one of two'


def test_started_by_hand_without_torchrun(monkeypatch):
    from visionlab.core.checks import InputError
    from visionlab.training.processes import start_processes
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(InputError, match='start them with torchrun, or unset WORLD_SIZE'): start_processes(torch.device('cpu'))
