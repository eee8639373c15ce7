"""Multi-label scores against the numbers of other projects, against scikit-learn on random answers, and at their limits."""
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from visionlab.core.checks import InputError
from visionlab.metrics.multilabel import (Calibration, MultilabelScore, average_precision, co_occurrence, confidences, cut_logits, exact_match, given_labels, hamming_loss, image_surprise,
                                          label_counts, label_scores, mean_average_precision, mean_label_score, show_co_occurrence, tune_thresholds)

GOLDEN = json.loads((Path(__file__).parent/'golden/multilabel.json').read_text())['cases']


@pytest.mark.parametrize('case', GOLDEN.values() if isinstance(GOLDEN, dict) else GOLDEN)
def test_golden(case):
    x, t = np.array(case['logits']), np.array(case['targets'])
    pred = given_labels(x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)
    close(exact_match(pred, t), case['exact_match_accuracy'])
    close(hamming_loss(pred, t), case['hamming_loss'])
    close(1 - hamming_loss(pred, t), case['elementwise_accuracy_fastai_accuracy_multi'])
    close(mean_label_score('f1', pred, t, 'micro'), case['f1_micro'])
    close(mean_label_score('f1', pred, t, 'macro', empty=0), case['f1_macro'])
    close(mean_label_score('f1', pred, t, 'samples', empty=0), case['f1_samples'])
    close(average_precision(x, t), [np.nan if v is None else v for v in case['sklearn_ap_per_class']])
    close(np.nan_to_num(average_precision(x, t)), case['asl_ap_per_class'])
    assert mean_average_precision(x, t, 'zero') == pytest.approx(case['asl_mAP_percent']/100, abs=1e-7)     # theirs adds 1e-8 to a denominator
    assert MultilabelScore(x, t).exact_match == case['exact_match_accuracy']


@pytest.mark.parametrize('seed', range(6))
def test_against_scikit_learn(seed):
    from sklearn import metrics as sk
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(1, 60)), int(rng.integers(1, 8))
    x = np.round(rng.normal(0, 2, (n, c)), 1)               # rounded, so that there are ties
    t = rng.random((n, c)) < rng.random(c)
    pred = given_labels(x)
    want = [sk.average_precision_score(t[:, i], x[:, i]) if t[:, i].any() else np.nan for i in range(c)]
    np.testing.assert_allclose(average_precision(x, t), want, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for average in ('macro', 'micro', 'samples'):
            a = average if c > 1 else ('macro' if average == 'macro' else average)
            if c == 1 and average == 'samples': continue     # scikit-learn takes one label for two classes
            kw = dict(average=a, zero_division=0) if c > 1 else dict(average='binary', zero_division=0)
            p, r, f, _ = sk.precision_recall_fscore_support(t.astype(int), pred.astype(int), **kw)
            for name, v in (('precision', p), ('recall', r), ('f1', f)): assert mean_label_score(name, pred, t, average, empty=0) == pytest.approx(v, abs=1e-12)
    assert hamming_loss(pred, t) == pytest.approx((pred != t).mean()) and exact_match(pred, t) == pytest.approx(sk.accuracy_score(t, pred))


def test_tensors_on_the_way_in():
    x, t = torch.randn(20, 3, requires_grad=True), torch.rand(20, 3) < .4
    assert exact_match(given_labels(x), t) == exact_match(x.detach().numpy() >= 0, t.numpy())
    assert mean_average_precision(x.bfloat16(), t.float()) == pytest.approx(mean_average_precision(x.detach().bfloat16().float().numpy(), t.numpy()))


def test_a_logit_of_zero_is_a_yes_and_one_below_a_no():
    x = np.float32([[0., -1e-9, 1e-9, -0.]])
    assert given_labels(x).tolist() == [[True, False, True, True]]
    assert (torch.from_numpy(x).sigmoid() >= .5).all(), 'which a comparison of confidences in single precision does not see'


def test_tuned_cuts_are_the_best_there_are():
    rng = np.random.default_rng(3)
    for _ in range(40):
        n = int(rng.integers(2, 30))
        x = np.round(rng.normal(0, 2, (n, 1)), int(rng.integers(0, 3)))
        t = rng.random((n, 1)) < .4
        cut = tune_thresholds(x, t)
        assert 0 < cut[0] < 1
        if not t.any() or t.all(): assert cut[0] == .5; continue
        f1 = lambda logit: label_scores('f1', *label_counts(x >= logit, t), empty=0)[0]
        best = max(f1(v) for v in x[:, 0])
        assert label_scores('f1', *label_counts(given_labels(x, cut), t), empty=0)[0] == pytest.approx(best)
        if f1(0.) == pytest.approx(best): assert cut[0] == .5
    assert tune_thresholds(x, t, default=.3).shape == (1,)
    far = tune_thresholds([[300.], [200.], [-100.]], [[1], [0], [0]])
    assert 0 < far[0] < 1 and far[0] > .999


def test_empty_and_one_sided_sets():
    none = np.zeros((0, 3))
    assert np.isnan(exact_match(none, none)) and np.isnan(mean_average_precision(none, none)) and np.isnan(mean_label_score('f1', none, none))
    x = np.random.default_rng(0).normal(size=(9, 2))
    always, never = np.ones((9, 2)), np.zeros((9, 2))
    assert average_precision(x, always).tolist() == [1, 1] and np.isnan(average_precision(x, never)).all() and np.isnan(mean_average_precision(x, never))
    s = MultilabelScore(x, never, ('a', 'b'))
    assert s.to_dict()['mAP'] is None and '-' in repr(s) and '<table>' in s._repr_html_()
    assert json.dumps(s.to_dict())


def test_score_tells_what_it_was_told():
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(30, 3)), rng.random((30, 3)) < .5
    s = MultilabelScore(x, t, ('a', 'b', 'c'), [.3, .5, .7])
    d = s.to_dict()
    assert d['images'] == 30 and d['labels']['a']['threshold'] == .3 and d['exact_match'] == s.exact_match and d['f1_macro'] == s.mean('f1')
    assert d['labels']['b']['images'] == t[:, 1].sum() and (s.pred[:, 2] == (confidences(x[:, 2]) >= .7)).all()
    worst = s.confused(30)
    assert [i for i, *_ in worst] == np.argsort(-image_surprise(x, t), kind='stable').tolist()
    for i, _, missed, extra in worst: assert len(missed) + len(extra) == (s.pred[i] != t[i]).sum()


