"""The parts of Faster R-CNN between network and loss beside torchvision's, image of 600x800 px, 16,650 anchors, 20 boxes."""
from pathlib import Path

import numpy as np
import torch
from visionlab.frcnn.anchors import AnchorGrid
from visionlab.frcnn.proposals import ProposalCreator
from visionlab.frcnn.targets import AnchorTargetCreator, ProposalTargetCreator
from visionlab.geometry.boxes import box_iou, encode_boxes

from . import in_turns

SIZE = (600, 800)


def scene():
    "Anchors, boxes and classes of the recorded case"
    d = np.load(Path(__file__).resolve().parents[1]/'golden/frcnn_targets.npz')
    return torch.from_numpy(d['anchors_chenyuntc_yxyx_37x50'])[:, [1, 0, 3, 2]].contiguous(), torch.from_numpy(d['gt_twenty_xyxy']), torch.arange(20) % 6


def anchor_targets(rounds=200):
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou as tv_iou
    anchors, boxes, labels = scene()
    match, create = Matcher(.7, .3, allow_low_quality_matches=True), AnchorTargetCreator()
    return in_turns(lambda: create(boxes, labels, anchors, SIZE), lambda: match(tv_iou(boxes, anchors)), n=rounds)


def answers(kind):
    "What a first look says that has learned nothing, or much; no two scores are alike, so that the order is one"
    anchors, boxes, _ = scene()
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(1, len(anchors), 4, generator=g)
    distinct = lambda x: (x.argsort().argsort()/len(x)*8 - 4)[None]
    if kind == 'untrained': return noise*.3, distinct(torch.rand(len(anchors), generator=g))
    iou, near = box_iou(anchors, boxes).max(1)
    return (encode_boxes(anchors, boxes[near])*(iou[:, None] > .3) + .08*noise[0])[None], distinct(iou + .05*noise[0, :, 0])


def torchvision_rpn():
    from torchvision.models.detection.rpn import RegionProposalNetwork
    rpn = RegionProposalNetwork(None, None, .7, .3, 256, .5, dict(training=12000, testing=6000), dict(training=2000, testing=300), .7)
    rpn.min_size = 16.
    return rpn


def proposals(kind, train, rounds=9):
    anchors = AnchorGrid()((37, 50))
    locs, scores = answers(kind)
    rpn, create = torchvision_rpn().train(train), ProposalCreator(drop_small='after')
    theirs = lambda: rpn.filter_proposals(rpn.box_coder.decode(locs[0], [anchors]).view(1, -1, 4), scores.view(-1, 1), [SIZE], [len(anchors)])[0][0]
    ours = lambda: create(locs, scores, anchors, SIZE, train=train)
    rois, valid, _ = ours()
    torch.testing.assert_close(rois[valid], theirs(), rtol=0, atol=1e-3)      # the same boxes, or there is nothing to compare
    return in_turns(ours, theirs, n=rounds)


def proposal_targets(rounds=200):
    from torchvision.models.detection.roi_heads import RoIHeads
    anchors, boxes, labels = scene()
    rois, valid, _ = ProposalCreator()(*answers('trained'), anchors, SIZE, train=True)
    rest = AnchorGrid()((37, 50))[:2000 - int(valid.sum())]
    rois = torch.cat([rois[valid], rest])[None]
    heads, create = RoIHeads(None, None, None, .5, .5, 128, .5, None, .05, .5, 100), ProposalTargetCreator()
    return in_turns(lambda: create(rois, None, boxes[None], labels[None]), lambda: heads.select_training_samples([rois[0]], [dict(boxes=boxes, labels=labels + 1)]), n=rounds)


def rows():
    ours, theirs = anchor_targets()
    yield 'anchor targets, above torchvision box_iou + Matcher', ours, theirs, ours/theirs, .288
    for kind in ('untrained', 'trained'):
        for train in (True, False):
            ours, theirs = proposals(kind, train)
            yield f'proposals, {kind}, {"12000 to 2000" if train else "6000 to 300"}, above torchvision', ours, theirs, ours/theirs, 1.
    ours, theirs = proposal_targets()
    yield 'proposal targets, 2000 proposals, above torchvision', ours, theirs, ours/theirs, 1.


if __name__ == '__main__':
    torch.set_num_threads(1)
    for r in rows(): print(r)
