"""What the engine costs above a bare PyTorch loop over the same model and the same batches, at 640x640, batch 4."""
import time

import torch
from torch import nn


class Batches:
    "Two batches over and over, as a loader would give them: what reading images costs is measured elsewhere"
    def __init__(self, n, size, batch):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, batch, 3, size, size, generator=g)
        y = (torch.rand(2, batch, size, size, generator=g) < .1).float()
        self.data, self.n = list(zip(x, y)), n

    def __len__(self): return self.n
    def __getitem__(self, i): return self.data[i % 2]


def model_and_loss():
    "A network of PAN's kind, several times lighter, so that the engine's share is rather over- than understated"
    layer = lambda a, b, s: nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU())
    net = nn.Sequential(layer(3, 16, 2), layer(16, 32, 2), layer(32, 64, 2), layer(64, 32, 1), nn.Conv2d(32, 6, 1), nn.Upsample(scale_factor=8))

    def loss(pred, y): return nn.functional.binary_cross_entropy_with_logits(pred[:, 0], y)
    return net, loss


def measure(n=3, size=640, batch=4, rounds=6):
    "Processor seconds a batch of a bare loop and of the engine, alternating, so that other work on the machine hits both alike"
    from fastai.data.core import DataLoaders, TfmdDL
    from types import SimpleNamespace
    from visionlab.training.learner import make_learner
    config = SimpleNamespace(device='cpu', optimizer='Adam', lr=1e-3, clip_grad=0., display_interval=10, patience=10, lr_scheduler='PolynomialLR')
    net, loss = model_and_loss()
    net = net.to(memory_format=torch.channels_last)     # the layout that the engine gives every model
    opt = torch.optim.Adam(net.parameters(), 1e-3, amsgrad=True)
    own, _ = model_and_loss()
    dl = lambda: TfmdDL(Batches(n, size, batch), bs=None, num_workers=0)
    learn = make_learner(DataLoaders(dl(), device='cpu'), own, loss, config, progress='none')

    def bare():
        net.train()
        for x, y in dl():
            loss_ = loss(net(x), y)
            loss_.backward()
            opt.step()
            opt.zero_grad()
            float(loss_)     # a loop that nobody watches is no loop

    def engine(): learn.fit(1)

    def timed(f):
        start = time.process_time()
        f()
        return (time.process_time() - start)/n
    timed(bare), timed(engine)
    pairs = [(timed(bare), timed(engine)) if i % 2 else tuple(reversed((timed(engine), timed(bare)))) for i in range(rounds)]
    return pairs


def rows():
    pairs = measure()
    bare, ours = (min(p[i] for p in pairs)*1000 for i in (0, 1))
    small = measure(n=40, size=64, batch=2, rounds=5)
    cost = min(b for _, b in small)*1000 - min(a for a, _ in small)*1000
    return [('engine, training step 640x640, batch 4, above a bare loop', ours, bare, ours/bare, 1.03),
            ('engine, its own time for a batch, ms', cost, None, cost, None)]


if __name__ == '__main__':
    torch.set_num_threads(1)
    for r in rows(): print(r)
