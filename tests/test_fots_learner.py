"""FOTS trains, goes on, is judged and used: half by half and whole, resumed to the bit, from other weights, with the script's own commands."""
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from visionlab.cli.app import main
from visionlab.core.checks import InputError
from visionlab.core.config import replace_config
from visionlab.datasets.readers import read_text_samples
from visionlab.datasets.synthtext import LPCV_FOLDERS, make_toy_synthtext
from visionlab.datasets.toy import make_toy_text, toy_text_page, toy_text_scene
from visionlab.fots.config import FOTSConfig
from visionlab.fots.data import fots_dataloaders
from visionlab.fots.learner import FOTSEvaluator, FOTSTrainer, find_spots, fots_learner, fots_model, read_turned, settled_start
from visionlab.fots.model import FOTSAnswer, frames_with_text
from visionlab.fots.predict import evaluate_fots, fots_predictor, read_spotting_data
from visionlab.fots.targets import FOTSTargets
from visionlab.inference import load_predictor
from visionlab.training.checkpoint import FORMAT, FORMAT_VERSION, PARTS, load_checkpoint, save_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_text(tmp_path_factory.mktemp('fots')/'toy', n_train=8, n_test=4, size=(128, 128), pages=2)


@pytest.fixture
def config(toy, tmp_path):
    return FOTSConfig(train_path=(f'{toy}/train',), val_path=(f'{toy}/test',), short_side=128, input_size=96, test_size=128, batch_size=4, accumulate=1, epochs=1, num_workers=0, backbone='shufflenetv2',
                      width=4, reader_width=4, pretrained=False, device='cpu', output_dir=str(tmp_path/'out'), tensorboard=False)


@pytest.fixture(scope='module')
def run(toy, tmp_path_factory):
    "A finished run with all heads"
    folder = tmp_path_factory.mktemp('run')
    words = f'train fots --train-path {toy}/train --val-path {toy}/test --short-side 128 --input-size 96 --test-size 128 --batch-size 4 --batches-before-train 2 --epoch 2 --num-workers 0 --backbone shufflenetv2 --width 4'
    assert main([*words.split(), '--reader-width', '4', '--rejector', '--no-pretrained', '--device', 'cpu', '--save-dir', str(folder), '--no-tensorboard']) == 0
    return folder/'fots'


def test_the_run_is_whole(run):
    ck = load_checkpoint(run/'latest.pth', 'fots')
    row = ck['history'][-1]
    assert {'hmean', 'accuracy', 'one_minus_ned', 'end_to_end', 'word_spotting', 'train_read_loss', 'train_score_loss', 'train_shape_loss', 'train_angle_loss', 'train_text_loss'} <= set(row)
    assert ck['best']['metric'] == 'end_to_end' and 'min_score' in ck['thresholds'] and ck['config']['accumulate'] == 2
    assert len(ck['model']['reader.letters.counts']) > 20


@pytest.mark.parametrize('half, parts', [(dict(read=False), {'score_loss', 'shape_loss', 'angle_loss'}), (dict(detect=False), {'read_loss'})])
def test_each_half_alone(config, half, parts):
    trainer = FOTSTrainer(replace_config(config, **half), progress='none').train()
    row = trainer.history[-1]
    assert {k[6:] for k in row if k.startswith('train_') and k != 'train_loss'} == parts
    assert trainer.learn.run_state.metric == ('hmean' if 'read' in half else 'accuracy')
    score = evaluate_fots(trainer.best, device='cpu')
    assert (score.words is None, score.reading is None) == ('detect' in half, 'read' in half) and repr(score) and score._repr_html_()


