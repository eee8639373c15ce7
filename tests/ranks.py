"""What two processes do under `torchrun`, for tests/test_processes.py: every system trains, resumes, and takes steps that a single process can take too.

torchrun --nproc_per_node 2 tests/ranks.py DATA OUT [SYSTEM ...]"""
import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from fastai.callback.core import Callback
from torch import nn

SYSTEMS = ('pan', 'fots', 'segmentation', 'frcnn', 'multilabel')
torch.set_num_threads(1)


def make_data(folder):
    "A toy set for each kind of truth, small enough for steps of a tenth of a second"
    from visionlab.datasets.toy import make_toy_text
    from visionlab.datasets.toy_boxes import make_toy_boxes
    from visionlab.datasets.toy_digits import make_toy_digits
    from visionlab.datasets.toy_masks import make_toy_masks
    make_toy_text(folder/'text', n_train=8, n_test=2, size=(96, 96))
    make_toy_boxes(folder/'boxes', n_train=8, n_test=2, size=(64, 64), classes=2)
    make_toy_masks(folder/'masks', n_train=8, n_test=2, size=(64, 64), classes=3)
    make_toy_digits(folder/'digits', n_train=8, n_test=2, size=48, digits=3)


def trainer_of(system, data, out, **more):
    "A trainer of a system on its toy set, with the smallest network"
    usual = dict(output_dir=str(out), device='cpu', num_workers=0, pretrained=False, tensorboard=False, batch_size=2, epochs=2, optimizer='SGD', weight_decay=0., lr=1e-3,
                 lr_scheduler='none', clip_grad=0., metrics='loss', accumulate=1)
    if system == 'pan':
        from visionlab.pan import PANTrainer as Trainer
        own = dict(train_path=[f'{data}/text/train'], val_path=[f'{data}/text/test'], input_size=64, test_size=64, head='conv1x1', fpem_repeat=1)
    elif system == 'fots':
        from visionlab.fots import FOTSTrainer as Trainer
        own = dict(train_path=[f'{data}/text/train'], val_path=[f'{data}/text/test'], short_side=96, input_size=64, test_size=64, backbone='shufflenetv2', width=8, reader_width=8)
    elif system == 'segmentation':
        from visionlab.segmentation import SegmentationTrainer as Trainer
        own = dict(train_path=[f'{data}/masks/train'], val_path=[f'{data}/masks/test'], classes=3, patch_size=64, encoder='tu-mobilenetv3_small_050')
    elif system == 'frcnn':
        from visionlab.frcnn import FasterRCNNTrainer as Trainer
        own = dict(train_path=[f'{data}/boxes'], val_path=[f'{data}/boxes'], input_shape=(64, 64), backbone='resnet18', head='mlp', head_width=32, rpn_min_size=2., n_post_train=60, n_post_test=20, roi_samples=16)
    else:
        from visionlab.multilabel import MultilabelTrainer as Trainer
        own = dict(images_root=f'{data}/digits/train', val_root=f'{data}/digits/test', input_size=32, model='mobilenetv3_small_050')
    loss = dict(criterion=more.pop('loss')) if system in ('pan', 'fots') and 'loss' in more else dict(loss_func=more.pop('loss')) if 'loss' in more else {}
    cbs = more.pop('cbs', ())
    return Trainer({**usual, **own, **more}, progress='none', **loss, **(dict(cbs=cbs) if cbs else {}))


class StillBatchNorm(Callback):
    "BatchNorm as it is in predictions"
    order = 1

    def before_batch(self):
        for m in self.model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()


class MeanOverImages(nn.Module):
    "A loss that is a mean over images, whatever the network gives; the systems' own divide by pixels, boxes or words"
    def __init__(self, system): super().__init__(); self.system = system

    def forward(self, pred, *targets):
        if self.system == 'frcnn':
            there = (pred[7] >= 0).float()[..., None]
            return (pred[0].square().mean((1, 2)) + pred[1].square().mean((1, 2)) + (pred[5].square()*there).sum((1, 2))/there.sum((1, 2)).clamp(min=1)).mean()
        maps = (pred[0], pred[1]/640, pred[2]) if isinstance(pred, tuple) else [pred]      # distances are px, up to 640
        return sum(m.square().flatten(1).mean() for m in maps)


def equal_steps(system, data, out, batch_size):
    "Weights after two epochs without anything that depends on how a batch is divided"
    own = dict(fots=dict(read=False), segmentation=dict(rotate=0., scale=(1., 1.)), frcnn=dict(freeze_bn=True, rpn_samples=100_000, roi_samples=200, n_pre_train=20_000, n_post_train=150)).get(system, {})
    loss = {} if system in ('multilabel', 'segmentation') else dict(loss=MeanOverImages(system))      # these two have such losses themselves, as long as all pixels count
    trainer = trainer_of(system, data, out, name=f'{system}-{batch_size}', batch_size=batch_size, cbs=[StillBatchNorm()], **loss, **own)
    start = {k: v.clone() for k, v in trainer.learn.model.state_dict().items()}
    trainer.train()
    return start, trainer.learn.model.state_dict()


def fingerprint(weights): return hashlib.sha256(b''.join(v.contiguous().numpy().tobytes() for v in weights.values())).hexdigest()


def main(data, out, *systems):
    rank, save, saved, found = int(os.environ['RANK']), torch.save, [], {}

    def counted(obj, f, *args, **kwargs): saved.append(str(f)); return save(obj, f, *args, **kwargs)
    torch.save = counted
    for system in systems or SYSTEMS:
        saved.clear()
        whole = trainer_of(system, data, out, name=system).train()
        facts = dict(weights=fingerprint(whole.learn.model.state_dict()), saved=len(saved), folder=str(whole.folder), latest=whole.latest.name, history=whole.history)
        half = trainer_of(system, data, out, name=f'{system}-half', epochs=1).train()
        again = trainer_of(system, data, out, name=f'{system}-half', resume_checkpoint=str(half.latest)).train()
        facts.update(resumed=fingerprint(again.learn.model.state_dict()), resumed_folder=str(again.folder), epochs=len(again.history))
        _, weights = equal_steps(system, data, out, 2)
        facts.update(steps=fingerprint(weights))
        if rank == 0: save(weights, f'{out}/{system}.steps')
        found[system] = facts
    Path(f'{out}/rank{rank}.json').write_text(json.dumps(found))


if __name__ == '__main__': main(*sys.argv[1:])
