"From files to padded batches of boxes, the toy set, the data reports: what goes in and what comes out"
import json
import shutil
from pathlib import Path
import numpy as np, pytest, torch
from visionlab.core.checks import InputError
from visionlab.core.config import replace_config
from visionlab.datasets.box_checks import check_box_data
from visionlab.datasets.boxes import read_box_samples, voc_annotation, write_coco_truth
from visionlab.datasets.samples import Sample
from visionlab.datasets.toy_boxes import make_toy_boxes, toy_box_scene
from visionlab.frcnn.checks import check_frcnn
from visionlab.frcnn.config import FasterRCNNConfig
from visionlab.frcnn.data import FRCNNDataset, FRCNNItems, frcnn_dataloaders, frcnn_dataset_collate, frcnn_samples, read_frcnn_sets

NAMES = ('disc', 'triangle', 'square')


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return make_toy_boxes(tmp_path_factory.mktemp('boxes')/'toy', n_train=16, n_test=5, size=(100, 80))


@pytest.fixture
def config(toy): return FasterRCNNConfig(train_path=str(toy), val_path=f'{toy}/ImageSets/Main/test.txt', input_shape=(96, 128), batch_size=4, num_workers=0, device='cpu')


def whole(dls): return [tuple(t.clone() for t in b) for b in dls.train]


# batches

def test_the_layout_of_a_batch(config):
    dls = frcnn_dataloaders(config)
    assert dls.vocab == NAMES and (len(dls.train), len(dls.valid)) == (4, 2)
    for dl in (dls.train, dls.valid):
        for x, b, l in dl:
            assert x.dtype == b.dtype == torch.float32 and l.dtype == torch.int64
            assert x.shape[1:] == (3, 96, 128) and b.shape == (*l.shape, 4) and l.shape[1] >= 1
            real = l >= 0
            assert ((l == -1) | ((0 <= l) & (l < 3))).all() and (b[~real] == 0).all()
            assert (b[real][:, 2:] > b[real][:, :2]).all() and (b >= 0).all() and (b <= torch.tensor([128, 96, 128, 96])).all()
            assert (real.long().diff(dim=1) <= 0).all(), 'padding comes last'


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_can_be_had_again(config, workers):
    a, b = whole(frcnn_dataloaders(config)), whole(frcnn_dataloaders(replace_config(config, num_workers=workers)))
    for p, q in zip(a, b):
        for s, t in zip(p, q): torch.testing.assert_close(s, t, rtol=0, atol=0)
    dls = frcnn_dataloaders(config)
    first, second = whole(dls), whole(dls)
    assert not torch.equal(first[0][0], second[0][0])


def test_options_reach_the_views(config, toy):
    "Each option of the views changes what the network sees"
    train = frcnn_samples(config)[0]
    look = lambda **kw: FRCNNItems(replace_config(config, **kw), NAMES)(train[1], 3)
    still = dict(scale=(1., 1.), flip=0., color_jitter=0.)
    plain = look(**still)
    torch.testing.assert_close(plain[1], FRCNNItems(config, NAMES, train=False)(train[1])[1], rtol=0, atol=.02)
    for kw in (dict(scale=(.5, .5)), dict(flip=1.), dict(flip_vertical=1.), dict(color_jitter=1.), dict(input_shape=(64, 64)), dict(resize='short_side', short_side=64, long_side=100)):
        other = look(**{**still, **kw})
        assert other[0].shape != plain[0].shape or not torch.equal(other[0], plain[0]), kw
    mirrored = look(**{**still, 'flip': 1.})[1]
    torch.testing.assert_close(mirrored[:, [2, 1, 0, 3]], plain[1]*torch.tensor([-1, 1, -1, 1]) + torch.tensor([128, 0, 128, 0.]), rtol=0, atol=.02)


def test_difficult_boxes(config, toy):
    sample = read_box_samples(toy).samples[1]
    s = Sample(sample.path, boxes=[[1, 1, 30, 30], [40, 40, 60, 60]], labels=[2, 1], ignore=[True, False])
    for keep, want in ((False, [1]), (True, [2, 1])):
        assert FRCNNItems(replace_config(config, keep_difficult=keep), NAMES, False)(s)[2].tolist() == want
        assert FRCNNDataset([s], 96, train=False, keep_difficult=keep)[0][2].tolist() == want
    assert FRCNNItems(config, NAMES, False)(Sample(sample.path, boxes=[[1, 1, 9, 9]], labels=[0], ignore=[True]))[1].shape == (0, 4)


