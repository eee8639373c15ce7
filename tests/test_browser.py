"""The site in a real browser: nothing fails, nothing is fetched from elsewhere, nothing is cut off, and the search finds names.

It looks at the pages in `docs/` as they are committed, with Debian's chromium; `.ci/run` installs it where it may."""
import functools
import http.server
import threading
import time
from pathlib import Path

import pytest
from browser import Browser, find_chromium

root = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.skipif(not find_chromium(), reason='needs a chromium (apt-get install chromium)'), pytest.mark.xdist_group('browser')]
PAGES = ('index', 'pan/loss', 'fots/targets', 'segmentation/loss', 'frcnn/targets', 'multilabel/data', 'tutorials/street_scenes', 'explanations/speed', 'core/config', 'training/learner', 'cli/app')
SCREENS = {'wide': (1280, 900), 'phone': (390, 844)}

# What sticks out of the screen without being inside something that scrolls
CUT = '''(() => {
  const scrolls = e => { for (let p = e; p && p !== document.body; p = p.parentElement) if (/auto|scroll/.test(getComputedStyle(p).overflowX)) return true; return false }
  return [...document.querySelectorAll(".md-content *, .md-tabs__link, .md-header__title")].filter(e => {
    const r = e.getBoundingClientRect()
    return r.width > 1 && r.height > 1 && (r.right > innerWidth + 1 || r.left < -1) && !scrolls(e.parentElement) && !e.closest("svg")
  }).map(e => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 40)}`).slice(0, 5)
})()'''
# Pictures that are not there, or smaller than themselves although there is room
POOR = '''(() => [...document.querySelectorAll(".md-content img")].filter(i => {
  const room = i.closest(".md-typeset").clientWidth, shown = i.getBoundingClientRect().width
  return !i.naturalWidth || shown < .9*Math.min(i.naturalWidth, room)
}).map(i => `${i.getAttribute("src")} ${i.naturalWidth} px wide, shown ${i.getBoundingClientRect().width}`))()'''
LIGHT = '(() => { const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number); return (r + g + b)/3 })()'


@pytest.fixture(scope='module')
def base():
    "Address of the committed site on this machine"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('localhost', 0), functools.partial(Quiet, directory=root/'docs'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://localhost:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def browsers():
    "One that prefers light pages, and one that prefers dark ones"
    with Browser() as light, Browser(dark=True) as dark: yield light, dark


WHOLE = ('index', 'tutorials/blood_cells', 'tutorials/made_small', 'fots/config')      # with wide tables and many pictures: seen in all four ways, the others in two
LOOKS = [(p, screen, dark) for p in PAGES for screen, dark in (('wide', False), ('phone', True))] + [(p, screen, dark) for p in WHOLE for screen in SCREENS for dark in (False, True) if p not in PAGES or (screen, dark) not in (('wide', False), ('phone', True))]


@pytest.mark.parametrize('page, screen, dark', LOOKS, ids=[f'{p}-{s}-{"dark" if d else "light"}' for p, s, d in LOOKS])
def test_page(browsers, base, page, screen, dark):
    browser = browsers[dark]
    browser.look(*SCREENS[screen])
    browser.open(f'{base}{page}.html')
    assert not browser.complaints
    assert not [r for r in browser.requests if not r.startswith((base, 'data:', 'blob:', 'about:'))]
    assert (browser.js(LIGHT) < 80) == dark
    assert browser.js('document.documentElement.scrollWidth <= innerWidth'), 'the page scrolls sideways'
    assert not browser.js(CUT)
    assert not browser.js(POOR)


@pytest.mark.parametrize('screen', SCREENS)
@pytest.mark.parametrize('name', ['PANLoss', 'AnchorTargetCreator'])
def test_search_finds(browsers, base, name, screen):
    browser = browsers[0]
    browser.look(*SCREENS[screen])
    browser.open(base + 'index.html')
    browser.js('[...document.querySelectorAll(".md-search__button, label[for=__search]")].find(e => e.getBoundingClientRect().width).click()')
    until(lambda: browser.named('combobox'))
    browser.type(name)
    until(lambda: browser.named('option')[:1] == [name])
    assert not browser.complaints


def until(true, seconds=60):
    "Wait for something to become true"
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f'not so after {seconds} s'
        time.sleep(.1)
