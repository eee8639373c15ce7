"""The command line as a user meets it: whole jobs, every option, and every bad input, which ends in one line or stands in the report."""
import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from covers import covered, covers
from PIL import Image
from rtsp import Feed, RTSPServer
from visionlab.cli.app import CheckOptions, DemoOptions, EvaluateOptions, PredictOptions, main
from visionlab.core.config import field_help, from_dict, load_config, to_dict
from visionlab.datasets.toy import make_toy_text
from visionlab.inference.sources import open_video
from visionlab.pan.config import PANConfig
from visionlab.pan.model import PAN
from visionlab.training.checkpoint import load_checkpoint, save_checkpoint

torch.set_num_threads(1)
GOLDEN = Path(__file__).parent/'golden'
TINY = '--input-size 64 --test-size 64 --head conv1x1 --no-pretrained --epochs 1 --batch-size 2 --num-workers 0 --no-tensorboard --device cpu'.split()
REFUSED = {'broken.png', 'truncated.png', 'zero_byte.jpg', 'text_named_jpg.jpg', 'truncated_photo.jpg', 'truncated_small.jpg'}


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_text(tmp_path_factory.mktemp('toy set')/'set', n_train=4, n_test=2, size=(96, 96))


@pytest.fixture
def vl(capsys, tmp_path, monkeypatch):
    "Run a command in an empty folder: exit code, what it printed, what it complained about"
    monkeypatch.chdir(tmp_path)
    def go(*words):
        capsys.readouterr()
        code = main([str(w) for w in words])
        return code, *capsys.readouterr()
    return go


@pytest.fixture
def done(vl):
    "Run a command that must succeed without complaint, and give what it printed"
    def go(*words):
        code, out, err = vl(*words)
        assert (code, err) == (0, '')
        return out
    return go


@pytest.fixture
def refused(vl):
    "Run a command that must end in one line and exit code 2, and give the line"
    def go(*words):
        code, out, err = vl(*words)
        assert code == 2 and 'Traceback' not in out + err, (code, err)
        assert re.fullmatch(r'visionlab: [^\n]+\n', err), err
        return err
    return go


@pytest.fixture(scope='module')
def best(toy, tmp_path_factory):
    "A checkpoint made by the command line, in a folder with a blank in its name"
    folder = tmp_path_factory.mktemp('a run')
    assert main(['train', 'pan', '--train-path', f'{toy}/train', '--val-path', f'{toy}/test', *TINY, '--output-dir', str(folder)]) == 0
    return folder/'pan'/'best.pth'


def rows(folder): return [json.loads(line) for line in open(Path(folder)/'predictions.jsonl')]


# All options, all helps

def test_every_option_is_covered():
    for cls, prefix in ((EvaluateOptions, 'evaluate.'), (PredictOptions, 'predict.'), (CheckOptions, 'check.'), (DemoOptions, 'demo.')):
        tested, own = set(covered(globals(), prefix)), {f.name for f in fields(cls)}
        assert tested == own, f'{cls.__name__}: no test {own - tested}, no option {tested - own}'


@pytest.mark.parametrize('words,cls', [(['train', 'pan'], PANConfig), (['evaluate'], EvaluateOptions), (['predict'], PredictOptions), (['check', 'pan'], CheckOptions), (['demo', 'pan'], DemoOptions)],
                         ids=['train', 'evaluate', 'predict', 'check', 'demo'])
def test_help_of_a_command(done, monkeypatch, words, cls):
    monkeypatch.setenv('COLUMNS', '120')
    out = ' '.join(re.sub('[│╭╮╰╯─]', ' ', done(*words, '--help')).split())
    for f in fields(cls):
        note = field_help(cls)[f.name]
        assert note, f'{f.name} has no comment'
        default = 'none' if f.default in ('', (), None) else ' '.join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        assert re.search(rf'--{f.name.replace("_", "-")}\b.*? {re.escape(note)}(\.? Also (--[\w-]+,? ?)+)? ?\(default: {re.escape(str(default))}\)', out), f.name


def test_help_of_all(done):
    for words in ((), ('--help',), ('help',), ('-h',)): assert all(f'visionlab {c} ' in done(*words) for c in ('train', 'check', 'demo', 'evaluate', 'predict'))
    assert 'pan' in done('train', '--help') and re.fullmatch(r'\d+\.\d+\.\d+\n', done('--version'))


# Whole jobs

def test_as_a_user_does(toy, tmp_path):
    "Train, evaluate and predict in processes of their own; a plain log, nothing on the error channel"
    def run(*words): return subprocess.run([sys.executable, '-c', 'import sys; from visionlab.cli.app import main; sys.exit(main())', *map(str, words)], cwd=tmp_path, capture_output=True, text=True)
    got = run('train', 'pan', '--train-path', toy/'train', *TINY, '--name', 'my run', '--display-interval', 1)
    assert (got.returncode, got.stderr) == (0, '') and 'epoch 1/1, batch 1/1' in got.stdout and '\r' not in got.stdout
    assert "visionlab evaluate 'output/my run/best.pth'" in got.stdout        # ready to be pasted
    got = run('predict', 'output/my run/best.pth', '--source', toy/'test/img')
    assert (got.returncode, got.stderr) == (0, '') and got.stdout == '2 of 2 images answered, results in predictions\n'
    got = run('predict', 'output/my run/best', '--source', toy/'test/img')
    assert got.returncode == 2 and got.stdout == '' and got.stderr.startswith("visionlab: \"checkpoint\": no file '") and "Did you mean '" in got.stderr and got.stderr.count('\n') == 1


def test_train_says_where_everything_is(best):
    assert {'config.json', 'history.csv', 'latest.pth', 'best.pth', 'report.txt'} <= {p.name for p in best.parent.iterdir()}
    assert load_config(PANConfig, best.parent/'config.json').input_size == 64


def test_resume_through_the_door(done, toy, tmp_path):
    words = ['train', 'pan', '--train-path', f'{toy}/train', *TINY, '--output-dir', 'out']
    done(*words)
    out = done(*words, '--epochs', 2, '--resume-checkpoint', 'out/pan/latest.pth')
    assert 'going on after epoch 1' in out and load_checkpoint('out/pan/latest.pth')['epoch'] == 2 and not Path('out/pan-2').exists()
    assert 'nothing to do' in done(*words, '--epochs', 2, '--resume-checkpoint', 'out/pan/latest.pth')


class KilledIn:
    "The process is killed in a batch of that epoch; `KeyboardInterrupt` if it is stopped by hand"
    def __init__(self, monkeypatch, epoch, error):
        from visionlab.training.callbacks import RunState
        def stop(self):
            if self.epoch == epoch: raise error
        monkeypatch.setattr(RunState, 'before_batch', stop, raising=False)


class Killed(BaseException): pass


