"""What the wheel must be able to do in an environment without development extras, for tests/wheel.py: imports, and a short run of every system.

python wheel_run.py OUT: runs in a folder outside the tree and prints what it did"""
import importlib
import pkgutil
import sys
import time
from pathlib import Path

OPTIONAL = ('onnx', 'onnxruntime', 'onnxscript', 'torch_pruning', 'wandb')      # extras of their own


def import_all():
    "Every module of the package"
    import visionlab
    assert 'site-packages' in visionlab.__file__, f'this is not the installed package: {visionlab.__file__}'
    names = [m.name for m in pkgutil.walk_packages(visionlab.__path__, 'visionlab.')]
    for name in names: importlib.import_module(name)
    assert not [m for m in ('nbdev', 'pytest', 'execnb', *OPTIONAL) if m in sys.modules], 'a development package was imported'
    return names


def main(out):
    import torch
    from visionlab.inference import load_predictor
    torch.set_num_threads(1)
    start = time.time()
    print(f'{len(import_all())} modules imported in {time.time() - start:.0f} s', flush=True)
    sys.path.insert(0, str(Path(__file__).parent))
    import ranks
    ranks.make_data(out)
    images = dict(pan='text/test/img', fots='text/test/img', segmentation='masks/test', frcnn='boxes', multilabel='digits/test')
    for system in ranks.SYSTEMS:
        trainer = ranks.trainer_of(system, out, out/'runs', name=system, epochs=1).train()
        assert trainer.latest.exists() and trainer.best.exists()
        image = next(p for p in sorted((out/images[system]).rglob('*')) if p.suffix in ('.jpg', '.png'))
        print(f'{system}: {load_predictor(trainer.best)(image)!r}', flush=True)


if __name__ == '__main__': main(Path(sys.argv[1]))
