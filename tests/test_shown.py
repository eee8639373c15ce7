"""What a notebook shows: samples, batches, targets, predictions, reports and scores draw themselves or are tables, and are text in a terminal."""
import ast
import importlib
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from visionlab.core.files import list_images
from visionlab.datasets.label_folders import check_label_data
from visionlab.datasets.samples import Report, Sample
from visionlab.datasets.toy_digits import make_toy_digits
from visionlab.deploy.onnx import OnnxExport
from visionlab.deploy.prune import PruneReport
from visionlab.deploy.quantize import QuantizeReport
from visionlab.fots.predict import SpottedText
from visionlab.fots.targets import FOTSTargets
from visionlab.frcnn.predict import FRCNNEvaluation, FRCNNResult
from visionlab.inference.words import TextResult
from visionlab.metrics.detection import coco_ap, voc_ap
from visionlab.metrics.multilabel import Calibration, MultilabelScore
from visionlab.metrics.reading import reading_score, spotting_score
from visionlab.metrics.segmentation import ConfusionMatrix, segmentation_score
from visionlab.metrics.text import explain_misses, sweep_score, text_hmean
from visionlab.multilabel import MultilabelConfig, multilabel_dataloaders
from visionlab.multilabel.predict import LabelResult, MultilabelEvaluation
from visionlab.pan.targets import PANTargets
from visionlab.segmentation.predict import SegmentationEvaluation, SegmentationResult

package = Path(__file__).resolve().parent.parent/'visionlab'
word = np.array([[4., 4], [60, 4], [60, 24], [4, 24]])
kinds = re.compile(r'.*(Sample|Labels|Result|Report|Score|Evaluation|Table|Matrix|Calibration)$')
rows = {'ImageScore'}     # a row of the table that `TextScore` is


def shown_classes():
    "Public classes whose names say that somebody will look at them, over the whole package"
    for path in sorted(package.rglob('*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.ClassDef) and kinds.match(node.name) and node.name[0] != '_' and node.name not in rows:
                yield '.'.join(path.relative_to(package.parent).with_suffix('').parts), node.name


@pytest.mark.parametrize('module, name', list(shown_classes()), ids=lambda v: v.rpartition('.')[2])
def test_every_such_class_shows_itself(module, name):
    cls = getattr(importlib.import_module(module), name)
    assert hasattr(cls, '_repr_html_') or hasattr(cls, '_repr_png_'), f'{name} is a bare line in a notebook'
    assert cls.__repr__ not in (object.__repr__, tuple.__repr__), f'{name} has no text of its own for a terminal'


@pytest.fixture(scope='module')
def digits(tmp_path_factory): return make_toy_digits(tmp_path_factory.mktemp('digits'), n_train=12, n_test=2, size=(32, 32), digits=2)


@pytest.fixture(scope='module')
def things(digits):
    "One of each, by name"
    report = Report('what was read').add('unreadable image', 'a<b.png', 'cut off')
    boxes, masks = np.array([[2., 3, 20, 30]], np.float32), np.arange(64).reshape(1, 8, 8)//32
    logits, truth = np.array([[2., -1], [-2, 1], [.5, .5]]), np.array([[1, 0], [0, 1], [1, 0]])
    found, true = [(boxes, np.array([0]), np.array([.9]))], [(boxes + 1, np.array([0]))]
    matrix = ConfusionMatrix(2, names=('sky', 'road'))
    matrix.add(masks, masks)
    labels = MultilabelScore(logits, truth, ('cat', 'dog'), .5)
    segmentation = segmentation_score(masks, masks, 2)
    file = list_images(digits)[0]
    dls = multilabel_dataloaders(MultilabelConfig(images_root=str(digits/'train'), input_size=32, num_workers=0, batch_size=4, device='cpu'))
    return dict(
        sample=Sample(file, labels='three'), report=report, check=check_label_data(digits), batch=dls.train, validation=dls.valid,
        pan_labels=PANTargets()([word], [False], 32, 64), fots_labels=FOTSTargets()([word], [False], 32, 64),
        words=TextResult([word], np.array([.9]), np.ones((32, 64), np.int32), np.array([1]), (32, 64)),
        read=SpottedText([word], np.array([.9]), np.ones((32, 64), np.int32), np.array([1]), (32, 64), ['<b>']),
        mask=SegmentationResult(masks[0].astype(np.uint8), ('sky', 'road')), objects=FRCNNResult(boxes, np.array([0]), np.array([.9]), ('<cell>',)), labels=LabelResult(('cat', '<dog>'), np.array([2., -1]), .5),
        text_score=text_hmean([[word]], [[word]]), misses=explain_misses([[]], [[word]]), sweep=sweep_score([[word]], [[.9]], [[word]])[1],
        reading=reading_score(['a<b'], ['ab']), spotting=spotting_score([[word]], [['ab']], [[word]], [['ab']]), voc=voc_ap(found, true, ('cell',)), coco=coco_ap(found, true, ('cell',)),
        boxes=FRCNNEvaluation(voc_ap(found, true, ('cell',)), coco_ap(found, true, ('cell',)), [], found, ('cell',), Report(), 1.), segmentation=segmentation, matrix=matrix,
        masks=SegmentationEvaluation(segmentation, matrix, [], Report(), 1.), multilabel=labels, calibration=Calibration(logits, truth), evaluation=MultilabelEvaluation(labels, [Sample(file)]*3, Report(), 1.),
        export=OnnxExport([dict(name='', path=Path('a<b.onnx'), bytes=2**20, dynamic=True, difference=1e-6, largest=1.)]), quantized=QuantizeReport(Path('a.onnx'), Path('b.onnx'), 8, (4e6, 1e6), (4., 2.), .01, 4, dict(hmean=(.9, .8))),
        pruned=PruneReport(Path('a.pth'), (2e6, 1e6), (2e9, 1e9), (8e6, 4e6), (4., 2.), (1, 3, 64, 64), 1e-7, dict(hmean=(.9, .8))))


names = '''sample report check batch validation pan_labels fots_labels words read mask objects labels text_score misses sweep reading spotting voc coco boxes segmentation matrix masks multilabel
           calibration evaluation export quantized pruned'''.split()


def test_the_list_is_whole(things): assert sorted(things) == sorted(names)


@pytest.mark.parametrize('name', names)
def test_shows_itself(things, name):
    thing, figures = things[name], plt.get_fignums()
    html, png = (getattr(thing, k, lambda: None)() for k in ('_repr_html_', '_repr_png_'))
    assert html or png
    if png: assert png.startswith(b'\x89PNG') and 100 < len(png) < 200_000
    if html:
        assert '<table' in html or '<p>' in html
        for raw in ('a<b', '<dog>', '<cell>'): assert raw not in html, 'names from outside are escaped'
        for tag in ('table', 'tr', 'td', 'p'): assert len(re.findall(f'<{tag}[ >]', html)) == html.count(f'</{tag}>')
    text = repr(thing)
    assert text and ' object at 0x' not in text and len(text) < 3000
    assert plt.get_fignums() == figures, 'a drawing leaves no figure open'


def test_looking_at_a_loader_takes_nothing_from_it(digits):
    make = lambda: multilabel_dataloaders(MultilabelConfig(images_root=str(digits/'train'), input_size=32, num_workers=0, batch_size=4, device='cpu')).train
    looked, other = make(), make()
    before = looked.epoch, looked.rng.getstate()
    assert looked._repr_png_() and (looked.epoch, looked.rng.getstate()) == before
    for a, b in zip(looked, other, strict=True): assert all((x == y).all() for x, y in zip(a, b))
