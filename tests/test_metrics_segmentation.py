"Segmentation scores against golden numbers of smp, against a slow count, and with input of every kind"
import json, time
from pathlib import Path
import numpy as np, pytest, torch
from visionlab.core.checks import InputError
from visionlab.metrics.segmentation import (SEGMENTATION_FIGURES, SEGMENTATION_PROTOCOLS, ConfusionMatrix, SegmentationScore, class_scores, mean_score,
                                            segmentation_counts, segmentation_score)

golden = json.loads((Path(__file__).parent/'golden'/'seg_metrics.json').read_text())['cases']
FIGURES = dict(iou='iou_score', dice='f1_score', precision='precision', recall='recall', accuracy='accuracy')
PROTOCOLS = {'micro': 'micro', 'macro': 'macro', 'imagewise': 'macro-imagewise', 'imagewise-micro': 'micro-imagewise'}


def masks(case):
    pred, target = np.array(case['pred']), np.array(case['target'])
    classes = case['kwargs'].get('num_classes', pred.shape[1])
    return pred, target, classes


@pytest.mark.parametrize('name', golden)
@pytest.mark.parametrize('kind', [lambda a: a.astype(np.uint8), torch.tensor, lambda a: torch.tensor(a, dtype=torch.float32)], ids=['array', 'tensor', 'float'])
def test_golden_counts(name, kind):
    case = golden[name]
    pred, target, classes = masks(case)
    for k, v in zip(('tp', 'fp', 'fn', 'tn'), segmentation_counts(kind(pred), kind(target), classes, case['kwargs'].get('ignore_index'))):
        assert v.dtype == np.int64 and v.tolist() == case[k]


@pytest.mark.parametrize('name', golden)
@pytest.mark.parametrize('empty', [0., 1.])
def test_golden_scores(name, empty):
    "smp divides in float32"
    case = golden[name]
    counts = segmentation_counts(*masks(case))
    for ours, theirs in FIGURES.items():
        np.testing.assert_allclose(class_scores(ours, *counts, empty=empty), case['results'][f'none|zero_division={empty}'][theirs], atol=1e-6)
        for p, q in PROTOCOLS.items(): assert abs(mean_score(ours, *counts, p, empty=empty) - case['results'][f'{q}|zero_division={empty}'][theirs]) < 1e-6, (ours, p)


@pytest.mark.parametrize('name', [n for n, c in golden.items() if 'class_weights' in c])
def test_golden_class_weights_and_the_trap(name):
    case = golden[name]
    counts, w, c = segmentation_counts(*masks(case)), case['class_weights'], len(case['class_weights'])
    for ours in ('iou', 'dice'):
        want = lambda key: case['results'][f'{key}|class_weights|zero_division=1.0'][FIGURES[ours]]
        macro, imagewise = (mean_score(ours, *counts, p, empty=1., class_weights=w) for p in ('macro', 'imagewise'))
        assert abs(macro - want('weighted')) < 1e-6
        assert abs(macro/c - want('macro')) < 1e-6, 'macro with weights is C times too small there'
        assert abs(imagewise/c - want('weighted-imagewise')) < 1e-6


def test_golden_file_holds_all_kinds():
    assert {c['mode'] for c in golden.values()} == {'binary', 'multiclass', 'multilabel'}
    assert any(not np.any(c['tp'], axis=1).all() for c in golden.values()), 'an image without the class'


# against counting by loops

def slow_counts(pred, target, classes, ignore):
    out = np.zeros((4, len(pred), classes), int)
    for i, (p, t) in enumerate(zip(pred, target)):
        for a, b in zip(p.ravel().tolist(), t.ravel().tolist()):
            if b == ignore: continue
            for c in range(classes): out[0 if a == b == c else 1 if a == c else 2 if b == c else 3, i, c] += 1
    return out


