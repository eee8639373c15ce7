"""Core: what would interrupt the story of its four chapters. Kills, full disks, installed packages, long command lines"""
import errno, json, os, random, signal, stat, subprocess, sys, textwrap, threading, time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
import numpy as np
import pytest
import visionlab
from visionlab.core.checks import (InputError, MissingPathError, check_choice, check_device, check_file, check_folder, check_range,
                                   check_shape, nearest)
from visionlab.core.config import check_fields, field_help, from_dict, load_config, parse_args, replace_config, save_config, to_dict
from visionlab.core.files import WriteError, atomic_path, list_images, read_json, read_lines, write_json
from visionlab.core.systems import find_system, system_names

ROOT = Path(visionlab.__file__).parents[1]


def python(code, *args, **kw):
    "Run a piece of Python in a process of its own"
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, cwd=ROOT, **kw)


def litter(folder): return [f for f in os.listdir(folder) if '.tmp' in f]


# --- imports

@pytest.mark.parametrize('module', ['checks', 'files', 'config', 'systems'])
def test_core_imports_nothing_heavy(module):
    r = python(f"import sys, visionlab.core.{module}; print([m for m in ('torch', 'cv2', 'tyro', 'fastai', 'matplotlib', 'fastcore') if m in sys.modules])")
    assert r.stdout.strip() == '[]', r.stdout + r.stderr


# --- checks

def test_nearest_ignores_case_dashes_and_underscores():
    assert nearest('Batch-Size', ['batch_size', 'lr']) == 'batch_size'
    assert nearest('', ['lr']) is None and nearest('x', []) is None


@pytest.mark.parametrize('value', [np.float32(.5), np.int32(1), 1, .25])
def test_range_gives_python_numbers(value):
    assert type(check_range('x', value)) is float and check_range('x', value) == float(value)


def test_choice_with_unhashable_and_foreign_values():
    for bad in ([], None, 3):
        with pytest.raises(InputError, match='"kind" is one of'): check_choice('kind', bad, ('quad', 'polygon'))


def test_paths(tmp_path, monkeypatch):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'x.json').write_text('{}')
    monkeypatch.chdir(tmp_path)
    assert check_folder('a') == tmp_path/'a' and check_file('a/x.json') == tmp_path/'a'/'x.json'
    monkeypatch.setenv('HOME', str(tmp_path))
    assert check_folder('~/a') == tmp_path/'a'
    with pytest.raises(FileNotFoundError) as e: check_file('a/y.json')
    assert str(tmp_path/'a'/'y.json') in str(e.value) and 'x.json' in str(e.value) and isinstance(e.value, InputError)
    with pytest.raises(MissingPathError): check_folder('\0')


def test_device_there_and_not_there():
    import torch
    assert check_device(torch.device('cpu')) == torch.device('cpu')
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(InputError, match='this machine has no'): check_device(f'cuda:{n}')
    with pytest.raises(InputError, match='"device" is one of'): check_device('gpu')
    with pytest.raises(InputError, match='"device" is one of'): check_device(None)
    if not n:
        with pytest.raises(InputError, match="no 'cuda', it has 'cpu'"): check_device('cuda')


def test_shape_of_tensors_and_arrays():
    import torch
    assert check_shape('t', torch.zeros(2, 6, 4, 8), 'B,6,H,W') == dict(B=2, H=4, W=8)
    assert check_shape('t', torch.zeros(1, 2, 3, 3), '...,N,N') == dict(N=3)
    for shape in ('B,6,H', 'B,6,H,W,X', '...,6,B,H,W,X', 'H,H,B,W'):
        with pytest.raises(InputError): check_shape('t', torch.zeros(2, 6, 4, 8), shape)


# --- files

def test_lines_of_many_kinds(tmp_path):
    f = tmp_path/'gt.txt'
    for data, want in {b'': [], b'\n': [''], b'a': ['a'], b'a\r\n\r\nb': ['a', '', 'b'], b'\xef\xbb\xbfa,b\r\n': ['a,b'], 'é\u2028x\n'.encode(): ['é\u2028x'], b'\xe9\x85z': ['é\x85z']}.items():
        f.write_bytes(data)
        assert read_lines(f) == want
    with pytest.raises(InputError, match='is a folder'): read_lines(tmp_path)


