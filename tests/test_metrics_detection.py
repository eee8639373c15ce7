"Average precision against golden numbers of chainercv's protocol and of COCO, against a slow obvious version, and with input of every kind"
import json
from pathlib import Path
import numpy as np, pytest, torch
from visionlab.core.checks import InputError
from visionlab.metrics.detection import COCO_FIGURES, curve_ap, coco_ap, coco_stats, precision_recall, voc_ap

golden = Path(__file__).parent/'golden'
voc, coco = np.load(golden/'frcnn_vocap.npz'), json.loads((golden/'coco_map.json').read_text())


def voc_case(name):
    get, swap = lambda k: voc[f'{name}/{k}'], [1, 0, 3, 2]
    n = int(get('n_img'))
    preds = [(get('pred_boxes_yxyx')[m][:, swap], get('pred_labels')[m], get('pred_scores')[m]) for i in range(n) for m in [get('pred_img') == i]]
    truths = [(get('gt_boxes_yxyx')[m][:, swap], get('gt_labels')[m], get('gt_difficult')[m]) for i in range(n) for m in [get('gt_img') == i]]
    return preds, truths


@pytest.mark.parametrize('name', voc['cases'].tolist())
@pytest.mark.parametrize('iou, ending', [(.5, ''), (.75, '_iou75')])
@pytest.mark.parametrize('method, key', [('11point', '07'), ('area', '_area')])
def test_golden_voc(name, iou, ending, method, key):
    score = voc_ap(*voc_case(name), iou=iou, method=method)
    np.testing.assert_allclose(score.ap, voc[f'{name}/ap{key}{ending}'], atol=1e-12)
    np.testing.assert_allclose(score.map, voc[f'{name}/map{key}{ending}'], atol=1e-12)


def coco_lists(case):
    "A COCO case as lists an image"
    cats = {c['id']: i for i, c in enumerate(case['ground_truth']['categories'])}
    xyxy = lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
    preds, truths = [], []
    for im in case['ground_truth']['images']:
        t = [a for a in case['ground_truth']['annotations'] if a['image_id'] == im['id']]
        d = [a for a in case['detections'] if a['image_id'] == im['id']]
        truths.append(([xyxy(a['bbox']) for a in t], [cats[a['category_id']] for a in t], [a['iscrowd'] for a in t]))
        preds.append(([xyxy(a['bbox']) for a in d], [cats[a['category_id']] for a in d], [a['score'] for a in d]))
    return preds, truths, [c['name'] for c in case['ground_truth']['categories']]


@pytest.mark.parametrize('name', coco['cases'])
def test_golden_coco(name):
    case = coco['cases'][name]
    want = [case['pycocotools'][k] for k in coco['stats_order']]
    for score in (coco_stats(case['ground_truth'], case['detections']), coco_ap(*coco_lists(case))):
        got = [score.figures[k] for k in COCO_FIGURES]
        np.testing.assert_allclose(np.nan_to_num(got, nan=-1), want, atol=1e-9)
    assert np.isclose(np.nanmean(score.class_ap), score.ap) and np.isclose(np.nanmean(score.class_ap50), score.ap50)


def test_coco_does_not_change_its_arguments(tmp_path):
    case = coco['cases']['0_small']
    before = json.dumps(case)
    coco_stats(case['ground_truth'], case['detections'])
    assert json.dumps(case) == before
    for k in ('ground_truth', 'detections'): (tmp_path/f'{k}.json').write_text(json.dumps(case[k]))
    assert coco_stats(tmp_path/'ground_truth.json', str(tmp_path/'detections.json')).ap == coco_stats(case['ground_truth'], case['detections']).ap


# against loops

def slow_ap(preds, truths, c, iou):
    "AP of class c, prediction by prediction"
    rows, n = [], 0
    for (pb, pl, ps), (tb, tl, td) in zip(preds, truths):
        true = [(b, d) for b, l, d in zip(tb, tl, td) if l == c]
        n += sum(not d for _, d in true)
        taken = set()
        for s, b in sorted([(s, tuple(b)) for b, l, s in zip(pb, pl, ps) if l == c], key=lambda v: -v[0]):
            over = []
            for t, _ in true:
                w, h = min(b[2], t[2]) - max(b[0], t[0]) + 1, min(b[3], t[3]) - max(b[1], t[1]) + 1
                inter = max(0, w)*max(0, h)
                over.append(inter/((b[2]-b[0]+1)*(b[3]-b[1]+1) + (t[2]-t[0]+1)*(t[3]-t[1]+1) - inter))
            j = int(np.argmax(over)) if over else None
            if j is None or over[j] < iou: rows.append((s, 0)); continue
            if not true[j][1]: rows.append((s, int(j not in taken)))
            taken.add(j)
    if not n: return np.nan
    rows.sort(key=lambda v: -v[0])
    right, points = 0, []
    for i, (_, h) in enumerate(rows, 1):
        right += h
        points.append((right/n, right/i))
    total, last = 0., 0.
    for k, (r, _) in enumerate(points):
        total += (r - last)*max(p for _, p in points[k:]); last = r
    return total


