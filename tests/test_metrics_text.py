"Text scores against golden numbers, a slow version of the protocol, and input of every kind"
import json, time
from pathlib import Path
import numpy as np, pytest, shapely, torch
from visionlab.core.checks import InputError
from visionlab.metrics.text import MISS_REASONS, TextOverlaps, explain_misses, match_text, sweep_score, text_hmean, text_pixel_iou

golden = json.loads((Path(__file__).parent/'golden'/'hmean.json').read_text())


def lists(case):
    images = case['images']
    return ([[np.reshape(p, (-1, 2)) for p in i['pred']] for i in images], [[np.reshape(g['poly'], (-1, 2)) for g in i['gt']] for i in images],
            [[g['ignore'] for g in i['gt']] for i in images])


@pytest.mark.parametrize('case', golden['cases'], ids=lambda c: c['name'])
def test_golden_scores_are_met_exactly(case):
    want, score = case['icdar2015_script'], text_hmean(*lists(case))
    assert {k: getattr(score, k) for k in ('precision', 'recall', 'hmean')} == want['method']
    assert len(score.per_image) == len(want['per_image'])
    for k, w in want['per_image'].items():
        got = score.per_image[int(k)-1]
        assert {n: getattr(got, n) for n in w} == w
    # rows x1,y1,x2,y2,... as label files have them are taken as well
    flat = [[np.ravel(p).tolist() for p in ps] for ps in lists(case)[0]]
    assert text_hmean(flat, *lists(case)[1:]).per_image == score.per_image


def test_golden_file_holds_all_rules():
    assert {'perfect', 'no_prediction', 'no_gt_but_predictions', 'iou_exactly_half', 'ignored_gt_swallows_prediction', 'ignored_half_area_boundary'} <= {c['name'] for c in golden['cases']}


# cases worked out by hand

def box(x0, y0, x1, y1): return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def test_greedy_is_in_list_order_not_best_first():
    words = [box(0, 0, 100, 30), box(10, 0, 110, 30)]
    first, second = box(6, 0, 106, 30), box(0, 0, 100, 30)        # the second fits word 0 perfectly, the first comes first
    assert text_hmean([[first, second]], [words]).per_image[0].pairs == [[0, 0], [1, 1]]
    assert text_hmean([[second, first]], [words]).per_image[0].pairs == [[0, 0], [1, 1]]
    assert text_hmean([[first]], [words]).per_image[0].pairs == [[0, 0]]
    assert text_hmean([[box(0, 0, 9, 9)]*3], [[box(0, 0, 9, 9)]*2]).per_image[0].pairs == [[0, 0], [1, 1]]


def test_a_square_on_its_tip_and_curved_words():
    diamond = np.array([[50, 0], [100, 50], [50, 100], [0, 50]])
    score = text_hmean([[np.roll(diamond, 1, 0)[::-1]]], [[diamond]])
    assert score.hmean == 1 and not score.notes
    t = np.linspace(0, np.pi, 9)
    ring = np.r_[np.c_[np.cos(t), -np.sin(t)]*60, np.c_[np.cos(t), -np.sin(t)][::-1]*40]
    assert text_hmean([[ring + 1]], [[ring]]).hmean == 1
    assert text_hmean([[box(-60, -60, 60, 0)]], [[ring]]).hmean == 0        # the box around a bent word is mostly empty


def test_share_of_one_ignored_truth_counts_not_of_all():
    halves = [box(0, 0, 50, 10), box(50, 0, 100, 10)]                       # a prediction half in one and half in the other
    score = text_hmean([[box(0, 0, 100, 10)]], [halves], [[True, True]])
    assert score.per_image[0].ignored_predictions == [] and score.per_image[0].precision == 0 and score.per_image[0].recall == 1


def test_ignored_prediction_finds_no_word():
    word, unread = box(0, 0, 40, 10), box(0, 0, 40, 20)
    score = text_hmean([[box(0, 0, 40, 11)]], [[word, unread]], [[False, True]])
    assert (score.matched, score.n_pred, score.n_truth) == (0, 0, 1) and score.recall == 0 and score.precision == 0


def test_everything_ignored_and_nothing_at_all():
    words = [box(0, 0, 9, 9), box(20, 0, 29, 9)]
    score = text_hmean([words], [words], [[True, True]])
    assert (score.n_pred, score.n_truth, score.hmean) == (0, 0, 0)
    assert (score.per_image[0].precision, score.per_image[0].recall, score.per_image[0].hmean) == (1, 1, 1)
    for empty in ([], [[]], [np.zeros((0, 4, 2))]):
        assert text_hmean(empty, empty).hmean == 0 and text_hmean(empty, empty).n_pred == 0


# a slow version, image by image and pair by pair

