"""The Tab key, asked for real in bash, zsh and fish, and a help that fits a small screen."""
import os
import re
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


@pytest.mark.skipif(not shutil.which('fish'), reason='needs fish')
def test_completion_in_fish(done, tmp_path):
    (tmp_path/'v.fish').write_text(done('completion', 'fish'))
    (tmp_path/'file.txt').touch()
    def offers(line):
        r = subprocess.run(['fish', '--no-config', '-c', 'source v.fish; complete -C $argv[1]', '--', line], capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, 'HOME': str(tmp_path)})
        assert not r.stderr
        return [said.split('\t')[0] for said in r.stdout.splitlines()]
    assert offers('visionlab ') == sorted('train check demo evaluate predict export prune convert completion'.split()) and offers('visionlab ex') == ['export']
    assert offers('visionlab train ') == offers('visionlab demo ') == system_names() and offers('visionlab train fr') == ['frcnn'] and offers('visionlab completion f') == ['fish']
    assert offers('visionlab train pan --back') == ['--backbone'] and offers('visionlab train pan --no-pre') == ['--no-pretrained']
    assert offers('visionlab train frcnn --lr 1e-3 --anchor-s') == ['--anchor-scales'] and '--anchor-scales' not in offers('visionlab train pan --')
    assert offers('visionlab predict train --conf-') == ['--conf-thres'] and 'file.txt' in offers('visionlab train pan --config fi') + offers('visionlab predict ') and 'train' not in offers('visionlab predict ')


@pytest.mark.skipif(not shutil.which('zsh'), reason='needs zsh')
def test_completion_in_zsh(done, tmp_path):
    "Typed into a terminal, with the Tab key behind it"
    import pty
    import select
    (tmp_path/'v.zsh').write_text(done('completion', 'zsh'))
    (tmp_path/'file.txt').touch()
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execvpe('zsh', ['zsh', '-f', '-i'], {**os.environ, 'HOME': str(tmp_path), 'ZDOTDIR': str(tmp_path), 'TERM': 'dumb'})
    def until(said, seconds=60):
        out = ''
        while not re.search(said, out):
            if not select.select([terminal], [], [], seconds)[0]: pytest.fail(f'zsh said nothing more, only {out!r}')
            out += os.read(terminal, 65536).decode(errors='replace')
        return out
    try:
        os.write(terminal, b"PS1=; source v.zsh; setopt no_beep; unsetopt zle_bracketed_paste; echo rea''dy\n")
        until('ready\r')
        def line_of(typed):
            os.write(terminal, f'{typed}\t\x01print -r -- "so: \x05"; echo en\'\'d\n'.encode())       # Ctrl-A and Ctrl-E: to both ends of the line
            return re.search(r'\nso: (.*?)\r', until('\nend\r'))[1].split()
        for typed, whole in (('ex', ['export']), ('train fr', ['train', 'frcnn']), ('train pan --back', ['train', 'pan', '--backbone']), ('train frcnn --lr 1e-3 --anchor-s', ['train', 'frcnn', '--lr', '1e-3', '--anchor-scales']),
                             ('train pan --anchor-s', ['train', 'pan', '--anchor-s']), ('predict best.pth --conf-', ['predict', 'best.pth', '--conf-thres']), ('completion f', ['completion', 'fish']), ('train pan --config fi', ['train', 'pan', '--config', 'file.txt'])):
            assert line_of('visionlab ' + typed) == ['visionlab', *whole]
        os.write(terminal, b'visionlab train \t')
        assert set(re.findall(r'\w+', until('segmentation'))) >= set(system_names())
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_shells_that_are_not_known(refused): assert 'Did you mean' in refused('completion', 'bahs') and 'needs SHELL' in refused('completion')


def test_help_fits_a_small_screen(done):
    lines = done('--help').splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and all(any(l.startswith(f'  {n} ') for l in lines) for n in system_names())
