"Data of FOTS: from every source to batches, texts through crops, and what cannot be read"
import shutil
import warnings
import numpy as np
import pytest
import torch
from PIL import Image
from visionlab.cli.app import main
from visionlab.core.checks import InputError
from visionlab.datasets.samples import Report, Sample
from visionlab.datasets.synthtext import LPCV_FOLDERS, MergedSamples, make_toy_synthtext
from visionlab.datasets.toy import make_toy_text, toy_text_scene
from visionlab.datasets.word_crops import WordSheet, WordSheets, draw_sheet, is_word_folder, lay_out, parse_word_line, read_word_crops
from visionlab.fots.checks import check_fots
from visionlab.fots.config import Charset, FOTSConfig
from visionlab.fots.data import FOTSItems, fots_dataloaders, fots_samples, is_word_crop, reading_quads, report_characters, word_numbers
from visionlab.fots.targets import rect_quads


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "The toy set in each form that FOTS reads"
    root = tmp_path_factory.mktemp('fots')
    make_toy_text(root/'toy', n_train=8, n_test=3, size=(192, 192))
    make_toy_synthtext(root/'syn', n=20, size=(96, 128))
    for part, (img, txt) in LPCV_FOLDERS.items():
        (root/'lpcv'/img).mkdir(parents=True); (root/'lpcv'/txt).mkdir()
        for i in range(3):
            image, polys, texts, _ = toy_text_scene(i, split=part, size=(96, 128))
            Image.fromarray(image).save(root/'lpcv'/img/f'v_{i}.jpg')
            (root/'lpcv'/txt/f'v_{i}.txt').write_text('\n'.join(','.join([*(f'{v:.0f}' for v in np.ravel(p)), t]) for p, t in zip(polys, texts)))
    (root/'words').mkdir()
    lines = []
    for i in range(30):
        Image.fromarray(np.full((20 + i, 60, 3), 8*i, np.uint8)).save(root/'words'/f'w_{i}.png')
        lines.append(f'w_{i}.png, "word{i}"')
    (root/'words'/'gt.txt').write_text('\n'.join(lines))
    return root


def config(data, **kw):
    return FOTSConfig(**{**dict(short_side=128, input_size=96, test_size=96, batch_size=4, num_workers=0, device='cpu', pretrained=False), **kw})