def slow(preds, truths, ignores, iou=.5, overlap=.5):
    total, rows = np.zeros(3, int), []
    for ps, ts, gs in zip(preds, truths, ignores):
        P, T = [shapely.Polygon(p) for p in ps], [shapely.Polygon(t) for t in ts]
        dropped = [j for j, p in enumerate(P) if any(g and p.intersection(t).area/p.area > overlap for t, g in zip(T, gs))]
        pairs = []
        for i, t in enumerate(T):
            for j, p in enumerate(P):
                if gs[i] or j in dropped or i in [a for a, _ in pairs] or j in [b for _, b in pairs]: continue
                if p.intersection(t).area/p.union(t).area > iou: pairs.append([i, j])
        rows.append((pairs, dropped)); total += len(pairs), len(P)-len(dropped), len(T)-sum(gs)
    return total.tolist(), rows


def random_scene(rng, n_images=6):
    def quad():
        w, h, t = rng.uniform(20, 80), rng.uniform(10, 25), rng.uniform(-1, 1)
        return box(-w/2, -h/2, w/2, h/2) @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) + rng.uniform(0, 200, 2)
    truths = [[quad() for _ in range(rng.integers(0, 15))] for _ in range(n_images)]
    ignores = [rng.random(len(t)) < .3 for t in truths]
    preds = [[t + rng.normal(0, 3, (1, 2)) for t in ts if rng.random() < .8] + [t + rng.normal(0, 6, 2) for t in ts if rng.random() < .4] + [quad() for _ in range(3)] for ts in truths]
    for p in preds: rng.shuffle(p)
    return preds, truths, ignores


@pytest.mark.parametrize('seed', range(12))
def test_agrees_with_the_slow_version(seed):
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    for iou, overlap in ((.5, .5), (.1, .8), (.75, .2), (0, 0)):
        total, rows = slow(*scene, iou, overlap)
        score = text_hmean(*scene, iou=iou, overlap=overlap)
        assert [score.matched, score.n_pred, score.n_truth] == total
        assert [(i.pairs, i.ignored_predictions) for i in score.per_image] == rows
        pairs, dropped = match_text(TextOverlaps(*scene), iou, overlap)         # without leaving pairs out beforehand
        assert len(pairs) == score.matched and (~dropped).sum() == score.n_pred


@pytest.mark.parametrize('seed', range(4))
def test_every_threshold_of_a_sweep_is_a_full_evaluation(seed):
    rng = np.random.default_rng(seed)
    preds, truths, ignores = random_scene(rng)
    scores = [np.round(rng.random(len(p)), 1) for p in preds]                    # many scores exactly at a threshold
    best, table = sweep_score(preds, scores, truths, ignores, thresholds=np.arange(11)/10)
    for row in table:
        score = text_hmean([[p for p, s in zip(ps, ss) if s >= row.threshold] for ps, ss in zip(preds, scores)], truths, ignores)
        assert (row.precision, row.recall, row.hmean, row.n_pred) == (score.precision, score.recall, score.hmean, score.n_pred)
    assert next(r.hmean for r in table if r.threshold == best) == max(r.hmean for r in table)


def test_sweep_of_nothing():
    best, table = sweep_score([[]], [[]], [[]])
    assert len(table) == 36 and all(r.hmean == 0 for r in table) and 0 <= best < 1
    assert sweep_score([], [], [])[1][0].n_pred == 0


# why words are missed

@pytest.mark.parametrize('seed', range(6))
def test_every_missed_word_has_one_reason(seed):
    scene = random_scene(np.random.default_rng(100 + seed))
    score, misses = text_hmean(*scene), explain_misses(*scene)
    for i, s in enumerate(score.per_image):
        mine = [m for m in misses if m.image == str(i)]
        assert sorted(m.truth for m in mine) == sorted(set(np.flatnonzero(~scene[2][i])) - {t for t, _ in s.pairs})
        for m in mine:
            assert m.reason in MISS_REASONS and 0 <= m.iou <= 1
            ious = [shapely.Polygon(p).intersection(shapely.Polygon(scene[1][i][m.truth])).area/shapely.Polygon(p).union(shapely.Polygon(scene[1][i][m.truth])).area for p in scene[0][i]]
            assert m.iou == pytest.approx(max(ious, default=0), abs=1e-9)
            assert (m.reason == 'no overlap') == (m.iou == 0) == (m.predictions == ())
    assert sum(misses.counts.values()) == len(misses) == score.n_truth - score.matched
    assert len(repr(misses).splitlines()) == len(score.per_image) + 2 and '<table>' in misses._repr_html_()


def test_reasons_by_hand():
    word = box(0, 0, 100, 20)
    reason = lambda preds, truths=(), ignores=None: [m.reason for m in explain_misses([preds], [[word, *truths]], ignores and [ignores]) if m.truth == 0]
    assert reason([]) == ['no overlap'] and reason([box(100, 0, 200, 20)]) == ['no overlap']       # a shared edge is no overlap
    assert reason([box(0, 0, 50, 20)]) == ['IoU too low'] and reason([box(-50, -20, 150, 40)]) == ['IoU too low']
    assert reason([box(0, 0, 48, 20), box(52, 0, 100, 20)]) == ['split']
    assert reason([box(0, 0, 10, 20), box(90, 0, 100, 20)]) == ['IoU too low']                     # two crumbs are no split word
    assert reason([box(0, 0, 210, 20)], [box(110, 0, 210, 20)]) == ['merged']
    assert reason([box(0, 0, 210, 20)], [box(110, 0, 210, 20)], [False, True]) == ['merged']       # with an ignored neighbour
    assert reason([word], [box(0, 0, 100, 30)], [False, True]) == ['prediction ignored']
    later = explain_misses([[word]], [[word, word + [0, 2]]])
    assert [(m.truth, m.reason, m.predictions) for m in later] == [(1, 'already used', (0,))]