@pytest.mark.parametrize('seed', range(4))
def test_counts_by_loops(seed):
    rng = np.random.default_rng(seed)
    classes, ignore = int(rng.integers(2, 7)), (None, 255, 0, 3)[seed]
    pred, target = (rng.integers(0, classes, (3, 9, 11)).astype(np.uint8) for _ in range(2))
    if ignore == 255: target[rng.random(target.shape) < .2] = 255
    want = slow_counts(pred, target, classes, ignore)
    assert np.array_equal(segmentation_counts(pred, target, classes, ignore), want)
    score = segmentation_score(pred, target, classes, ignore)
    assert np.array_equal(score.counts, want)
    assert np.array_equal(score.matrix.sum(1), (want[0] + want[2]).sum(0)) and np.array_equal(score.matrix.sum(0), (want[0] + want[1]).sum(0))
    each = [want[0].sum(0)[c]/(want[:3].sum(1)[:, c].sum()) for c in range(classes) if want[:3].sum(1)[:, c].sum()]
    assert abs(score.iou - np.mean(each)) < 1e-12


def test_binary_is_one_of_two_classes():
    rng = np.random.default_rng(1)
    p, t = rng.random((4, 8, 8)) < .5, rng.random((4, 8, 8)) < .5
    one, two = segmentation_counts(p, t, 1), segmentation_counts(p.astype(int), t.astype(int), 2)
    assert all(np.array_equal(a[:, 0], b[:, 1]) for a, b in zip(one, two))
    assert np.array_equal(segmentation_counts(p[:, None], t[:, None], 1), one)
    assert np.array_equal(segmentation_counts(p[0], t[0], 1), np.array(one)[:, :1])
    assert np.array_equal(ConfusionMatrix(1).add(p, t).matrix, ConfusionMatrix(2).add(p.astype(int), t.astype(int)).matrix)
    t = t.astype(np.uint8); t[:, 0] = 255
    assert segmentation_counts(p, t, 1, ignore_index=255)[3].sum() + 0 == (~p & (t == 0)).sum()


def test_batches_and_sizes_do_not_matter():
    rng = np.random.default_rng(2)
    sizes = [(4, 5), (31, 8), (1, 1), (16, 16)]
    p, t = ([rng.integers(0, 3, s) for s in sizes] for _ in range(2))
    whole = segmentation_score(p, t, 3)
    cm = ConfusionMatrix(3)
    for a, b in zip(p, t): cm.add(torch.tensor(a)[None], b[None].astype(np.uint8))
    assert np.array_equal(cm.score().counts, whole.counts) and np.array_equal(cm.matrix, whole.matrix)
    cm.reset()
    assert not cm.matrix.any() and np.isnan(cm.score().iou)


def test_large_masks_in_pieces(monkeypatch):
    import visionlab.metrics.segmentation as m
    rng = np.random.default_rng(3)
    p, t = (rng.integers(0, 4, (2, 50, 70)) for _ in range(2))
    whole = segmentation_counts(p, t, 4)
    monkeypatch.setattr(m, 'CHUNK_PIXELS', 333)
    assert np.array_equal(segmentation_counts(p, t, 4), whole)


def test_which_classes_are_averaged():
    p, t = np.zeros((1, 4, 4), int), np.zeros((1, 4, 4), int)
    assert segmentation_score(p, t, 5).iou == 1                                   # four classes occur nowhere
    p[0, 0, 0] = 3                                                                # called, but nowhere: IoU 0, and it counts
    score = segmentation_score(p, t, 5)
    assert score.iou == (15/16 + 0)/2 and score.per_class().tolist()[3] == 0 and np.isnan(score.per_class()[[1, 2, 4]]).all()
    assert score.precision == (1 + 0)/2 and score.recall == (15/16 + 0)/2         # 0/0 of a class that occurs is 0, and all figures average the same two
    assert 'the 2 of 5 classes that occur' in repr(score)


def test_per_image_finds_the_worst():
    t = np.zeros((3, 6, 6), int); t[:, :3] = 1
    p = t.copy(); p[1, :2] = 0
    score = segmentation_score(p, t, 2)
    assert np.nanargmin(score.per_image()) == 1 and score.per_image()[0] == 1
    empty = segmentation_score(np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), 1)
    assert np.isnan(empty.per_image()).all() and empty.iou == 1 and empty.pixel_accuracy == 1
    assert all(0 <= getattr(score, f) <= 1 for f in SEGMENTATION_FIGURES)