def test_json_that_is_none(tmp_path):
    f = tmp_path/'a.json'
    for data in (b'', b'{', b'[' * 100_000, b'\x89PNG'):
        f.write_bytes(data)
        with pytest.raises(InputError, match='a.json'): read_json(f)


def test_json_goes_round(tmp_path):
    obj = dict(a=[1, 2.5, None, True], b={'ü': 'x'}, c=np.arange(3), d=Path('e'))
    write_json(tmp_path/'deep'/'er'/'a.json', obj)
    assert read_json(tmp_path/'deep'/'er'/'a.json') == dict(a=[1, 2.5, None, True], b={'ü': 'x'}, c=[0, 1, 2], d='e')


def test_list_images_survives_a_link_to_itself(tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'1.jpg').touch()
    (tmp_path/'a'/'loop').symlink_to(tmp_path, target_is_directory=True)
    assert (tmp_path/'a'/'1.jpg') in list_images(tmp_path)
    with pytest.raises(MissingPathError): list_images(tmp_path/'none')


def test_a_device_that_is_really_full(tmp_path):
    f = tmp_path/'a.bin'
    f.write_bytes(b'old')
    with pytest.raises(WriteError, match='disk is full') as e:
        with atomic_path(f) as p:
            p.write_bytes(b'part')
            with open('/dev/full', 'wb') as full: full.write(bytes(100_000))
    assert f.read_bytes() == b'old' and not litter(tmp_path) and str(f) in str(e.value)
    assert isinstance(e.value, InputError) and isinstance(e.value, OSError)


def test_full_only_at_the_very_end(tmp_path, monkeypatch):
    "Some file systems notice at fsync"
    f = tmp_path/'a.bin'
    f.write_bytes(b'old')
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(WriteError, match='disk is full'):
        with atomic_path(f) as p: p.write_bytes(b'new')
    assert f.read_bytes() == b'old' and not litter(tmp_path)


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    "FUSE and SMB refuse; the new file is in its place by then"
    f, real = tmp_path/'a.json', os.fsync
    def no_folders(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(errno.EINVAL, 'Invalid argument')
        real(fd)
    monkeypatch.setattr(os, 'fsync', no_folders)
    write_json(f, 'new')
    assert read_json(f) == 'new' and not litter(tmp_path)


def test_litter_that_may_not_be_removed_is_left(tmp_path, monkeypatch):
    f, old = tmp_path/'a.json', tmp_path/'.a.0123abcd.tmp.json'
    old.touch()
    os.utime(old, (0, 0))
    def refuse(*args, **kwargs): raise PermissionError(errno.EPERM, 'not permitted')
    with monkeypatch.context() as m:
        for place, name in ((os, 'unlink'), (os, 'remove'), (Path, 'unlink')): m.setattr(place, name, refuse)
        write_json(f, 'new')
    assert read_json(f) == 'new' and old.exists()


def test_torch_on_a_full_disk(tmp_path, monkeypatch):
    "torch.save raises a RuntimeError with an inner message; the free space tells what it was"
    import visionlab.core.files as files
    f = tmp_path/'a.pth'
    f.write_bytes(b'old')
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda p: type('usage', (), dict(free=4096)))
    with pytest.raises(WriteError, match='disk is full'):
        with atomic_path(f) as p: raise RuntimeError('[enforce fail at inline_container.cc:671] . unexpected pos')
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match='enforce'):
        with atomic_path(f) as p: raise RuntimeError('[enforce fail at inline_container.cc:671] . unexpected pos')
    assert f.read_bytes() == b'old' and not litter(tmp_path)


def test_a_file_size_limit(tmp_path):
    f = tmp_path/'a.json'
    write_json(f, 'old')
    r = python("""
        import resource, sys
        from visionlab.core.files import write_json
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try: write_json(sys.argv[1], 'x'*1_000_000)
        except OSError as e: print(e)
        """, f)
    assert 'larger than this system allows' in r.stdout and 'untouched' in r.stdout, r.stdout + r.stderr
    assert read_json(f) == 'old' and not litter(tmp_path)


def test_a_folder_that_may_not_be_written(tmp_path):
    if os.geteuid() == 0:
        with pytest.raises(WriteError, match='cannot write'): write_json('/proc/visionlab/a.json', 1)
    else:
        tmp_path.chmod(0o500)
        with pytest.raises(WriteError, match='not permitted'): write_json(tmp_path/'a.json', 1)


