"""Reading scores beside slow and obvious versions: edit distance, the contest's rules for words, matching then comparing."""
import numpy as np
import pytest
import shapely

from visionlab.core.checks import InputError
from visionlab.metrics.reading import image_lexicons, reading_score, reads_right, spotting_score, spotting_word, text_distance
from visionlab.metrics.text import text_hmean

box = lambda x, y, w=40, h=20: np.array([[x, y], [x+w, y], [x+w, y+h], [x, y+h]], float)


def edits(a, b):
    rows = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        old, rows[0] = rows[0], i
        for j, y in enumerate(b, 1): old, rows[j] = rows[j], min(rows[j] + 1, rows[j-1] + 1, old + (x != y))
    return rows[-1]


def test_edit_distance():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (''.join(rng.choice(list('abc'), rng.integers(0, 8))) for _ in range(2))
        assert text_distance(a, b) == pytest.approx(edits(a, b)/max(len(a), len(b), 1))


def test_reading_score():
    s = reading_score(['abc', 'ABC', 'xbc', ''], ['abc', 'abc', 'abc', 'abc'])
    assert (s.accuracy, s.accuracy_nocase, s.n) == (.25, .5, 4)
    assert s.one_minus_ned == pytest.approx(1 - (0 + 1 + 1/3 + 1)/4)
    assert s.pairs[-1] == ('abc', 'abc') and 'true' in s.worst()
    empty = reading_score([], [])
    assert (empty.accuracy, empty.one_minus_ned, empty.n) == (0, 0, 0) and repr(empty) and empty.worst()
    assert reading_score(['a, b'], ['a, b']).accuracy == 1          # commas survive


@pytest.mark.parametrize('text, word', [("CAT'S", 'CAT'), ("cat's", 'cat'), ('--cat--', 'cat'), ('"cat"', 'cat'), ('cat!', 'cat'), ('a.b', ''), ('at', ''), ('ca7', ''), ('café', 'café'),
                                        ('x×y', ''), ('well-known', 'well-known'), ('', ''), ('...', ''), ('12', ''), ('a b c', '')])
def test_spotting_words(text, word): assert spotting_word(text) == word


@pytest.mark.parametrize('text, truth, right', [('cat', 'CAT', True), ('cat', 'cat.', True), ('cat', '"cat"', True), ('cat"', '"cat"', True), ('cat.', 'cat', False), ('ca', 'cat', False),
                                                ('cat', '""cat', False), ('', '.', True), ('.', '.', True), ('', 'a', False)])
def test_readings_that_are_right(text, truth, right): assert reads_right(text, truth) is right


def slow(preds, texts, truths, words, ignores, spot):
    "The contest's loop: pair by pair, image by image"
    correct = n_pred = n_truth = 0
    for ps, ts, gs, ws, ig in zip(preds, texts, truths, words, ignores):
        care = [not i and not (spot and not spotting_word(w)) for i, w in zip(ig, ws)]
        shapes, gt = [shapely.Polygon(p) for p in ps], [shapely.Polygon(g) for g in gs]
        lost = [any(not c and p.intersection(g).area > .5*p.area for c, g in zip(care, gt)) for p in shapes]
        used_p, used_g = set(), set()
        for g in range(len(gs)):
            for p in range(len(ps)):
                if not care[g] or lost[p] or g in used_g or p in used_p: continue
                if gt[g].intersection(shapes[p]).area/gt[g].union(shapes[p]).area > .5:
                    used_g.add(g); used_p.add(p)
                    correct += spotting_word(ws[g]).upper() == ts[p].upper() if spot else reads_right(ts[p], ws[g])
        n_pred, n_truth = n_pred + lost.count(False), n_truth + sum(care)
    return correct, n_pred, n_truth


@pytest.mark.parametrize('spot', [False, True])
def test_beside_the_slow_loop(spot):
    rng = np.random.default_rng(5)
    names = ['North', 'South!', '24h', 'Exit', 'of', "Joe's", '###']
    truths = [[box(60*(k % 4), 30*(k//4)) for k in range(rng.integers(0, 9))] for _ in range(40)]
    words = [[names[i] for i in rng.integers(0, 7, len(ts))] for ts in truths]
    ignores = [[w == '###' for w in ws] for ws in words]
    preds = [[g + rng.normal(0, 4, 2) for g in gs if rng.random() < .8] + [box(*rng.uniform(0, 200, 2)) for _ in range(rng.integers(0, 3))] for gs in truths]
    texts = [[names[i].rstrip('!') for i in rng.integers(0, 6, len(ps))] for ps in preds]
    s = spotting_score(preds, texts, truths, words, ignores, 'word_spotting' if spot else 'end_to_end')
    assert (s.correct, s.n_pred, s.n_truth) == slow(preds, texts, truths, words, ignores, spot) and s.correct > 5
    if not spot: assert s.found == pytest.approx(text_hmean(preds, truths, ignores).hmean)
    assert s.correct <= s.matched and 0 <= s.one_minus_ned <= 1


def test_perfect_and_empty():
    truths, words = [[box(0, 0), box(60, 0)], []], [['a, b', 'c'], []]
    s = spotting_score(truths, words, truths, words)
    assert (s.hmean, s.one_minus_ned, s.found) == (1, 1, 1) and '1.0000' in repr(s) and s.misread()
    nothing = spotting_score([[], []], [[], []], truths, words)
    assert (nothing.hmean, nothing.one_minus_ned, nothing.n_truth) == (0, 0, 2)


def test_bad_input():
    with pytest.raises(InputError, match='"texts" needs one entry'): spotting_score([[]], [], [[]], [[]])
    with pytest.raises(InputError, match='one text for each'): spotting_score([[box(0, 0)]], [[]], [[]], [[]])
    with pytest.raises(InputError, match='protocol'): spotting_score([], [], [], [], protocol='e2e')
    with pytest.raises(InputError, match='one entry a line'): reading_score(['a'], ['a', 'b'])


def test_lexicons():
    words = [['Exit', 'of'], ['Exit', 'Open'], [], [f'Word{c}' for c in 'abcdefghij']]
    weak, strong = image_lexicons(words, 'weak'), image_lexicons(words, size=4)
    assert len(weak) == 4 and set(weak[2]) == {'Exit', 'Open', *words[3]}
    assert strong == image_lexicons(words, size=4) and strong[0][0] == 'Exit' and [len(l) for l in strong] == [4, 4, 4, 10] and all(len(set(l)) == len(l) for l in strong)