@pytest.mark.parametrize('merged', [False, True])
def test_a_resumed_run_is_the_same_to_the_bit(config, merged, tmp_path):
    "Over one's own images; and over SynthText, of which each epoch draws some, the sample set, and both of their parts for validation"
    c = replace_config(config, epochs=3, accumulate=2, plateau=0, lr=.01)
    if merged:
        make_toy_synthtext(tmp_path/'syn', n=20, size=(96, 128))
        for part, folders in LPCV_FOLDERS.items():
            for f in folders: (tmp_path/'lpcv'/f).mkdir(parents=True)
            for i in range(3):
                image, polys, texts, _ = toy_text_scene(i, split=part, size=(96, 128))
                cv2.imwrite(str(tmp_path/'lpcv'/folders[0]/f'v_{i}.jpg'), image)
                (tmp_path/'lpcv'/folders[1]/f'v_{i}.txt').write_text('\n'.join(','.join([*(f'{v:.0f}' for v in np.ravel(p)), t]) for p, t in zip(polys, texts)))
        c = replace_config(c, train_path=(), val_path=(), train_folder_syn=str(tmp_path/'syn'), train_folder_sample=str(tmp_path/'lpcv'), val=True, syn_train=6, syn_val=2)
    whole = FOTSTrainer(replace_config(c, name='whole'), progress='none').train()
    first = FOTSTrainer(replace_config(c, epochs=2), progress='none').train()
    again = FOTSTrainer(replace_config(c, pretrain_model=str(first.latest), continue_training=True), progress='none').train()
    assert again.folder == first.folder and again.start == 2
    if merged: assert len(whole.learn.dls.train.dataset.samples) == 6 + 3 and len(whole.learn.dls.valid.dataset.samples) == 2 + 3
    a, b = load_checkpoint(whole.latest), load_checkpoint(again.latest)
    for k, v in a['model'].items(): assert torch.equal(v, b['model'][k]), k
    assert a['history'] == b['history']


@pytest.mark.parametrize('texts', [[], ['###'], ['ü'], ['']])
def test_batches_without_a_readable_word(config, tmp_path, texts):
    for d in ('img', 'gt'): (tmp_path/'set'/d).mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(str(tmp_path/f'set/img/img_{i}.jpg'), toy_text_scene(i, size=128)[0])
        (tmp_path/f'set/gt/gt_img_{i}.txt').write_text(''.join(f'10,10,80,10,80,40,10,40,{t}\n' for t in texts), encoding='utf-8')
    c = replace_config(config, train_path=str(tmp_path/'set'), val_path=(), val_ratio=0, epochs=2)
    with np.errstate(all='raise'), pytest.warns(UserWarning) if texts in ([], ['###']) else pytest.MonkeyPatch.context():
        trainer = FOTSTrainer(c, progress='none').train()
    assert all(np.isfinite(list(map(float, (v for v in r.values() if v is not None)))).all() for r in trainer.history)
    if texts == ['ü']: assert 'character outside the charset' in (trainer.folder/'report.txt').read_text()


def test_what_a_run_may_begin_with(config, run, tmp_path):
    ck = load_checkpoint(run/'latest.pth')
    widths = {k: ck[k] for k in ck if k not in ('format', 'format_version', 'version')}
    save_checkpoint(tmp_path/'small.pth', **{**widths, 'pruned': dict(widths={}), 'optimizer': None})
    new = lambda **kw: settled_start(replace_config(config, **kw))
    with pytest.raises(InputError, match='holds a pruned network: give `prune`'): new(pretrain_model=str(tmp_path/'small.pth'))
    with pytest.raises(InputError, match='is not: leave `prune` out'): new(pretrain_model=str(run/'latest.pth'), prune=True)
    c, line = new(pretrain_model=str(tmp_path/'small.pth'), prune=True, continue_training=True, width=8)
    assert c.width == 4 and c.rejector and not c.pretrained and not c.resume_checkpoint and 'no unfinished run' in line
    c, line = new(pretrain_model=str(run/'latest.pth'), continue_training=True, epochs=9)
    assert c.resume_checkpoint == str(run/'latest.pth') and c.finetune_checkpoint == '' and line == ''
    rounds = dict(widths, epoch=30, loader=dict(widths['loader'], clock=2))                  # `eval_step`: thirty evaluations in two epochs
    save_checkpoint(tmp_path/'rounds.pth', **rounds)
    assert new(pretrain_model=str(tmp_path/'rounds.pth'), continue_training=True, epochs=3)[0].resume_checkpoint == str(tmp_path/'rounds.pth')
    assert 'no unfinished run' in new(pretrain_model=str(tmp_path/'rounds.pth'), continue_training=True, epochs=2)[1]
    assert new(ngpus=0)[0].device == 'cpu'
    torch.save(fots_model(config).state_dict(), tmp_path/'bare.pth')
    assert FOTSTrainer(replace_config(config, pretrain_model=str(tmp_path/'bare.pth')), progress='none').start == 0
    with pytest.raises(InputError): new(pretrain_model=str(tmp_path/'bare.pth'), prune=True)
    with pytest.raises(FileNotFoundError): new(pretrain_model='nowhere.pth')


