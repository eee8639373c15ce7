"""The site builds from nothing into a scratch folder: no broken link, every symbol in its page's contents, no call outside."""
import html
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group('site')      # the site is built once

root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    import subprocess
    out = tmp_path_factory.mktemp('site')/'docs'
    code = f'import sys; sys.path.insert(0, "nbs/_site"); import build; f = build.build({str(out)!r}); print("\\n".join(f)); sys.exit(bool(f))'
    r = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-4000:] + r.stderr[-4000:]
    return out


def test_every_chapter_has_a_page(site):
    sys.path.insert(0, str(root/'nbs/_site'))
    import build
    for nb in build.all_notebooks(): assert (site/build.page_path(nb)).with_suffix('.html').exists(), nb


def test_search_knows_the_names(site):
    index = (site/'search.js').read_text(encoding='utf-8')
    for name in ('PANLoss', 'decode_pan', 'text_hmean'): assert name in index


def test_nothing_is_loaded_from_outside(site):
    for f in site.rglob('*.html'):
        for tag, url in re.findall(r'(<(?:script|img|link|iframe)[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"[^>]*>)', f.read_text(encoding='utf-8')):
            if not re.search(r'<link[^>]*\brel="?(canonical|alternate)"?[\s/>]', tag): pytest.fail(f'{f.name} loads {url}')


def test_names_of_chapters_are_links(site):
    home, learner = ((site/f).read_text(encoding='utf-8') for f in ('index.html', 'pan/learner.html'))
    assert '<a href="pan/loss.html"><code>visionlab.pan.loss</code></a>' in home and '<a href="fots/index.html"><code>visionlab.fots</code></a>' in home
    assert re.search(r'<a href="\.\./training/learner\.html(#\w+)?"><code>visionlab\.training\.learner', learner)
    assert '#decode_rules' not in (site/'explanations/embeddings.html').read_text(encoding='utf-8')          # a constant has no heading: its page will do


def test_photographs_are_light(site):
    "A page has pictures of both kinds, each is what its suffix says, and all that the page names are there"
    page = (site/'tutorials/first_walk.html').read_text(encoding='utf-8')
    named = re.findall(r'<img[^>]*src="(first_walk_files/[^"]+)"', page)
    assert {Path(n).suffix for n in named} == {'.png', '.webp'} and all((site/'tutorials'/n).read_bytes()[:4] == {'.png': b'\x89PNG', '.webp': b'RIFF'}[Path(n).suffix] for n in named)


def test_what_becomes_webp():
    import io
    import numpy as np
    from PIL import Image
    sys.path.insert(0, str(root/'nbs/_site'))
    import build
    def png(array, mode=None, **kw):
        f = io.BytesIO()
        Image.fromarray(array, mode).save(f, 'PNG', **kw)
        return f.getvalue()
    photo = np.random.default_rng(0).normal(120, 30, (240, 320, 3)).clip(0, 255).astype(np.uint8)
    name, data = build.lighter('a_files/b.png', png(photo))
    assert name == 'a_files/b.webp' and len(data) < len(png(photo))/2 and np.abs(np.asarray(Image.open(io.BytesIO(data)), int) - photo).mean() < 20
    deep, film = png(photo[..., 0].astype(np.uint16)*256), png(photo, save_all=True, append_images=[Image.fromarray(photo[::-1])])
    dots = png((np.random.default_rng(0).integers(0, 2, (600, 600))*255).astype(np.uint8))      # WebP would need more
    for same in (png(photo[:20]), dots, deep, film): assert build.lighter('x.png', same) == ('x.png', same)
    assert min(len(dots), len(deep), len(film)) > 30_000


def test_no_addresses(site):
    "A page holds what a build makes of its notebook, and no two builds differ"
    assert not [p for p in site.rglob('*.html') if re.search(r'at 0x[0-9a-f]{6,}', html.unescape(re.sub('<[^>]*>', '', p.read_text(encoding='utf-8'))))]


def test_committed_site_is_there():
    assert (root/'docs/index.html').exists() and (root/'docs/.nojekyll').exists()
    assert sum(f.stat().st_size for f in (root/'docs').rglob('*') if f.is_file()) < 25e6
    assert not [f for f in (root/'docs').rglob('*') if f.is_file() and f.stat().st_size > 1.5e6]


def test_broken_links_fail(tmp_path):
    sys.path.insert(0, str(root/'nbs/_site'))
    import build
    (tmp_path/'a.html').write_text('<p id="x"><a href="b.html">b</a> <a href="#y">y</a> <script src="https://example.com/x.js"></script></p>')
    faults = build.check_site(tmp_path, {})
    assert len(faults) == 3 and 'broken link b.html' in faults[0]


@pytest.mark.parametrize('tag, wrong', [('<link rel="stylesheet" href="https://example.com/a.css">', 1), ('<link rel="preload" as="font" href="//example.com/a.woff">', 1), ('<link rel="preconnect" href="https://example.com">', 1),
                                        ('<link rel="icon" href="https://example.com/a.png">', 1), ('<link rel="alternate stylesheet" href="https://example.com/a.css">', 1), ('<img src="http://example.com/a.png">', 1),
                                        ('<link rel="canonical" href="https://example.com/a.html">', 0), ('<link rel="alternate" hreflang="en" href="https://example.com/">', 0), ('<a href="https://example.com">a</a>', 0)])
def test_calls_outside_fail(tag, wrong, tmp_path):
    sys.path.insert(0, str(root/'nbs/_site'))
    import build
    (tmp_path/'a.html').write_text(f'<head>{tag}</head>')
    assert len(build.check_site(tmp_path, {})) == wrong
