"""What two tools find in the exported library without running it: names that nobody uses or defines (ruff), values of a type that does not fit (mypy)."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent


def test_ruff():
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', 'visionlab', 'tests', 'nbs/_site', 'setup.py'], cwd=root, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-1000:]


def test_types(tmp_path):
    r = subprocess.run([sys.executable, '-m', 'mypy', '--config-file', '.mypy.ini', '--cache-dir', str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-1000:]


@pytest.mark.parametrize('tool, code, said', [(('ruff', 'check', '--no-cache', '--config', '.ruff.toml'), 'import os\n', 'F401'), (('ruff', 'check', '--no-cache', '--config', '.ruff.toml'), 'print(missing)\n', 'F821'),
                                              (('mypy', '--config-file', '.mypy.ini'), 'def f(x: int) -> str: return x\n', 'return-value'), (('mypy', '--config-file', '.mypy.ini'), 'def f(x: int): pass\nf("a")\n', 'arg-type')])
def test_they_do_find_something(tool, code, said, tmp_path):
    (tmp_path/'wrong.py').write_text(code)
    r = subprocess.run([sys.executable, '-m', *tool, *(['--cache-dir', str(tmp_path/'cache')] if tool[0] == 'mypy' else []), str(tmp_path/'wrong.py')], cwd=root, capture_output=True, text=True)
    assert r.returncode == 1 and said in r.stdout


def undocumented(path):
    "Parameters of public functions without a comment of their own, and public things without a docstring"
    text = path.read_text(encoding='utf-8')
    lines = text.splitlines()

    def without(f, name, skip=0):
        a = f.args
        args = [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ('self', 'cls')]
        for x in args[skip:]:
            if '#' not in lines[x.end_lineno - 1].split(x.arg, 1)[-1]: yield f'{name}: `{x.arg}` has no comment'

    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
            if not ast.get_docstring(node) and not (patched and node.name.startswith('_')): yield f'{node.name} has no docstring'
            yield from without(node, node.name, skip=0)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            if not ast.get_docstring(node): yield f'{node.name} has no docstring'
            for f in node.body:
                if isinstance(f, ast.FunctionDef) and f.name == '__init__': yield from without(f, f'{node.name}.__init__')


@pytest.mark.parametrize('path', sorted(p for p in (root/'visionlab').rglob('*.py') if p.name not in ('_modidx.py', '__init__.py')), ids=lambda p: str(p.relative_to(root/'visionlab')))
def test_every_parameter_says_what_it_is(path):
    found = list(undocumented(path))
    assert not found, '\n'.join(found)
