"""A training step of segmentation beside a bare PyTorch loop over the same network, and how long training waits for its data (U-Net, resnet18, 256x256)."""
import os
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
import tempfile
import time
from pathlib import Path

import torch
from visionlab.segmentation.config import SegmentationConfig


class Batches:
    "Two batches over and over: what reading images costs is the other row's affair"
    def __init__(self, n, size, batch, classes):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, batch, 3, size, size, generator=g)
        y = torch.randint(0, classes, (2, batch, size, size), generator=g)
        self.data, self.n = list(zip(x, y)), n

    def __len__(self): return self.n
    def __getitem__(self, i): return self.data[i % 2]


def config(**changes):
    return SegmentationConfig(**{**dict(model='Unet', encoder='resnet18', pretrained=False, classes=4, patch_size=256, batch_size=4, device='cpu', epochs=1, metrics='loss', num_workers=0), **changes})


def network(c, last=True):
    from visionlab.segmentation.model import segmentation_model
    torch.manual_seed(0)
    net = segmentation_model(c).train()
    return net.to(memory_format=torch.channels_last) if last else net


def bare_step(net, opt, amp=False):
    "The step that anybody would write: forward, loss, backward, clip, step"
    def step(x, y):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp): pred = net(x)
        loss = torch.nn.functional.cross_entropy(pred.float(), y, ignore_index=255)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 255.)
        opt.step()
        opt.zero_grad()
        return float(loss.detach())     # a loop that nobody watches is no loop
    return step


def adam(net, c): return torch.optim.AdamW(net.parameters(), c.lr, eps=c.adam_eps, weight_decay=c.weight_decay)


def engine_pairs(amp, n=3, rounds=6):
    "Processor seconds a batch of a bare loop and of the engine, alternating, so that other work on the machine hits both alike"
    from fastai.data.core import DataLoaders, TfmdDL
    from visionlab.segmentation.learner import segmentation_learner
    c = config(amp=amp)
    net = network(c)
    step, dl = bare_step(net, adam(net, c), amp), lambda: TfmdDL(Batches(n, 256, 4, 4), bs=None, num_workers=0)
    learn = segmentation_learner(DataLoaders(dl(), device='cpu'), c, network(c), progress='none')

    def bare():
        for x, y in dl(): step(x, y)

    def timed(f):
        start = time.process_time()
        f()
        return (time.process_time() - start)/n
    engine = lambda: learn.fit(1)
    timed(bare), timed(engine)
    return [(timed(bare), timed(engine)) if i % 2 else tuple(reversed((timed(engine), timed(bare)))) for i in range(rounds)]


def layout_pairs(rounds=5):
    "Seconds a step with weights one plane after the other, and channels last"
    c, (x, y) = config(), Batches(1, 256, 4, 4)[0]
    steps = [bare_step(net, adam(net, c)) for net in (network(c, False), network(c))]
    def timed(f):
        start = time.process_time()
        f(x, y)
        return time.process_time() - start
    for s in steps: s(x, y)
    return [tuple(timed(s) for s in steps) for _ in range(rounds)]


def waiting_share(epochs=3):
    "Share of the time that a training process with one worker waits for batches, full augmentation from files of 960x720 px"
    from visionlab.datasets.toy_masks import make_toy_masks
    from visionlab.segmentation.data import segmentation_dataloaders
    with tempfile.TemporaryDirectory() as folder:
        toy = make_toy_masks(Path(folder)/'toy', n_train=24, n_test=1, size=(960, 720), classes=4)
        c = config(num_workers=1, noise=.05, rotate=15, flip_vertical=.5, train_path=(f'{toy}/train',), val_path=(f'{toy}/test',))
        dl, net = segmentation_dataloaders(c).train, network(c)
        step, waited, start = bare_step(net, adam(net, c)), 0., None
        for _ in range(epochs):
            batches = iter(dl)
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                if start is not None: waited += time.perf_counter() - asked
                if batch is None: break
                step(*batch)
                if start is None: start = time.perf_counter()     # the very first batch starts libraries and processes
        total = time.perf_counter() - start
    return waited, total


def rows():
    for amp in (False, True):
        pairs = engine_pairs(amp)
        bare, ours = (min(p[i] for p in pairs)*1000 for i in (0, 1))
        yield f'U-Net resnet18, step 256x256 batch 4{", bfloat16" if amp else ""}, above a bare loop', ours, bare, ours/bare, 1.03
    pairs = layout_pairs()
    plain, last = (min(p[i] for p in pairs)*1000 for i in (0, 1))
    yield 'the same step, channels last above contiguous', last, plain, last/plain, None
    waited, total = waiting_share()
    yield 'share of the time waiting for data, one worker', waited*1000, total*1000, waited/total, .10


if __name__ == '__main__':
    torch.set_num_threads(1)
    for r in rows(): print(r)
