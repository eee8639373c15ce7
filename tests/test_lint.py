"""What two tools find in the exported library without running it: names that nobody uses or defines (ruff), values of a type that does not fit (mypy). What docstrings and comments leave unsaid."""
import ast
import re
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


PATCHED = """from fastcore.basics import patch
class A: pass
class B(A): pass
@patch
def more(self: A, n: int = 1) -> int:
    self.kept = n
    return self.kept
@patch
def wrong(self: A) -> str: return self.more()
B().more(2) + B().kept
B().more('2')
B().less
@patch
def alone() -> int: return 1
"""


def test_types_know_patched_methods(tmp_path):
    (tmp_path/'patched.py').write_text(PATCHED)
    r = subprocess.run([sys.executable, '-m', 'mypy', '--config-file', '.mypy.ini', '--cache-dir', str(tmp_path/'cache'), str(tmp_path/'patched.py')], cwd=root, capture_output=True, text=True)
    found = re.findall(r'patched.py:(\d+): error: .*\[([a-z-]+)\]', r.stdout)
    assert found == [('9', 'return-value'), ('11', 'arg-type'), ('12', 'attr-defined')], r.stdout


CALLED_BY_OTHERS = {'forward', *(f'{w}_{e}' for w in ('before', 'after', 'after_cancel') for e in ('fit', 'epoch', 'train', 'validate', 'batch', 'pred', 'loss', 'backward', 'step')), 'after_create'}   # torch and fastai say what these are
ERROR = re.compile(r'\b[A-Z]\w*(Error|Exception|Interrupt)\b')


def raised(f):
    "What a function raises itself, as it is written; what is passed on with a bare `raise` or raised by a function inside it does not count"
    todo = list(f.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)): continue
        if isinstance(node, ast.Raise) and node.exc: yield ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        todo += ast.iter_child_nodes(node)


def unnamed_error(f, doc):
    "Does it raise, and its docstring names none of the errors? Where an error is made elsewhere, any name will do"
    found = set(raised(f))
    known = {e for e in found if ERROR.fullmatch(e)}
    said = {m[0] for m in ERROR.finditer(doc or '')}
    return bool(found) and not (said if found - known else said & known)


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
            doc = ast.get_docstring(node)
            if not doc: yield f'{node.name} has no docstring'
            elif node.name not in CALLED_BY_OTHERS and unnamed_error(node, doc): yield f'{node.name}: the docstring does not name what it raises'
            yield from without(node, node.name, skip=0)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            if not ast.get_docstring(node): yield f'{node.name} has no docstring'
            for f in node.body:
                if not isinstance(f, ast.FunctionDef): continue
                name, doc = f'{node.name}.{f.name}', ast.get_docstring(f)
                if f.name == '__init__': yield from without(f, name)
                if f.name in ('__init__', '__post_init__'): doc = ast.get_docstring(node)      # who makes one reads what the class says
                elif f.name in CALLED_BY_OTHERS or f.name.startswith('_') and (f.name != '__call__' or not doc) or any('.setter' in ast.unparse(d) for d in f.decorator_list): continue
                if not doc: yield f'{name} has no docstring'
                elif unnamed_error(f, doc): yield f'{name}: the docstring does not name what it raises'


@pytest.mark.parametrize('path', sorted(p for p in (root/'visionlab').rglob('*.py') if p.name not in ('_modidx.py', '__init__.py')), ids=lambda p: str(p.relative_to(root/'visionlab')))
def test_every_parameter_says_what_it_is(path):
    found = list(undocumented(path))
    assert not found, '\n'.join(found)


@pytest.mark.parametrize('body, said', [('def f(x=1):\n    "Nothing"\n', 'f: `x` has no comment'), ('def f(): pass\n', 'f has no docstring'),
                                        ('def f():\n    "A number"\n    raise InputError("no")\n', 'f: the docstring does not name what it raises'),
                                        ('def f():\n    "A number, or `TypeError`"\n    raise InputError("no")\n', 'f: the docstring does not name what it raises'),
                                        ('def f():\n    "A number"\n    raise made("no")\n', 'f: the docstring does not name what it raises'),
                                        ('class C:\n    "A thing"\n    @property\n    def p(self): return 1\n', 'C.p has no docstring'),
                                        ('class C:\n    "A thing"\n    def m(self):\n        "A number"\n        raise InputError("no")\n', 'C.m: the docstring does not name what it raises'),
                                        ('class C:\n    "A thing"\n    def __init__(self): raise InputError("no")\n', 'C.__init__: the docstring does not name what it raises')])
def test_what_is_unsaid_is_found(body, said, tmp_path):
    (tmp_path/'m.py').write_text(body)
    assert list(undocumented(tmp_path/'m.py')) == [said]


@pytest.mark.parametrize('body', ['def f():\n    "A number, or `InputError`"\n    raise InputError("no")\n', 'def f():\n    "A number, or `InputError`"\n    raise made("no")\n',
                                  'def f():\n    "A number"\n    try: g()\n    except OSError: raise\n', 'class C:\n    "A thing"\n    def forward(self): raise InputError("no")\n    def _p(self): pass\n'])
def test_what_is_said_is_left_alone(body, tmp_path):
    (tmp_path/'m.py').write_text(body)
    assert list(undocumented(tmp_path/'m.py')) == []
