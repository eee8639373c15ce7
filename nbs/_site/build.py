"""Builds the site: notebooks -> pages with API docs -> Markdown -> HTML, and README.md from the home page.

Nothing is downloaded and no Quarto is needed. `main('docs')` writes the site; a broken link, a symbol without
its place in a page's contents or a notebook outside the sidebar ends the build with a list of what is wrong.
"""
import ast, functools, html, importlib, io, json, os, pkgutil, re, shutil, subprocess, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import unquote

import yaml
from fastcore.docments import DocmentTbl, MarkdownRenderer
from nbconvert import MarkdownExporter
from nbdev import processors as procs
from nbdev.config import get_config
from execnb.nbio import read_nb
from latex2mathml.converter import convert as tex_to_mathml
from PIL import Image
from traitlets.config import Config

here = Path(__file__).resolve().parent
nbs, root = here.parent, here.parent.parent


# ---- API docs -----------------------------------------------------------------------------------------------------

class SymbolDoc(MarkdownRenderer):
    "A symbol as a heading, its signature, its one line and the table of its parameters"
    def _repr_markdown_(self):
        if self.nm.split('.')[-1].startswith('__'): return ''
        table = str(DocmentTbl(self.sym))
        sig = re.sub(r'^(class|def) ', '', str(self.sig)) if getattr(self, 'sig', None) else ''
        code = f'```python\n{self.nm}{sig[len(self.nm.split(".")[-1]):] if sig.startswith(self.nm.split(".")[-1]) else sig}\n```\n\n' if sig else ''
        text = f'### `{self.nm}` {{ #{self.nm.lower()} }}\n\n{code}{(self.docs or "").strip()}\n\n{table}'
        return re.sub(r'<(?:\w+ )+([\w.]+) at 0x[0-9a-f]+>', r'\1', text)        # defaults that are functions; their addresses differ from run to run


class run_docs(procs.exec_show_docs):
    "Run what the API docs need, with our renderer"
    def begin(self):
        super().begin()
        if hasattr(self, 'k'):
            self.k.user_ns['SymbolDoc'] = SymbolDoc
            self.k.run_cell('from functools import partial\nshow_doc = partial(show_doc, renderer=SymbolDoc)')

    def __call__(self, cell):
        "Exported cells run whole; of the others only the imports, the rest of a demonstration has been run and saved"
        source = ''.join(cell.source) if cell.get('source') else ''
        if cell.cell_type != 'code' or not source or not self.nb.has_docs_: return
        if not (cell.directives_.keys() & {'export', 'exports', 'exporti'} or re.search(r'^show_doc\(', source, re.M)):
            wanted = [n for n in cell.parsed_() or [] if isinstance(n, (ast.Import, ast.ImportFrom))]
            if wanted and cell.directives_.get('eval:', [''])[0].lower() != 'false': self.k.run_cell('\n'.join(map(ast.unparse, wanted)))
            return
        self.k.cell(cell)
        if self.k.exc: raise Exception(f'in a cell of the page:\n{source}') from self.k.exc


def drop_hidden(cell):
    "Remove hidden cells and the `default_exp` cell; exported code stays, folded"
    d = cell.directives_
    if d and (d.keys() & {'hide', 'default_exp'}): del cell['source']
    elif d and (d.keys() & {'export', 'exporti'}):
        cell.metadata['folded'] = True


class PageFilter(procs.FilterDefaults):
    "nbdev's own processors, with the two above in place of their defaults"
    def base_procs(self):
        swap = {procs.exec_show_docs: run_docs, procs.rm_export: drop_hidden}
        return [swap.get(p, p) for p in super().base_procs()]


# ---- Markdown -----------------------------------------------------------------------------------------------------

def math_to_mathml(text):
    "TeX between dollars as MathML, code left alone"
    def one(m):
        if m[1]: return m[0]
        block = m[2] is not None
        return tex_to_mathml(m[2] or m[3], display='block' if block else 'inline')
    pattern = r'(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])'
    return re.sub(pattern, one, text, flags=re.S)


def callouts(text):
    "`::: {.callout-note}` blocks as admonitions"
    def one(m):
        body = '\n'.join('    ' + l for l in m[2].strip().split('\n'))
        return f'!!! {m[1]}\n\n{body}\n'
    return re.sub(r'^:::+ ?\{\.callout-(\w+)[^}]*\}\n(.*?)\n:::+ *$', one, text, flags=re.S | re.M)


def fold(source):
    "Exported code as a folded block"
    lines = [l for l in source.split('\n') if not re.match(r'#\|', l)]
    body = '\n'.join(lines).strip('\n')
    if not body or all(re.match(r'(from|import) |$', l) for l in body.split('\n')): return ''
    return '??? source "Source"\n\n' + '\n'.join('    ' + l for l in ['```python', *body.split('\n'), '```'])


