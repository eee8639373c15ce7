"""Anchors, proposals, targets and loss of Faster R-CNN beside recorded numbers of two other programs, beside slow obvious versions, and under odd inputs."""
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from visionlab.frcnn.anchors import AnchorGrid, anchor_recall, base_anchors, best_anchor_iou, feature_sizes, suggest_scales
from visionlab.frcnn.loss import FasterRCNNLoss, FRCNNOutput, smooth_l1_loss
from visionlab.frcnn.proposals import ProposalCreator, nms_sorted
from visionlab.frcnn.targets import AnchorTargetCreator, ProposalTargetCreator, RandomSampler, first_sampler
from visionlab.geometry.boxes import box_iou, encode_boxes

HERE = Path(__file__).parent/'golden'
SWAP = [1, 0, 3, 2]


def golden(name): return {k: torch.from_numpy(v) for k, v in np.load(HERE/f'frcnn_{name}.npz').items() if v.dtype.kind != 'U'}
def swap(x): return x[..., SWAP].contiguous()


# --- anchors ----------------------------------------------------------------------------------------------------------

SETS = dict(default=dict(), small=dict(scales=(4, 16, 32)), asym=dict(ratios=(.5, 1, 3), scales=(4, 8)))


@pytest.mark.parametrize('name', SETS)
def test_base_anchors_golden(name):
    d = golden('anchors')
    assert_close(base_anchors(**SETS[name]), swap(d[f'chenyuntc_yx_base_{name}']), rtol=0, atol=1e-5)
    corner = base_anchors(center_offset=False, **SETS[name])
    assert_close(swap(corner), d[f'bubbliiiing_base_{name}'], rtol=0, atol=1e-5)        # that program writes heights into the columns of x


@pytest.mark.parametrize('name,h,w', [('default', 1, 1), ('default', 2, 3), ('default', 5, 4), ('default', 38, 38), ('small', 2, 3), ('asym', 2, 3)])
def test_grid_golden(name, h, w):
    d = golden('anchors')
    assert_close(AnchorGrid(**SETS[name])((h, w)), swap(d[f'chenyuntc_yx_{name}_{h}x{w}_s16']), rtol=0, atol=1e-4)
    grid = AnchorGrid(center_offset=False, **SETS[name])
    cells = grid((h, w)).reshape(-1, grid.per_cell, 4)
    origin = (cells[..., :2] + cells[..., 2:])/2
    turned = torch.cat([origin, origin], -1) + swap(cells - torch.cat([origin, origin], -1))
    assert_close(turned.reshape(-1, 4), d[f'bubbliiiing_{name}_{h}x{w}_s16'], rtol=0, atol=1e-4)


