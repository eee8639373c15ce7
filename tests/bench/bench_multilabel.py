"""Multi-label: a training step against a bare PyTorch loop over the same network and batches, and labels for a folder of JPEGs against the same network fed from memory.

`python -m tests.bench.bench_multilabel 2000` measures the folder with 2,000 files instead of 400; it takes all cores, the step takes one.
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


class Batches:
    "Two batches over and over, as a loader would give them: what reading images costs is measured below"
    def __init__(self, n, size, batch, labels):
        g = torch.Generator().manual_seed(0)
        self.data, self.n = [(torch.randn(batch, 3, size, size, generator=g), (torch.rand(batch, labels, generator=g) < .3).float()) for _ in range(2)], n
    def __len__(self): return self.n
    def __getitem__(self, i): return self.data[i % 2]


def step_pairs(n=4, size=128, batch=8, labels=6, rounds=5):
    "Processor seconds a batch of a bare loop and of the learner, alternating, so that other work on the machine hits both alike"
    from fastai.data.core import DataLoaders, TfmdDL
    from visionlab.multilabel import MultilabelConfig, multilabel_learner, multilabel_model
    config = MultilabelConfig(pretrained=False, device='cpu', metrics='loss', tensorboard=False)
    dl = lambda: TfmdDL(Batches(n, size, batch, labels), bs=None, num_workers=0)
    dls = DataLoaders(dl(), device='cpu')
    dls.vocab = tuple(map(str, range(labels)))
    learn = multilabel_learner(dls, config, multilabel_model(config, labels), progress='none')
    net = multilabel_model(config, labels).net.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)

    def bare():
        net.train()
        for x, y in dl():
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            float(loss)     # a loop that nobody watches is no loop

    def engine(): learn.fit(1)

    def timed(f):
        start = time.process_time()
        f()
        return (time.process_time() - start)/n
    timed(bare), timed(engine)
    return [(timed(bare), timed(engine)) if i % 2 else tuple(reversed((timed(engine), timed(bare)))) for i in range(rounds)]


def write_folder(folder, n, size=(320, 240)):
    "A folder of JPEGs: parts of scikit-learn's photographs"
    from PIL import Image
    from sklearn.datasets import load_sample_image
    photos, rng = [Image.fromarray(load_sample_image(f)) for f in ('china.jpg', 'flower.jpg')], np.random.default_rng(0)
    for i in range(n):
        x, y = rng.integers(0, 640 - size[0]), rng.integers(0, 427 - size[1])
        photos[i % 2].crop((x, y, x + size[0], y + size[1])).save(Path(folder)/f'{i}.jpg', quality=90)


def folder_pairs(n=400, batch=16, chunk=80):
    "Seconds an image from memory (ready tensors, nothing but the network) and from a folder to labels, by chunks that alternate"
    from visionlab.core.files import read_image
    from visionlab.inference import list_sources, stream_results
    from visionlab.multilabel import MultilabelConfig, multilabel_model
    from visionlab.multilabel.predict import multilabel_predictor
    from visionlab.core.config import to_dict
    config = MultilabelConfig(pretrained=False)
    labels = ['a', 'b', 'c', 'd', 'e', 'f']
    checkpoint = dict(config=to_dict(config), classes=labels, thresholds={}, model=multilabel_model(config, 6).state_dict(), normalisation=dict(mean=[.485, .456, .406], std=[.229, .224, .225]))
    predictor, pairs = multilabel_predictor(checkpoint, 'cpu'), []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, n)
        paths = list_sources(folder)
        ready = torch.stack([predictor.prepare(read_image(p))[0] for p in paths[:chunk]])

        @torch.no_grad()
        def memory():
            for k in range(0, chunk, batch): predictor.model(ready[k:k+batch])

        def from_disk(part): assert sum(1 for _ in stream_results(predictor, part, batch)) == len(part)

        def timed(f, *args):
            start = time.perf_counter()
            f(*args)
            return (time.perf_counter() - start)/chunk
        timed(memory), timed(from_disk, paths[:chunk])
        for k in range(0, n - n % chunk, chunk):
            part = paths[k:k+chunk]
            pairs.append((timed(memory), timed(from_disk, part)) if k//chunk % 2 else tuple(reversed((timed(from_disk, part), timed(memory)))))
    return pairs


def rows(n=400):
    import os
    torch.set_num_threads(1)
    pairs = step_pairs()
    bare, ours = (1000*min(p[i] for p in pairs) for i in (0, 1))
    yield 'multi-label step, resnet18 at 128 px, batch 8, above a bare loop', ours, bare, ours/bare, 1.03
    torch.set_num_threads(min(2, os.cpu_count()))      # two cores, as the figure is stated for
    try: pairs = folder_pairs(n)
    finally: torch.set_num_threads(1)
    memory, disk = (1000*float(np.median([p[i] for p in pairs])) for i in (0, 1))
    yield f'labels of {n} JPEGs, resnet18 at 224 px: time over that from memory', disk, memory, float(np.median([b/a for a, b in pairs])), 1/.9


if __name__ == '__main__':
    for r in rows(*map(int, sys.argv[1:])): print(r)