def local_links(text, page):
    "Absolute links to our own pages as relative ones"
    cfg = get_config()
    base = re.escape(f"{cfg['doc_host'].rstrip('/')}{cfg['doc_baseurl'].rstrip('/')}/")
    up = '../' * (len(page.parts) - 1)
    text = re.sub(r'\[(`_\w+`)\]\([^)]*\)', r'\1', text)   # private names have no place to link to
    text = re.sub(base + r'([\w/.-]+?\.html)', lambda m: up + m[1], text)
    return re.sub(r'(\]\()([\w/.-]+?)\.ipynb(#[\w.-]+)?\)', lambda m: f"{m[1]}{_page_of_link(m[2])}.html{m[3] or ''})", text)


def _page_of_link(target):
    *folders, name = target.split('/')
    return '/'.join([*folders, re.sub(r'^\d+[a-z]?_', '', name)])


def method_links(src, symbols):
    "A method that stands inside its class has no heading of its own: links to it lead to the class"
    headings = set().union(*symbols.values())
    one = lambda m: m[0] if m[2] in headings else f'{m[1]}{m[2].split(".")[0]})'
    for f in src.rglob('*.md'):
        text = f.read_text(encoding='utf-8')
        f.write_text(re.sub(r'(\]\([\w/.-]*\.html#)(\w+\.\w+)\)', one, text), encoding='utf-8')


def chapter_links(src, symbols):
    "Names such as `visionlab.pan.loss` in the prose lead to their page, and with a symbol behind them to its place there"
    headings = {page: set(names) for page, names in symbols.items()}
    def target(parts):
        for k in range(len(parts), 0, -1):
            found = next((p for p in ('/'.join(parts[:k]) + '.md', '/'.join(parts[:k]) + '/index.md') if p in headings), None)
            if found: break
        else: return ''
        symbol = '.'.join(parts[k:]).lower()
        return found[:-3] + '.html' + (f'#{symbol}' if symbol in headings[found] else '')
    for f in src.rglob('*.md'):
        page = str(f.relative_to(src))
        def one(m):
            to = target(m[2].split('.')[1:]) if m[2] else ''
            return f"[`{m[2]}`]({'../'*page.count('/')}{to})" if to and to != page[:-3] + '.html' else m[0]
        parts = re.split(r'(^ *```.*?^ *```$)', f.read_text(encoding='utf-8'), flags=re.S | re.M)     # code between fences is left alone
        parts[::2] = ['\n'.join(l if l.startswith(('    ', '#')) else re.sub(r'(\[[^\]]*\]\([^)]*\)|``.*?``)|`(visionlab(?:\.\w+)+)`', one, l) for l in p.split('\n')) for p in parts[::2]]
        f.write_text(''.join(parts), encoding='utf-8')


def page_path(nb):
    "Where the page of a notebook lives, without its order number: pan/04_loss.ipynb -> pan/loss.md"
    rel = nb.relative_to(nbs)
    return rel.with_name(re.sub(r'^\d+[a-z]?_', '', rel.stem) + '.md')


def render(nb_path, out):
    "One notebook as a Markdown page with its pictures beside it; returns the symbols it documents"
    os.chdir(nb_path.parent)
    nb = read_nb(nb_path)
    PageFilter()(nb)
    cells, symbols, held = [], [], []   # held: folded sources, shown below the docs of what they define
    for c in nb.cells:
        if 'source' not in c: continue
        c.source = ''.join(c.source)
        is_doc = re.search(r'^show_doc\(', c.source, re.M)
        if held and not is_doc: cells += held; held = []
        if c.cell_type == 'markdown':
            c.source = callouts(math_to_mathml(c.source))
        elif is_doc:
            md = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in c.outputs)
            symbols += re.findall(r'\{ #(\S+) \}', md)
            c = dict(cell_type='markdown', metadata={}, source=md)
        elif c.metadata.get('folded'):
            folded = fold(c.source)
            if folded: held.append(dict(cell_type='markdown', metadata={}, source=folded))
            continue
        else:
            c.source = '\n'.join(l for l in c.source.split('\n') if not re.match(r'#\|', l))
        if c['source'].strip(): cells.append(c)
    nb.cells = cells + held
    dest = out/page_path(nb_path)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        clean = Path(tmp)/'page.ipynb'
        clean.write_text(json.dumps(_plain(nb)), encoding='utf-8')
        text, res = exporter().from_filename(str(clean), resources={'output_files_dir': f'{dest.stem}_files'})
    for name, data in (res.get('outputs') or {}).items():
        short, data = lighter(name, data)
        if short != name: text = text.replace(name, short)
        f = dest.parent/short
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(data)
    text = re.sub(r'<!-- WARNING:.*?-->', '', text)
    dest.write_text(local_links(_subtitle(text), page_path(nb_path)), encoding='utf-8')
    return str(page_path(nb_path)), symbols