def test_collate_takes_arrays_and_empty_items():
    none = (np.zeros((3, 8, 8), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    x, b, l = frcnn_dataset_collate([none, none])
    assert x.shape == (2, 3, 8, 8) and b.shape == (2, 1, 4) and l.tolist() == [[-1], [-1]]
    x, b, l = frcnn_dataset_collate([none, (torch.ones(3, 4, 9), torch.ones(3, 4), torch.tensor([0, 1, 2]))])
    assert x.shape == (2, 3, 8, 9) and b.shape == (2, 3, 4) and l[1].tolist() == [0, 1, 2]


def test_plain_loader_with_workers(toy, tmp_path):
    files, _ = voc_annotation(toy, tmp_path)
    with open(files[0]) as f: lines = f.readlines()
    ds = FRCNNDataset(lines, [96, 128], train=True)
    gen = torch.utils.data.DataLoader(ds, shuffle=True, batch_size=4, num_workers=2, pin_memory=False, drop_last=True, collate_fn=frcnn_dataset_collate)
    batches = list(gen)
    assert len(batches) == 4 and all(x.shape == (4, 3, 96, 128) for x, _, _ in batches)
    assert not torch.equal(batches[0][0][0], batches[0][0][1])


# which images

def test_sources_agree(toy, config, tmp_path):
    files, _ = voc_annotation(toy, tmp_path)
    train = frcnn_samples(config)[0]
    coco = write_coco_truth(tmp_path/'train.json', train, NAMES)
    for kw in (dict(train_path=str(files[0])), dict(train_path=str(coco)), dict(train_path=str(files[0]), classes_path=str(tmp_path/'classes.txt'))):
        t, v, names, _ = frcnn_samples(replace_config(config, **kw))
        assert names == NAMES and len(v) == 5 and {s.path.name for s in t} == {s.path.name for s in train}


def test_sets_are_joined(toy, config, tmp_path):
    six = make_toy_boxes(tmp_path/'six', n_train=6, n_test=2, size=64, classes=6)
    samples, names, _ = read_frcnn_sets([six, toy])
    assert names == ('disc', 'triangle', 'square', 'star', 'ring', 'letter') and len(samples) == 22
    (tmp_path/'six/classes.txt').write_text('letter\nring\nstar\nsquare\ntriangle\ndisc\n')
    samples, names, _ = read_frcnn_sets([six, toy])
    assert names[0] == 'letter'
    disc = names.index('disc')
    assert sum((s.labels == disc).sum() for s in samples[6:]) == sum((s.labels == 0).sum() for s in read_box_samples(toy).samples)


def test_a_share_is_held_back(toy, config):
    alone = replace_config(config, val_path='', val_ratio=.25)
    a, b = frcnn_samples(alone), frcnn_samples(alone)
    assert [len(v) for v in a[:2]] == [12, 4] and [s.path for s in a[1]] == [s.path for s in b[1]] and not {s.path for s in a[0]} & {s.path for s in a[1]}
    assert len(frcnn_dataloaders(replace_config(alone, val_ratio=0.)).loaders) == 1


def test_names_that_do_not_fit_are_told(toy, config):
    _, _, names, report = frcnn_samples(replace_config(config, class_names=('disc', 'triangel')))
    assert names == ('disc', 'triangel') and report.counts['class without a box'] == 1 and "Did you mean 'triangel'?" in str(report.entries)


@pytest.mark.parametrize('changes, message', [
    (dict(train_path=''), 'train_annotation_path'), (dict(train_path='nowhere/2007_train.txt'), 'nowhere'), (dict(classes_path='nowhere.txt'), 'nowhere.txt'), (dict(class_names=('car',)), 'nothing to learn')])
def test_bad_settings_are_one_line(config, changes, message):
    with pytest.raises(InputError) as e: frcnn_samples(replace_config(config, **changes))
    assert message in str(e.value) and '\n' not in str(e.value)


def test_an_image_that_vanishes_names_itself(toy, config, tmp_path):
    copy = Path(shutil.copytree(toy, tmp_path/'copy'))
    dls = frcnn_dataloaders(replace_config(config, train_path=str(copy), batch_size=2))
    (copy/'JPEGImages/train_00003.jpg').write_bytes(b'')
    with pytest.raises(InputError, match='train_00003.jpg'): list(dls.train)


# the toy set

def test_toy_scenes_are_fixed_and_disjoint():
    a, b = toy_box_scene(5), toy_box_scene(5)
    assert all((p == q).all() for p, q in zip(a, b))
    scenes = [toy_box_scene(i, s, 96, 4) for s in ('train', 'test') for i in range(40)]
    assert len({s[0].tobytes() for s in scenes}) == 80
    for im, boxes, labels, hard in scenes:
        assert len(boxes) <= 6 and (boxes == boxes.round()).all() and set(labels) <= {0, 1, 2, 3}
        assert not hard.all() or not len(hard)


# reports

def test_checks_of_real_sets(shared):
    report = check_frcnn(shared/'data/detection/BCCD')
    assert report.names == ('Platelets', 'RBC', 'WBC') and [len(p.samples) for p in report.parts] == [205, 87]
    assert sum(p.per_class for p in report.parts).tolist() == [292, 3348, 301] and report.counts == {'box without area': 2}
    assert report.suggested != (8., 16., 32.) and report.anchors[report.suggested][.5] > .95 > .8 > report.anchors[(8., 16., 32.)][.5]
    assert any('anchor_scales' in w for w in report.warnings)


def test_check_speaks_of_every_mistake(toy, tmp_path):
    copy = Path(shutil.copytree(toy, tmp_path/'copy'))
    def edit(n, a, b): p = copy/f'Annotations/train_{n:05}.xml'; p.write_text(p.read_text().replace(a, b))
    edit(2, '<width>100</width>', '<width>80</width>')
    edit(3, '</annotation>', '<object><name>car</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>')
    (copy/'Annotations/train_00004.xml').write_text('<!DOCTYPE a><annotation/>')
    (copy/'Annotations/train_00005.xml').unlink()
    (copy/'JPEGImages/train_00006.jpg').unlink()
    shutil.copy(copy/'JPEGImages/train_00007.jpg', copy/'JPEGImages/test_00001.jpg')
    report = check_box_data(copy)
    assert report.counts == {'sizes differ': 1, 'unknown class': 1, 'unreadable annotation': 1, 'image without annotation': 1, 'annotation without image': 1, 'same image in two parts': 1}
    text = report.summary()
    assert 'wrong place' in text and 'a score on it says nothing' in text and 'cannot be used' in text
    assert '1 box is of no known class' in text and '1 annotation was written for an image of another size: its boxes' in text
    assert '<b>' in report._repr_html_()


def test_check_of_a_set_without_boxes(toy, tmp_path):
    path = next(toy.glob('JPEGImages/*.jpg'))
    (tmp_path/'train.txt').write_text(f'{path}\n')
    (tmp_path/'classes.txt').write_text('disc\n')
    report = check_frcnn(tmp_path)
    assert 'no box that counts' in report.warnings[0] and report.suggested is None
    report.summary(); report._repr_html_()
    import matplotlib.pyplot as plt
    report.show(); plt.close('all')


def test_check_takes_the_settings_of_a_run(toy, tmp_path, capsys):
    from visionlab.cli.app import main
    from visionlab.datasets.boxes import read_voc, write_coco_truth
    data = read_voc(toy, 'train')
    file = write_coco_truth(tmp_path/'elsewhere.json', data.samples, data.names)
    d = json.loads(file.read_text())
    for m in d['images']: m['file_name'] = Path(m['file_name']).name
    file.write_text(json.dumps(d))
    (tmp_path/'names.txt').write_text('\n'.join(data.names[:1]))
    assert main(['check', 'frcnn', str(file)]) == 2 and 'missing image' in capsys.readouterr().err
    words = ['--images-folder', str(toy/'JPEGImages'), '--input-shape', '96', '128', '--feature-stride', '8', '--anchor-scales', '1.5', '3', '--anchor-ratios', '1', '--classes-path', str(tmp_path/'names.txt')]
    assert main(['check', 'frcnn', str(file), *words]) == 0
    out = capsys.readouterr().out
    assert '128x96 px", stride 8'.replace('"', '') in out and '1.5 3' in out and '24 48' in out and 'unknown class' in out
    assert main(['check', 'frcnn', str(toy), '--resize', 'short_side', '--short-side', '120', '--long-side', '200']) == 0 and 'short side of 120 px, at most 200' in capsys.readouterr().out
    for bad, word in (('--feature-stride 32', 'feature_stride'), ('--resize squash', 'letterbox'), ('--anchor-scales 0', 'scales')):
        assert main(['check', 'frcnn', str(toy), *bad.split()]) == 2
        err = capsys.readouterr().err
        assert word in err and err.count('\n') == 1
    assert main(['check', 'pan', str(toy), '--feature-stride', '8']) == 2 and '--feature-stride is nothing that pan knows' in capsys.readouterr().err
