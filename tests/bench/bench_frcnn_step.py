"""A training step and an evaluation step of Faster R-CNN beside torchvision's in the better of two memory layouts: the same weights, image, numbers of proposals and precision, in turn."""
import numpy as np
import torch
from torch import nn

from . import in_turns

PRE, POST, PRE_TEST, POST_TEST, SAMPLES, ROIS = 2000, 1000, 1000, 300, 256, 64
CLASSES = 20


def scene(size, n=1, seed=0):
    "Normalised images and eight boxes each, classes from 0"
    g = torch.Generator().manual_seed(seed)
    lo = torch.rand(n, 8, 2, generator=g)*torch.tensor([size[1]*.6, size[0]*.6])
    boxes = torch.cat([lo, lo + 24 + torch.rand(n, 8, 2, generator=g)*min(size)*.3], -1)
    return torch.randn(n, 3, *size, generator=g), boxes, torch.randint(0, CLASSES, (n, 8), generator=g)


def ours(**kwargs):
    from visionlab.frcnn import AnchorTargetCreator, FasterRCNN, ProposalCreator, ProposalTargetCreator
    torch.manual_seed(0)
    return FasterRCNN(CLASSES, freeze_bn=True, center_offset=False, nms=.5, proposals=ProposalCreator(.7, PRE, POST, PRE_TEST, POST_TEST, 1e-3, 'after'), anchor_targets=AnchorTargetCreator(SAMPLES, inside_only=False),
                      roi_targets=ProposalTargetCreator(ROIS, .25), **kwargs)


class AsTheyAre(nn.Module):
    "torchvision's resizing and normalising, left out: both get the same tensors"
    def forward(self, images, targets=None):
        from torchvision.models.detection.image_list import ImageList
        return ImageList(torch.stack(list(images)), [tuple(i.shape[-2:]) for i in images]), targets
    def postprocess(self, result, *_): return result


class OneMap(nn.Module):
    def __init__(self, net, channels): super().__init__(); self.net, self.out_channels = net, channels
    def forward(self, x): return {str(i): m for i, m in enumerate(y)} if isinstance(y := self.net(x), list) else {'0': y}


def with_frozen_norms(module):
    "BatchNorm as torchvision's detection models freeze it, with the same numbers"
    from torchvision.ops import FrozenBatchNorm2d
    for name, m in module.named_children():
        if isinstance(m, nn.BatchNorm2d):
            new = FrozenBatchNorm2d(m.num_features, m.eps)
            new.load_state_dict({k: v for k, v in m.state_dict().items() if k != 'num_batches_tracked'})
            setattr(module, name, new)
        else: with_frozen_norms(m)
    return module


def torchvisions(net, fpn, scales):
    "torchvision's FasterRCNN around the modules of `net`, with its own way to freeze BatchNorm"
    net = with_frozen_norms(net)
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import MultiScaleRoIAlign
    sizes = tuple((8*s,) for s in (4, 8, 16, 32, 64)) if fpn else (tuple(16*s for s in scales),)
    channels, k = net.rpn.conv.in_channels, net.rpn.anchors.per_cell
    head = RPNHead(channels, k)
    head.conv = nn.Sequential(nn.Sequential(net.rpn.conv, nn.ReLU(inplace=True)))
    head.cls_logits, head.bbox_pred = nn.Conv2d(net.rpn.conv.out_channels, k, 1), net.rpn.loc
    with torch.no_grad(): head.cls_logits.weight.copy_(net.rpn.score.weight[1::2] - net.rpn.score.weight[::2]); head.cls_logits.bias.zero_()
    predictor = FastRCNNPredictor(net.head.score.in_features, CLASSES + 1)
    predictor.cls_score, predictor.bbox_pred = net.head.score, net.head.cls_loc
    pool = MultiScaleRoIAlign(['0', '1', '2', '3'] if fpn else ['0'], net.head.cut.size, 2)
    model = FasterRCNN(OneMap(net.extractor, channels), rpn_anchor_generator=AnchorGenerator(sizes, ((.5, 1., 2.),)*len(sizes)), rpn_head=head, box_roi_pool=pool, box_head=net.head.body, box_predictor=predictor,
                       rpn_pre_nms_top_n_train=PRE, rpn_post_nms_top_n_train=POST, rpn_pre_nms_top_n_test=PRE_TEST, rpn_post_nms_top_n_test=POST_TEST, rpn_batch_size_per_image=SAMPLES, box_batch_size_per_image=ROIS,
                       box_positive_fraction=.25, box_detections_per_img=100)
    model.transform = AsTheyAre()
    return model


def step(model, size):
    "A training step and an evaluation step of a network, ours or torchvision's, as two functions"
    from visionlab.frcnn import FasterRCNN, FasterRCNNLoss
    images, boxes, labels = scene(size)
    targets, loss, mine = [dict(boxes=b, labels=l + 1) for b, l in zip(boxes, labels)], FasterRCNNLoss(normalise='samples'), isinstance(model, FasterRCNN)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-8, .9)     # so small that all keep proposing the same

    def train():
        model.train()
        out = model(images, boxes, labels) if mine else model(list(images), targets)
        total = loss(out) if mine else sum(out.values())
        optimiser.zero_grad(); total.backward(); optimiser.step()

    @torch.no_grad()
    def test():
        model.eval()
        model(images if mine else list(images))
    return train, test


def steps(size, **kwargs):
    "Steps of ours (weights channels last, as the engine lays them out), of torchvision's, and of torchvision's with weights channels last"
    theirs = lambda: torchvisions(ours(**kwargs), kwargs.get('fpn', False), kwargs.get('anchor_scales', (8, 16, 32)))
    return [step(m, size) for m in (ours(**kwargs).to(memory_format=torch.channels_last), theirs(), theirs().to(memory_format=torch.channels_last))]


CASES = {'resnet18 to stride 8, two linear layers, 240x320': ((240, 320), dict(backbone='resnet18', feature_stride=8, dilate=False, head='mlp', anchor_scales=(2, 4, 8), roi_layer='RoIAlign')),
         'resnet18 to stride 16, last stage, 320x416': ((320, 416), dict(backbone='resnet18', roi_layer='RoIAlign')),
         'resnet50 with a pyramid, 256x320': ((256, 320), dict(backbone='resnet50', fpn=True, anchor_scales=(8,)))}


def rows(rounds=9):
    for name, (size, kwargs) in CASES.items():
        training, evaluation = zip(*steps(size, **kwargs))
        for what, functions in (('evaluation', evaluation), ('training', training)):
            mine, *theirs = in_turns(*functions, n=rounds, warm=1, of=np.min)
            yield f'{what}, {name}', mine, min(theirs), mine/min(theirs), 1.


if __name__ == '__main__':
    torch.set_num_threads(1)
    for r in rows(): print(r, flush=True)
