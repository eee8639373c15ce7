"""The Tab key, asked for real in bash, and a help that fits a small screen."""
import shutil
import subprocess

import pytest
from visionlab.cli.app import main
from visionlab.core.systems import system_names


@pytest.fixture
def done(capsys):
    "Run a command that must succeed, and give what it prints"
    def go(*words):
        assert main(list(words)) == 0
        return capsys.readouterr().out
    return go


@pytest.fixture
def refused(capsys):
    "Run a command that must be refused, and give the line that says why"
    def go(*words):
        assert main(list(words)) == 2
        return capsys.readouterr().err
    return go


def completed(line, script):
    "What bash offers for the last word of a line"
    words = line.split(' ')
    code = 'source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _visionlab; printf "%s\\n" "${COMPREPLY[@]}"'
    return subprocess.run(['bash', '-c', code, 'bash', str(script), *words], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')
def test_completion_in_bash(done, tmp_path):
    script = tmp_path/'visionlab.bash'
    script.write_text(done('completion', 'bash'))
    offers = lambda line: completed(line, script)
    assert offers('visionlab ') == 'train check demo evaluate predict export prune convert completion'.split() and offers('visionlab ex') == ['export']
    assert offers('visionlab train ') == offers('visionlab demo ') == system_names() and offers('visionlab train fr') == ['frcnn'] and offers('visionlab completion f') == ['fish']
    assert offers('visionlab train pan --back') == ['--backbone'] and offers('visionlab train pan --no-pre') == ['--no-pretrained']
    assert offers('visionlab train frcnn --lr 1e-3 --anchor-s') == ['--anchor-scales'] and '--anchor-scales' not in offers('visionlab train pan --')
    assert offers('visionlab predict best.pth --conf-') == ['--conf-thres'] and offers('visionlab train pan x') == []      # no word of ours: bash offers files
    said = subprocess.run(['bash', '-c', 'source "$1"; complete -p visionlab', 'bash', str(script)], capture_output=True, text=True, check=True).stdout
    assert '-F _visionlab' in said and '-o default' in said


def test_completion_in_other_shells(done, refused):
    fish, zsh = done('completion', 'fish'), done('completion', 'zsh')
    assert all(any(l.startswith('complete -c visionlab ') and f'from {n}' in l and '--batch-size' in l for l in fish.splitlines()) for n in system_names())
    assert 'bashcompinit' in zsh and zsh.endswith(done('completion', 'bash'))
    assert 'Did you mean' in refused('completion', 'bahs') and 'needs SHELL' in refused('completion')


def test_help_fits_a_small_screen(done):
    lines = done('--help').splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and all(any(l.startswith(f'  {n} ') for l in lines) for n in system_names())