def check_batch(batch, c, b=None):
    x, score, d, a, mask, boxes, texts, lengths = batch
    n, h, w = len(x), -(-x.shape[2]//4), -(-x.shape[3]//4)
    assert b is None or n == b
    assert score.shape == a.shape == mask.shape == (n, h, w) and d.shape == (n, 4, h, w)
    assert boxes.shape == (*lengths.shape, 4, 2) and texts.shape[:2] == lengths.shape
    assert boxes.dtype == torch.float32 and texts.dtype == lengths.dtype == torch.long
    assert (lengths <= texts.shape[2]).all() and ((texts > 0).sum(2) == lengths).all() and texts.max() <= len(Charset(c.charset))
    assert all(t.isfinite().all() for t in (x, d, boxes))


SOURCES = dict(syn=dict(train_folder_syn='syn'), sample=dict(train_folder_sample='lpcv'), both=dict(train_folder_syn='syn', train_folder_sample='lpcv'),
               own=dict(train_path=('toy/train',)), words=dict(train_path=('words',)), all=dict(train_folder_syn='syn', train_folder_sample='lpcv', train_path=('toy/train', 'words')))


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('val', [False, True])
def test_every_source_gives_batches(data, name, val):
    paths = {k: tuple(str(data/p) for p in v) if isinstance(v, tuple) else str(data/v) for k, v in SOURCES[name].items()}
    c = config(data, **paths, val=val, syn_train=6, syn_val=2)
    dls = fots_dataloaders(c)
    check_batch(dls.one_batch(), c)
    own = 'train_path' in paths
    assert (len(dls.loaders) > 1) == (val or own)
    for dl in dls.loaders:
        for b in dl: check_batch(b, c)


def test_the_merged_set_is_what_was_asked_for(data):
    "n of the first 80% of SynthText and all of the sample set; in validation of the last 20% and all test images"
    c = config(data, train_folder_syn=str(data/'syn'), train_folder_sample=str(data/'lpcv'), val=True, syn_train=7, syn_val=3)
    train, val, _ = fots_samples(c)
    draws = []
    for e in range(4):
        train.set_epoch(e)
        names = [s.path.name for s in train]
        assert len(train) == 7 + 3 and names[7:] == ['v_0.jpg', 'v_1.jpg', 'v_2.jpg'] and all('train_images1' in str(s.path) for s in train[7:])
        assert {int(n[6:-4]) for n in names[:7]} <= set(range(16))
        v = [s.path.name for s in val]
        assert len(val) == 3 + 3 and {int(n[6:-4]) for n in v[:3]} <= set(range(16, 20)) and all('test_images1' in str(s.path) for s in val[3:])
        draws.append((names[:7], v[:3]))
    assert len({tuple(d[0]) for d in draws}) == 4 and len({tuple(d[1]) for d in draws}) > 1
    again, val2, _ = fots_samples(c)
    again.set_epoch(2)
    assert [s.path.name for s in again][:7] == draws[2][0] and [s.path.name for s in val2][:3] == draws[2][1]
    other, _, _ = fots_samples(config(data, **{**vars(c), 'seed': 1}))
    assert [s.path.name for s in other][:7] != draws[0][0]


@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_in_the_middle_can_be_had_again(data, workers):
    kw = dict(train_folder_syn=str(data/'syn'), train_path=(str(data/'words'),), val_ratio=0., syn_train=6, batch_size=2)
    a, b = fots_dataloaders(config(data, **kw)), fots_dataloaders(config(data, **kw, num_workers=workers))
    epochs = [list(a.train) for _ in range(3)]
    b.train.set_epoch(2)
    for x, y in zip(epochs[2], b.train, strict=True):
        for t, u in zip(x, y, strict=True): assert torch.equal(t, u)
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_texts_follow_their_words_through_a_crop(tmp_path):
    "Each word is a block of its own grey; wherever a block is whole, its text is there, and where it is cut, it is not"
    page, polys, texts = np.zeros((240, 320, 3), np.uint8), [], []
    for k in range(12):
        x, y = 20 + k % 4*75, 20 + k//4*75
        page[y:y+24, x:x+60] = 20*k + 20
        polys.append(np.array([[x, y], [x+60, y], [x+60, y+24], [x, y+24]]) - .5); texts.append(f'grey{20*k + 20}')
    Image.fromarray(page).save(tmp_path/'page.png')
    items = FOTSItems(FOTSConfig(short_side=240, input_size=160, color_jitter=0., box_jitter=0., pretrained=False))
    sample, cut, seen = Sample(tmp_path/'page.png', polys, texts), 0, 0
    from visionlab.datasets.transforms import denormalise
    for seed in range(30):
        x, _, _, _, _, boxes, numbers, lengths = items(sample, seed)
        image = denormalise(x)[..., 0].astype(int)
        for q, t, n in zip(boxes.numpy(), numbers, lengths):
            cx, cy = np.clip(q.mean(0).round().astype(int), 0, 159)
            if n:
                seen += 1
                assert abs(image[cy, cx] - int(Charset().decode(t[:n])[4:])) <= 2
                assert np.linalg.norm(q[1] - q[0]) > 1.8*np.linalg.norm(q[3] - q[0])      # all of it
            else:
                cut += 1
                assert min(q.min(), (159 - q).min()) < 2                                  # it stands at the border
    assert seen > 60 and cut > 20


def test_what_is_not_read():
    row = rect_quads([60, 40, 60, 20, 0])
    cs = Charset('abc')
    for q, text, ign, want in ((row, 'abc', False, 3), (row, 'abé', False, 0), (row, '', False, 0), (row, 'abc', True, 0), (np.zeros((4, 2)), 'abc', False, 3), (np.vstack([row, row[:1]]), 'abc', False, 3)):
        boxes, numbers, lengths = word_numbers([q], [text], [ign], cs)
        assert lengths.tolist() == [want] and torch.isfinite(boxes).all(), (q, text)


def test_places_follow_the_order_of_the_labels():
    rng = np.random.default_rng(0)
    for turn in np.linspace(-np.pi, np.pi, 17):
        word = rect_quads([60, 40, 60, 20, turn + .01])
        np.testing.assert_allclose(reading_quads([word])[0], word, atol=1e-3)               # at any angle, from the first letter on
        np.testing.assert_allclose(reading_quads([word + rng.normal(0, .3, (4, 2))])[0], word, atol=2.5)
    np.testing.assert_allclose(reading_quads([np.vstack([word, word[:1]])])[0].mean(0), word.mean(0), atol=1e-3)
    assert reading_quads([]).shape == (0, 4, 2)


def test_characters_outside_the_charset_are_reported():
    report = Report()
    samples = [Sample('a.jpg', [np.eye(4, 2)]*3, ['naïve', 'ok', 'été'], [0, 0, 1]), Sample('b.jpg', [np.eye(4, 2)], ['a,b'])]
    report_characters(samples, Charset(), report, {'東': 7, 'a': 9})
    assert {e.path: e.detail.split()[0] for e in report.entries} == {'東': '7', 'ï': '1'}
    assert '1 words' in report.notes[-1]


def test_a_batch_without_a_readable_word(data):
    c = config(data, train_path=(str(data/'toy'/'train'),), charset='~', val_ratio=0.)
    with pytest.warns(UserWarning, match='no training word can be read: none has a text in the 1 characters'): batch = fots_dataloaders(c).one_batch()
    check_batch(batch, c)
    assert not batch[7].any() and batch[1].any()
    with pytest.raises(InputError, match='no training word can be read, and with `detect` off there is nothing else to learn'): fots_samples(config(data, train_path=c.train_path, charset='~', val_ratio=0., detect=False))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fots_samples(config(data, train_path=c.train_path, charset='~', val_ratio=0., read=False))     # nobody wants to read


def test_words_without_a_text_are_counted(data):
    report = Report()
    report_characters([Sample('a.jpg', [np.eye(4, 2)]*3, ['', 'ok', ''], [0, 0, 1]), Sample('b.jpg', [np.eye(4, 2)]*2, ['', ''])], Charset(), report)
    assert report.counts == {'word without text': 3} and len(report) == 2 and '1 of 3 words' in report.entries[0].detail
    crop = Sample('w.png', [np.array([[0, 0], [9, 0], [9, 5], [0, 5]]) - .5], [''])
    report_characters([crop, WordSheet([crop])], Charset(), report)      # the reader of word images has told of them line by line
    assert len(report) == 2


def test_nothing_that_counts_is_told(tmp_path):
    shutil.copytree((make_toy_text(tmp_path/'toy', 3, 1, (96, 96)))/'train', tmp_path/'hidden')
    for f in (tmp_path/'hidden'/'gt').iterdir(): f.write_text('\n'.join(','.join([*l.split(',')[:8], '###']) for l in f.read_text(encoding='utf-8-sig').splitlines()))
    with pytest.warns(UserWarning, match='no training image has a word that counts'): fots_samples(config(None, train_path=(str(tmp_path/'hidden'),), val_ratio=0.))


@pytest.mark.parametrize('kw, message', [({}, 'nothing to train on'), (dict(train_folder_syn='nowhere'), 'nowhere'), (dict(train_folder_sample='nowhere'), 'nowhere'), (dict(train_path=('nowhere',)), 'nowhere')])
def test_wrong_paths_are_one_line(kw, message):
    with pytest.raises(InputError, match=message) as e: fots_samples(config(None, **kw))
    assert '\n' not in str(e.value)


def test_an_image_that_vanished_is_named(data, tmp_path):
    syn = shutil.copytree(data/'syn', tmp_path/'syn')
    dls = fots_dataloaders(config(data, train_folder_syn=str(syn), syn_train=4, batch_size=1))
    for f in syn.rglob('*.jpg'): f.unlink()
    with pytest.raises(InputError, match='scene_'): dls.one_batch()


# Word images

def test_lines_of_word_lists():
    for line, want in (('word_1.png, "Genaxis, Theatre"', ('word_1.png', 'Genaxis, Theatre')), ('a.jpg, """', ('a.jpg', '"')), (r'a.jpg, "\\"', ('a.jpg', '\\')), ('d e.jpg,x', ('d e.jpg', 'x'))):
        assert parse_word_line(line) == want


def test_real_word_images(shared):
    samples, report = read_word_crops(shared/'data'/'text-recognition-crops')
    assert len(samples) == 1500 and samples[0].texts == ['Genaxis Theatre'] and is_word_folder(shared/'data'/'text-recognition-crops')
    assert not is_word_folder(shared/'data'/'text-icdar2015'/'train')
    page, quads = draw_sheet(WordSheet(samples[:20]), 280)
    assert page.shape == (280, 280, 3) and (quads >= -.5).all() and (quads <= 279.5).all()
    items = FOTSItems(FOTSConfig(pretrained=False), train=False)
    x, score, _, _, mask, boxes, _, lengths = items(samples[3])
    assert min(x.shape[1:]) <= 64 and not mask.any() and lengths.tolist() == [7] and is_word_crop(samples[3], samples[3].image.shape)


def test_sheets_hold_every_word_once():
    rng = np.random.default_rng(0)
    for n, size in ((1, 64), (12, 280), (40, 128)):
        places, s = lay_out(np.c_[rng.uniform(5, 400, n), rng.uniform(5, 60, n)], size)
        area = np.zeros((size, size), int)
        for (x, y), (w, h) in zip(places, s): area[y:y+h, x:x+w] += 1
        assert area.max() == 1 and area.sum() == s.prod(1).sum()
    words = [Sample(f'{i}.png', [np.eye(4, 2)], [str(i)]) for i in range(25)]
    sheets = WordSheets(words, 12, seed=0)
    for e in range(3):
        sheets.set_epoch(e)
        assert [len(s.words) for s in sheets] == [12, 12, 1] and sorted(int(t) for s in sheets for t in s.texts) == list(range(25))
    with pytest.raises(InputError, match='empty'): WordSheets([])


def test_the_detector_learns_nothing_from_sheets(data):
    c = config(data, train_path=(str(data/'words'),), val_ratio=0.)
    train, _, _ = fots_samples(c)
    assert isinstance(train, MergedSamples)
    x, score, d, a, mask, boxes, texts, lengths = FOTSItems(c)(train[0], 1)
    assert not mask.any() and not score.any() and (lengths > 0).sum() >= 6


def test_real_scenes_and_receipts(shared):
    for name in ('text-icdar2015', 'text-receipts'):
        c = FOTSConfig(train_path=(str(shared/'data'/name/'test'),), val_ratio=.2, batch_size=4, num_workers=0, device='cpu', pretrained=False)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            dls = fots_dataloaders(c)
        b = dls.one_batch()
        check_batch(b, c, 4)
        assert (b[7] > 0).any()


@pytest.mark.parametrize('path', ['syn', 'syn/gt.mat', 'lpcv', 'toy', 'words'])
def test_every_source_can_be_checked(data, path, capsys):
    assert main(['check', 'fots', str(data/path)]) == 0
    said = capsys.readouterr().out
    assert 'words to read' in said and 'leave their image' not in said


def test_a_check_of_much_looks_at_some(data, monkeypatch):
    "An even part of SynthText, cut as training cuts it"
    monkeypatch.setattr('visionlab.fots.checks.LOOKED_AT', 5)
    report = check_fots(data/'syn')
    assert [(p.name, len(p.samples)) for p in report.parts] == [('train', 4), ('val', 1)]
    names = [int(s.path.stem.split('_')[1]) for p in report.parts for s in p.samples]
    assert names[0] == 0 and max(names[:4]) == 15 and names[4] >= 16


def test_a_check_of_some_does_not_count_what_lacks_among_all(data, tmp_path, monkeypatch):
    monkeypatch.setattr('visionlab.fots.checks.LOOKED_AT', 4)
    f = shutil.copytree(data/'syn', tmp_path/'syn', ignore=shutil.ignore_patterns('*.index'))
    next(f.glob('1/*.jpg')).unlink()
    report = check_fots(f)
    assert report.counts['image that is not there'] == 1 and not [w for w in report.warnings if 'cannot be used' in w]


def test_a_check_says_what_the_reader_cannot_learn(tmp_path):
    for i in range(30): Image.fromarray(np.full((20, 60, 3), 8*i, np.uint8) if i < 12 else np.full((60, 20, 3), 8*i, np.uint8)).save(tmp_path/f'{i}.png')
    (tmp_path/'gt.txt').write_text('\n'.join(f'{i}.png, "{"long" if i < 12 else "tea"}"' for i in range(30)))
    assert any('18 words' in w and 'stand on end' in w for w in check_fots(tmp_path).warnings)
    (tmp_path/'gt.txt').write_text('\n'.join(f'{i}.png, "{"long"*9}"' for i in range(12)))
    assert any('12 words' in w and 'fewer columns' in w for w in check_fots(tmp_path).warnings)
    assert not check_fots(tmp_path, read_height=16).warnings
    (tmp_path/'gt.txt').write_text('\n'.join(f'{i}.png, ""' for i in range(12)))
    report = check_fots(tmp_path)
    assert len(report.reading[0][1]['letters']) == 0 and any('can be read' in w and '--no-read' in w for w in report.warnings)
