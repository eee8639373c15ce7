"""Is training with visionlab as good as fastai's own multi-category learner? The clothes set, the same network, epochs, schedule and augmentation.

`python -m tests.bench.quality_multilabel [seeds] [epochs] [side]` trains both for each seed (default 3 seeds, 15 epochs, 64 px) and prints mAP and exact match of both on the set's own validation images.
Nothing pretrained, so that it runs without a network. The comparison says something only where fastai's learner is good itself: an exact match of 0.90 at least.
fastai's side stands below as somebody would write it: DataBlock, vision_learner's recipe for a network from scratch, and the same constant optimiser.
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[3]/'shared/data/multilabel/clothes'
MODEL, BATCH, LR, DECAY, ROTATE = 'resnet18', 16, 1e-3, .05, 15.
NEEDED = .90     # exact match of fastai's learner below which the comparison is void


def figures(logits, truth):
    "mAP and exact match by scikit-learn, the same judge for both"
    from sklearn.metrics import accuracy_score, average_precision_score
    return float(average_precision_score(truth, logits, average='macro')), float(accuracy_score(truth, logits >= 0))


def device():
    import torch
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def fastais(seed, epochs, side):
    "fastai's DataBlock, MultiCategoryBlock, Learner and fit_one_cycle"
    from fastai.vision.all import (BCEWithLogitsLossFlat, DataBlock, FuncSplitter, ImageBlock, Learner, MultiCategoryBlock, Normalize, Resize, ResizeMethod, aug_transforms, get_image_files,
                                   imagenet_stats, set_seed, Adam)
    import torchvision
    from functools import partial
    set_seed(seed, reproducible=True)
    block = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), get_items=get_image_files, get_y=lambda p: p.parent.name.split('+'), splitter=FuncSplitter(lambda p: p.parent.parent.name == 'val'),
                      item_tfms=Resize(side, ResizeMethod.Squish),
                      batch_tfms=[*aug_transforms(do_flip=True, flip_vert=False, max_rotate=ROTATE, min_zoom=1., max_zoom=1., max_lighting=0., max_warp=0., p_affine=1., pad_mode='zeros'), Normalize.from_stats(*imagenet_stats)])
    dls = block.dataloaders(DATA, bs=BATCH, num_workers=0, device=device())
    learn = Learner(dls, torchvision.models.get_model(MODEL, weights=None, num_classes=len(dls.vocab)), BCEWithLogitsLossFlat(), opt_func=partial(Adam, decouple_wd=True), wd=DECAY)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, LR)
        p, y = learn.get_preds()
    p = p.double().clamp(1e-15, 1 - 1e-15)
    return figures((p.log() - (1 - p).log()).numpy(), y.numpy().astype(int))


def ours(seed, epochs, side, folder):
    "The same with visionlab, one cycle too"
    from visionlab.multilabel import MultilabelConfig, MultilabelTrainer
    config = MultilabelConfig(name=f'seed{seed}', output_dir=str(folder), images_root=str(DATA/'train'), val_root=str(DATA/'val'), model=MODEL, pretrained=False, input_size=side, rotate=ROTATE, batch_size=BATCH,
                              epochs=epochs, lr=LR, weight_decay=DECAY, lr_scheduler='OneCycleLR', seed=seed, num_workers=0, device=device(), metrics='loss', patience=0, tensorboard=False, csv=False)
    trainer = MultilabelTrainer(config, progress='none').train()
    with trainer.learn.no_logging(), trainer.learn.no_bar(): trainer.learn.validate()     # the last weights, as on the other side
    score = trainer.learn.evaluator.score
    return figures(score.logits, score.truth.astype(int))


def main(seeds=3, epochs=15, side=64):
    import torch
    if not DATA.is_dir(): sys.exit('needs the data set clothes in shared/data/multilabel beside the project')
    if device() == 'cpu': torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, seeds + 1):
            start = time.process_time()
            theirs = fastais(seed, epochs, side)
            middle = time.process_time()
            rows.append((theirs, ours(seed, epochs, side, folder)))
            say = lambda f: f'mAP {f[0]:.4f}, exact match {f[1]:.4f}'
            print(f'seed {seed}: fastai {say(theirs)} ({middle - start:.0f} s of CPU); visionlab {say(rows[-1][1])} ({time.process_time() - middle:.0f} s)', flush=True)
    theirs, own = np.array(rows).mean(0)
    print(f'mean of {seeds}: fastai mAP {theirs[0]:.4f}, exact match {theirs[1]:.4f}; visionlab mAP {own[0]:.4f}, exact match {own[1]:.4f}')
    if theirs[1] < NEEDED: print(f'void: the exact match of fastai is below {NEEDED}, train longer (more epochs)')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