def test_surprise_is_the_loss():
    x, t = torch.randn(12, 5)*8, (torch.rand(12, 5) < .5).float()
    want = torch.nn.functional.binary_cross_entropy_with_logits(x.double(), t.double(), reduction='none').mean(1)
    np.testing.assert_allclose(image_surprise(x, t), want, rtol=1e-12)


def test_calibration_against_counting():
    rng = np.random.default_rng(2)
    x, t = rng.normal(0, 2, (200, 2)), rng.random((200, 2)) < .5
    c, p = Calibration(x, t, 5), confidences(x)
    for k in range(5):
        here = (p >= k/5) & (p < (k + 1)/5)
        assert c.count[k] == here.sum() and c.frequency[k] == pytest.approx(t[here].mean()) and c.confidence[k] == pytest.approx(p[here].mean())
    assert c.error == pytest.approx(sum(c.count[k]*abs(c.frequency[k] - c.confidence[k]) for k in range(5))/400)
    assert c.show().get_xlabel() == 'confidence' and 'error' in repr(c)


def test_pairs_of_labels():
    t = np.random.default_rng(0).random((50, 4)) < .4
    m = co_occurrence(t)
    for i in range(4):
        for j in range(4): assert m[i, j] == (t[:, i] & t[:, j]).sum()
    assert len(show_co_occurrence(t, 'abcd').texts) == (m > 0).sum()


@pytest.mark.parametrize('call, said', [
    (lambda: exact_match(np.zeros(3), np.zeros(3)), r'\(N,C\)'), (lambda: average_precision(np.zeros((2, 3)), np.zeros((2, 2))), 'one shape'), (lambda: average_precision([[np.nan]], [[1]]), 'NaN'),
    (lambda: average_precision([[1.]], [[.5]]), '0 and 1'), (lambda: given_labels([[1.]], 0), r'\(0, 1\)'), (lambda: cut_logits(1.2), r'\(0, 1\)'), (lambda: Calibration([[1.]], [[1]], 1), 'bins'),
    (lambda: mean_average_precision([[1.]], [[1]], 'none'), 'absent'), (lambda: MultilabelScore([[1., 2]], [[1, 0]], thresholds=[.5, .5, .5]), 'each of the 2 labels'),
    (lambda: label_scores('f2', 1, 1, 1), 'figure')])
def test_what_cannot_be_scored(call, said):
    with pytest.raises(InputError, match=said): call()


def test_many_labels_make_no_huge_picture():
    t = np.random.default_rng(0).random((60, 700)) < np.linspace(.01, .5, 700)
    ax = show_co_occurrence(t)
    assert [l.get_text() for l in ax.get_xticklabels()] == [str(i) for i in np.sort(np.argsort(-t.sum(0), kind='stable')[:40])] and max(ax.figure.get_size_inches()) < 20
    with pytest.raises(InputError, match='most'): show_co_occurrence(t, most=0)