def test_grid_beside_torchvision():
    d = golden('anchors')
    grid = AnchorGrid(center_offset=False, rounded=True)
    assert_close(grid.bases[0], d['torchvision_xy_base_default']), assert_close(grid((2, 3)), d['torchvision_xy_default_2x3_s16'])
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    theirs = AnchorGenerator(((32,), (64,), (128,)), ((.5, 1., 2.),)*3)
    maps = [torch.zeros(1, 1, h, w) for h, w in ((25, 40), (13, 20), (7, 10))]
    ours = AnchorGrid(strides=(4, 8, 16), base_sizes=(4, 8, 16), scales=(8,), center_offset=False, rounded=True)
    steps = [(100//m.shape[2], 160//m.shape[3]) for m in maps]
    assert_close(ours([m.shape[2:] for m in maps], strides=steps), theirs(ImageList(torch.zeros(1, 3, 100, 160), [(100, 160)]), maps)[0])


def test_grid_is_kept_and_usable_in_training():
    grid = AnchorGrid(keep=2)
    with torch.inference_mode(): a = grid((3, 4))
    assert not a.is_inference() and grid((3, 4)) is a
    grid((1, 1)), grid((1, 2))
    assert len(grid._made) == 2 and grid((3, 4)) is not a and torch.equal(grid((3, 4)), a)


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('size', [(300, 400), (600, 333), (50, 50), (1, 1)])
def test_nearest_cell_is_the_best(inside, size):
    "The short way over the nearest cell against all anchors, for one level and for several"
    g = torch.Generator().manual_seed(1)
    corner = torch.rand(150, 2, generator=g)*torch.tensor(size[::-1])
    boxes = torch.cat([corner, corner + torch.rand(150, 2, generator=g)**3*400 + .5], 1)
    for grid in (AnchorGrid(scales=(1, 4, 8)), AnchorGrid(strides=8, center_offset=False), AnchorGrid(strides=(4, 8, 16), base_sizes=(4, 8, 16), scales=(8,), rounded=True)):
        a = grid(feature_sizes(grid, *size))
        if inside: a = a[(a[:, :2] >= 0).all(1) & (a[:, 2] <= size[1]) & (a[:, 3] <= size[0])]
        slow = box_iou(boxes, a).amax(1) if len(a) else torch.zeros(150)
        assert_close(best_anchor_iou([boxes[:60], boxes[60:]], [size]*2, grid, inside_only=inside), slow, rtol=0, atol=1e-5)


def test_suggested_scales_reach_more():
    g = torch.Generator().manual_seed(0)
    side = (torch.rand(500, generator=g)*4 + 3).exp2()
    corner = torch.rand(500, 2, generator=g)*400
    boxes = [torch.cat([corner, corner + side[:, None]], 1)]
    before, after = (anchor_recall(boxes, (600, 600), AnchorGrid(strides=8, scales=s))[.5] for s in ((8, 16, 32), suggest_scales(boxes)))
    assert after > before + .2
    assert suggest_scales([torch.tensor([[0, 0, float('inf'), 5], [3., 3, 3, 3]])]) == ()
    assert len(suggest_scales(boxes, n=5)) == 5


# --- proposals --------------------------------------------------------------------------------------------------------

P = golden('proposals')


@pytest.mark.parametrize('key,kw', [
    ('chen_train', dict(train=True)), ('chen_test', {}), ('chen_train_scale2', dict(train=True, scale=2.)), ('chen_train_small_limits', dict(train=True, n_pre_train=100, n_post_train=50, min_size=24)),
    ('bub_train', dict(train=True, n_post_train=600)), ('bub_test', dict(n_pre_test=3000))])
def test_proposals_golden(key, kw):
    call = {k: kw[k] for k in ('train', 'scale') if k in kw}
    create = ProposalCreator(**{k: v for k, v in kw.items() if k not in call})
    chen = key.startswith('chen')
    turn = swap if chen else lambda x: x
    truth = turn(P[f'{key}_rois_' + ('yxyx' if chen else 'xyxy')])
    rois, valid, scores = create(turn(P['loc'])[None], P['score'][None], turn(P['anchors_chen_yxyx']) if chen else P['anchors_bub'], P['img_hw'].tolist(), **call)
    n = int(valid.sum())
    assert n == len(truth) and valid[0, :n].all() and rois[0, n:].abs().sum() == 0
    assert_close(rois[0, :n], truth, rtol=1e-5, atol=1e-4)


def torchvision_rpn(n_pre, n_post):
    from torchvision.models.detection.rpn import RegionProposalNetwork
    rpn = RegionProposalNetwork(None, None, .7, .3, 256, .5, dict(training=n_pre, testing=n_pre), dict(training=n_post, testing=n_post), .7)
    rpn.min_size = 16.
    return rpn.eval()


@pytest.mark.parametrize('levels', [((20, 30),), ((40, 60), (20, 30), (10, 15))])
def test_proposals_beside_torchvision(levels):
    "Same boxes in the same order, for one level and for a pyramid, two images"
    n = len(levels)
    grid = AnchorGrid(strides=tuple(8*2**i for i in range(n)), base_sizes=tuple(8*2**i for i in range(n)), scales=(4, 8))
    anchors, counts, size = grid(levels), [h*w*grid.per_cell for h, w in levels], (320, 480)
    g = torch.Generator().manual_seed(n)
    locs, scores = torch.randn(2, len(anchors), 4, generator=g)*.2, torch.randn(2, len(anchors), generator=g)
    rpn = torchvision_rpn(500, 100)
    boxes = rpn.box_coder.decode(locs.view(-1, 4), [anchors, anchors]).view(2, -1, 4)
    theirs, their_scores = rpn.filter_proposals(boxes, scores.view(-1, 1), [size]*2, counts)
    rois, valid, order = ProposalCreator(n_pre_test=500, n_post_test=100, drop_small='after')(locs, scores, anchors, size, counts=counts)
    for i in range(2):
        assert_close(rois[i][valid[i]], theirs[i], rtol=0, atol=1e-3)
        assert_close(order[i][valid[i]].sigmoid(), their_scores[i])


def slow_nms(boxes, iou, n):
    kept = []
    for i in range(len(boxes)):
        if len(kept) < n and all(box_iou(boxes[i:i+1], boxes[k:k+1]) <= iou for k in kept): kept.append(i)
    return kept


@pytest.mark.parametrize('iou,n,block', [(.5, 60, 16), (.3, 1000, 7), (.7, 30, 1024), (1., 50, 32)])
def test_nms_beside_slow_version(iou, n, block):
    g = torch.Generator().manual_seed(n)
    corner = torch.rand(150, 2, generator=g)*60
    boxes = torch.cat([corner, corner + torch.rand(150, 2, generator=g)*40 + 5], 1)
    assert nms_sorted(boxes, iou, n, block).tolist() == slow_nms(boxes, iou, n)


def test_the_way_of_the_gpu_keeps_the_same():
    from visionlab.frcnn.proposals import _keep_apart, _keep_in_turn
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 400, 2, generator=g).mul(200).round()
    boxes = torch.cat([corner, corner + torch.rand(5, 400, 2, generator=g).mul(60).round() + 5], -1)     # whole pixels survive being moved far away
    there, group = torch.rand(5, 400, generator=g) < .8, torch.arange(400)//150
    slow = _keep_in_turn(boxes, there, group, .5, 400)
    for most in (10**6, 900, 100): assert torch.equal(_keep_apart(boxes, there, group, .5, most), slow)
    assert not _keep_apart(boxes, there & False, group, .5).any()


def test_proposals_of_odd_networks():
    anchors, size = AnchorGrid()((2, 2)), (32, 32)
    nan, inf = float('nan'), float('inf')
    for locs, scores in ((nan, 0.), (0., nan), (inf, 0.), (0., inf), (100., 0.), (-inf, -inf)):
        for where in ('before', 'after'):
            rois, valid, order = ProposalCreator(drop_small=where, min_size=1)(torch.full((2, 36, 4), locs), torch.full((2, 36), scores), anchors, size)
            assert rois.isfinite().all() and not rois.isnan().any() and valid.shape == order.shape == rois.shape[:2]
    rois, valid, _ = ProposalCreator()(torch.zeros(1, 9, 4), torch.zeros(1, 9), AnchorGrid()((1, 1)), (1, 1))
    assert not valid.any()
    half = ProposalCreator()(torch.zeros(2, 36, 4).bfloat16(), torch.rand(2, 36).bfloat16(), anchors, torch.tensor([[32, 32], [8, 8]]), scale=torch.tensor([1., 1.]))
    assert half[1].any(1).tolist() == [True, False] and half[0].dtype == torch.float32


# --- targets of anchors -----------------------------------------------------------------------------------------------

CASES = ('five', 'twenty', 'tiny', 'exact_anchor')
T = golden('targets')
IMAGE = (600, 800)
EVERY = dict(n_sample=10**9, sampler=first_sampler)


@pytest.fixture(scope='module')
def anchors(): return swap(T['anchors_chenyuntc_yxyx_37x50'])


def test_the_recorded_anchors_are_ours(anchors): assert_close(AnchorGrid()((37, 50)), anchors, rtol=0, atol=1e-4)


def exact_labels(boxes, anchors, **kw):
    create = AnchorTargetCreator(**{**EVERY, **kw})
    create.pos_ratio = 1.          # all positives are kept
    locs, labels = create(boxes, None, anchors, IMAGE)
    return locs, labels


@pytest.mark.parametrize('case', CASES)
def test_anchor_targets_golden_inside(case, anchors):
    "All inside, all ties: labels and offsets exactly"
    locs, labels = exact_labels(T[f'gt_{case}_xyxy'], anchors)
    assert torch.equal(labels, T[f'chen_{case}_label'].long())
    assert_close(locs[labels == 1], swap(T[f'chen_{case}_loc_pos_yxhw']), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_anchor_targets_golden_one(case):
    "No inside rule, one anchor a box which is aimed at it"
    locs, labels = exact_labels(T[f'gt_{case}_xyxy'], T['anchors_bubbliiiing_37x50'], inside_only=False, best='one')
    assert torch.equal(labels, T[f'bub_{case}_label'].long())
    assert_close(locs[labels == 1], T[f'bub_{case}_loc_pos_xywh'], rtol=1e-4, atol=1e-5)


def test_candidates_golden(anchors):
    at, columns = AnchorTargetCreator().candidates(anchors, IMAGE)
    assert torch.equal(at, T['inside_index_chenyuntc']) and torch.equal(columns.T, anchors[at])


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('peer,kw', [('chen', {}), ('bub', dict(inside_only=False, best='one'))])
def test_counts_after_sampling_golden(case, peer, kw, anchors):
    a = anchors if peer == 'chen' else T['anchors_bubbliiiing_37x50']
    labels = AnchorTargetCreator(**kw)(T[f'gt_{case}_xyxy'], None, a, IMAGE)[1]
    assert [int((labels == v).sum()) for v in (1, 0, -1)] == T[f'{peer}_{case}_sampled_counts_pos_neg_ign'].tolist()


def test_no_box_is_background(anchors):
    "The recorded programs crash on an empty truth, or make 5,834 anchors positive for a box that touches none"
    for boxes in (torch.zeros(0, 4), torch.tensor([[700., 500, 700, 560]]), torch.tensor([[2000., 2000, 2100, 2100]])):
        locs, labels = AnchorTargetCreator()(boxes, None, anchors, IMAGE)
        assert (labels == 1).sum() == 0 and (labels == 0).sum() == 256 and locs.abs().sum() == 0
    assert T['chen_degenerate_gt_pos_count'] == 5834


def slow_anchor_targets(boxes, anchors, size, pos=.7, neg=.3):
    "Anchor by anchor, as the rules say"
    labels = torch.full((len(anchors),), -1)
    iou = box_iou(anchors, boxes)
    inside = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] <= size[1]) & (anchors[:, 3] <= size[0])
    best = iou[inside].amax(0)
    for i in range(len(anchors)):
        if not inside[i]: continue
        if iou[i].max() < neg: labels[i] = 0
        if any(best[k] > 0 and iou[i, k] == best[k] for k in range(len(boxes))) or iou[i].max() >= pos: labels[i] = 1
    return labels


