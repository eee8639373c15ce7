"""Is training with visionlab as good as a plain script? Road against the rest on camvid-road: the same network, epochs, schedule and augmentation.

`python -m tests.bench.quality_segmentation [seeds]` trains both for each seed (default 3), four to five minutes of one CPU thread each, and prints the IoU of both on
held-back images, in the pixels of the files. The plain script stands below in full, as somebody would write it with segmentation_models_pytorch alone.
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[3]/'shared/data/segmentation-binary/camvid-road'
SIZE, BATCH, EPOCHS, LR, EPS, DECAY, TEST = 160, 4, 30, 2e-3, 1e-3, 1e-3, 25


def split():
    "Training and test names, the same for every seed"
    names = sorted(p.stem for p in (DATA/'masks').glob('*.png'))
    order = np.random.default_rng(0).permutation(len(names))
    return [names[i] for i in order[TEST:]], [names[i] for i in order[:TEST]]


def plain_script(train, test, seed):
    "U-Net, AdamW, OneCycleLR, bfloat16, written by hand: IoU on the test images"
    import albumentations as A
    import cv2
    import segmentation_models_pytorch as smp
    import torch
    from visionlab.datasets.masks import MaskTransform
    from visionlab.datasets.transforms import PAD_COLOUR
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    fit = A.Compose([A.LongestMaxSize(SIZE), A.PadIfNeeded(SIZE, SIZE, border_mode=0, fill=PAD_COLOUR, fill_mask=255)])
    view = MaskTransform(SIZE, scale=(.8, 1.25), rotate=5.)     # the same augmentation; all else is by hand
    mean, std = np.array([.485, .456, .406], np.float32), np.array([.229, .224, .225], np.float32)

    def read(name):
        image = cv2.cvtColor(cv2.imread(str(next((DATA/'imgs').glob(f'{name}.*')))), cv2.COLOR_BGR2RGB)
        return image, (cv2.imread(str(DATA/'masks'/f'{name}.png'), 0) > 127).astype(np.uint8)

    def item(pair, augment):
        image, mask = view(*pair, int(rng.integers(2**31))) if augment else fit(image=pair[0], mask=pair[1]).values()
        return torch.from_numpy(((image/255 - mean)/std).transpose(2, 0, 1).astype(np.float32)), torch.from_numpy(mask)[None]

    pairs, model = [read(n) for n in train], smp.Unet('resnet18', encoder_weights=None, classes=1).to(memory_format=torch.channels_last)
    optimiser, steps = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, weight_decay=DECAY), len(pairs)//BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps*EPOCHS)
    model.train()
    for _ in range(EPOCHS):
        order = rng.permutation(len(pairs))
        for k in range(steps):
            x, y = map(torch.stack, zip(*(item(pairs[i], True) for i in order[k*BATCH:(k + 1)*BATCH])))
            with torch.autocast('cpu', torch.bfloat16): p = model(x.to(memory_format=torch.channels_last))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(p.float()[y < 255], y[y < 255].float())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 255.)
            optimiser.step()
            schedule.step()
    model.eval()
    inter = union = 0
    for name in test:
        image, mask = read(name)
        h, w = mask.shape
        nh, nw = round(h*SIZE/max(h, w)), round(w*SIZE/max(h, w))
        with torch.no_grad(): found = model(item((image, mask), False)[0][None])[0, 0].sigmoid().numpy()
        top, left = (SIZE - nh)//2, (SIZE - nw)//2
        found = cv2.resize(found[top:top + nh, left:left + nw], (w, h), interpolation=cv2.INTER_LINEAR) >= .5
        inter, union = inter + (found & (mask > 0)).sum(), union + (found | (mask > 0)).sum()
    return inter/union


def ours(train, test, seed, folder):
    "The same with visionlab: IoU on the test images"
    from visionlab.datasets.samples import Sample
    from visionlab.inference import load_predictor
    from visionlab.segmentation import SegmentationConfig, SegmentationTrainer, segmentation_dataloaders
    from visionlab.segmentation.data import read_pair
    sample = lambda n: Sample(next((DATA/'imgs').glob(f'{n}.*')), mask_path=DATA/'masks'/f'{n}.png')
    config = SegmentationConfig(name=f'seed{seed}', output_dir=str(folder), model='Unet', encoder='resnet18', pretrained=False, classes=1, patch_size=SIZE, batch_size=BATCH, epochs=EPOCHS,
                                lr=LR, adam_eps=EPS, weight_decay=DECAY, amp=True, seed=seed, num_workers=0, device='cpu', metrics='loss', patience=0, tensorboard=False, rotate=5.)
    trainer = SegmentationTrainer(config, dls=segmentation_dataloaders(config, [sample(n) for n in train]), progress='none').train()
    predictor = load_predictor(trainer.latest, device='cpu')
    inter = union = 0
    for n in test:
        image, mask = read_pair(sample(n), 1)
        found = predictor(image).mask > 0
        inter, union = inter + (found & (mask > 0)).sum(), union + (found | (mask > 0)).sum()
    return inter/union


def main(seeds=3):
    import torch
    if not DATA.is_dir(): sys.exit(f'needs the data set {DATA.name} in shared/data/segmentation-binary beside the project')
    torch.set_num_threads(1)
    train, test = split()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, seeds + 1):
            start = time.process_time()
            plain = plain_script(train, test, seed)
            middle = time.process_time()
            rows.append((plain, ours(train, test, seed, folder)))
            print(f'seed {seed}: plain script {plain:.4f} ({middle - start:.0f} s of CPU), visionlab {rows[-1][1]:.4f} ({time.process_time() - middle:.0f} s)', flush=True)
    a, b = np.array(rows).T
    print(f'mean: plain script {a.mean():.4f}, visionlab {b.mean():.4f}')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