@pytest.mark.parametrize('moment', ['writing', 'fsync', 'replace', 'after'])
def test_killed_at_each_step(tmp_path, moment):
    f = tmp_path/'a.json'
    write_json(f, ['old']*1000)
    r = python("""
        import os, signal, sys
        import visionlab.core.files as files
        path, moment = sys.argv[1:]
        def die(*a): os.kill(os.getpid(), signal.SIGKILL)
        if moment in ('fsync', 'replace'): setattr(os, moment, die)
        with files.atomic_path(path) as p:
            with open(p, 'w') as f:
                f.write('["new"')
                f.flush()
                if moment == 'writing': die()
                f.write(']')
        die()
        """, f, moment)
    assert r.returncode == -signal.SIGKILL, r.stderr
    assert read_json(f) == (['new'] if moment == 'after' else ['old']*1000)
    assert len(litter(tmp_path)) == (moment != 'after')


def test_killed_at_any_moment(tmp_path):
    "A writer that never stops is shot eight times; the file is always whole, and always one of those it wrote"
    f = tmp_path/'a.json'
    for i in range(8):
        p = subprocess.Popen([sys.executable, '-c', textwrap.dedent("""
            import sys
            from visionlab.core.files import write_json
            for n in range(10**9):
                write_json(sys.argv[1], [n]*20_000)
                if n == 0: print('running', flush=True)
            """), str(f)], stdout=subprocess.PIPE, cwd=ROOT)
        p.stdout.readline()
        time.sleep(random.uniform(0, .05))
        p.kill()
        p.wait()
        p.stdout.close()
        got = read_json(f)
        assert len(got) == 20_000 and len(set(got)) == 1


def test_leftovers_of_a_killed_writer_go_with_time(tmp_path):
    old, new, other = tmp_path/'.a.0badcafe.tmp.json', tmp_path/'.a.0badbabe.tmp.json', tmp_path/'.ab.0badcafe.tmp.json'
    for p in (old, new, other): p.touch()
    for p in (old, other): os.utime(p, (0, 0))
    write_json(tmp_path/'a.json', 1)
    assert not old.exists() and new.exists() and other.exists()


def test_writers_at_the_same_time(tmp_path):
    f = tmp_path/'a.json'
    def work(n):
        for _ in range(10): write_json(f, [n]*2000)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(set(read_json(f))) == 1 and not litter(tmp_path)


def test_permissions_and_links_stay(tmp_path):
    mask = os.umask(0o022)
    try: write_json(tmp_path/'real.json', 1)
    finally: os.umask(mask)
    assert (tmp_path/'real.json').stat().st_mode & 0o777 == 0o644
    (tmp_path/'link.json').symlink_to(tmp_path/'real.json')
    write_json(tmp_path/'link.json', 2)
    assert (tmp_path/'link.json').is_symlink() and read_json(tmp_path/'real.json') == 2


def test_interrupted_by_hand(tmp_path):
    f = tmp_path/'a.txt'
    with pytest.raises(KeyboardInterrupt):
        with atomic_path(f) as p:
            p.write_text('half')
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


# --- config

@dataclass(frozen=True)
class Inner:
    size: int = 3  # Size, px

@dataclass(frozen=True)
class Probe:
    must: int                                # Needed, a count
    lr: float = 1e-3                         # Learning rate, above 0, 100% {of} [it]
    batch_size: int = 16                     # Images a step
    train_path: tuple[str, ...] = ()         # Folders
    ratios: tuple[float, ...] = (1.,)        # Shares
    scale: tuple[float, float] = (.7, 1.3)   # Range
    pin_memory: bool = False                 # Pin?
    shuffle: bool = True                     # Shuffle?
    clip: float | None = None                # Norm, None: off
    amp: bool | None = None                  # Mixed precision, None: by device
    kind: Literal['quad', 'polygon'] = 'quad'  # Result
    folder: Path = Path('output')            # Where to
    name: str = ''                           # Name
    inner: Inner = Inner()                   # A group
    extra: Any = None                        # Anything

    def __post_init__(self):
        check_fields(self)
        check_range('lr', self.lr, above=0)