def test_slow_version_and_batch():
    g = torch.Generator().manual_seed(3)
    grid = AnchorGrid(scales=(2, 4, 8))
    anchors, size = grid((12, 16)), (192, 256)
    corner = torch.rand(3, 6, 2, generator=g)*torch.tensor([200., 150])
    boxes = torch.cat([corner, corner + torch.rand(3, 6, 2, generator=g)*80 + 4], -1)
    labels = torch.zeros(3, 6, dtype=torch.long)
    labels[1, 4:], labels[2] = -1, -1
    create = AnchorTargetCreator(**EVERY)
    create.pos_ratio = 1.
    locs, out = create(boxes, labels, anchors, size)
    for i in range(2): assert torch.equal(out[i], slow_anchor_targets(boxes[i][labels[i] >= 0], anchors, size))
    assert out[2].amax() == 0 and locs[2].abs().sum() == 0
    aim = box_iou(anchors, boxes[0]).argmax(1)
    pos = out[0] == 1
    assert_close(locs[0, pos], encode_boxes(anchors[pos], boxes[0, aim[pos]]))


def test_sampling_is_fair_and_seeded(anchors):
    boxes = T['gt_twenty_xyxy']
    every = exact_labels(boxes, anchors)[1]
    create = AnchorTargetCreator(sampler=RandomSampler(seed=0))
    seen, n = torch.zeros(len(anchors)), 200
    for _ in range(n):
        labels = create(boxes, None, anchors, IMAGE)[1]
        assert (labels == 1).sum() == 128 and (labels == 0).sum() == 128 and (every[labels >= 0] == labels[labels >= 0]).all()
        seen += labels == 1
    share = seen[every == 1]/n
    assert abs(share.mean() - 128/179) < 1e-3 and share.min() > .5 and share.max() < .9
    torch.manual_seed(5)
    a = AnchorTargetCreator()(boxes, None, anchors, IMAGE)[1]
    torch.manual_seed(5)
    assert torch.equal(a, AnchorTargetCreator()(boxes, None, anchors, IMAGE)[1])


