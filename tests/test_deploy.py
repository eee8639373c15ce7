"""ONNX and 8 bits: every system leaves Python with the same numbers, any batch and any size, and comes back as a predictor; bad input is one line."""
import contextlib
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

from visionlab.core.checks import InputError
from visionlab.training.checkpoint import save_checkpoint

for package in ('onnx', 'onnxruntime', 'onnxscript'): pytest.importorskip(package, reason=f'needs {package}: pip install visionlab[deploy]')
from visionlab.cli.app import main
from visionlab.deploy import onnx as chapter
from visionlab.deploy.onnx import ExportPart
from visionlab.deploy.onnx import OnnxNet
from visionlab.deploy.onnx import any_checkpoint
from visionlab.deploy.onnx import export_onnx
from visionlab.deploy.onnx import onnx_checkpoint
from visionlab.deploy.onnx import onnx_metadata
from visionlab.deploy.onnx import onnx_predictor
from visionlab.deploy.quantize import quantize_onnx
from visionlab.inference.predictor import load_predictor

pytestmark = pytest.mark.xdist_group('deploy')      # the networks are trained once

norm = dict(mean=[.485, .456, .406], std=[.229, .224, .225])


def lively(model):
    g = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-.3, .3, generator=g)
            m.running_var.uniform_(.5, 1.5, generator=g)
    return model.eval()


def make(system, path):
    "A checkpoint of a small network"
    torch.manual_seed(0)
    if system == 'pan':
        from visionlab.pan.config import PANConfig
        from visionlab.pan.learner import pan_model
        config = PANConfig(backbone='resnet18', head='conv1x1', fpem_repeat=1, pretrained=False, test_size=96)
        model, about = pan_model(config), dict(thresholds=dict(min_score=.3))
    elif system == 'segmentation':
        from visionlab.segmentation.config import SegmentationConfig
        from visionlab.segmentation.model import segmentation_model
        config = SegmentationConfig(model='Unet', encoder='resnet18', classes=3, pretrained=False, patch_size=96, train_path=('x',))
        model, about = segmentation_model(config), dict(classes=['sky', 'road', 'car'])
    elif system == 'fots':
        from visionlab.fots.config import FOTSConfig
        from visionlab.fots.learner import fots_model
        config = FOTSConfig(pretrained=False, backbone='resnet18', width=16, reader_width=16, rejector=True, reject_below=.01, test_size=96, train_path=('x',))
        model, about = fots_model(config), {}
        with torch.no_grad(): model.head.out.bias[0] += 4.
    else:
        from visionlab.multilabel.config import MultilabelConfig
        from visionlab.multilabel.model import multilabel_model
        config = MultilabelConfig(images_root='x', model='resnet18', pretrained=False, input_size=64)
        model, about = multilabel_model(config, 3), dict(classes=['heart', 'spade', 'star'], thresholds=dict(heart=.3))
    save_checkpoint(path, system=system, config=vars(config), model=lively(model).state_dict(), normalisation=norm, input_size=96, **about)
    return path


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "System -> (checkpoint, what `export_onnx` gave), made once"
    folder, made = tmp_path_factory.mktemp('deploy'), {}
    def get(system):
        if system not in made:
            path = make(system, folder/f'{system}.pth')
            made[system] = path, export_onnx(path, dynamic_size=True)
        return made[system]
    return get


