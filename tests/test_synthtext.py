"SynthText: every way its label file can be wrong, the cache, and draws that can be had again"
import os
import pickle
import shutil
import numpy as np
import pytest
import scipy.io
from visionlab.core.checks import InputError
from visionlab.core.files import WriteError
from visionlab.datasets import synthtext
from visionlab.datasets.synthtext import DrawnSamples, MergedSamples, index_synthtext, make_toy_synthtext, read_lpcv, read_synthtext


def cell(values):
    out = np.empty((1, len(values)), object)
    for i, v in enumerate(values): out[0, i] = v
    return out


def write(folder, names, boxes, texts, **extra):
    folder.mkdir(exist_ok=True)
    for n in names: (folder/n).touch()
    scipy.io.savemat(folder/'gt.mat', dict(imnames=cell([np.array([n]) for n in names]), wordBB=cell(boxes), txt=cell([np.array(t) for t in texts]), **extra))
    return folder


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_synthtext(tmp_path_factory.mktemp('data')/'SynthText', n=10, size=(96, 128))


def test_the_made_set_is_read(shared, tmp_path):
    folder = tmp_path/'made'
    shutil.copytree(shared/'data'/'synthtext-made', folder)
    samples, report = read_synthtext(folder)
    raw = scipy.io.loadmat(folder/'gt.mat')
    assert len(samples) == 60 and not len(report)
    for i, s in enumerate(samples):
        box = np.asarray(raw['wordBB'][0, i])
        box = box[..., None] if box.ndim == 2 else box
        np.testing.assert_array_equal(np.stack(s.polygons), box.transpose(2, 1, 0))
        assert s.texts == ' '.join(raw['txt'][0, i]).split() and s.path == folder/str(raw['imnames'][0, i][0]) and s.path.is_file()
    assert samples[5].image.shape == (360, 480, 3)


def test_one_word_an_image_and_no_word(tmp_path):
    one = np.arange(8.).reshape(2, 4)
    f = write(tmp_path/'s', ['a.jpg', 'b.jpg'], [one, one[..., None]], [['tea'], [' tea  ']])
    samples, _ = read_synthtext(f)
    assert all(len(s.polygons) == 1 and s.texts == ['tea'] for s in samples)
    np.testing.assert_array_equal(samples[0].polygons[0], one.T)
    f = write(tmp_path/'t', ['a.jpg', 'b.jpg'], [np.zeros((2, 4, 0)), one], [[''], ['x']])
    assert [len(s.polygons) for s in read_synthtext(f)[0]] == [0, 1]
    f = write(tmp_path/'u', ['a.jpg'], [one], [['x']])
    assert len(read_synthtext(f)[0]) == 1


def test_what_cannot_be_used_is_counted(tmp_path):
    two, bad = np.ones((2, 4, 2)), np.ones((2, 4, 2))
    bad[0, 0, 1] = np.nan
    f = write(tmp_path/'s', list('abcde'), [two, bad, two, np.ones(5), two], [['one two'], ['in out'], ['many words here'], ['x'], ['three more words']])
    samples, report = read_synthtext(f)
    assert [s.texts for s in samples] == [['one', 'two'], ['in'], ['', ''], [], ['', '']]
    assert report.counts == {'broken boxes': 1, 'words that do not match': 3, 'words without a place': 1}      # images, images, words
    assert 'words that do not match' in read_synthtext(f)[1].counts      # from the cache as well


@pytest.mark.parametrize('gone', ['imnames', 'wordBB', 'txt'])
def test_missing_keys_are_one_line(tmp_path, toy, gone):
    raw = scipy.io.loadmat(toy/'gt.mat')
    scipy.io.savemat(tmp_path/'gt.mat', {k: raw[k] for k in ('imnames', 'wordBB', 'txt') if k != gone})
    with pytest.raises(InputError, match=f'has no {gone}') as e: read_synthtext(tmp_path)
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)


@pytest.mark.parametrize('compress', [False, True])
@pytest.mark.parametrize('share', [0, .01, .2, .5, .9, .999])
def test_a_file_cut_short_is_one_line(tmp_path, toy, share, compress):
    raw = scipy.io.loadmat(toy/'gt.mat')
    scipy.io.savemat(tmp_path/'whole.mat', {k: raw[k] for k in ('imnames', 'wordBB', 'txt')}, do_compression=compress)
    data = (tmp_path/'whole.mat').read_bytes()
    (tmp_path/'gt.mat').write_bytes(data[:int(len(data)*share)])
    with pytest.raises(InputError) as e: read_synthtext(tmp_path)
    assert '\n' not in str(e.value) and 'gt.mat' in str(e.value) and not (tmp_path/'gt.mat.index').exists()


def test_the_newer_format_of_matlab_is_named(tmp_path):
    "Its header says so; what follows is HDF5, and no list of variables that could be cut short"
    head = b'MATLAB 7.3 MAT-file'.ljust(124) + (0x200).to_bytes(2, 'little') + b'IM'
    (tmp_path/'gt.mat').write_bytes(head + bytes(384) + b'\x89HDF\r\n\x1a\n' + bytes(3000))
    with pytest.raises(InputError, match='v7.3 format'): read_synthtext(tmp_path)