def test_long_miss_tables_stay_short():
    misses = explain_misses([[]]*100, [[box(0, 0, 9, 9)]]*100)
    assert len(misses) == 100 and len(repr(misses).splitlines()) == 33 and '70 more' in repr(misses)


def test_names_are_escaped():
    assert '<b>' not in explain_misses([[]], [[box(0, 0, 9, 9)]], names=['<b>'])._repr_html_()


# bad input

BAD = [[[0, 0], [9, 9]], [], [[0, 0], [9, 0], [4, 0]], [[1, 1]]*4, [[0, 0], [np.nan, 0], [9, 9]], [[0, 0], [np.inf, 0], [9, 9]], [[0, 0], [1e200, 0], [9, 1e200]]]


@pytest.mark.parametrize('bad', BAD)
def test_hopeless_outlines_count_match_nothing_and_are_noted(bad):
    word = box(0, 0, 9, 9)
    score = text_hmean([[bad, word]], [[word, bad]])
    assert (score.matched, score.n_pred, score.n_truth, len(score.notes)) == (1, 2, 2, 2)
    assert score.per_image[0].pairs == [[0, 1]] and 'image 0, prediction 0' in score.notes[0] and 'image 0, truth 1' in score.notes[1]
    assert 'unsound' in repr(score) and 'unsound' not in repr(text_hmean([[word]], [[word]]))
    assert [m.reason for m in explain_misses([[bad, word]], [[word, bad]])] == ['no overlap']
    assert text_hmean([[word]], [[word, bad]], [[False, True]]).hmean == 1


def test_scribbles_never_crash():
    rng = np.random.default_rng(5)
    scene = [[[rng.uniform(0, 60, (rng.integers(3, 14), 2)) for _ in range(10)] for _ in range(20)] for _ in range(2)]
    score = text_hmean(*scene)
    assert 0 <= score.hmean <= 1 and score.n_pred == score.n_truth == 200 and score.notes
    assert text_hmean(scene[0], scene[0]).hmean > .99


@pytest.mark.parametrize('call, text', [
    (lambda: text_hmean([[]], []), '"preds" and "truths"'),
    (lambda: text_hmean([[]], [[box(0, 0, 1, 1)]], [[]]), 'Image 0: "ignores"'),
    (lambda: text_hmean([[]], [[]], []), '"ignores" needs one entry'),
    (lambda: text_hmean([[]], [[]], iou=1.5), 'iou'), (lambda: text_hmean([[]], [[]], overlap=-1), 'overlap'),
    (lambda: text_hmean([[], [[1, 2, 3]]], [[], []]), 'Image 1, prediction 0'),
    (lambda: text_hmean([[]], [[['a', 'b']]]), 'Image 0, truth 0'),
    (lambda: sweep_score([[box(0, 0, 1, 1)]], [[np.nan]], [[]]), 'finite'), (lambda: sweep_score([[]], [], [[]]), '"scores"'),
    (lambda: sweep_score([[]], [[]], [[]], thresholds=[np.nan]), '"thresholds"')])
def test_what_cannot_be_scored_says_so(call, text):
    with pytest.raises(InputError, match=text.replace('[', r'\[')): call()


def test_inputs_are_left_alone():
    preds, truths, ignores = random_scene(np.random.default_rng(0))
    before = [[p.copy() for p in ps] for ps in preds]
    text_hmean(preds, truths, ignores); explain_misses(preds, truths, ignores)
    assert all(np.array_equal(a, b) for x, y in zip(before, preds) for a, b in zip(x, y))


# pixels

@pytest.mark.parametrize('kind', [np.asarray, torch.as_tensor])
def test_pixel_iou_by_counting(kind):
    rng = np.random.default_rng(0)
    p, t, v = (rng.random((3, 16, 16)) < .5 for _ in range(3))
    want = (p & t & v).sum()/((p | t) & v).sum()
    assert text_pixel_iou(kind(p), kind(t), kind(v)) == want
    assert text_pixel_iou(kind(p*7), kind(t.astype(np.float32)), kind(v.astype(np.uint8))) == want
    assert text_pixel_iou(kind(p), kind(t), kind(np.zeros_like(v))) == 1
    assert isinstance(text_pixel_iou(kind(p), kind(t)), float)


def test_five_hundred_images_take_no_time():
    rng = np.random.default_rng(0)
    truths = [[box(0, 0, 60, 20) + rng.uniform(0, 640, 2) for _ in range(20)] for _ in range(500)]
    preds = [[t + rng.normal(0, 2, 2) for t in ts] for ts in truths]
    start = time.process_time()
    assert text_hmean(preds, truths).n_pred == 10_000
    assert time.process_time() - start < 2       # about 0.25 s of CPU time on one core