@pytest.mark.parametrize('seed', range(8))
def test_against_loops(seed):
    rng = np.random.default_rng(seed)
    def boxes(n): xy = rng.integers(0, 40, (n, 2)); return np.hstack([xy, xy + rng.integers(5, 30, (n, 2))]).astype(np.float32)
    truths = [(boxes(k), rng.integers(0, 3, k), rng.random(k) < .2) for k in rng.integers(0, 6, 6)]
    preds = []
    for b, l, _ in truths:
        false = boxes(int(rng.integers(0, 4)))
        near = np.clip(b + rng.normal(0, 2, b.shape), 0, None).astype(np.float32)
        n = len(near) + len(false)
        preds.append((np.vstack([near, false]), np.r_[l, rng.integers(0, 3, len(false))], rng.permutation(n) + rng.random(n)))
    score = voc_ap(preds, truths, names='abc')
    np.testing.assert_allclose(score.ap, [slow_ap(preds, truths, c, .5) for c in range(3)], atol=1e-12)
    assert score.matrix[:3].sum() == sum((~d).sum() for *_, d in truths)
    assert (score.per_image[:, 0] + score.per_image[:, 2]).sum() == score.truths.sum()


# input of every kind

def test_tensors_dicts_and_samples_are_the_same():
    from visionlab.datasets.samples import Sample
    preds, truths = voc_case('0_random_3img_3cls')
    want = voc_ap(preds, truths).map
    as_dict = lambda rows, keys: [dict(zip(keys, map(torch.as_tensor, r))) for r in rows]
    assert voc_ap(as_dict(preds, ('boxes', 'labels', 'scores')), as_dict(truths, ('boxes', 'labels', 'difficult'))).map == want
    assert voc_ap([tuple(map(torch.tensor, p)) for p in preds], [t[:2] for t in truths]).map == want
    samples = [Sample('a.jpg', boxes=t[0], labels=t[1]) for t in truths]
    assert voc_ap(preds, samples).map == want


def test_a_difficult_sample_is_not_counted():
    from visionlab.datasets.samples import Sample
    s = Sample('a.jpg', boxes=[[0, 0, 9, 9], [20, 20, 39, 39]], labels=[0, 0], ignore=[True, False])
    score = voc_ap([(s.boxes, s.labels, [.9, .8])], [s])
    assert score.truths.tolist() == [1] and score.hits[0].tolist() == [-1, 1] and score.map == 1


def test_empty_sides():
    none, one = ([], [], []), ([[0, 0, 5, 5]], [0], [.5])
    assert voc_ap([none]*2, [one[:2]]*2).map == 0 == coco_ap([none]*2, [one[:2]]*2).ap
    for s in (voc_ap([one], [none[:2]]), voc_ap([none], [none[:2]]), voc_ap([], []), voc_ap([], [], names=('a', 'b'))):
        assert np.isnan(s.map) and 'nan' in repr(s) and s.to_dict()['map'] is None
        json.dumps(s.to_dict()); s._repr_html_()
    for s in (coco_ap([one], [none[:2]]), coco_ap([none], [none[:2]])):
        assert np.isnan(s.ap)
        json.dumps(s.to_dict()); repr(s)


def test_pictures_of_nothing():
    import matplotlib.pyplot as plt
    s = voc_ap([], [], names=('a', 'b'))
    s.show(); s.show_confusion(); plt.close('all')


def test_perfect_and_boxes_without_area():
    "A box without area costs no division by zero"
    b = [[3, 3, 3, 3], [10, 10, 40, 40]]
    assert voc_ap([(b, [0, 0], [.9, .8])], [(b, [0, 0])]).map == 1
    assert voc_ap([(b[1:], [0], [.8])], [(b[1:], [0])], whole_pixels=False).map == 1
    assert np.isfinite(voc_ap([(b, [0, 0], [.9, .8])], [(b, [0, 0])], whole_pixels=False).map)


def test_equal_scores_keep_their_order():
    preds = [([[0, 0, 9, 9]], [0], [.5]), ([[50, 50, 60, 60]], [0], [.5])]
    truths = [([[0, 0, 9, 9]], [0]), ([], [])]
    assert voc_ap(preds, truths).hits[0].tolist() == [1, 0]


@pytest.mark.parametrize('bad, message', [
    (lambda: voc_ap([([[0, 0, 1]], [0], [.5])], [([], [])]), 'boxes (n,4)'),
    (lambda: voc_ap([([[0, 0, 1, 1]], [-1], [.5])], [([], [])]), 'padding must be left out'),
    (lambda: voc_ap([([[0, 0, 1, np.inf]], [0], [.5])], [([], [])]), 'infinite'),
    (lambda: voc_ap([], [], iou=0), '"iou"'),
    (lambda: voc_ap([], [], min_score=2), '"min_score"'),
    (lambda: voc_ap([], [], method='area07'), "'area', '11point'"),
    (lambda: coco_stats([], []), '"truth" needs an object'),
    (lambda: coco_stats({'images': [], 'annotations': [], 'categories': []}, {}), '"detections" needs a list'),
    (lambda: coco_stats({'images': [{}], 'annotations': [], 'categories': []}, []), 'missing'),
])
def test_bad_input_is_one_line(bad, message):
    with pytest.raises(InputError) as e: bad()
    assert message in str(e.value) and '\n' not in str(e.value)


def test_curve_by_hand():
    p, r = precision_recall([1, -1, 0, 1], 2)
    assert p.tolist() == [1, 1, .5, 2/3] and r.tolist() == [.5, .5, .5, 1]
    assert curve_ap(p, r) == .5 + .5*2/3