def test_pickled_samples_know_their_source(tmp_path, toy):
    f = shutil.copytree(toy, tmp_path/'s', ignore=shutil.ignore_patterns('*.index'))
    sent = pickle.dumps(read_synthtext(f)[0])
    assert pickle.loads(sent)[0].path == f/'1/scene_0.jpg'
    write(f, ['b.jpg', 'a.jpg'], [np.ones((2, 4))]*2, [['x'], ['y']])
    read_synthtext(f)
    with pytest.raises(InputError, match='removed or changed'): pickle.loads(sent)


def test_other_files_of_that_name(tmp_path, toy):
    for data in (b'\x89HDF\r\n\x1a\n' + bytes(600), b'hello', os.urandom(5000)):
        (tmp_path/'gt.mat').write_bytes(data)
        with pytest.raises(InputError) as e: read_synthtext(tmp_path)
        assert '\n' not in str(e.value)
    with pytest.raises(FileNotFoundError): read_synthtext(tmp_path/'nowhere')
    with pytest.raises(InputError, match='no gt.mat'): read_synthtext(toy/'1')


def test_names_that_lead_elsewhere(tmp_path):
    f = write(tmp_path/'s', ['../passwd'], [np.ones((2, 4))], [['x']])
    with pytest.raises(InputError, match='leads out of'): read_synthtext(f)


def test_images_that_are_not_there(tmp_path, toy, monkeypatch):
    f = shutil.copytree(toy, tmp_path/'s')
    whole, report = read_synthtext(f)
    assert whole.there is None and not report.counts
    shutil.rmtree(f/'2')
    (f/'1/scene_3.jpg').unlink()
    some, report = read_synthtext(f)
    left = [0, 2, 5, 6, 8, 9]                                                     # 1, 4 and 7 were in folder 2
    assert [s.path for s in some] == [whole[i].path for i in left] and [s.texts for s in some] == [whole[i].texts for i in left] and all(s.path.is_file() for s in some)
    assert report.counts['image that is not there'] == 4 and '4 of 10' in report.summary() and "the first is '2/scene_1.jpg'" in report.summary()
    assert [s.texts for s in pickle.loads(pickle.dumps(some))] == [s.texts for s in some] and some[-1].path.name == 'scene_9.jpg' and len(some[2:4]) == 2
    seen = set()
    drawn = DrawnSamples(some, 4)
    for epoch in range(9): drawn.set_epoch(epoch); seen |= {s.path.name for s in drawn}
    assert len(seen) == 6
    # Training and validation are cut at the same image as before
    kept = {n: [s.path for s in DrawnSamples(whole if n == 'whole' else some, 10, first=.6)] for n in ('whole', 'some')}
    assert set(kept['some']) == {p for p in kept['whole'] if p.is_file()} and [some.before(v) for v in (0, .3, .6, 1)] == [0, 2, 3, 6]
    for k in '13': shutil.rmtree(f/k)
    with pytest.raises(InputError, match="none of the 10 images.*'1/scene_0.jpg'") as e: read_synthtext(f)
    assert '\n' not in str(e.value)


def test_the_cache_follows_its_source(tmp_path, toy, monkeypatch):
    f = shutil.copytree(toy, tmp_path/'s', ignore=shutil.ignore_patterns('*.index'))
    calls, real = [], synthtext._read_mat
    monkeypatch.setattr(synthtext, '_read_mat', lambda p: calls.append(p) or real(p))
    a, _ = read_synthtext(f); b, _ = read_synthtext(f/'gt.mat')
    assert len(calls) == 1 and [s.texts for s in a] == [s.texts for s in b]
    index = f/'gt.mat.index'
    data = index.read_bytes()
    for broken in (data[:-1], data[:40], b'', b'x'*100, data[:8] + b'\xff'*8 + data[16:]):    # cut, or not ours
        index.write_bytes(broken)
        assert [s.texts for s in read_synthtext(f)[0]] == [s.texts for s in a]
        assert index.read_bytes()[:8] == b'VLSYNTH1'
    n = len(calls)
    os.utime(f/'gt.mat', ns=(1, 1))                                                       # another gt.mat
    read_synthtext(f); assert len(calls) == n + 1
    assert not list(f.glob('.gt*'))