def image(seed=0, size=(110, 140)):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (size[0]//10, size[1]//10, 3)), np.ones((10, 10, 1))).astype(np.uint8)


systems = ('pan', 'segmentation', 'multilabel', 'fots')


@pytest.mark.parametrize('system', systems)
def test_same_numbers_at_any_size(exported, system):
    path, done = exported(system)
    for f in done.files: assert f['dynamic'] and f['difference'] <= 1e-4*max(1, f['largest']) and f['path'].stat().st_size == f['bytes']
    net, exported_net = load_predictor(path, 'cpu').model, onnx_checkpoint(done.path)['network']
    for shape in ((1, 3, 96, 96), (2, 3, 131, 101), (5, 3, 64, 160)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.no_grad(): want, got = net(x), exported_net(x)
        want, got = ([o] if isinstance(o, torch.Tensor) else [t for t in o[:4]] for o in (want, got))
        for w, g in zip(want, got): assert w.shape == g.shape and (w - g).abs().max() <= 1e-4*max(1, float(w.abs().max()))


@pytest.mark.parametrize('system', systems)
def test_same_answers(exported, system):
    path, done = exported(system)
    more = dict(min_score=.01) if system == 'fots' else {}
    before, after = load_predictor(path, 'cpu', **more), onnx_predictor(done.path, **more)
    for a, b in zip(before([image(1), image(2, (90, 200))], 2), after([image(1), image(2, (90, 200))], 2)):
        if system == 'multilabel': np.testing.assert_allclose(b.logits, a.logits, atol=1e-4)
        elif system == 'segmentation': assert (a.mask == b.mask).mean() > .999
        else:
            assert len(a) == len(b)
            for p, q in zip(a.polygons, b.polygons): np.testing.assert_allclose(p, q, atol=.1)
        if system == 'fots': assert a.texts == b.texts and abs(a.any_text - b.any_text) < 1e-4 and len(a)


def test_metadata(exported):
    about = onnx_metadata(exported('multilabel')[1].path)
    assert about['classes'] == ['heart', 'spade', 'star'] and about['thresholds'] == dict(heart=.3) and about['normalisation'] == norm and about['system'] == 'multilabel'
    assert about['parity']['largest_difference'] <= 1e-4*max(1, about['parity']['largest_output'])
    import onnx
    raw = {p.key: p.value for p in onnx.load(str(exported('multilabel')[1].path)).metadata_props}      # other programs read them as JSON
    assert json.loads(raw['classes']) == about['classes'] and raw['system'] == 'multilabel'


@pytest.mark.parametrize('made, said', [('99', r"'new.onnx' was written by visionlab \S+, which is newer than this one .*: update to read it"), ('"1"', "'new.onnx' is damaged: its format_version is '\"1\"'")])
def test_a_file_of_another_format(exported, tmp_path, monkeypatch, made, said):
    import onnx
    monkeypatch.chdir(tmp_path)
    model = onnx.load(str(exported('multilabel')[1].path))
    next(p for p in model.metadata_props if p.key == 'format_version').value = made
    onnx.save(model, 'new.onnx')
    with pytest.raises(InputError, match=said): onnx_predictor('new.onnx')


def test_parts_of_a_spotter(exported):
    path, done = exported('fots')
    assert [f['path'].name for f in done.files] == ['fots.onnx', 'fots.reader.onnx', 'fots.rejector.onnx']
    with pytest.raises(InputError, match='only the reader'): onnx_checkpoint(done.files[1]['path'])
    quiet = onnx_predictor(done.path, reject_below=1.)(image())
    assert quiet.skipped and not len(quiet)
    reader = OnnxNet(done.files[1]['path'])
    net = load_predictor(path, 'cpu').model.reader
    words, widths = torch.randn(7, 32, 8, 61), torch.tensor([61, 1, 5, 30, 60, 17, 2])
    words = words*(torch.arange(61) < widths[:, None])[:, None, None]     # straightened words end in zeros
    with torch.no_grad(): pairs = zip(reader(words, widths), net(words, widths), widths)
    for a, b, n in pairs: torch.testing.assert_close(a[:n], b[:n], atol=1e-4, rtol=1e-4)     # what lies beyond a word means nothing


def test_missing_part_is_one_line(exported, tmp_path):
    _, done = exported('fots')
    (tmp_path/'alone.onnx').write_bytes(done.path.read_bytes())
    with pytest.raises(InputError, match='alone.reader.onnx') as e: onnx_predictor(tmp_path/'alone.onnx')
    assert '\n' not in str(e.value)


class OneSize(nn.Module):
    "A table of positions: images of one size only"
    def __init__(self):
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(4, 20, 24))
    def forward(self, x): return self.conv(x) + self.table


def test_a_network_of_one_size():
    "Free sizes fail, a fixed one does not, and a wrong image is one line"
    part = ExportPart(OneSize().eval(), (2, 3, 33, 21), fixed=(2, 3, 20, 24))
    proto, worst, _, dynamic = chapter._exported(part, None, 18, 1e-4)
    assert not dynamic and worst < 1e-5
    net, x = OnnxNet(proto.SerializeToString()), torch.randn(5, 3, 20, 24)
    with torch.no_grad(): torch.testing.assert_close(net(x), part.model(x))
    with pytest.raises(InputError, match='needs the shape'): net(torch.zeros(1, 3, 24, 24))
    with pytest.raises(InputError, match='fixed') as e: chapter._exported(part, True, 18, 1e-4)
    assert '\n' not in str(e.value)


def test_a_wrong_trace_is_noticed():
    "A network that remembers its size in Python gives a graph for that size; the comparison must say so"
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
        def forward(self, x): return self.conv(x)*torch.tensor(float(int(x.shape[2] > 20)) + 1)
    part = ExportPart(Remembers().eval(), (2, 3, 16, 24))
    with pytest.raises(Exception): chapter._proven(part, part.example, part.dynamic, 18, 1e-4)


@pytest.mark.parametrize('what, said', [('text', 'no ONNX model'), ('foreign', 'not one that visionlab exported'), ('empty', 'no ONNX model'), ('none', 'no file')])
def test_files_that_are_none(exported, tmp_path, what, said):
    p = tmp_path/'x.onnx'
    if what == 'text': p.write_text('buy milk')
    if what == 'empty': p.write_bytes(b'')
    if what == 'foreign':
        import onnx
        model = onnx.load(str(exported('multilabel')[1].path))
        del model.metadata_props[:]
        onnx.save(model, str(p))
    with pytest.raises(InputError, match=said) as e: any_checkpoint(p)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('kw, said', [(dict(path='model.bin'), 'ends in .onnx'), (dict(tolerance=0), 'above 0'), (dict(opset=9), 'at least 13')])
def test_bad_arguments(exported, kw, said):
    with pytest.raises(InputError, match=said): export_onnx(exported('multilabel')[0], **kw)


def test_missing_package_is_one_line(monkeypatch):
    def absent(name, *args): raise ModuleNotFoundError(f'No module named {name!r}', name=name.split('.')[0])
    monkeypatch.setattr(chapter.importlib, 'import_module', absent)
    with pytest.raises(InputError, match=r"pip install 'visionlab\[deploy\]'"): chapter.deploy_package('onnxruntime.quantization', 'quantisation')


@pytest.mark.parametrize('system', systems)
def test_int8(exported, tmp_path, system):
    _, done = exported(system)
    report = quantize_onnx(done.path, [image(i) for i in range(10)], tmp_path/'small.onnx', n_images=6)
    assert report.sizes[1] < .4*report.sizes[0] and report.images == 6 and report.unseen == 4 and report.error < .5 and report.times[1] > 0
    answer = onnx_predictor(report.path)(image(11))
    if system == 'multilabel': np.testing.assert_allclose(answer.logits, onnx_predictor(done.path)(image(11)).logits, atol=.3)
    with pytest.raises(InputError, match='already'): quantize_onnx(report.path, [image(), image(1)])


def test_int8_keeps_the_last_layers(exported, tmp_path):
    import onnx
    _, done = exported('fots')
    report = quantize_onnx(done.path, [image(i) for i in range(4)], tmp_path/'kept.onnx')
    graph = onnx.load(str(report.path)).graph
    bytes_ = {o for n in graph.node if n.op_type == 'DequantizeLinear' for o in n.output}
    floats = [n for n in graph.node if n.op_type == 'Conv' and n.input[1] not in bytes_]
    assert len(floats) == 2     # the six maps, and the features to read from
    for bad, said in ((dict(keep=('decoder',)), 'no node'), (dict(output=done.path), 'itself'), (dict(n_images=0), 'at least 1')):
        with pytest.raises(InputError, match=said): quantize_onnx(done.path, [image(), image(1)], **{'output': tmp_path/'q.onnx', **bad})


def run(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err: code = main([str(w) for w in words])
    return code, out.getvalue(), err.getvalue()


def test_commands(exported, tmp_path):
    "export with int8, evaluate and predict on the files"
    from visionlab.datasets.toy_digits import make_toy_digits
    from visionlab.multilabel.config import MultilabelConfig
    from visionlab.multilabel.model import multilabel_model
    toy = make_toy_digits(tmp_path/'toy', n_train=12, n_test=8, digits=3)
    config = MultilabelConfig(images_root=f'{toy}/train', model='resnet18', pretrained=False, input_size=64)
    save_checkpoint(tmp_path/'best.pth', system='multilabel', config=vars(config), model=lively(multilabel_model(config, 3)).state_dict(), classes=['0', '1', '2'], normalisation=norm, input_size=64)
    code, out, err = run('export', tmp_path/'best.pth', '--output', tmp_path/'m.onnx', '--int8', '--images', f'{toy}/train', '--data', f'{toy}/test')
    assert code == 0 and 'any size' in out and 'mAP' in out and (tmp_path/'m.int8.onnx').is_file(), err
    for f in ('m.onnx', 'm.int8.onnx'):
        assert run('evaluate', tmp_path/f, '--data', f'{toy}/test', '--save', tmp_path/f'{f}.json')[0] == 0
    assert run('predict', tmp_path/'m.int8.onnx', '--source', f'{toy}/test', '--output-dir', tmp_path/'p')[0] == 0 and (tmp_path/'p/predictions.jsonl').is_file()
    code, out, err = run('prune', tmp_path/'best.pth', '--sparsity', .5, '--data', f'{toy}/test')
    assert code == 0 and '--finetune-checkpoint' in out and 'multiplications' in out and (tmp_path/'best.pruned.pth').is_file(), err
    for line, said in {'export best.pth --int8': '--images', 'export best.pth --sizes large': 'sizes', 'export best.pth --int8 --images nowhere': 'nowhere', 'prune best.pth --sparsity 1': 'below 1', 'prune best.pth --skip neck': 'no part', 'prune m.onnx': 'no checkpoint'}.items():
        words = [tmp_path/w if w.endswith(('.pth', '.onnx')) else w for w in line.split()]
        code, _, err = run(*words)
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1, (line, err)


def test_numbers_that_are_not_finite_are_no_parity():
    from visionlab.deploy.onnx import _exported
    from visionlab.deploy.prune import prune_model
    sick = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 4, 1))
    with torch.no_grad(): sick[1].bias[2] = float('nan')
    with pytest.raises(InputError, match='not finite'): _exported(ExportPart(sick, (2, 3, 17, 19), fixed=(2, 3, 17, 19)), None, 18, 1e-4)
    with pytest.raises(InputError, match='cannot be pruned'): prune_model(sick, torch.randn(2, 3, 9, 9))