def test_kept_candidates_notice_changes(anchors):
    create, mine = AnchorTargetCreator(), anchors.clone()
    first = create.candidates(mine, IMAGE)[0]
    assert create.candidates(mine, IMAGE)[0] is first and create.candidates(mine, (300, 300))[0] is not first
    mine += 500
    assert len(create.candidates(mine, IMAGE)[0]) < len(first)
    for i in range(40): create.candidates(anchors, (600, 700 + i))
    assert len(create._kept) == 32


def test_targets_in_inference_mode(anchors):
    "Validation may run without gradients in the strict way, with tensors made there"
    with torch.inference_mode():
        mine, create = anchors.clone(), AnchorTargetCreator(sampler=first_sampler)
        a = create(T['gt_five_xyxy'], None, mine, IMAGE)
        ProposalTargetCreator()(T['pt_five_rois_xyxy'], None, T['gt_five_xyxy'], T['pt_five_labels'])
    for x, y in zip(a, create(T['gt_five_xyxy'], None, anchors, IMAGE)): assert torch.equal(x, y)
    loc = torch.zeros(3, 4, requires_grad=True)
    from visionlab.geometry.boxes import decode_boxes
    decode_boxes(anchors[:3], loc, (.1, .1, .2, .2)).sum().backward()       # what was kept there is of use here
    assert loc.grad.isfinite().all()