def test_perfect_maps_are_found_in_a_scaled_image(toy, config):
    "An image of 128 px searched at 160 px: words come back in px of the image"
    c = replace_config(config, test_size=160, read_margin=0.)
    for s in read_text_samples(toy/'test')[0]:
        score, distances, angle, _ = (torch.from_numpy(t) for t in FOTSTargets()([p*1.25 for p in s.polygons], s.ignore, 160, 160))
        maps = FOTSAnswer(20*score[None].float() - 10, distances, angle[None])
        for cut in (None, .6):
            r, quads = find_spots(maps, c, (128, 128), cut)
            for p in r.polygons: assert min(np.abs(p - q).max() for q in s.polygons) < 8       # rectangles around slanted quads
            np.testing.assert_allclose([(q/1.25).clip(0, 128) for q in quads], r.polygons, atol=1e-3)
            wider = find_spots(maps, replace_config(c, read_margin=.5), (128, 128), cut)[1]
            for q, g in zip(quads, wider):
                a, b, (x, y) = *(sorted(np.linalg.norm(v[1] - v[0]) for v in (k[:2], k[1:3])) for k in (q, g)), g.mean(0) - q.mean(0)
                np.testing.assert_allclose((b[0] - a[0], b[1] - a[1], x, y), (.5*a[0], a[0], 0, 0), atol=1e-2)


def test_evaluation_and_its_switches(run, toy, tmp_path):
    plain = evaluate_fots(run/'best.pth', toy/'test', device='cpu', reject_below=0)
    assert plain.skipped == 0 and plain.to_dict()['images'] == 4 and len(plain.results) == 4
    none = evaluate_fots(run/'best.pth', toy/'test', device='cpu', reject_below=1.)
    assert (none.skipped, none.figures['recall']) == (4, 0) and none.wrongly == sum(bool((~s.ignore).any()) for s in none.samples)
    assert none.figures['accuracy'] == plain.figures['accuracy']            # true places are read whatever the rejector says
    (tmp_path/'words.txt').write_text('hotel\npolice\n')
    few = evaluate_fots(run/'best.pth', toy/'test', device='cpu', reject_below=0, lexicon=tmp_path/'words.txt', min_score=.01)
    assert {t for r in few.results for t in r.texts} <= {'hotel', 'police', ''} and few.spots['end_to_end'].n_pred <= few.words.n_pred
    beam = evaluate_fots(run/'best.pth', toy/'test', device='cpu', beam=3, reject_below=0)
    assert beam.reading.n == plain.reading.n
    with pytest.raises(InputError, match='has no option'): evaluate_fots(run/'best.pth', toy/'test', encoder='x')