@functools.cache
def exporter():
    "One for all pages of a process: compiling its templates takes longer than a page"
    return MarkdownExporter(config=Config({'NbConvertBase': {'display_data_priority': ['text/html', 'image/svg+xml', 'image/png', 'text/markdown', 'text/plain']}}))


def lighter(name, data, least=30_000):
    "Name and bytes of a picture on the page: a heavy PNG, mostly a photograph, becomes WebP where that needs less than half; all others stay as they are"
    if Path(name).suffix != '.png' or len(data) < least: return name, data
    picture, small = Image.open(io.BytesIO(data)), io.BytesIO()
    if picture.mode not in ('L', 'LA', 'P', 'RGB', 'RGBA') or getattr(picture, 'n_frames', 1) > 1: return name, data      # WebP has no 16 bits; a film would lose its frames
    picture.save(small, 'WEBP', quality=90, method=6)
    return (str(Path(name).with_suffix('.webp')), small.getvalue()) if small.tell() < len(data)/2 else (name, data)


def _plain(nb):
    keep = lambda c: {k: c[k] for k in ('cell_type', 'metadata', 'source', 'outputs', 'execution_count') if k in c}
    cells = []
    for c in nb.cells:
        c = keep(c)
        if c['cell_type'] == 'code': c.setdefault('outputs', []); c.setdefault('execution_count', None)
        c['metadata'] = {}
        cells.append(c)
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4)


def _subtitle(text):
    "The front matter that nbdev makes of the first cell, as a heading and a line below it"
    m = re.match(r'\s*---\n(.*?)\n---\n?', text, flags=re.S)
    if not m: return text
    front = yaml.safe_load(m[1]) or {}
    head = f"# {front.get('title', '')}\n\n" + (f"*{front['description']}*\n\n" if front.get('description') else '')
    return head + text[m.end():]


# ---- The site -----------------------------------------------------------------------------------------------------