def test_one_pixel_image():
    grid = AnchorGrid()
    for kw in ({}, dict(inside_only=False), dict(best='one'), dict(inside_only=False, best='one')):
        locs, labels = AnchorTargetCreator(**kw)(torch.tensor([[0., 0, 1, 1]]), torch.tensor([0]), grid((1, 1)), (1, 1))
        assert locs.shape == (9, 4) and labels.shape == (9,) and locs.isfinite().all()


# --- targets of proposals ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('peer,ratio', [('chen', .25), ('bub', .5)])
def test_proposal_targets_golden(peer, ratio):
    turn = swap if peer == 'chen' else lambda x: x
    order = {'chen': 'yxyx', 'bub': 'xyxy'}[peer], {'chen': 'yxhw', 'bub': 'xywh'}[peer]
    rois, locs, labels = ProposalTargetCreator(pos_ratio=ratio, sampler=first_sampler)(T['pt_five_rois_xyxy'], None, T['gt_five_xyxy'], T['pt_five_labels'])
    assert torch.equal(rois, turn(T[f'pt_five_{peer}_sample_{order[0]}']))
    assert torch.equal(labels, T[f'pt_five_{peer}_label'].long())
    assert_close(locs[labels > 0], turn(T[f'pt_five_{peer}_loc_{order[1]}'])[labels > 0], rtol=1e-4, atol=1e-4)


def test_proposal_targets_batch_and_masks():
    rois, boxes, labels = T['pt_five_rois_xyxy'], T['gt_five_xyxy'], T['pt_five_labels'].long()
    create = ProposalTargetCreator(sampler=first_sampler)
    valid = torch.ones(3, 320, dtype=torch.bool)
    valid[1, 100:], valid[2] = False, False
    lab = torch.stack([labels, torch.where(torch.arange(5) < 2, labels, -1), torch.full((5,), -1)])
    out = create(rois.expand(3, -1, -1), valid, boxes.expand(3, -1, -1), lab)
    assert [o.shape for o in out] == [(3, 128, 4), (3, 128, 4), (3, 128)]
    for i, (v, l) in enumerate(zip((320, 100, 0), (5, 2, 0))):
        for a, b in zip(out, create(rois[:v], None, boxes[:l], labels[:l])): assert_close(a[i], b)
    assert (out[2][2] == -1).all() and out[0][2].abs().sum() == 0
    create = ProposalTargetCreator(neg_low=.1)
    r, _, k = create(rois, None, boxes, labels)
    best = box_iou(r[k == 0], boxes).amax(1)
    assert best.min() >= .1 and best.max() < .5


def test_odd_proposals():
    nan = float('nan')
    rois = torch.tensor([[0., 0, 0, 0], [5, 5, 5, 50], [10, 10, 60, 60]])
    boxes = torch.tensor([[9., 9, 61, 61], [nan, 0, 5, 5], [7, 7, 7, 7]])
    r, l, k = ProposalTargetCreator(sampler=first_sampler)(rois, None, boxes, torch.tensor([3, 1, 0]))
    assert k.tolist()[:4] == [4, 4, 0, 0] and (k[4:] == -1).all() and r.isfinite().all() and l.isfinite().all()


# --- smooth L1 and the four losses ------------------------------------------------------------------------------------