@pytest.fixture(scope='module')
def undisturbed(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    assert main(['train', 'pan', '--train-path', f'{toy}/train', *TINY, '--epochs', '3', '--lr', '.002', '--flip', '0', '--name', 'mine', '--output-dir', str(folder)]) == 0
    return load_checkpoint(folder/'mine/latest.pth')


@pytest.mark.parametrize('option', ['--resume-checkpoint out/mine/latest.pth', '--resume_checkpoint=out/mine/latest.pth'])
def test_a_killed_run_goes_on_with_one_option(done, toy, undisturbed, monkeypatch, option):
    with monkeypatch.context() as m, pytest.raises(Killed):
        KilledIn(m, 1, Killed)
        main(['train', 'pan', '--train-path', f'{toy}/train', *TINY, '--epochs', '3', '--lr', '.002', '--flip', '0', '--name', 'mine', '--output-dir', 'out'])
    out = done('train', 'pan', *option.split())
    got = load_checkpoint('out/mine/latest.pth')
    assert 'going on after epoch 1' in out and 'other settings' not in out and got['history'] == undisturbed['history'] and not Path('out/mine-2').exists()
    assert all(torch.equal(v, undisturbed['model'][k]) for k, v in got['model'].items())
    same = {k: v for k, v in undisturbed['config'].items() if k not in ('output_dir', 'resume_checkpoint')}
    assert {k: v for k, v in got['config'].items() if k in same} == same
    assert 'nothing to do' in done('train', 'pan', *option.split())
    assert '"lr" 0.002 -> 0.001' in done('train', 'pan', *option.split(), '--epochs', 4, '--lr', .001)      # what is typed wins
    assert load_checkpoint('out/mine/latest.pth')['epoch'] == 4


def test_the_line_after_ctrl_c_is_a_command_that_goes_on(vl, done, toy, undisturbed, monkeypatch):
    import shlex
    with monkeypatch.context() as m:
        KilledIn(m, 2, KeyboardInterrupt)
        code, out, _ = vl('train', 'pan', '--train-path', f'{toy}/train', *TINY, '--epochs', '3', '--lr', '.002', '--flip', '0', '--name', 'mine', '--output-dir', 'my runs')
    assert code == 130 and '2 of 3 epochs are saved' in out
    command = shlex.split(out.rpartition('To go on: ')[2])
    assert command == ['visionlab', 'train', 'pan', '--resume-checkpoint', 'my runs/mine/latest.pth']
    done(*command[1:])
    assert all(torch.equal(v, undisturbed['model'][k]) for k, v in load_checkpoint('my runs/mine/latest.pth')['model'].items())


def test_a_fine_tuned_run_goes_on_with_one_option(done, refused, toy, best):
    done('train', 'pan', '--train-path', toy/'train', *TINY, '--finetune-checkpoint', best)
    out = done('train', 'pan', '--resume-checkpoint', 'output/pan/latest.pth', '--epochs', 2)
    assert 'going on after epoch 1' in out and load_checkpoint('output/pan/latest.pth')['epoch'] == 2
    Path('other.json').write_text('{}')
    assert '`train_path` is empty' in refused('train', 'pan', '--config', 'other.json', '--resume-checkpoint', 'output/pan/latest.pth')     # the file is the base, as it was
    assert '"--resume-checkpoint": no file' in refused('train', 'pan', '--resume-checkpoint', 'output/pan/lates.pth')


def test_a_rate_that_never_drops_is_told(done, toy):
    words = ['train', 'pan', '--train-path', toy/'train', *TINY]
    assert 'StepLR never drops: "step_size" 200, "epochs" 1' in done(*words)
    assert 'never drops' not in done(*words, '--lr-scheduler', 'PolynomialLR') + done(*words, '--epochs', 2, '--step-size', 1)


# The nested configuration

def test_seed_config_is_read_as_it_is():
    c = load_config(PANConfig, GOLDEN/'seed_config.json')
    assert c == PANConfig(
        name='street_words', train_path=('sets/street.txt', 'sets/receipts.txt'), train_ratio=(.5, 1.), val_path=('sets/street-val',), input_size=512, img_channel=3, shrink_ratio=.6, val_ratio=.2,
        batch_size=8, shuffle=False, pin_memory=True, num_workers=6, backbone='resnet34', fpem_repeat=4, pretrained=False, segmentation_head='FPN', alpha=.4, beta=.3, delta_agg=.6, delta_dis=2.,
        ohem_ratio=4., reduction='sum', optimizer='Adam', lr=.002, weight_decay=.0001, amsgrad=False, lr_scheduler='StepLR', step_size=150, gamma=.2, seed=2, device='cuda:1', epochs=300,
        display_interval=20, show_images_interval=25, resume_checkpoint='', finetune_checkpoint='runs/first/best.pth', output_dir='runs', tensorboard=False, metrics='loss')


def test_training_with_the_seed_config(done, toy, best):
    out = done('train', 'pan', '--config', GOLDEN/'seed_config.json', '--train-path', toy/'train', '--train-ratio', 1, '--val-path', toy/'test', *TINY, '--backbone', 'shufflenetv2', '--fpem-repeat', 2,
               '--segmentation-head', 'FPEM_FFM', '--finetune-checkpoint', best)
    used = load_config(PANConfig, 'runs/street_words/config.json')
    assert 'fine-tuning' in out and (used.lr, used.gamma, used.alpha, used.reduction, used.shuffle, used.metrics) == (.002, .2, .4, 'sum', False, 'loss')
    assert (used.batch_size, used.input_size, used.device) == (2, 64, 'cpu')


def test_the_seed_s_words_work_in_python(toy, tmp_path):
    from visionlab.pan import PANTrainer, get_dataloader, get_loss, get_model
    nested = json.loads((GOLDEN/'seed_config.json').read_text())
    nested['data_loader']['args']['dataset'].update(train_data_path=[[f'{toy}/train']], train_data_ratio=[1.0], val_data_path=[], input_size=64)
    nested['data_loader']['args']['loader'].update(train_batch_size=2, num_workers=0)
    nested['arch']['args'].update(backbone='shufflenetv2', segmentation_head='FPEM_FFM')
    nested['trainer'].update(gpus=[], epochs=1, finetune_checkpoint='', output_dir=str(tmp_path), metrics='hmean')
    trainer = PANTrainer(nested, get_model(nested), get_loss(nested), get_dataloader(nested), progress='none')
    trainer.train()
    assert trainer.latest == tmp_path/'street_words'/'latest.pth' and trainer.latest.exists() and len(trainer.learn.dls.valid.dataset) == 1     # validation_split counts


@pytest.mark.parametrize('change,said', [
    (lambda d: d['arch']['args'].update(backbne='resnet18'), "no setting \"backbne\". Did you mean 'backbone'?"),
    (lambda d: d['optimizer'].update(type='SGD'), '`amsgrad` belongs to Adam and AdamW'),
    (lambda d: d['data_loader'].update(arg={}), "`data_loader` holds args and no \"arg\". Did you mean 'args'?"),
    (lambda d: d['data_loader']['args'].update(datasets={}), "no \"datasets\". Did you mean 'dataset'?"),
    (lambda d: d.update(arch='PANModel'), '`arch` is a section'),
    (lambda d: d['trainer'].update(gpus=[0, 1]), '`gpus` lists 2 devices'),
    (lambda d: d['trainer'].update(epochs='many'), '"epochs" must be a whole number'),
    (lambda d: d['loss']['args'].update(alpha='0.5'), 'Write it without quotes'),
    (lambda d: d.update(trainr={}), "no setting \"trainr\""),
    (lambda d: d['trainer'].update(gpus=[99], finetune_checkpoint=''), "no 'cuda:99'")])
def test_seed_config_with_a_mistake(refused, toy, tmp_path, change, said):
    d = json.loads((GOLDEN/'seed_config.json').read_text())
    d['data_loader']['args']['dataset'].update(train_data_path=[f'{toy}/train'], train_data_ratio=[], val_data_path='')
    change(d)
    (tmp_path/'config.json').write_text(json.dumps(d))
    assert said in refused('train', 'pan', '--config', 'config.json')


# Evaluate

@covers('evaluate.data', 'evaluate.min_score', 'evaluate.save')
def test_evaluate(done, toy, best):
    out = done('evaluate', best)
    assert 'hmean' in out and 'in 2 images' in out                                         # the run's own validation set
    cut = load_checkpoint(best)['thresholds']['min_score']
    assert f'score cut: {cut:.2f}' in out
    assert 'in 4 images' in done('evaluate', best, '--data', toy/'train') and 'in 6 images' in done('evaluate', best, '--data', toy/'train', toy/'test')
    by = {}
    for s in (0, 1):
        assert f'score cut: {s:.2f}' in done('evaluate', best, '--min-score', s, '--save', f'new/{s}.json')
        by[s] = json.loads(Path(f'new/{s}.json').read_text())
    assert by[1]['predictions'] == 0 < by[0]['predictions'] and by[0]['images'] == 2 and {'precision', 'recall', 'hmean', 'text_iou', 'misses'} <= set(by[0])


@pytest.fixture
def batches(monkeypatch):
    "Sizes of the batches that a network sees, and the devices they are on"
    seen, real = [], PAN.forward
    def forward(self, x):
        seen.append((len(x), x.device.type))
        return real(self, x)
    monkeypatch.setattr(PAN, 'forward', forward)
    return seen


@covers('evaluate.batch_size', 'evaluate.device')
def test_evaluate_in_batches(done, best, batches, refused):
    one = done('evaluate', best, '--device', 'cpu')
    assert batches == [(1, 'cpu')]*2
    assert done('evaluate', best, '--device', 'cpu', '--batch-size', 2) == one and batches[2:] == [(2, 'cpu')]
    assert "no 'cuda:99'" in refused('evaluate', best, '--device', 'cuda:99')


# Predict

@covers('predict.source', 'predict.output_dir')
def test_sources(done, toy, best):
    images = toy/'test/img'
    Path('list.txt').write_text(f'{images}/img_2.jpg\n\n{images}/img_1.jpg\n')
    for source, want in (([images/'img_2.jpg'], [2]), ([images], [1, 2]), ([f'{images}/*.jpg'], [1, 2]), (['list.txt'], [2, 1]), ([images/'img_2.jpg', 'list.txt'], [2, 2, 1])):
        out = done('predict', best, '--source', *source, '--output-dir', 'there/out')
        assert [Path(r['image']).name for r in rows('there/out')] == [f'img_{i}.jpg' for i in want] and f'{len(want)} of {len(want)} images answered, results in there/out' in out
    assert [r['name'] for r in rows('there/out')] == ['img_2', 'img_2-2', 'img_1'] and {p.name for p in Path('there/out').glob('*.jpg')} == {'img_2.jpg', 'img_2-2.jpg', 'img_1.jpg'}


@covers('predict.min_score', 'predict.images', 'predict.text')
def test_what_predict_writes(done, toy, best):
    words = ['predict', best, '--source', toy/'test/img', '--output-dir']
    done(*words, 'a', '--min-score', 0)
    done(*words, 'b', '--min-score', 1, '--text')
    done(*words, 'c', '--min-score', 0, '--no-images', '--text')
    assert sorted(p.name for p in Path('a').iterdir()) == ['img_1.jpg', 'img_2.jpg', 'predictions.jsonl']
    assert sorted(p.name for p in Path('c').iterdir()) == ['predictions.jsonl', 'res_img_1.txt', 'res_img_2.txt']
    for r in rows('a'):
        assert (r['width'], r['height']) == (96, 96) and len(r['polygons']) == len(r['scores']) > 0 and all(0 <= s <= 1 for s in r['scores'])
        assert all(len(p) == 4 and 0 <= min(map(min, p)) and max(map(max, p)) <= 96 for p in r['polygons'])
        lines = Path(f'c/res_{r["name"]}.txt').read_text().splitlines()
        assert [[round(v) for p in poly for v in p] for poly in r['polygons']] == [[int(v) for v in line.split(',')] for line in lines]
    assert all(r['polygons'] == [] for r in rows('b')) and Path('b/res_img_1.txt').read_text() == ''
    drawn, plain = np.asarray(Image.open('a/img_1.jpg')).astype(int), np.asarray(Image.open('b/img_1.jpg')).astype(int)
    assert drawn.shape == plain.shape == (96, 96, 3) and abs(drawn - plain).max() > 60


@covers('predict.batch_size', 'predict.device')
def test_predict_in_batches(done, toy, best, batches, refused):
    for n in (1, 2): done('predict', best, '--source', toy/'test/img', '--batch-size', n, '--output-dir', f'{n}', '--device', 'cpu')
    assert batches == [(1, 'cpu'), (1, 'cpu'), (2, 'cpu')]
    for a, b in zip(rows('1'), rows('2'), strict=True): assert a['image'] == b['image'] and np.allclose(a['scores'], b['scores'], atol=1e-3) and np.allclose(a['polygons'], b['polygons'], atol=.1)
    assert "no 'cuda:99'" in refused('predict', best, '--source', toy/'test/img', '--device', 'cuda:99')


def test_predict_never_draws_over_its_sources(done, refused, toy, best, tmp_path):
    shutil.copytree(toy/'test/img', tmp_path/'photos')
    before = (tmp_path/'photos/img_1.jpg').read_bytes()
    assert 'choose another folder, or give --no-images' in refused('predict', best, '--source', 'photos', '--output-dir', 'photos')
    done('predict', best, '--source', 'photos', '--output-dir', 'photos', '--no-images')
    assert (tmp_path/'photos/img_1.jpg').read_bytes() == before and len(rows('photos')) == 2


# Predict on what moves

def film(path, toy, n=6, fps=10, code='mp4v'):
    "A video of the two toy images, in turn"
    images = [np.asarray(Image.open(toy/f'test/img/img_{i}.jpg'))[..., ::-1] for i in (1, 2)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (96, 96))
    for i in range(n): writer.write(np.ascontiguousarray(images[i%2]))
    writer.release()
    return path


def frames_of(path):
    capture, out = open_video(Path(path)), []
    while (got := capture.read())[0]: out.append(got[1])
    return out, capture.get(cv2.CAP_PROP_FPS)


@covers('predict.save_video', 'predict.max_frames')
def test_predict_on_videos(done, toy, best):
    Path('in').mkdir()
    film('in/walk.mp4', toy)
    film('in/Walk.avi', toy, 4, code='MJPG')
    shutil.copy(toy/'test/img/img_1.jpg', 'in/still.jpg')
    out = done('predict', best, '--source', 'in', '--save-video', '--min-score', 0, '--batch-size', 4)
    assert out == '1 of 1 images and 10 frames of 2 videos answered, results in predictions\n'
    assert sorted(p.name for p in Path('predictions').iterdir()) == sorted(['Walk.mp4', 'predictions.jsonl', 'still.jpg', 'walk-2.mp4'])
    got = rows('predictions')
    assert [(r['name'], r.get('frame')) for r in got] == [('still', None)] + [('Walk', i + 1) for i in range(4)] + [('walk-2', i + 1) for i in range(6)]
    assert all((r['width'], r['height']) == (96, 96) and len(r['polygons']) == len(r['scores']) for r in got)
    frames, fps = frames_of('predictions/walk-2.mp4')
    assert len(frames) == 6 and fps == 10 and frames[0].shape == (96, 96, 3)
    assert np.abs(frames[0].astype(int) - cv2.imread('in/still.jpg').astype(int)).max() > 100           # outlines are on it
    out = done('predict', best, '--source', 'in', '--max-frames', 2, '--text', '--no-images', '--output-dir', 'b')
    assert '4 frames of 2 videos' in out and sorted(p.name for p in Path('b').iterdir()) == sorted(['predictions.jsonl', 'res_Walk_000001.txt', 'res_Walk_000002.txt', 'res_still.txt', 'res_walk-2_000001.txt', 'res_walk-2_000002.txt'])


def test_frames_answer_like_the_images_they_are(done, toy, best, tmp_path):
    film('a.avi', toy, 2, code='MJPG')
    done('predict', best, '--source', 'a.avi', '--min-score', 0)
    frames, _ = frames_of('a.avi')
    for i, f in enumerate(frames): cv2.imwrite(f'f{i}.png', f)
    done('predict', best, '--source', 'f0.png', 'f1.png', '--min-score', 0, '--output-dir', 'b')
    for a, b in zip(rows('predictions'), rows('b'), strict=True): assert a['polygons'] == b['polygons'] and a['scores'] == b['scores']


@covers('predict.min_score')
def test_another_name_of_the_score(done, refused, toy, best):
    done('predict', best, '--source', toy/'test/img', '--conf-thres', 1)
    assert all(r['polygons'] == [] for r in rows('predictions'))
    assert 'at most 1' in refused('predict', best, '--source', toy/'test/img', '--conf-thres', 50)
    assert 'two names of one option' in refused('predict', best, '--source', toy/'test/img', '--conf-thres', .5, '--min-score', .4)


@covers('predict.model')
def test_the_checkpoint_as_an_option(done, refused, toy, best):
    words = ['--source', toy/'test/img', '--device', 'cpu']
    a, b = done('predict', '--model', best, *words), done('predict', best, *words)
    assert a == b and done('predict', best, '--model', best, *words) == a
    assert 'two checkpoints' in refused('predict', best, '--model', 'other.pth', *words) and 'needs CHECKPOINT as its first word, or --model' in refused('predict', *words)


@covers('predict.patch_size', 'predict.classes', 'predict.encoder', 'predict.tile')
def test_a_system_refuses_what_it_does_not_know(refused, toy, best):
    for option, value in (('patch-size', 640), ('classes', 2), ('encoder', 'resnet18'), ('tile', 512)):
        assert f'"{option.replace("-", "_")}"' in refused('predict', best, '--source', toy/'test/img', f'--{option}', value)
    assert 'at least 1' in refused('predict', best, '--source', toy/'test/img', '--classes', 0)


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    "A tiny segmentation run, and the images it knows"
    from visionlab.datasets.toy_masks import make_toy_masks
    folder = tmp_path_factory.mktemp('masks')
    toy = make_toy_masks(folder/'toy', n_train=6, n_test=2, size=64, classes=3)
    words = '--patch-size 64 --encoder tu-mobilenetv3_small_050 --no-pretrained --epochs 1 --batch-size 2 --workers 0 --no-tensorboard --classes 3 --device cpu'.split()
    assert main(['train', 'segmentation', '--train-path', f'{toy}/train', '--output-dir', str(folder/'out'), *words]) == 0
    return folder/'out'/'segmentation'/'best-checkpoint.pth.tar', toy/'test'


def test_options_agree_with_the_checkpoint_or_are_refused(done, refused, masks):
    best, images = masks
    a = done('predict', '--model', best, '--source', images, '--patch-size', 64, '--classes', 3, '--encoder', 'tu-mobilenetv3_small_050', '--output-dir', 'a')
    assert '2 of 2 images answered' in a
    done('predict', best, '--source', images, '--output-dir', 'b')
    assert [{**r, 'regions': 0} for r in rows('a')] == [{**r, 'regions': 0} for r in rows('b')]
    for words, said in ((('--classes', 2), "number of classes is 3"), (('--encoder', 'resnet50'), "encoder is 'tu-mobilenetv3_small_050'"), (('--patch-size', 3), 'patch_size')): assert said in refused('predict', best, '--source', images, *words)
    assert '2 of 2 images' in done('predict', best, '--source', images, '--tile', 32, '--output-dir', 'c')


def test_figures_stand_on_the_frames(done, masks, toy, monkeypatch):
    from visionlab.inference import draw
    noted, real = [], draw.draw_notes
    monkeypatch.setattr(draw, 'draw_notes', lambda image, lines: (noted.append(lines), real(image, lines))[1])
    film('walk.mp4', toy, 3)
    done('predict', masks[0], '--source', 'walk.mp4', '--save-video', '--patch-size', 96)
    assert [n[0] for n in noted] == [f'frame {i} of 3' for i in (1, 2, 3)] and all(re.fullmatch(r'\d+ ms', n[1]) and any(re.fullmatch(r'largest: \d+ px', line) for line in n) for n in noted)


@covers('predict.view_img')
def test_a_window_where_there_is_none(done, toy, best, monkeypatch):
    for k in ('DISPLAY', 'WAYLAND_DISPLAY'): monkeypatch.delenv(k, raising=False)
    out = done('predict', best, '--source', toy/'test/img', '--view-img')
    assert out.count('not shown, because there is no display') == 1 and '2 of 2 images answered' in out


def test_a_window_that_is_closed_ends_the_run(done, toy, best, monkeypatch):
    from visionlab.inference.draw import ImageWindow
    shown = []
    monkeypatch.setattr(ImageWindow, 'show', lambda self, picture, seconds=0, key=None: (shown.append((picture.shape, seconds, key)), len(shown) < 3)[1])
    film('a.avi', toy, 9, code='MJPG')
    out = done('predict', best, '--source', 'a.avi', toy/'test/img', '--view-img', '--save-video')
    assert '0 of 2 images and 3 frames of 1 video' in out and shown == [((96, 96, 3), 0, 'a')]*3 and len(frames_of('predictions/a.mp4')[0]) == 3 and len(rows('predictions')) == 3


def test_damaged_videos_are_reported(done, refused, toy, best):
    whole = film('a.avi', toy, 30, code='MJPG')
    Path('bad').mkdir()
    Path('bad/cut.avi').write_bytes(Path(whole).read_bytes()[:Path(whole).stat().st_size//2])
    Path('bad/empty.mp4').touch()
    out = done('predict', best, '--source', 'bad')
    assert '1  video ends early' in out and '1  unreadable video' in out and re.search(r'\d+ frames of 2 videos answered', out)
    assert 'empty (0 bytes)' in refused('predict', best, '--source', 'bad/empty.mp4') and 'none of the 2 files' in refused('predict', best, '--source', 'bad/empty.mp4', 'bad/empty.mp4')


def test_a_video_is_never_overwritten(done, refused, toy, best):
    film('walk.mp4', toy)
    before = Path('walk.mp4').read_bytes()
    assert '--no-save-video' in refused('predict', best, '--source', 'walk.mp4', '--save-video', '--output-dir', '.')
    done('predict', best, '--source', 'walk.mp4', '--output-dir', '.')
    assert Path('walk.mp4').read_bytes() == before


def test_a_folder_that_takes_nothing(refused, toy, best):
    film('walk.mp4', toy)
    if Path('/proc/self').exists(): assert '/proc' in refused('predict', best, '--source', 'walk.mp4', '--save-video', '--output-dir', '/proc/out')


def test_ctrl_c_in_a_video_keeps_what_is_there(vl, toy, best, monkeypatch):
    from visionlab.inference.predictor import Predictor
    calls, real = [], Predictor.batch
    def batch(self, images, batch_size=1):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        return real(self, images, batch_size)
    monkeypatch.setattr(Predictor, 'batch', batch)
    film('walk.mp4', toy, 9)
    code, out, err = vl('predict', best, '--source', 'walk.mp4', '--save-video')
    assert code == 130 and '3 frames of 1 video answered' in out and 'stopped' in err and len(rows('predictions')) == 3 and len(frames_of('predictions/walk.mp4')[0]) == 3
    before, _ = Path('predictions/predictions.jsonl').read_bytes(), calls.clear()
    code, out, err = vl('predict', best, '--source', *[toy/'test/img/img_1.jpg']*6)
    assert code == 130 and 'answered' not in out and Path('predictions/predictions.jsonl').read_bytes() == before and not list(Path('predictions').glob('.*'))


def test_an_error_in_a_video_leaves_the_old_results(vl, toy, best, monkeypatch):
    from visionlab.inference.predictor import Predictor
    film('walk.mp4', toy, 9)
    assert vl('predict', best, '--source', 'walk.mp4', '--save-video')[0] == 0
    before = {p.name: p.read_bytes() for p in Path('predictions').iterdir()}
    monkeypatch.setattr(Predictor, 'batch', lambda *a: (_ for _ in ()).throw(MemoryError()))
    assert vl('predict', best, '--source', 'walk.mp4', '--save-video')[0] == 2
    assert {p.name: p.read_bytes() for p in Path('predictions').iterdir()} == before


def test_predict_on_streams(done, refused, toy, best):
    with RTSPServer(door=Feed(900, fps=30, user='ann', password='Geheim9', drops=(20,)), yard=Feed(900, fps=30)) as server:
        Path('cams.streams').write_text(f'{server.url("door", "ann:Geheim9")}\n{server.url("yard")}\n')
        out = done('predict', best, '--source', 'cams.streams', '--save-video', '--max-frames', 8)
        names = {r['name'] for r in rows('predictions')}
        assert 'Geheim9' not in out + Path('predictions/predictions.jsonl').read_text() and '16 frames of 2 streams answered' in out
        assert {n.rpartition('-')[2] for n in names} == {'door', 'yard'} and all(re.fullmatch(r'[\w.-]+', n) for n in names)
        for n in names:
            numbers = [r['frame'] for r in rows('predictions') if r['name'] == n]
            frames, fps = frames_of(f'predictions/{n}.mp4')
            assert len(numbers) == 8 and numbers == sorted(set(numbers)) and len(frames) == numbers[-1] - numbers[0] + 1 and fps == 30     # in the camera's own time


def test_streams_that_are_not_there(refused, done, toy, best, monkeypatch):
    from visionlab.inference.streams import LoadStreams
    monkeypatch.setattr(LoadStreams.__init__, '__defaults__', tuple(.05 if d == .5 else 1 if d == 5 else d for d in LoadStreams.__init__.__defaults__))
    line = refused('predict', best, '--source', 'rtsp://ann:Geheim9@127.0.0.1:1/a')
    assert 'no stream gives a picture' in line and 'refused' in line and 'Geheim9' not in line
    out = done('predict', best, '--source', toy/'test/img', 'rtsp://ann:Geheim9@127.0.0.1:1/a')
    assert '2 of 2 images and 0 frames of 1 stream answered' in out and '1  stream without a picture' in out and 'Geheim9' not in out


def test_progress_in_a_pipe_is_a_line_now_and_then(done, toy, best, monkeypatch):
    import visionlab.cli.app as app
    film('walk.mp4', toy, 9)
    monkeypatch.setattr(app._Progress.__init__, '__defaults__', (0.,))
    out = done('predict', best, '--source', 'walk.mp4')
    assert re.search(r'walk.mp4: frame 9 of 9, \d+\.\d frames/s\n', out)


# Check and demo

@covers('check.save')
def test_check(done, toy):
    out = done('check', 'pan', toy)
    assert re.search(r'train +4 ', out) and re.search(r'test +2 ', out) and 'nothing to report' in out
    (Path(shutil.copytree(toy, 'copy'))/'train/gt/gt_img_1.txt').unlink()
    out = done('check', 'pan', 'copy', '--save', 'to/report.txt')
    assert '1  image without label file' in out and Path('to/report.txt').read_text().strip() == out.strip()


@covers('demo.output_dir', 'demo.seed')
def test_demo(done, monkeypatch):
    import visionlab.pan.predict as predict
    tiny = dict(n_train=6, n_test=2, input_size=64, test_size=64, batch_size=2, epochs=1, backbone='shufflenetv2', head='conv1x1', device='cpu', tensorboard=False)
    monkeypatch.setattr(predict, 'pan_demo', functools.partial(predict.pan_demo, **tiny))
    out = done('demo', 'pan', '--output-dir', 'show')
    for said in (r'On 2 unseen images', r'hmean \d', r'without training', r'picture of detections: show/pan-demo/detections.jpg', r'visionlab train pan --train-path', r'visionlab predict show/pan-demo/best.pth'): assert re.search(said, out)
    assert Image.open('show/pan-demo/detections.jpg').size[1] == 320 and Path('show/toy-text/train/gt/gt_img_6.txt').exists()
    done('demo', 'pan', '--output-dir', 'show', '--seed', 7)
    a, b = (load_checkpoint(f'show/{n}/best.pth') for n in ('pan-demo', 'pan-demo-2'))
    assert (a['config']['seed'], b['config']['seed']) == (42, 7)
    assert any(not torch.equal(a['model'][k], b['model'][k]) for k in a['model'])


@covers('evaluate.model', 'evaluate.batches_before_train', 'evaluate.lexicon', 'evaluate.beam', 'evaluate.reject_below', 'evaluate.prune', 'predict.lexicon', 'predict.beam', 'predict.reject_below', 'prune.reader_sparsity')
def test_options_of_systems_that_read(done, refused, best, toy):
    "What FOTS makes of them is tested in test_fots_learner; a system that does not read has no use for them"
    a = done('evaluate', best, '--data', toy/'test')
    for words in (('--model', best), ('--pretrain-model', best, '--batches-before-train', 1)): assert done('evaluate', *words, '--test-folder-sample', toy/'test') == a
    for option in (('--lexicon', 'strong'), ('--beam', 3), ('--reject-below', 0), ('--prune',)): assert f'{option[0]} is nothing that pan knows here' in refused('evaluate', best, *option)
    for option in (('--lexicon', 'a.txt'), ('--beam', 3), ('--reject-below', 0)): assert f'has no setting "{option[0][2:].replace("-", "_")}"' in refused('predict', best, '--source', toy/'test/img', *option)
    assert 'two checkpoints' in refused('evaluate', best, '--model', 'other.pth')
    assert '--reader-sparsity is nothing that pan knows here' in refused('prune', best, '--reader-sparsity', .5) and 'below 1' in refused('prune', best, '--reader-sparsity', 1) and 'at most 1' in refused('predict', best, '--source', toy/'test/img', '--reject-below', 2)
    assert 'at least 1' in refused('evaluate', best, '--beam', 0) and 'at least 1' in refused('evaluate', best, '--batches-before-train', 0)


# Mistakes in the words

@pytest.mark.parametrize('line,said', [
    ('trian pan', "Did you mean 'train'?"), ('train', 'needs a system, one of: fots, frcnn, multilabel, pan'), ('train yolo', "no system 'yolo' here, only fots, frcnn, multilabel, pan"), ('train pam', "Did you mean 'pan'?"), ('demo yolo', "no system 'yolo'"),
    ('train pan', '`train_path` is empty'), ('train pan --epoch 3', 'Did you mean --epochs?'), ('train pan 3', "'3' belongs to no option"),
    ('train pan --lr fast', "needs a number, got 'fast'"), ('train pan --lr', 'needs a number, got nothing'), ('train pan --lr 0', '`lr` must be above 0'), ('train pan --epochs 2.5', "needs a whole number, got '2.5'"),
    ('train pan --shuffle maybe', 'is a switch'), ('train pan --scale 1', 'needs 2 values'), ('train pan --scale 2 1', '`scale` is a smallest and a largest'), ('train pan --batch-size 0', 'at least 1'),
    ('train pan --backbone resnet81', "Did you mean 'resnet18'?"), ('train pan --optimizer sgd', "Did you mean 'SGD'?"), ('train pan --momentum .9', 'belongs to SGD'), ('train pan --input-size 100', 'multiple of 32'),
    ('train pan --color-jitter 2', 'at most 1'), ('train pan --rotate 270', 'at most 180'), ('train pan --train-path a --train-ratio .5 .5', 'one share for each'), ('train pan --seed -1', 'at least 0'),
    ('train pan --train-path nowhere', "no file '"), ('train pan --config', 'needs text, got nothing'), ('train pan --config nowhere.json', '"--config": no file'), ('train pan --name a/b', '`name` is the name of a folder'),
    ('train pan --device gpu --train-path TOY/train', "Did you mean 'cuda'?"), ('train pan --device cuda:99 --train-path TOY/train', "no 'cuda:99', it has"), ('train pan --train-path TOY', 'holds train/ and test/'),
    ('train pan --train-path TOY/train/img/img_1.jpg', 'is an image'), ('train pan --train-path TOY/train --val-ratio 0 --no-pretrained', 'needs validation images'),
    ('evaluate', 'needs CHECKPOINT'), ('evaluate nowhere.pth', "no file '"), ('evaluate TOY', 'is a folder'), ('evaluate BEST --data nowhere', "no file '"), ('evaluate BEST --min-score 85', 'at most 1'),
    ('evaluate BEST --min-score x', 'needs a number or None'), ('evaluate BEST --batch-size 0', 'at least 1'), ('evaluate BEST --savee x', 'Did you mean --save?'),
    ('predict', 'needs CHECKPOINT'), ('predict BEST', 'needs --source'), ('predict --source x BEST', 'needs CHECKPOINT as its first word'), ('predict BEST --source', 'needs --source'), ('predict BEST --source nowhere', 'neither a file, nor a folder'),
    ('predict BEST --source TOY/*.jpg', 'matches no image'), ('predict BEST --source TOY/test/gt', 'holds no image'), ('predict BEST --source TOY/test/gt/gt_img_1.txt', 'do not exist'),
    ('predict BEST --source TOY/test/img --batch-size -1', 'at least 1'), ('predict BEST --source TOY/test/img --images perhaps', 'is a switch'), ('predict BEST --source TOY/toy.json', 'it is no picture'),
    ('check', 'needs a system'), ('check pan', 'needs PATH'), ('check pan nowhere', '"PATH": no file or folder'), ('check pan TOY extra', "'extra' belongs to no option"), ('demo pan --seed x', 'needs a whole number'),
    ('demo pan --epochs 3', 'is no option')])
def test_mistakes(refused, toy, best, line, said):
    assert said in refused(*(w.replace('TOY', str(toy)).replace('BEST', str(best)) for w in line.split()))
    assert not list(Path().glob('*/*.pth'))


@pytest.mark.parametrize('line', ['predict BEST rtsp://ann:Geheim9@127.0.0.1:1/a', 'predict BEST --source rtsp:/ann:Geheim9@127.0.0.1:1/a', 'predict BEST --source ann:Geheim9@127.0.0.1:1/a', 'predict rtsp://ann:Geheim9@127.0.0.1:1/a --source TOY/test/img',
                                  'predict BEST --sourc rtsp://ann:Geheim9@127.0.0.1:1/a', 'evaluate BEST --data rtsp://ann:Geheim9@127.0.0.1:1/a', 'train rtsp://ann:Geheim9@127.0.0.1:1/a'])
def test_a_password_in_the_wrong_place_is_not_repeated(refused, toy, best, line): assert 'Geheim9' not in refused(*(w.replace('TOY', str(toy)).replace('BEST', str(best)) for w in line.split()))


@pytest.mark.parametrize('document,said', [('{"lr": "fast"}', '"lr" must be a number'), ('{"epochs": "3"}', 'Write it without quotes'), ('{"lrr": 1, "epoch": 2, "lr": 1}', "no setting \"lrr\". Did you mean 'lr'? It has no \"epoch\" either."),
                                           ('{"lr": 1,}', 'is no valid JSON'), ('[1]', 'settings by name'), ('', 'is no valid JSON'), ('{"train_path": 3}', '"train_path" must be a list'), ('{"optimizer": {"typ": "SGD"}}', 'no "typ"')])
def test_config_files_with_mistakes(refused, tmp_path, document, said):
    (tmp_path/'config.json').write_text(document)
    line = refused('train', 'pan', '--config', 'config.json')
    assert said in line and 'config.json' in line


def test_pretrained_without_a_network(refused, toy, monkeypatch, tmp_path):
    from urllib.error import URLError
    def offline(*args, **kwargs): raise URLError('no route to host')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    assert '--no-pretrained' in refused('train', 'pan', '--train-path', toy/'train', '--device', 'cpu')


def test_places_that_cannot_be_written(refused, toy, best):
    "Root may write anywhere, but nobody below a file"
    Path('file').write_text('mine')
    for words in (['train', 'pan', '--train-path', toy/'train', *TINY, '--output-dir', 'file'], ['train', 'pan', '--train-path', toy/'train', *TINY, '--output-dir', 'file/deep'],
                  ['predict', best, '--source', toy/'test/img', '--output-dir', 'file'], ['predict', best, '--source', toy/'test/img', '--output-dir', 'file/deep'],
                  ['evaluate', best, '--save', 'file/figures.json'], ['check', 'pan', toy, '--save', 'file/report.txt'], ['demo', 'pan', '--output-dir', 'file']):
        line = refused(*words)
        assert 'file' in line and ('is a file' in line or 'Not a directory' in line)
    assert Path('file').read_text() == 'mine'


def test_stopped_by_hand_and_a_closed_pipe(vl, monkeypatch):
    import visionlab.cli.app as app
    def stop(words): raise KeyboardInterrupt
    def closed(words): raise BrokenPipeError
    monkeypatch.setitem(app._commands, 'check', (stop, '', ''))
    assert vl('check', 'pan') == (130, '', '\nvisionlab: stopped\n')
    out = sys.stdout
    monkeypatch.setitem(app._commands, 'check', (closed, '', ''))
    try: assert main(['check', 'pan']) == 141
    finally: sys.stdout = out


class Interrupt:
    "Ctrl+C in the middle of training, as a batch sees it"
    def __init__(self, monkeypatch):
        from visionlab.training.callbacks import RunState
        def stop(self): raise KeyboardInterrupt
        monkeypatch.setattr(RunState, 'before_batch', stop, raising=False)


def test_ctrl_c_in_training_is_no_success(vl, toy, monkeypatch):
    Interrupt(monkeypatch)
    code, out, err = vl('train', 'pan', '--train-path', toy/'train', *TINY)
    assert code == 130 and 'stopped by hand; 0 of 1 epochs are saved' in out and 'Everything is in' not in out and err == '\nvisionlab: stopped\n'


def test_ctrl_c_ends_the_demo(vl, monkeypatch):
    import visionlab.pan.predict as predict
    tiny = dict(n_train=6, n_test=2, input_size=64, test_size=64, batch_size=2, epochs=1, backbone='shufflenetv2', head='conv1x1', device='cpu', tensorboard=False)
    monkeypatch.setattr(predict, 'pan_demo', functools.partial(predict.pan_demo, **tiny))
    Interrupt(monkeypatch)
    code, out, err = vl('demo', 'pan')
    assert code == 130 and 'unseen images' not in out


def test_evaluate_asks_for_what_is_given_and_reads_once(done, best, monkeypatch):
    import visionlab.pan.predict as predict
    import visionlab.training.checkpoint as checkpoint
    asked, reads, real, read = [], [], predict.evaluate_pan, checkpoint._read
    monkeypatch.setattr(predict, 'evaluate_pan', lambda ck, **kwargs: (asked.append(kwargs), real(ck, **kwargs))[1])
    monkeypatch.setattr(checkpoint, '_read', lambda path: (reads.append(path), read(path))[1])
    done('evaluate', best, '--device', 'cpu')
    assert 'min_score' not in asked[0] and len(reads) == 1
    done('evaluate', best, '--device', 'cpu', '--min-score', 0)
    assert asked[1]['min_score'] == 0 and len(reads) == 2


def test_names_on_disks_that_ignore_case(done, toy, best, tmp_path):
    for folder, name in (('a', 'Page.jpg'), ('b', 'page.jpg'), ('c', 'PAGE-2.jpg')):
        (tmp_path/folder).mkdir()
        shutil.copy(toy/'test/img/img_1.jpg', tmp_path/folder/name)
    done('predict', best, '--source', 'a', 'b', 'c')
    names = [r['name'] for r in rows('predictions')]
    assert names[0] == 'Page' and len({n.lower() for n in names}) == 3 and len(list(Path('predictions').glob('*.jpg'))) == 3


@pytest.mark.parametrize('error,said', [(MemoryError(), 'the memory is not enough'), (torch.cuda.OutOfMemoryError('CUDA out of memory.'), "device's memory is not enough"),
                                        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), 'a smaller --batch-size'), ('cv2', 'OpenCV refused: (-215')])
def test_machines_that_are_too_small(refused, monkeypatch, error, said):
    import cv2
    import visionlab.cli.app as app
    def fail(words):
        if error == 'cv2': cv2.cvtColor(None, cv2.COLOR_RGB2GRAY)
        raise error
    monkeypatch.setitem(app._commands, 'check', (fail, '', ''))
    assert said in refused('check', 'pan')


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    import visionlab.cli.app as app
    def fail(words): raise RuntimeError('a bug')
    monkeypatch.setitem(app._commands, 'check', (fail, '', ''))
    with pytest.raises(RuntimeError, match='a bug'): main(['check', 'pan'])


def test_warnings_of_ours_are_lines_and_those_of_others_are_not_shown(vl, monkeypatch):
    import warnings
    import visionlab.cli.app as app
    def warn(words):
        warnings.warn_explicit('mind the step', UserWarning, app.__file__, 1)
        warnings.warn_explicit('for programmers', FutureWarning, torch.__file__, 1)
    monkeypatch.setitem(app._commands, 'check', (warn, '', ''))
    monkeypatch.setattr(sys, 'warnoptions', [])
    assert vl('check') == (0, '', 'visionlab: note: mind the step\n')


# Odd images

def test_odd_images_as_sources(done, refused, shared, best):
    odd = shared/'data'/'odd-images'
    out = done('predict', best, '--source', odd, '--min-score', 0.01)
    answered = {Path(r['image']).name for r in rows('predictions')}
    everything = {p.name for p in odd.iterdir() if p.suffix != '.md'}
    assert answered == everything - REFUSED and f'{len(answered)} of {len(everything)} images answered' in out and re.search(rf'{len(REFUSED)}  unreadable image', out)
    for r in rows('predictions'): assert Image.open(f'predictions/{r["name"]}.jpg').size == (r['width'], r['height'])
    for name in sorted(REFUSED): assert name in refused('predict', best, '--source', odd/name, '--output-dir', 'none')
    assert 'none of the 2 images can be read' in refused('predict', best, '--source', odd/'broken.png', odd/'zero_byte.jpg', '--output-dir', 'none')
    assert not list(Path('none').iterdir())


def test_a_strip_of_pixels_needs_no_gigabytes(done, shared, best, monkeypatch):
    "At 736 px for the short side, a file of one row would be 353,280 px long"
    from visionlab.inference.predictor import Predictor
    seen, real = [], Predictor.batch
    def batch(self, images, batch_size=1):
        seen.extend(self.prepare(im)[0].shape for im in images)
        return []
    monkeypatch.setattr(Predictor, 'batch', batch)
    from visionlab.inference import load_predictor
    from visionlab.core.files import read_image
    predictor = load_predictor(best, device='cpu', test_size=736)
    for name in ('one_row.png', 'very_wide.jpg', 'very_tall.jpg', 'one_pixel.png'): predictor.batch([read_image(shared/'data/odd-images'/name)])
    assert all(h*w < 5e6 for _, h, w in seen) and seen[3] == (3, 736, 736)


@pytest.fixture
def data_set(toy, tmp_path):
    "A folder in the ICDAR layout of our own making: name -> label text (None for no label file)"
    def make(labels, name='data'):
        for part in ('img', 'gt'): (tmp_path/name/part).mkdir(parents=True)
        for i, (stem, text) in enumerate(labels.items()):
            shutil.copy(toy/f'train/img/img_{i%4 + 1}.jpg', tmp_path/name/'img'/f'{stem}.jpg')
            if text is not None: (tmp_path/name/'gt'/f'gt_{stem}.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path/name
    return make


def test_odd_images_in_a_data_set(done, refused, shared, best, data_set):
    folder = data_set({'img_1': '10,10,40,10,40,30,10,30,a\n', 'img_2': '10,10,40,10,40,30,10,30,b\n'})
    for p in sorted((shared/'data'/'odd-images').iterdir()):
        if p.suffix == '.md' or p.stem in ('photo',): continue
        shutil.copy(p, folder/'img')
        (folder/'gt'/f'gt_{p.stem}.txt').write_text('2,2,60,2,60,20,2,20,word\n')
    out = done('check', 'pan', folder, '--save', 'report.txt')
    assert re.search(rf'{len(REFUSED)}  unreadable image', out) and all(name in Path('report.txt').read_text() for name in REFUSED)
    out = done('evaluate', best, '--data', folder)
    assert re.search(rf'{len(REFUSED)}  unreadable image', out) and 'in 23 images' in out
    words = ['train', 'pan', '--train-path', folder, *TINY, '--batch-size', 5, '--val-ratio', .2]
    assert 'truncated' in refused(*words)                   # whole header, half the pixels: found when they are wanted
    for name in REFUSED: (folder/'img'/name).unlink()
    done(*words)
    assert 'label file without image' in Path('output/pan/report.txt').read_text()     # the run that was refused left no folder


# Labels

def test_damaged_labels_are_counted(done, data_set, best):
    folder = data_set({
        'bom': '\ufeff10,10,40,10,40,30,10,30,one, two, three\r\n', 'few': '10,10,40,10,40,30,10,30,ok\n1,2,3,word\n', 'crossed': '10,10,40,30,40,10,10,30,bow\n', 'outside': '-9,-9,30,-9,30,20,-9,20,out\n',
        'missing': None, 'free': '', 'ignored': '10,10,40,10,40,30,10,30,###\n', 'my img 7': '10,10,40,10,40,30,10,30,blank\n'})
    counts = {'bad label line': 1, 'polygon repaired': 1, 'point outside image': 1, 'image without label file': 1, 'image without text': 1, 'only ignored text': 1}
    def found(text): return {k: int(m.group(1)) for k in counts if (m := re.search(rf'^ *(\d+)  {k}$', text, re.M))}
    out = done('check', 'pan', folder)
    assert found(out) == counts and re.search(r'data +7 +5 +1 ', out)          # 7 images, 5 words that count, 1 that does not
    done('train', 'pan', '--train-path', folder, *TINY)
    assert found(Path('output/pan/report.txt').read_text()) == counts
    assert found(done('evaluate', best, '--data', folder)) == counts
    from visionlab.datasets.readers import read_text_samples
    texts = {s.path.stem: s.texts for s in read_text_samples(folder)[0]}
    assert texts['bom'] == ['one, two, three'] and texts['my img 7'] == ['blank'] and texts['few'] == ['ok']


@pytest.mark.parametrize('labels,said', [({}, 'no images in'), ({'a': '1,2,3,word\n', 'b': 'word\n'}, 'bad label line (2)'), ({'a': None, 'b': None}, 'image without label file (2)'), ({'a': '1,1,1,1,1,1,1,1,dot\n'}, 'polygon dropped (1)')],
                         ids=['empty folder', 'too few numbers', 'missing labels', 'no area'])
def test_data_sets_of_which_nothing_is_left(refused, data_set, best, labels, said):
    folder = data_set(labels)
    for words in (['train', 'pan', '--train-path', folder, *TINY], ['check', 'pan', folder], ['evaluate', best, '--data', folder]):
        line = refused(*words)
        assert said in line and str(folder) in line and len(line) < 600


@pytest.mark.parametrize('label', ['', '10,10,40,10,40,30,10,30,###\n'], ids=['no text', 'only ###'])
def test_nothing_to_learn(vl, done, data_set, best, label):
    folder = data_set({f'img_{i}': label for i in range(4)})
    code, out, err = vl('train', 'pan', '--train-path', folder, *TINY)
    assert code == 0 and err == 'visionlab: note: no training image has a word that counts: the text loss will stay where it is\n'
    assert 'no readable text in the whole training set' in Path('output/pan/report.txt').read_text()
    assert 'has no readable word at all' in done('check', 'pan', folder)
    assert 'in 4 images' in done('evaluate', best, '--data', folder)


# Checkpoints

class Evil:
    def __reduce__(self): return os.mkdir, ('owned',)


@pytest.mark.parametrize('kind,said', [('cut', 'is cut off'), ('empty', 'is empty'), ('text', 'is no checkpoint'), ('image', 'is no checkpoint'), ('other system', "'ocr'"), ('newer', 'newer'), ('pickled object', 'pickled Python objects'),
                                       ('pickle', 'pickled Python objects'), ('bare weights', 'not a checkpoint of visionlab'), ('other weights', 'do not fit'), ('unknown setting', "no setting \"magic\"")])
def test_bad_checkpoints(refused, toy, best, kind, said):
    good, bad = load_checkpoint(best), Path('bad.pth')
    parts = {k: v for k, v in good.items() if k not in ('format', 'format_version', 'version')}
    if kind == 'cut': bad.write_bytes(best.read_bytes()[:best.stat().st_size//2])
    elif kind == 'empty': bad.touch()
    elif kind == 'text': bad.write_text('weights')
    elif kind == 'image': shutil.copy(toy/'test/img/img_1.jpg', bad)
    elif kind == 'other system': save_checkpoint(bad, **{**parts, 'system': 'ocr'})
    elif kind == 'newer': torch.save({**good, 'format_version': 99}, bad)
    elif kind == 'pickled object': torch.save({**good, 'extra': Evil()}, bad)
    elif kind == 'pickle': bad.write_bytes(pickle.dumps(Evil()))
    elif kind == 'bare weights': torch.save(good['model'], bad)
    elif kind == 'other weights': save_checkpoint(bad, **{**parts, 'model': {k: v for k, v in good['model'].items() if 'fpems.1' not in k}})
    elif kind == 'unknown setting': save_checkpoint(bad, **{**parts, 'config': {**good['config'], 'magic': 1}})
    for words in (['evaluate', bad], ['predict', bad, '--source', toy/'test/img']): assert said in refused(*words)
    if kind not in ('unknown setting',):        # weights and settings are two things: a resumed run brings its own settings
        assert kind == 'other weights' or said in refused('train', 'pan', '--train-path', toy/'train', *TINY, '--resume-checkpoint', bad)
    if kind == 'other weights': assert 'fit' in refused('train', 'pan', '--train-path', toy/'train', *TINY, '--resume-checkpoint', bad)
    assert not Path('owned').exists() and not Path('predictions/predictions.jsonl').exists()


@covers(*(f'check.{n}' for n in 'images_folder input_shape resize short_side long_side feature_stride anchor_scales anchor_ratios classes_path'.split()))
def test_check_takes_the_settings_of_a_run(done, refused, tmp_path):
    from visionlab.datasets.boxes import read_voc, write_coco_truth
    from visionlab.datasets.toy_boxes import make_toy_boxes
    toy = make_toy_boxes(tmp_path/'toy', n_train=6, n_test=3, size=64, classes=2)
    assert 'scales' in done('check', 'frcnn', toy)
    lines = done('check', 'frcnn', toy, *'--input-shape 128 96 --resize letterbox --feature-stride 8 --anchor-scales 1.5 3 --anchor-ratios 1'.split())
    assert 'at 96x128 px, stride 8' in lines and re.search(r'^1\.5 3 +24 48', lines, re.M)
    assert 'at a short side of 90 px, at most 200' in done('check', 'frcnn', toy, *'--resize short_side --short-side 90 --long-side 200'.split())
    data = read_voc(toy, 'test')
    truth = json.loads(write_coco_truth(tmp_path/'truth.json', data.samples, data.names).read_text())
    for m in truth['images']: m['file_name'] = m['file_name'].rpartition('/')[2]
    (tmp_path/'truth.json').write_text(json.dumps(truth))
    assert '3 of 3 images' in done('check', 'frcnn', tmp_path/'truth.json', '--images-folder', toy/'JPEGImages')
    (tmp_path/'names.txt').write_text('disc\n')
    assert 'unknown class' in done('check', 'frcnn', toy, '--classes-path', tmp_path/'names.txt')
    assert 'anchor_scales' in refused('check', 'frcnn', toy, '--anchor-scales', '0')


@covers('evaluate.results', 'evaluate.images_folder')
def test_boxes_for_the_programs_of_others(done, tmp_path):
    from visionlab.datasets.boxes import read_voc, write_coco_truth
    from visionlab.datasets.toy_boxes import make_toy_boxes
    toy = make_toy_boxes(tmp_path/'toy', n_train=6, n_test=3, size=64, classes=2)
    done('train', 'frcnn', '--train-path', toy, '--val-path', toy, '--name', 'boxes', *'--input-shape 64 64 --backbone resnet18 --feature-stride 8 --no-dilate --head mlp --head-width 16 --anchor-scales 1 2 --no-pretrained --epochs 1 --batch-size 2 --num-workers 0 --no-tensorboard --device cpu'.split())
    data = read_voc(toy, 'test')
    truth = json.loads(write_coco_truth(tmp_path/'truth.json', data.samples, data.names).read_text())
    for m in truth['images']: m['file_name'] = m['file_name'].rpartition('/')[2]          # names alone: their folder is given
    (tmp_path/'truth.json').write_text(json.dumps(truth))
    done('evaluate', 'output/boxes/best.pth', '--data', tmp_path/'truth.json', '--images-folder', toy/'JPEGImages', '--results', 'found', '--device', 'cpu', '--min-score', '0')
    assert {d['image_id'] for d in json.loads(Path('found/detections.json').read_text())} <= {m['id'] for m in truth['images']}
    assert {f.name for f in Path('found').glob('*.txt')} == {f'comp3_det_test_{n}.txt' for n in data.names}


# A full disk: files of more than so many bytes cannot be written

def _limited(limit, log, words):
    "A command in a process that cannot write files of more than `limit` bytes; what it says goes into the pipe `log`"
    import resource
    code = 99
    try:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = (open(fd, 'w', closefd=False) for fd in (1, 2))
        sys.dont_write_bytecode = True     # or what is imported now leaves half a file of bytecode for everybody
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = main([str(w) for w in words])
        sys.stdout.flush(), sys.stderr.flush()
    finally: os._exit(code)


@pytest.fixture
def on_a_small_disk(tmp_path, monkeypatch, processes):
    monkeypatch.chdir(tmp_path)
    def go(limit, *words):
        there, here = processes.Pipe(duplex=False)
        p = processes.Process(target=_limited, args=(limit, here, words))
        p.start()
        here.close()
        with open(there.fileno(), closefd=False) as f: out = f.read()
        p.join()
        return p.exitcode, out
    return go


@pytest.mark.parametrize('command,limit', [('train', 100_000), ('train --tensorboard --display-interval 1', 5000), ('train', 100), ('predict', 2000), ('predict --no-images --min-score 0', 100), ('evaluate', 50), ('check', 50)])
def test_a_full_disk(on_a_small_disk, toy, best, command, limit):
    name, *more = command.split()
    for old in ('predictions/predictions.jsonl', 'figures.json', 'report.txt'):
        Path(old).parent.mkdir(exist_ok=True)
        Path(old).write_text('old')
    words = dict(train=['train', 'pan', '--train-path', toy/'train', *TINY], predict=['predict', best, '--source', toy/'test/img'], evaluate=['evaluate', best, '--save', 'figures.json'],
                 check=['check', 'pan', toy, '--save', 'report.txt'])[name]
    code, out = on_a_small_disk(limit, *words, *more)
    last = [line for line in out.splitlines() if line.startswith('visionlab:')]
    assert code == 2 and 'Traceback' not in out and len(last) == 1 and re.match("visionlab: cannot write '.*': it is larger than this system allows", last[0])
    assert all(Path(p).read_text() == 'old' for p in ('predictions/predictions.jsonl', 'figures.json', 'report.txt'))     # nothing that was there is lost
    assert not [p for p in Path().rglob('.*tmp*')]


def test_a_disk_that_fills_up_later_keeps_the_last_checkpoint(on_a_small_disk, done, toy):
    words = ['train', 'pan', '--train-path', toy/'train', *TINY]
    done(*words)
    before = Path('output/pan/latest.pth').read_bytes()
    code, out = on_a_small_disk(100_000, *words, '--epochs', 2, '--resume-checkpoint', 'output/pan/latest.pth')
    assert code == 2 and 'What was there before is untouched' in out and Path('output/pan/latest.pth').read_bytes() == before
    done(*words, '--epochs', 2, '--resume-checkpoint', 'output/pan/latest.pth')
    assert load_checkpoint('output/pan/latest.pth')['epoch'] == 2


def test_options_survive_a_file(toy):
    "What `config.json` of a run holds is all that is needed to start it again"
    c = PANConfig(train_path=(f'{toy}/train',), scale=(.5, 2), min_score=.3, amsgrad=False)
    assert from_dict(PANConfig, json.loads(json.dumps(to_dict(c)))) == c
