"""`show_history` on what runs leave behind: with and without validation images, by epoch and by step, one row, holes, and damaged files."""
import math

import matplotlib.pyplot as plt
import pytest
from visionlab.core.checks import InputError
from visionlab.core.tables import FiguresTable
from visionlab.training.loggers import show_history

ROWS = [dict(epoch=i, train_loss=2. - i, valid_loss=2.5 - i, hmean=.3 + .1*i, recall=.2, lr=.1, train_text=1. - .1*i, train_dis=.5, valid_text=1.5, seconds=3.) for i in range(3)]


def drop(*names, rows=ROWS): return [{k: v for k, v in r.items() if k not in names} for r in rows]


def panels(axes): return [(a.get_title(), [l.get_label() for l in a.lines]) for a in axes]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


@pytest.mark.parametrize('rows, settings, want', [
    (ROWS, {}, [('loss', ['train_loss', 'valid_loss']), ('validation images', ['hmean', 'recall'])]),
    (drop('valid_loss', 'hmean', 'recall'), {}, [('losses in training', ['loss'])]),                     # `metrics` loss and nothing held back
    (drop('lr'), {}, [('loss', ['train_loss', 'valid_loss']), ('validation images', ['hmean', 'recall'])]),
    (ROWS, dict(losses=iter(['train_text', 'train_dis']), scores='recall', judged='ten pages', rate=True), [('losses in training', ['text', 'dis']), ('ten pages', ['recall']), ('learning rate', ['lr'])]),
    (ROWS, dict(losses=()), [('validation images', ['hmean', 'recall'])]),
    (ROWS, dict(scores=()), [('loss', ['train_loss', 'valid_loss'])]),
    (drop('hmean', 'recall', rows=ROWS[:1]) + ROWS[1:], {}, [('loss', ['train_loss', 'valid_loss']), ('validation images', ['hmean', 'recall'])]),
])
def test_panels(rows, settings, want):
    axes = show_history(rows, **settings)
    assert panels(axes) == want
    for a in axes: assert (a.get_legend() is None) == (a.get_title() == 'learning rate'), 'one curve, too, needs a name'


@pytest.mark.parametrize('values, top', [([.1, .2, .3], 1.03), ([math.nan, .5, .9], 1.03), ([None, .5, .9], 1.03), ([40., 30., 25.], None), ([-.2, .1, .4], None)])
def test_every_value_is_inside_its_panel(values, top):
    axis = show_history([{**r, 'hmean': v} for r, v in zip(ROWS, values)])[1]
    low, high = axis.get_ylim()
    assert (low, high) == (0, top) if top else all(low <= v <= high for v in values) and low <= .2 <= high


@pytest.mark.parametrize('count, where, label', [(1, 'epoch', 'epoch'), (3, 'epoch', 'epoch'), (1, 'step', 'optimiser step'), (3, 'step', 'optimiser step')])
def test_rounds_are_whole_numbers(count, where, label):
    rows = [{**r, 'step': 20*(i + 1)} if where == 'step' else r for i, r in enumerate(ROWS[:count])]
    axes = show_history(rows)
    axes[0].figure.canvas.draw()
    for a in axes:
        assert a.get_xlabel() == label and list(a.lines[0].get_xdata()) == [(20 if where == 'step' else 1)*(i + 1) for i in range(count)]
        assert all(float(t.get_text().replace('\N{MINUS SIGN}', '-')).is_integer() for t in a.get_xticklabels() if t.get_text())


@pytest.mark.parametrize('settings, message', [
    (dict(scores=['iou']), "no column 'iou', only epoch, train_loss"), (dict(losses='loss'), "no column 'loss'"), (dict(run=drop('lr'), rate=True), "no column 'lr'"), (dict(run=drop('epoch')), "no column 'epoch'"),
    (dict(losses=(), scores=()), 'name no column'), (dict(run=[]), 'no finished epoch')])
def test_refused(settings, message):
    with pytest.raises(InputError, match=message): show_history(**{'run': ROWS, **settings})


@pytest.mark.parametrize('text', ['epoch,train_loss\n0,abc\n', 'epoch,train_loss\n0,1.,2.,3.\n', 'epoch,train_loss\n0,1.\n\x00', b'epoch,train_loss\n\xff\xfe,1\n'])
def test_damaged_files(tmp_path, text):
    (tmp_path/'history.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match='history.csv'): show_history(tmp_path)


def test_a_file_that_a_spreadsheet_saved(tmp_path):
    (tmp_path/'history.csv').write_text('\ufeffepoch,train_loss,valid_loss,lr\r\n0,2.5,,0.1\r\n1,1.5,2.0,0.1\r\n', encoding='utf-8')
    (axis,) = show_history(tmp_path)
    assert [l.get_label() for l in axis.lines] == ['train_loss', 'valid_loss'] and list(axis.lines[0].get_ydata()) == [2.5, 1.5]


def test_figures_beside_each_other():
    rows = [('a<b', dict(hmean=.71, recall=None)), ('after', dict(hmean=math.nan))]
    table = FiguresTable(rows, ['hmean', 'recall'], digits=2)
    assert repr(table).splitlines() == ['       hmean  recall', 'a<b     0.71       -', 'after      -']
    assert '<td>a&lt;b</td><td>0.71</td><td>-</td>' in table._repr_html_()
    assert repr(FiguresTable(rows, 'hmean')).splitlines()[1] == 'a<b    0.710'
    assert repr(FiguresTable([], ['hmean'])).split() == ['hmean']
    with pytest.raises(InputError, match="'hmaen'.*only hmean, recall"): FiguresTable(rows, ['hmaen'])