def test_more_switches_of_the_commands(run, toy, tmp_path, monkeypatch, capsys):
    "--reject-below, --reader-sparsity, and SynthText to be scored on"
    monkeypatch.chdir(tmp_path)
    def said(*words): assert main([str(w) for w in words]) == 0; return capsys.readouterr().out
    skipped = lambda name: [json.loads(line).get('skipped', False) for line in Path(f'{name}/predictions.jsonl').read_text().splitlines()]
    for cut, all_gone in ((0, False), (1, True)):
        said('predict', run/'best.pth', '--source', toy/'test/img', '--output-dir', f'out{cut}', '--reject-below', cut, '--device', 'cpu')
        assert skipped(f'out{cut}') == [all_gone]*4
        assert ('skipped 4 of 4 images' in said('evaluate', run/'best.pth', '--data', toy/'test', '--reject-below', cut, '--device', 'cpu')) == all_gone
    syn = make_toy_synthtext(tmp_path/'syn', n=10, size=(96, 128))
    for path in (syn, syn/'gt.mat'): assert [s.path.stem for s in evaluate_fots(run/'best.pth', path, 'cpu', reject_below=0).samples] == ['scene_8', 'scene_9']      # the last fifth
    plain = load_checkpoint(run/'best.pth')
    save_checkpoint('plain.pth', **{**{k: v for k, v in plain.items() if k not in ('format', 'format_version', 'version')}, 'config': {**plain['config'], 'rejector': False}, 'model': {k: v for k, v in plain['model'].items() if not k.startswith('rejector')}})
    assert main(['predict', 'plain.pth', '--source', str(toy/'test/img'), '--reject-below', '.4', '--device', 'cpu']) == 2 and 'this network has no rejector' in capsys.readouterr().err
    said('predict', 'plain.pth', '--source', toy/'test/img', '--reject-below', 0, '--device', 'cpu')
    numbers = lambda path: sum(v.numel() for k, v in load_checkpoint(path)['model'].items() if k.startswith('reader.') and v.is_floating_point())
    said('prune', run/'best.pth', '--output', 'a.pth')
    said('prune', run/'best.pth', '--output', 'b.pth', '--reader-sparsity', .5)
    assert numbers('a.pth') == numbers(run/'best.pth') > numbers('b.pth')
    said('predict', 'b.pth', '--source', toy/'test/img', '--device', 'cpu')


def test_word_images_are_read_and_not_searched(run, config, tmp_path):
    folder = tmp_path/'crops'
    folder.mkdir()
    lines = []
    for i in range(4):
        image, polys, texts, _ = toy_text_page(i)
        (x0, y0), (x1, y1) = polys[0].min(0).astype(int).clip(0), polys[0].max(0).astype(int)
        cv2.imwrite(str(folder/f'word_{i+1}.jpg'), image[y0:y1, x0:x1]); lines.append(f'word_{i+1}.jpg, "{texts[0]}"')
    (folder/'gt.txt').write_text('\n'.join(lines))
    assert len(read_spotting_data(folder)) == 4
    score = evaluate_fots(run/'best.pth', folder, device='cpu', reject_below=0)
    assert (score.reading.n, len(score.results)) == (4, 0)
    trainer = FOTSTrainer(replace_config(config, train_path=str(folder), val_path=str(folder), detect=False), progress='none').train()
    result = load_predictor(trainer.best, device='cpu')(folder/'word_1.jpg')
    assert len(result) == len(result.texts) == 1
    with pytest.raises(InputError, match='places that are known'): evaluate_fots(trainer.best, folder, device='cpu', lexicon='weak')