def test_one_size_fits_no_spotter(tmp_path):
    "A spotter keeps the shape of its images: a file for one size would answer none"
    from visionlab.deploy.onnx import _exported
    with pytest.raises(InputError, match='leave dynamic_size=False'): _exported(ExportPart(torch.nn.Conv2d(3, 4, 1), (2, 3, 17, 19)), False, 18, 1e-4)


@pytest.mark.parametrize('device', ['banana', 'mps', 'cuda:x'])
def test_devices_that_onnxruntime_has_not(device):
    with pytest.raises(InputError, match='"device"'): OnnxNet(b'', device=device)


def test_a_checkpoint_is_not_pruned_onto_itself(tmp_path, monkeypatch):
    "By whatever name it is called"
    from visionlab.deploy.prune import pruned_path
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'x.pth').touch()
    (tmp_path/'other.pth').symlink_to(tmp_path/'x.pth')
    for name in ('~/x.pth', tmp_path/'x.pth', tmp_path/'other.pth', tmp_path/'a/../x.pth'):
        with pytest.raises(InputError, match='is the checkpoint'): pruned_path(tmp_path/'x.pth', name)
    assert pruned_path('~/x.pth') == tmp_path/'x.pruned.pth' and pruned_path({}, '~/y.pth') == tmp_path/'y.pth'