def cli(*args): return parse_args(Probe, ['--must', '1', *args], prog='probe')

GOOD = [('lr', 1, 1.), ('lr', 1e-5, 1e-5), ('batch_size', 4.0, 4), ('train_path', 'a', ('a',)), ('train_path', ['a', 'b'], ('a', 'b')), ('ratios', [1, 0], (1., 0.)),
        ('ratios', .5, (.5,)), ('scale', [1, 2], (1., 2.)), ('clip', None, None), ('clip', 5, 5.), ('folder', 'x', Path('x')), ('name', Path('x'), 'x'),
        ('inner', {'size': 4}, Inner(4)), ('extra', {'a': [1]}, {'a': [1]}), ('amp', True, True), ('batch_size', np.int64(3), 3)]
BAD = [('lr', 'fast'), ('lr', '0.1'), ('lr', None), ('lr', True), ('batch_size', 2.5), ('batch_size', '4'), ('batch_size', float('nan')), ('pin_memory', 'false'), ('pin_memory', 0), ('scale', [1]),
       ('scale', [1, 2, 3]), ('scale', 1), ('scale', 'ab'), ('train_path', [1]), ('train_path', {'a': 1}), ('kind', 'box'), ('name', 3), ('name', None),
       ('inner', {'size': 'x'}), ('inner', 3), ('folder', 3), ('amp', 'x'), ('lr', 0)]


@pytest.mark.parametrize('key,value,want', GOOD)
def test_values_that_fit(key, value, want):
    got = getattr(from_dict(Probe, {'must': 1, key: value}), key)
    assert got == want and type(got) is type(want)
    assert getattr(Probe(1, **{key: value}), key) == want == getattr(replace_config(Probe(1), **{key: value}), key)


@pytest.mark.parametrize('key,value', BAD)
def test_values_that_do_not_fit(key, value):
    with pytest.raises(InputError) as e: from_dict(Probe, {'must': 1, key: value}, "'a.json'")
    assert ('size' if key == 'inner' and isinstance(value, dict) else key) in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(InputError): Probe(1, **{key: value})


def test_unknown_and_absent_keys():
    with pytest.raises(InputError, match="'a.json': Probe has no setting \"batchsize\". Did you mean 'batch_size'?"): from_dict(Probe, dict(must=1, batchsize=3), "'a.json'")
    with pytest.raises(InputError, match='"must" must be given'): from_dict(Probe, {})
    with pytest.raises(InputError, match='no setting "7"'): from_dict(Probe, {'must': 1, 7: 3})


def test_round_trip_is_plain_json(tmp_path):
    cfg = Probe(2, lr=.1, train_path=('ä', 'b'), scale=(1, 2), clip=3, inner=Inner(9), amp=False)
    d = to_dict(cfg)
    assert json.loads(json.dumps(d)) == d and list(d)[:3] == ['must', 'lr', 'batch_size']
    save_config(cfg, tmp_path/'a.json')
    assert load_config(Probe, tmp_path/'a.json') == cfg


def test_command_line_of_every_kind_of_field():
    assert cli() == Probe(1)
    assert cli('--lr', '1e-5', '--batch_size=4', '--scale', '1', '2', '--train_path', 'a', 'b c', '--ratios', '1', '.5', '--clip', '5', '--kind', 'polygon', '--folder', '/x y', '--inner.size', '7') == \
        Probe(1, lr=1e-5, batch_size=4, scale=(1, 2), train_path=('a', 'b c'), ratios=(1, .5), clip=5, kind='polygon', folder=Path('/x y'), inner=Inner(7))
    assert cli('--clip', 'None', '--amp', 'True').amp is True
    assert cli('--lr', '1', '--lr', '2').lr == 2
    assert cli('--train-path').train_path == ()
    assert cli('--name', '').name == ''
    assert cli('--name=--odd').name == '--odd'


@pytest.mark.parametrize('words,want', [('--pin-memory', True), ('--no-pin-memory', False), ('--pin-memory True', True), ('--pin_memory false', False), ('--pin-memory=1', True), ('--no_pin_memory', False),
                                        ('--pin-memory --lr 1', True), ('--pin_memory=no', False)])
def test_switches(words, want):
    assert cli(*words.split()).pin_memory is want


