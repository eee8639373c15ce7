"""The rules of the house: who may import whom, unique names, notebooks in step with modules, known directives, every chapter in the sidebar."""
import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
nbs = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(x[0] in '._' for x in p.relative_to(root/'nbs').parts))
modules = sorted(p for p in (root/'visionlab').rglob('*.py') if p.name != '_modidx.py')

# Who lives on which floor. A folder may import folders of lower floors, and lower-numbered chapters of its own.
floors = {'core': 0, 'geometry': 1, 'blocks': 1, 'datasets': 2, 'metrics': 2, 'training': 3, 'inference': 3, 'deploy': 3,
          'pan': 4, 'fots': 4, 'segmentation': 4, 'frcnn': 4, 'multilabel': 4, 'cli': 5}
directives = {'default_exp', 'export', 'exports', 'exporti', 'hide', 'eval', 'echo', 'output', 'gpu', 'data', 'slow', 'warning', 'code-fold', 'fig-cap', 'label'}


def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def code(nb): return [''.join(c['source']) for c in cells(nb) if c['cell_type'] == 'code']
def default_exp(nb):
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(code(nb)), re.M)
    return m and m[1]


def imports(path):
    "Modules of the package that a module imports, also inside functions, as dotted names"
    package = ['visionlab', *path.relative_to(root/'visionlab').with_suffix('').parts][:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1]
            yield '.'.join([*base, node.module or ''])
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('visionlab'): yield node.module
        elif isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.startswith('visionlab'))


def chapter_number():
    "Module -> order number of its notebook"
    out = {}
    for nb in nbs:
        m, d = re.match(r'(\d+)[a-z]?_', nb.name), default_exp(nb)
        if d: out[d] = int(m[1]) if m else 99
    return out


def test_floors():
    numbers, wrong = chapter_number(), []
    for path in modules:
        rel = path.relative_to(root/'visionlab').with_suffix('')
        if len(rel.parts) < 2: continue
        me, mine = rel.parts[0], '.'.join(rel.parts)
        for target in imports(path):
            parts = target.split('.')[1:]
            if not parts or parts == ['']: continue
            other = parts[0]
            assert other in floors, f'{path}: imports unknown folder {target}'
            if other == me:
                if numbers.get('.'.join(parts), 0) >= numbers.get(mine, 99) and '.'.join(parts) != mine and rel.name != '__init__': wrong.append(f'{mine} imports the later {target}')
            elif floors[other] >= floors[me]: wrong.append(f'{mine} imports {target}, which is not below it')
    assert not wrong, '\n'.join(wrong)


def test_public_names_are_unique():
    seen = Counter()
    for path in modules:
        if path.name == '__init__.py': continue
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
            if not any(re.search('patch|dispatch', ast.unparse(d)) for d in node.decorator_list): seen[node.name] += 1
    assert not [n for n, k in seen.items() if k > 1]


def test_modules_are_in_step(tmp_path):
    "What the notebooks export is what is in the package, module for module"
    from nbdev.export import nb_export
    for nb in nbs:
        d = default_exp(nb)
        if not d: continue
        nb_export(str(nb), lib_path=str(tmp_path/'visionlab'))
        f = d.replace('.', '/') + '.py'
        assert (tmp_path/'visionlab'/f).read_text() == (root/'visionlab'/f).read_text(), f'{nb.name} and visionlab/{f} differ: run `make prepare`'


def test_no_orphan_modules():
    made = {d.replace('.', '/') + '.py' for d in map(default_exp, nbs) if d}
    assert len(made) == len([d for d in map(default_exp, nbs) if d]), 'two notebooks write the same module'
    left = {str(p.relative_to(root/'visionlab')) for p in modules} - made
    empty = {p for p in left if p.endswith('__init__.py') and len((root/'visionlab'/p).read_text().strip().splitlines()) <= 1}
    assert left == empty, f'modules without a notebook: {sorted(left - empty)}'


@pytest.mark.parametrize('nb', nbs, ids=lambda p: str(p.relative_to(root/'nbs')))
class TestChapter:
    def test_folder_file_and_module_agree(self, nb):
        d = default_exp(nb)
        if not d: return
        folder = nb.parent.relative_to(root/'nbs').as_posix()
        name = '__init__' if nb.stem == 'index' else re.sub(r'^\d+[a-z]?_', '', nb.stem)
        assert d == f'{folder}.{name}'.replace('/', '.')

    def test_title_and_summary(self, nb):
        first = cells(nb)[0]
        assert first['cell_type'] == 'markdown' and re.match(r'# .+\n+> .+', ''.join(first['source'])), 'the first cell holds `# Title` and `> summary`'

    def test_directives_are_known(self, nb):
        for src in code(nb):
            for d in re.findall(r'^#\|\s*([\w-]+)', src, re.M): assert d in directives, f'unknown directive #| {d}'

    def test_is_prose_as_well(self, nb):
        all_ = cells(nb)
        prose, run = [c for c in all_ if c['cell_type'] == 'markdown'], [c for c in all_ if c['cell_type'] == 'code']
        assert len(prose) >= .3*len(run), 'a chapter explains itself'

    def test_exported_cells_are_short(self, nb):
        for src in code(nb):
            if re.search(r'^#\|\s*exports?\b', src, re.M): assert len([l for l in src.splitlines() if l.strip()]) <= 60

    def test_outputs_are_clean(self, nb):
        text = nb.read_text(encoding='utf-8')
        assert len(text) < 1_500_000
        for c in cells(nb):
            for o in c.get('outputs', []):
                assert o['output_type'] != 'error', 'a saved error'
                shown = ''.join(o.get('text', [])) + ''.join(o.get('data', {}).get('text/plain', []))
                assert not re.search(r'(/home/|/root/|/tmp/|/work/|Warning:|it/s\])', shown), shown[:300]


def test_sidebar_lists_every_chapter():
    sys.path.insert(0, str(root/'nbs/_site'))
    import build
    assert build.check_sidebar() == []


def test_front_doors_are_light():
    "`from visionlab.pan import PANLoss` loads torch and what the loss needs, nothing heavy"
    heavy = 'fastai torchvision albumentations cv2 matplotlib segmentation_models_pytorch sklearn tyro shapely'.split()
    out = subprocess.run([sys.executable, '-c', f'from visionlab.pan import PANLoss; import sys; print([m for m in {heavy!r} if m in sys.modules])'],
                         capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


def test_no_machine_paths():
    out = subprocess.run(['git', 'grep', '-nE', r'(/work/|/home/[a-z]|/root/|/tmp/[a-z0-9]+/)', '--', 'nbs', 'visionlab', 'README.md', 'docs/*.html', '*.md'],
                         cwd=root, capture_output=True, text=True)
    lines = [l for l in out.stdout.splitlines() if 'docs/assets' not in l]
    assert not lines, '\n'.join(l[:200] for l in lines[:5])