def test_every_pixel_ignored_is_no_score():
    score = segmentation_score(np.zeros((2, 3, 3), int), np.full((2, 3, 3), 255), 4, ignore_index=255)
    assert np.isnan(score.iou) and np.isnan(score.pixel_accuracy) and score.to_dict()['iou'] is None
    assert 'nan' in repr(score)


@pytest.mark.parametrize('protocol', SEGMENTATION_PROTOCOLS)
def test_printing(protocol):
    score = segmentation_score([np.eye(4, dtype=int)], [np.eye(4, dtype=int)], 3, protocol=protocol, names=('<sky>', 'road', 'car'))
    assert protocol in repr(score) and '<sky>' in repr(score) and '&lt;sky&gt;' in score._repr_html_()
    assert json.loads(json.dumps(score.to_dict()))['classes']['car']['iou'] is None
    one = segmentation_score([np.eye(4, dtype=int)], [np.eye(4, dtype=int)], 1, protocol=protocol)
    assert 'IoU 1.0000' in repr(one)


def test_confusion_matrix_draws():
    import matplotlib.pyplot as plt
    for c in (1, 3, 30):
        rng = np.random.default_rng(c)
        cm = ConfusionMatrix(c).add(rng.integers(0, max(2, c), (1, 16, 16)), rng.integers(0, max(2, c), (1, 16, 16)))
        assert cm.show().get_ylabel().startswith('truth') and 'table' in cm._repr_html_() and cm.confusions()
    plt.close('all')
    assert ConfusionMatrix(3).confusions() == [] and '-' in repr(ConfusionMatrix(3))


@pytest.mark.parametrize('call, text', [
    (lambda: segmentation_counts(np.zeros((1, 2, 2)), np.full((1, 2, 2), 12), 3), '"target" holds the values 12'),
    (lambda: segmentation_counts(np.full((1, 2, 2), -1), np.zeros((1, 2, 2)), 3), '"pred" holds the values -1'),
    (lambda: segmentation_counts(np.zeros((1, 2, 2)), np.full((1, 2, 2), 255), 1), '0 and 1 in `read_mask`'),
    (lambda: segmentation_counts(np.full((1, 2, 2), .5), np.zeros((1, 2, 2)), 1), 'fractions'),
    (lambda: segmentation_counts(np.zeros((1, 2, 2)), np.full((1, 2, 2), .4), 1), '"target" holds fractions'),
    (lambda: segmentation_counts(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)), 2), 'one shape'),
    (lambda: segmentation_counts(np.zeros((1, 3, 2, 2)), np.zeros((1, 3, 2, 2)), 2), r'\(N,2,H,W\)'),
    (lambda: segmentation_counts(np.zeros(4), np.zeros(4), 2), r'\(N,H,W\)'),
    (lambda: segmentation_counts(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), 0), '"classes"'),
    (lambda: mean_score('jaccard', 1, 1, 1, 1), '"figure"'), (lambda: SegmentationScore(*np.zeros((4, 1, 2), int), protocol='mean'), '"protocol"'),
    (lambda: mean_score('iou', *np.ones((4, 1, 2), int), class_weights=[0, 0]), 'not all 0'),
    (lambda: segmentation_score([np.zeros((2, 2))], [], 1), 'one mask for each image')])
def test_what_cannot_be_scored_says_so(call, text):
    with pytest.raises(InputError, match=text): call()


def test_counting_is_quick():
    "A fraction of what reading the images costs: some nanoseconds a pixel"
    rng = np.random.default_rng(0)
    p, t = (rng.integers(0, 12, (16, 256, 256)).astype(np.uint8) for _ in range(2))
    segmentation_counts(p, t, 12, 11)
    start = time.process_time()
    segmentation_counts(p, t, 12, 11)
    assert time.process_time() - start < .25       # about 0.03 s of CPU time