@pytest.mark.parametrize('words,said', [
    ('--btch-size 3', 'Did you mean --batch-size?'), ('--batch-size x', '"--batch-size" needs a whole number, got \'x\''), ('--batch-size', 'got nothing'), ('--batch-size=', "got ''"),
    ('--scale 1', '2 values'), ('--pin-memory maybe', 'is a switch'), ('--kind box', "one of 'quad', 'polygon'"), ('--kind polgon', "Did you mean 'polygon'?"), ('stray', 'belongs to no option'),
    ('--lr 0', '"lr" must be a number, above 0'), ('-x 3', '"-x" is no option'), ('--', 'is no option'), ('--config', '"--config" needs'), ('--config /none/a.json', "no file '/none/a.json'"),
    ('--inner.siz 3', 'inner.siz'), ('--clip soft', '"--clip" needs a number or None'), ('--lr 1 2', "'2' belongs to no option"), ('--train-path a --train-path b', 'given twice')])
def test_command_line_mistakes_are_one_line(words, said, capfd):
    with pytest.raises(InputError) as e: cli(*words.split())
    assert said in str(e.value) and '\n' not in str(e.value)
    assert capfd.readouterr() == ('', '')


def test_required_option():
    with pytest.raises(InputError, match='must be given: --must'): parse_args(Probe, [], prog='probe')


def test_config_file_below_the_options(tmp_path):
    save_config(Probe(5, lr=.5, pin_memory=True, batch_size=2), tmp_path/'a b.json')
    for words in (['--config', str(tmp_path/'a b.json')], [f"--config={tmp_path/'a b.json'}"]):
        got = parse_args(Probe, [*words, '--lr', '.25', '--no-pin-memory'], prog='probe')
        assert got == Probe(5, lr=.25, pin_memory=False, batch_size=2)
    (tmp_path/'bad.json').write_text('{"must": 1, "lrr": 2}')
    with pytest.raises(InputError, match="bad.json': Probe has no setting \"lrr\". Did you mean 'lr'?"): cli('--config', str(tmp_path/'bad.json'))


def test_defaults_may_be_an_instance():
    assert parse_args(Probe, ['--lr', '2'], prog='probe', default=Probe(3, batch_size=1)) == Probe(3, batch_size=1, lr=2)


def test_help_says_comment_and_default(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit) as e: parse_args(Probe, ['--help'], prog='visionlab train probe', description='Trains a probe.')
    out = capsys.readouterr().out
    assert e.value.code == 0 and 'usage: visionlab train probe' in out and 'Trains a probe.' in out
    for said in ('Learning rate, above 0, 100% {of} [it] (default: 0.001)', 'Needed, a count (required)', 'Folders (default: none)', '--pin-memory, --no-pin-memory', '--config FILE', 'Size, px'): assert said in out, said
    assert field_help(Probe)['clip'] == 'Norm, None: off'


def test_a_hinted_item_in_the_body_of_settings_is_no_field():
    table = {}
    @dataclass(frozen=True)
    class Odd:
        table['x']: int = 3
        a: int = 1   # The one
    assert field_help(Odd) == {'a': 'The one'}


def test_help_from_an_installed_package(tmp_path):
    "A package in a zip-free site folder, run from elsewhere; sixty fields and still quick"
    pkg = tmp_path/'site'/'bigpkg'
    pkg.mkdir(parents=True)
    lines = [f'    opt_{i}: float = {i} # Option {i}, a share of something, 0 to 1\n' for i in range(60)]
    (pkg/'__init__.py').write_text('from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Big:\n' + ''.join(lines))
    code = """
        import time
        from bigpkg import Big
        from visionlab.core.config import parse_args
        start = time.perf_counter()
        try: parse_args(Big, ['--help'], prog='big')
        finally: print('took', time.perf_counter() - start)
        """
    r = python(code, env={**os.environ, 'PYTHONPATH': f"{tmp_path/'site'}{os.pathsep}{ROOT}", 'COLUMNS': '100'})
    assert 'Option 59, a share of something, 0 to 1 (default: 59)' in r.stdout, r.stdout + r.stderr
    assert max(map(len, r.stdout.splitlines())) <= 100


# --- systems

def test_pan_is_registered():
    assert 'pan' in system_names()
    with pytest.raises(InputError, match="no system 'pann'.*Did you mean 'pan'?"): find_system('pann')