def sidebar():
    "nbs/sidebar.yml as zensical's nav; every notebook must be in it"
    def walk(items):
        return [{i['section']: walk(i['contents'])} if 'section' in i else {i['text']: str(page_path(nbs/i['href']))} for i in items]
    return walk(yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8')))


def sidebar_notebooks():
    "Notebooks in the order of the sidebar"
    return [nbs/h for h in re.findall(r'href:\s*(\S+\.ipynb)', (nbs/'sidebar.yml').read_text(encoding='utf-8'))]


def all_notebooks():
    "Notebooks of the book"
    return sorted(p for p in nbs.rglob('*.ipynb') if not any(x[0] in '._' for x in p.relative_to(nbs).parts))


def check_sidebar():
    "Chapters missing in the sidebar, and entries without a notebook"
    listed, there = set(sidebar_notebooks()), set(all_notebooks())
    return [f'not in the sidebar: {p.relative_to(nbs)}' for p in sorted(there - listed)] + \
           [f'in the sidebar, but no notebook: {p.relative_to(nbs)}' for p in sorted(listed - there)]


class _Page(HTMLParser):
    def __init__(self): super().__init__(); self.ids, self.links, self.toc, self._toc = set(), [], set(), 0
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == 'link' and not set((a.get('rel') or '').lower().split()) <= {'canonical', 'alternate'}: tag = 'loaded link'   # a style, an icon, a connection made ahead
        if 'id' in a: self.ids.add(a['id'])
        for k in ('href', 'src'):
            if a.get(k): self.links.append((tag, a[k], 'md-nav__link' in (a.get('class') or '')))


def check_site(site, symbols):
    "What is wrong with a built site: broken links, outside calls, symbols without an entry in the contents"
    pages = {}
    for f in site.rglob('*.html'):
        p = _Page(); p.feed(f.read_text(encoding='utf-8')); pages[f.resolve()] = p
    faults = []
    for f, p in pages.items():
        rel = f.relative_to(site.resolve())
        for tag, link, _ in p.links:
            link = html.unescape(link)
            if re.match(r'(mailto:|data:|javascript:)', link): continue
            if re.match(r'(https?:)?//', link):
                if tag not in ('a', 'link'): faults.append(f'{rel}: calls outside: {link}')
                continue
            path, _, anchor = unquote(link).partition('#')
            target = (f.parent/path).resolve() if path else f
            if rel.name == '404.html': continue
            if target.is_dir(): target = target/'index.html'
            if not target.exists(): faults.append(f'{rel}: broken link {link}')
            elif anchor and target in pages and anchor not in pages[target].ids: faults.append(f'{rel}: no such place {link}')
        if 'unpkg.com' in f.read_text(encoding='utf-8'): faults.append(f'{rel}: calls outside: unpkg.com')
    for page, syms in symbols.items():
        f = (site/page).with_suffix('.html').resolve()
        inside = {l.partition('#')[2] for tag, l, nav in pages[f].links if nav and '#' in l} if f in pages else set()
        faults += [f'{page}: `{s}` is not in the contents' for s in syms if s not in inside]
    return faults


def write_readme(src):
    "README.md from the page of index.ipynb, its pictures taken from docs/"
    text = (src/'index.md').read_text(encoding='utf-8')
    text = re.sub(r'\]\((?!https?:|#)([\w./-]+\.(?:html|png|jpg|svg|webp)(?:#[\w.-]+)?)\)', r'](docs/\1)', text)
    text = re.sub(r'src="(?!https?:)([\w./-]+)"', r'src="docs/\1"', text)
    (root/'README.md').write_text(text.strip() + '\n', encoding='utf-8')


def preload():
    "Import the heavy libraries once; the workers are forked from here"
    os.environ['MPLBACKEND'] = 'agg'
    import matplotlib, torch, torchvision, albumentations, fastai.vision.all, visionlab  # noqa
    torch.set_num_threads(1)
    for m in pkgutil.walk_packages(visionlab.__path__, 'visionlab.'): importlib.import_module(m.name)


def build(out, readme=False, workers=2):
    "Build the site into folder `out`; returns the list of faults"
    out = Path(out).resolve()
    faults = check_sidebar()
    if faults: return faults
    preload()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); src = tmp/'src'; src.mkdir()
        with ProcessPoolExecutor(workers, mp_context=get_context('fork')) as pool:
            symbols = dict(pool.map(render, all_notebooks(), [src]*len(all_notebooks())))
        method_links(src, symbols)
        chapter_links(src, symbols)
        for f in here.glob('*.css'): shutil.copy(f, src/f.name)
        shutil.copy(here/'worker.js', src/'worker.js')
        if (nbs/'images').exists(): shutil.copytree(nbs/'images', src/'images')
        cfg = yaml.safe_load((here/'mkdocs.yml').read_text(encoding='utf-8'))
        cfg |= dict(docs_dir='src', site_dir='site', nav=sidebar())
        (tmp/'mkdocs.yml').write_text(yaml.safe_dump(cfg, sort_keys=False), encoding='utf-8')
        r = subprocess.run([str(Path(sys.executable).parent/'zensical'), 'build', '-f', 'mkdocs.yml'], cwd=tmp, capture_output=True, text=True)
        if r.returncode: return [r.stdout + r.stderr]
        site = tmp/'site'
        finish(site)
        faults = check_site(site, symbols)
        if faults: return faults
        if out.exists(): shutil.rmtree(out)
        shutil.copytree(site, out)
        if readme: write_readme(src)
    return []


def finish(site):
    "Local instead of outside scripts, no sitemap with made-up hosts, no Jekyll"
    for f in site.rglob('*.html'):
        up = '../' * (len(f.relative_to(site).parts) - 1)
        text = f.read_text(encoding='utf-8')
        f.write_text(text.replace('https://unpkg.com/iframe-worker/shim', f'{up}worker.js'), encoding='utf-8')
    for name in ('sitemap.xml', 'sitemap.xml.gz'): (site/name).unlink(missing_ok=True)
    for name in ('search.json', 'search.js'): prose_only(site/name)
    (site/'.nojekyll').write_text('')


def prose_only(index):
    "Leave code blocks and outputs out of the search index: names stand in titles and prose, and the file is a quarter"
    text = index.read_text(encoding='utf-8')
    start, end = text.index('{'), text.rindex('}') + 1
    found = json.loads(text[start:end])
    for item in found['items']: item['text'] = re.sub(r'<pre\b.*?</pre>', ' ', item['text'], flags=re.S)
    index.write_text(text[:start] + json.dumps(found, ensure_ascii=False, separators=(',', ':')) + text[end:], encoding='utf-8')


def main(out='docs'):
    faults = build(root/out, readme=True)
    if faults: sys.exit('the site was not built:\n' + '\n'.join(f'- {f}' for f in faults))
    size = sum(f.stat().st_size for f in (root/out).rglob('*') if f.is_file())/1e6
    print(f'{out}/index.html: {len(list((root/out).rglob("*.html")))} pages, {size:.1f} MB')