def test_folders_that_cannot_be_written(tmp_path, toy, monkeypatch):
    f = shutil.copytree(toy, tmp_path/'s', ignore=shutil.ignore_patterns('*.index'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    real = synthtext._write_cache
    def refuse(path, *args):
        if path.parent == f: raise WriteError('writing there is not permitted')
        return real(path, *args)
    monkeypatch.setattr(synthtext, '_write_cache', refuse)
    samples, _ = read_synthtext(f)
    assert samples.cache.parent == tmp_path/'cache'/'visionlab' and not (f/'gt.mat.index').exists()
    again, _ = read_synthtext(f)
    assert again[3].texts == samples[3].texts and again.cache == samples.cache
    def never(*args): raise WriteError('the disk is full')
    monkeypatch.setattr(synthtext, '_write_cache', never)
    shutil.rmtree(tmp_path/'cache')
    kept, report = read_synthtext(f)
    assert kept.cache is None and 'stays in memory' in report.summary() and kept[3].texts == samples[3].texts
    assert pickle.loads(pickle.dumps(kept))[3].texts == samples[3].texts


def test_samples_travel_as_a_path(toy):
    samples, _ = read_synthtext(toy)
    again = pickle.loads(pickle.dumps(samples))
    assert isinstance(samples.arrays['quads'], np.memmap) and isinstance(again.arrays['quads'], np.memmap)
    for a, b in zip(samples, again, strict=True): assert a.texts == b.texts and a.path == b.path
    assert samples[-1].path == samples[9].path and len(samples[2:5]) == 3
    with pytest.raises(IndexError): samples[10]


def test_letters_of_all_scripts(tmp_path):
    f = write(tmp_path/'s', ['ä.jpg'], [np.ones((2, 4, 3))], [['naïve 東京,1 a,b']])
    s = read_synthtext(f)[0]
    assert s[0].texts == ['naïve', '東京,1', 'a,b'] and s.counts['characters']['東'] == 1 and s[0].path.name == 'ä.jpg'


# Draws

def test_draws_differ_by_epoch_and_can_be_had_again():
    base = list(range(1000))
    a, b = DrawnSamples(base, 50, seed=3, last=.8), DrawnSamples(base, 50, seed=3, last=.8)
    first = list(a)
    for e in (1, 2, 7): a.set_epoch(e); b.set_epoch(e); assert list(a) == list(b) != first and len(set(a)) == 50 and max(a) < 800
    a.set_epoch(0); assert list(a) == first
    assert list(DrawnSamples(base, 50, seed=4, last=.8)) != first
    v = DrawnSamples(base, 50, seed=3, first=.8)
    assert min(v) >= 800 and not set(v) & set(range(800))
    seen = set()
    for e in range(100): a.set_epoch(e); seen |= set(a)
    assert len(seen) > 790                                      # sooner or later everything


def test_fewer_than_wanted_and_nothing_at_all():
    assert len(DrawnSamples(range(10), 50)) == 10 and list(DrawnSamples(range(10), 50)) == list(range(10))
    with pytest.raises(InputError, match='no samples between'): DrawnSamples([], 5)
    with pytest.raises(InputError, match='no samples between'): DrawnSamples([1], 5, last=.8)
    for bad in (0, -1, 2.5):
        with pytest.raises(InputError, match='"n"'): DrawnSamples(range(10), bad)


def test_merged_samples_know_their_places():
    parts = [DrawnSamples(range(100, 200), 7, seed=1), ['a', 'b'], [], ['c']]
    m = MergedSamples(*parts)
    assert len(m) == 10 and list(m) == [*parts[0], 'a', 'b', 'c'] and m[-1] == 'c' and m[7:9] == ['a', 'b']
    with pytest.raises(IndexError): m[10]
    follower = DrawnSamples(range(50), 5)
    m.followers.append(follower); m.set_epoch(4)
    assert parts[0].epoch == follower.epoch == 4


# LPCV

def test_lpcv_layout(tmp_path, toy):
    image = next(toy.rglob('*.jpg'))
    for img, txt in synthtext.LPCV_FOLDERS.values():
        (tmp_path/img).mkdir(); (tmp_path/txt).mkdir()
        for i in (1, 2, 10): shutil.copy(image, tmp_path/img/f'v_{i}.jpg')
        (tmp_path/txt/'v_1.txt').write_text('1,2,30,2,30,12,1,12,a,b and c\r\n', encoding='utf-8-sig')
        (tmp_path/txt/'v_10.txt').write_text('1,2,30,2,30,12,1,12,###\n5,5,9,5,9,9,5,9,x\nnonsense\n')
    for part in ('train', 'test'):
        samples, report = read_lpcv(tmp_path, part)
        assert [s.path.name for s in samples] == ['v_1.jpg', 'v_10.jpg'] and samples[0].texts == ['a,b and c']
        assert samples[1].ignore.tolist() == [True, False]
        assert report.counts == {'image without label file': 1, 'bad label line': 1}
    shutil.rmtree(tmp_path/'sample_test_annotation_txt')
    with pytest.raises(InputError, match='has no sample_test_annotation_txt/'): read_lpcv(tmp_path, 'test')
    with pytest.raises(FileNotFoundError): read_lpcv(tmp_path/'x')


def test_index_is_compact_and_quick():
    "A hundredth of the real set"
    import time
    rng, n = np.random.default_rng(0), 8600
    boxes = [rng.uniform(0, 600, (2, 4, 8)).astype(np.float32) for _ in range(n)]
    start = time.process_time()
    arrays, counts = index_synthtext([f'{i%200}/some_name_{i}.jpg' for i in range(n)], boxes, [['some words\nof text', 'here and also there']]*n)
    assert time.process_time() - start < 5 and counts['words'] == 8*n
    assert sum(a.nbytes for a in arrays.values()) < 500*n