def test_a_film_with_the_rejector(run, tmp_path, capsys):
    film = cv2.VideoWriter(str(tmp_path/'film.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (128, 128))
    for i in range(4): film.write(toy_text_scene(i, size=128)[0])
    film.release()
    assert main(['predict', str(run/'best.pth'), '--source', str(tmp_path/'film.mp4'), '--output-dir', str(tmp_path/'out'), '--save-video', '--text', '--device', 'cpu']) == 0
    rows = [json.loads(l) for l in (tmp_path/'out/predictions.jsonl').read_text().splitlines()]
    assert len(rows) == 4 and all('texts' in r and len(r['texts']) == len(r['polygons']) for r in rows) and (tmp_path/'out/film.mp4').stat().st_size > 0


def test_word_images_alone_choose_a_figure_that_they_can_give(config, tmp_path):
    "Nothing is searched: what is found decides nothing, and no cut is chosen"
    folder = tmp_path/'crops'
    folder.mkdir()
    for i in range(6): cv2.imwrite(str(folder/f'{i}.png'), np.full((20, 60, 3), 30*i, np.uint8))
    (folder/'gt.txt').write_text('\n'.join(f'{i}.png, "tea"' for i in range(6)))
    with pytest.warns(UserWarning, match='cut out'): trainer = FOTSTrainer(replace_config(config, train_path=str(folder), val_path=str(folder), input_size=32), progress='none').train()
    ck = load_checkpoint(trainer.best)
    assert ck['best']['metric'] == 'accuracy' and ck['thresholds'] == {}


def test_a_word_list_that_stayed_behind(config, tmp_path, toy):
    words = tmp_path/'words.txt'
    with pytest.raises(FileNotFoundError): FOTSTrainer(replace_config(config, lexicon=str(words)), progress='none')
    words.write_text('hotel\npolice\n')
    best = FOTSTrainer(replace_config(config, lexicon=str(words), epochs=1), progress='none').train().best
    assert fots_predictor(load_checkpoint(best), 'cpu').lexicon is not None
    words.unlink()
    with pytest.warns(UserWarning, match='words are read as they are'): assert fots_predictor(load_checkpoint(best), 'cpu').lexicon is None
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert fots_predictor(load_checkpoint(best), 'cpu', lexicon='').lexicon is None
        evaluate_fots(best, toy/'test', 'cpu', lexicon='strong')
    with pytest.raises(FileNotFoundError): fots_predictor(load_checkpoint(best), 'cpu', lexicon=str(words))


@pytest.mark.parametrize('half', ['read', 'detect'])
def test_the_demo_of_a_half(half, tmp_path, capsys):
    from visionlab.fots.predict import fots_demo
    score = fots_demo(tmp_path, n_train=4, pages=4, n_test=2, progress='none', epochs=1, device='cpu', num_workers=0, width=4, reader_width=4, backbone='shufflenetv2', **{half: False})
    assert ('picture of words' in capsys.readouterr().out) == (tmp_path/'fots-demo/words.jpg').is_file() == (len(score.samples) == 2) == (half == 'read')


def test_the_scripts_of_the_document(run, toy, capsys):
    code = main(f'evaluate --test-folder-sample {toy}/test --batch-size 1 --batches-before-train 1 --pretrain-model {run}/best.pth --device cpu'.split())
    assert code == 0 and 'end-to-end' in capsys.readouterr().out
    for words, said in ((f'evaluate {run}/best.pth --data {toy}/test --prune --device cpu', 'the one in the checkpoint is not: leave `prune` out, or make one with `visionlab prune CHECKPOINT`'), (f'predict {run}/best.pth --source {toy}/test/img --lexicon nowhere.txt', 'nowhere.txt'),
                        (f'train fots --pretrain-model {run}/best.pth --prune --train-path {toy}/train', 'leave `prune` out'), (f'train fots --train-path {toy}/train --ngpus 2 --lr fast', 'needs a number'),
                        ('train fots --device cpu', 'nothing to train on'), (f'train fots --train-path {toy}/train --continue-training', 'give `pretrain_model`')):
        assert main(words.split()) == 2
        err = capsys.readouterr().err
        assert said in err and err.count('\n') == 1, err


def test_show_results_and_predictor_refuse(run, config):
    learn = fots_learner(fots_dataloaders(config), config, progress='none')
    learn.evaluator.reset()
    learn.show_results(max_n=2)
    assert FOTSEvaluator(replace_config(config, detect=False)).names == ('accuracy', 'one_minus_ned')
    ck = load_checkpoint(run/'best.pth')
    for bad, why in ((dict(min_score=7), 'min_score'), (dict(beam=0), 'beam'), (dict(tile=3), 'no option `tile`'), (dict(prune=True), 'leave `prune` out')):
        with pytest.raises(InputError, match=why): fots_predictor(ck, 'cpu', **bad)
    ck['model'].pop('last.0.weight')
    with pytest.raises(InputError, match='do not fit'): fots_predictor(ck, 'cpu')


def test_tall_words_are_read_from_both_sides(config):
    "A network that reads only climbing words, and words that lie: the way it is surest of is kept, and the outline begins where the writing does"
    model = fots_model(config).eval()
    calls = []
    def read(features, quads, image):
        calls.append(len(quads))
        along = quads[:, 1] - quads[:, 0]
        letters = torch.zeros(len(quads), 6, 96)
        say = model.reader.charset.encode
        for row, (x, y) in zip(letters, along.tolist()):
            text, sure = ('lies', 9.) if abs(x) > 20 else ('up', 6.) if y < -20 else ('', 20.) if y > 20 else ('I', 2.)     # falling, it sees nothing, and is very sure of that
            row[:, 0] = sure
            for i, n in enumerate(say(text)[0]): row[i, n] = 2*sure
        return letters, torch.full((len(quads),), 6)
    model.read = read
    quads = np.float32([[[0, 0], [60, 0], [60, 20], [0, 20]], [[70, 0], [90, 0], [90, 60], [70, 60]], [[0, 40], [10, 40], [10, 52], [0, 52]]])
    texts, corners = read_turned(model, torch.zeros(1, 32, 32, 32), quads, config)
    assert texts == ['lies', 'up', 'I'] and corners.tolist() == [0, 3, 0] and calls == [7]      # all ways in one batch
    assert np.roll(quads[1], -3, axis=0).tolist() == [[70, 60], [70, 0], [90, 0], [90, 60]]
    assert read_turned(model, torch.zeros(1, 32, 32, 32), np.zeros((0, 4, 2)), config)[0] == []


def test_an_evaluation_asks_of_a_network_what_an_exported_one_can_do(config, toy):
    "Networks of ONNX files take images alone; seconds are of what was found; word images are not skipped"
    torch.manual_seed(0)
    net = fots_model(replace_config(config, rejector=True)).eval()
    with torch.no_grad(): net.rejector.say.bias.fill_(-20)       # there is never any text
    class Exported(torch.nn.Module):
        def __init__(self): super().__init__(); self.reader, self.rejector, self.read, self.seen = net.reader, net.rejector, net.read, []
        def forward(self, images): self.seen.append(tuple(images.shape)); return net(images)
        def ask_first(self, images, below): return frames_with_text(net, images, below)
    model = Exported()
    checkpoint = dict(PARTS, format=FORMAT, format_version=FORMAT_VERSION, version='0', system='fots', config=vars(replace_config(config, rejector=True)), normalisation=dict(mean=[.5]*3, std=[.5]*3), thresholds={}, network=model)
    score = evaluate_fots(checkpoint, toy/'test', 'cpu')
    assert score.skipped == 4 and score.reading.n > 0 and score.words.n_pred == 0
    asked = evaluate_fots(checkpoint, toy/'test', 'cpu', reject_below=0.)
    assert asked.skipped == 0 and asked.reading.n == score.reading.n
    model.seen.clear()
    assert evaluate_fots(checkpoint, toy/'test', 'cpu', reject_below=0.).reading.n and len(model.seen) == 4    # once an image, not twice


def test_a_run_says_what_of_its_data_cannot_be_used(config, capsys):
    trainer = FOTSTrainer(replace_config(config, charset='abcdefghijklmnopqrstuvwxyz'), progress='lines')
    trainer.open()
    out = capsys.readouterr().out
    assert 'not all of the data can be used as it is: character outside the charset (' in out and f'{trainer.folder}/report.txt' in out
    FOTSTrainer(config, progress='lines').open()
    assert 'not all of the data' not in capsys.readouterr().out