@pytest.mark.parametrize('sigma', [1, 3])
@pytest.mark.parametrize('peer,normalise', [('chen', 'samples'), ('bub', 'positives')])
def test_smooth_l1_golden(sigma, peer, normalise):
    d = golden('smoothl1')
    cases = [k.split('_')[0][2:] for k in d if k.startswith('in') and k.endswith('_pred')]
    assert len(cases) >= 4
    for i in cases:
        pred, gt, label = d[f'in{i}_pred'].requires_grad_(), d[f'in{i}_gt'], d[f'in{i}_label']
        loss = smooth_l1_loss(pred, gt, label, sigma, normalise)
        assert_close(loss.detach(), d[f'{peer}_{i}_sigma{sigma}'], rtol=1e-6, atol=1e-6)
        assert_close(torch.autograd.grad(loss, pred)[0], d[f'{peer}_{i}_sigma{sigma}_grad'], rtol=1e-5, atol=1e-6)
        n = max(1, int((label > 0).sum() if normalise == 'positives' else (label >= 0).sum()))
        assert_close(loss.detach()*n, d[f'torch_beta_{i}_sigma{sigma}_sum'], rtol=1e-5, atol=1e-6)


def output(b=3, a=60, s=20, c=4, seed=0, anchor=None, roi=None, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g).to(dtype).requires_grad_()
    al, rl = torch.randint(-1, 2, (b, a), generator=g), torch.randint(-1, c+1, (b, s), generator=g)
    if anchor is not None: al.fill_(anchor)
    if roi is not None: rl.fill_(roi)
    return FRCNNOutput(r(b, a, 4), r(b, a, 2), torch.randn(b, a, 4, generator=g), al, r(b, s, (c+1)*4), r(b, s, c+1), torch.randn(b, s, 4, generator=g), rl)


def slow_parts(o, rpn_sigma, roi_sigma):
    "Image by image, as the training scripts do"
    def loc(pred, gt, label, sigma):
        pred, gt = pred[label > 0], gt[label > 0]
        return F.smooth_l1_loss(pred, gt, beta=1/sigma**2, reduction='sum')/max(1, int((label > 0).sum()))
    out = [[] for _ in range(4)]
    for i in range(len(o.rpn_locs)):
        out[0].append(loc(o.rpn_locs[i], o.anchor_locs[i], o.anchor_labels[i], rpn_sigma))
        out[1].append(F.cross_entropy(o.rpn_scores[i], o.anchor_labels[i], ignore_index=-1))
        used = o.target_labels[i] >= 0
        locs = o.roi_locs[i][used].view(int(used.sum()), -1, 4)[torch.arange(int(used.sum())), o.target_labels[i][used]]
        out[2].append(loc(locs, o.target_locs[i][used], o.target_labels[i][used], roi_sigma))
        out[3].append(F.cross_entropy(o.roi_scores[i][used], o.target_labels[i][used]))
    return [sum(x)/len(x) for x in out]


@pytest.mark.parametrize('rpn,roi', [(1., 1.), (3., 1.), (2., 3.)])
def test_loss_beside_slow_version(rpn, roi):
    o, loss = output(), FasterRCNNLoss(rpn, roi)
    total, slow = loss(o, 'boxes', 'labels'), slow_parts(o, rpn, roi)
    assert list(loss.last_parts) == ['rpn_loc', 'rpn_cls', 'roi_loc', 'roi_cls'] and not any(v.requires_grad for v in loss.last_parts.values())
    for a, b in zip(loss.last_parts.values(), slow): assert_close(a, b.detach())
    leaves = [o.rpn_locs, o.rpn_scores, o.roi_locs, o.roi_scores]
    for a, b in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(sum(slow), leaves)): assert_close(a, b)


@pytest.mark.parametrize('anchor', [-1, 0, 1])
@pytest.mark.parametrize('roi', [-1, 0, 4])
@pytest.mark.parametrize('normalise', ['positives', 'samples'])
def test_loss_is_always_finite(anchor, roi, normalise):
    o = output(anchor=anchor, roi=roi, dtype=torch.bfloat16)
    total = FasterRCNNLoss(normalise=normalise)(o)
    total.backward()
    assert total.isfinite() and total.dtype == torch.float32
    assert all(x.grad.isfinite().all() for x in (o.rpn_locs, o.rpn_scores, o.roi_locs, o.roi_scores))


def test_what_does_not_count_has_no_gradient():
    o = output()
    FasterRCNNLoss()(o).backward()
    assert (o.rpn_locs.grad[o.anchor_labels < 1] == 0).all() and (o.rpn_scores.grad[o.anchor_labels < 0] == 0).all()
    assert (o.roi_locs.grad[o.target_labels < 1] == 0).all() and (o.roi_scores.grad[o.target_labels < 0] == 0).all()
    assert (o.roi_locs.grad.unflatten(-1, (-1, 4)).abs().sum(-1) > 0).sum() == (o.target_labels > 0).sum()       # one class each
