"""Names in any script in pictures: letters of a font that is there, code points where none is, and no word twice about it."""
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image, ImageDraw
from visionlab.core import fonts
from visionlab.core.fonts import draw_text, readable, text_style, text_width

matplotlib.use('agg')
CJK, HINDI = '牛仔裤', 'नीला'


def make_font(path, name, letters):
    "A font whose letters are black squares"
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0)); pen.lineTo((50, 800)); pen.lineTo((850, 800)); pen.lineTo((850, 0)); pen.closePath()
    square, order = pen.glyph(), ['.notdef', *(f'g{ord(c)}' for c in letters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(order)
    font.setupCharacterMap({ord(c): f'g{ord(c)}' for c in letters})
    font.setupGlyf({n: square for n in order}); font.setupHorizontalMetrics({n: (900, 50) for n in order}); font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable(dict(familyName=name, styleName='Regular')); font.setupOS2(); font.setupPost()
    font.save(path)


@pytest.fixture
def machine(monkeypatch):
    "A machine that has DejaVu Sans and the fonts of a test, whatever this one has"
    everything = font_manager.fontManager.ttflist
    def has(*files):
        manager = font_manager.fontManager
        monkeypatch.setattr(manager, 'ttflist', [f for f in everything if f.name.startswith(('DejaVu', 'Last'))])
        for f in files: manager.addfont(str(f))
        monkeypatch.setattr(fonts, '_home', {})
        fonts._fonts.cache_clear()
    yield has
    fonts._fonts.cache_clear()


def heard(f, *args):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        return f(*args), [str(w.message) for w in said]


def test_letters_that_no_font_has(machine):
    machine()
    shown, said = heard(readable, f'blue {CJK} 0.93')
    assert shown == r'blue \u725b\u4ed4\u88e4 0.93' and len(said) == 1 and '牛 仔 裤' in said[0] and r'\u725b' in said[0] and 'Noto Sans CJK' in said[0]
    assert heard(readable, CJK) == (r'\u725b\u4ed4\u88e4', []), 'said once'
    assert len(heard(readable, f'{CJK}色')[1]) == 1, 'another letter is another note'
    assert heard(readable, 'синие جينز ελ é') == ('синие جينز ελ é', [])
    assert heard(readable, '')[0] == '' and readable('a\u200db\n') == 'a\u200db\n'


def test_a_font_of_the_machine_is_used(machine, tmp_path):
    make_font(tmp_path/'cjk.ttf', 'Test CJK', CJK); make_font(tmp_path/'hindi.ttf', 'Test Hindi', HINDI)
    machine(tmp_path/'cjk.ttf', tmp_path/'hindi.ttf')
    assert heard(readable, f'{CJK} {HINDI}') == (f'{CJK} {HINDI}', [])
    style = text_style('blue', CJK, HINDI)
    assert style['fontfamily'][-2:] == ['Test CJK', 'Test Hindi'] and 'DejaVu Sans' in style['fontfamily'] and style['parse_math'] is False
    assert [(p, f[0]) for p, f in fonts._pieces(f'a {CJK} {HINDI} 0.5')] == [('a ', 'DejaVu Sans'), (f'{CJK} ', 'Test CJK'), (f'{HINDI} ', 'Test Hindi'), ('0.5', 'DejaVu Sans')]
    page = Image.new('RGB', (120, 40))
    draw_text(ImageDraw.Draw(page), (10, 30), CJK, 20, (250, 250, 250))
    ink = np.asarray(page)[..., 0]
    assert ink[18:28, 12:26].min() > 200 and 45 < text_width(CJK, 20) < 63, 'three filled squares, which the boxes of missing letters are not'


def test_matplotlib_draws_them_without_a_word(machine, tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from visionlab.metrics.multilabel import show_co_occurrence
    def picture():
        figure = Figure(figsize=(3, 3), layout='constrained')
        canvas = FigureCanvasAgg(figure)
        show_co_occurrence([[1, 0], [1, 1]], (CJK, '$5 off$'), figure.subplots())
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).tobytes()
    machine()
    without, said = heard(picture)
    assert len(said) == 1 and 'code points' in said[0]
    make_font(tmp_path/'cjk.ttf', 'Test CJK', CJK)
    machine(tmp_path/'cjk.ttf')
    there, said = heard(picture)
    assert not said and there != without


def test_a_font_that_is_gone_is_no_font(machine, tmp_path):
    make_font(tmp_path/'cjk.ttf', 'Test CJK', CJK)
    machine(tmp_path/'cjk.ttf')
    (tmp_path/'cjk.ttf').write_bytes(b'damaged')
    assert '\\u725b' in heard(readable, CJK)[0]
