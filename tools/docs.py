"Render notebooks: `python tools/docs.py readme` writes README.md, `python tools/docs.py site` a site of all of them"
import logging
import re
from base64 import b64decode
from html import unescape
from itertools import count, groupby, zip_longest
from importlib import import_module
from pathlib import Path, PurePosixPath
from posixpath import normpath
from shutil import copy, ignore_patterns, copytree, rmtree
from struct import unpack
from typing import Annotated
from urllib.parse import unquote

from fastcore.nbio import mk_display, preferred_msg_out, read_nb
from fastcore.script import call_parse
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbglob
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, exec_show_docs

from reference import constant_entries, entry, index_text, methods, source_files, source_page, source_text

root = get_config(__file__).config_path

class ShowExported(Processor):
    "Fill the `show_doc` cells nbdev adds, from the exported module: of the notebook nothing needs to run"
    def cell(self, cell):
        if 'default_exp' in cell.directives_: self.module = import_module(f"self_supervised.{cell.directives_['default_exp']}")
        if not getattr(cell, 'has_sd', False): return
        name = re.search(r'show_doc\((.+)\)', cell.source)[1]
        cell.outputs = [mk_display(**{'text/markdown': entry(eval(name, vars(self.module)), name)})]

    def end(self):
        "nbdev puts the entries of a cell one before the other: turn each run of them round"
        cells = self.nb.cells
        for has_sd,run in groupby(list(enumerate(cells)), lambda o: bool(getattr(o[1], 'has_sd', False))):
            if not has_sd: continue
            idxs,entries = zip(*run)
            for i,o in zip(idxs, reversed(entries)): cells[i] = o

class Filters(FilterDefaults):
    "nbdev's filters; its `links` into other libraries' documentation change with what is installed"
    def __init__(self, links): self.links = links
    def base_procs(self): return [ShowExported if o is exec_show_docs else o for o in super().base_procs() if self.links or o is not add_links]

class Page:
    "A notebook as markdown `text`, and its `pictures`; `link` turns a target relative to nbs/ into the one to write, None drops the link"
    def __init__(self, fn, filters, link):
        self.stem,self.link,self.pictures = fn.stem,link,{}
        nb = read_nb(fn)
        if lost := nb.cells[0].source.strip().splitlines()[2:]: # nbdev drops what follows the title and its line
            if any(lost) and fn.stem!='index': raise ValueError(f"{fn.name}: its first cell has more than a title and one line: move the rest to a cell of its own")
        filters(nb)
        parts = [f'{mark} {nb.frontmatter_[o]}' for mark,o in (('#','title'),('>','description')) if o in nb.frontmatter_]
        for c in nb.cells: parts += {'markdown':self.markdown, 'code':self.code}.get(c.cell_type, lambda c: [])(c)
        if room := next((c.directive('default_exp') for c in read_nb(fn).cells if c.has_directive('default_exp')), None):
            parts.append(constant_entries(import_module(f'self_supervised.{room}')))
        self.text = self.head() + '\n\n'.join(o for o in parts if o.strip()) + '\n'

    def markdown(self, cell):
        src = re.sub(r'\[\[([^][]*)\]\([^)]*\)\](?=\()', r'[\1]', cell.source) # nbdev links a `name` that is the text of a link: the author's link stays
        return [re.sub(r'(!?)\[([^][]*)\]\((?!\w+:)([^)\s]+)\)', self.relink, src)]
    def relink(self, m):
        "A link with our target; the name of a file that the site does not have is code, other words are left"
        if target:=self.link(m[3]): return f'{m[1]}[{m[2]}]({target})'
        return f'`{m[2]}`' if re.fullmatch(r'[\w./]+', m[2]) else m[2]

    def code(self, cell):
        "The source and the outputs that the cell's directives ask for; `#| fig-cap: text` stands below its pictures"
        echo,output = (cell.directives.get(o)!='false'!=cell.directives.get('include') for o in ('echo','output'))
        caption = cell.directives.get('fig-cap', '')
        cell.remove_directives()
        source = [f'```python\n{cell.source.strip()}\n```']*echo
        if not output: return source
        last = max((i for i,o in enumerate(cell.outputs) if 'image/png' in o.get('data', {})), default=None)
        return source + [self.output(o, caption, i==last) for i,o in enumerate(cell.outputs)]

    def output(self, out, caption='', captioned=True):
        "A picture, markdown, text, or HTML without styles and blank lines (either would end it early)"
        mime,data = preferred_msg_out(out, include_imgs=True)
        data = ''.join(data)
        if mime=='image/png': return self.picture(b64decode(data), caption, captioned)
        if mime=='text/html': return table_of(re.sub(r'<style.*?</style>', '', data, flags=re.S))
        if mime=='text/markdown': return data
        data = data.strip('\n').rstrip()
        return f'```{self.look(data)}\n{data}\n```'

    def picture(self, png, caption, captioned):
        "Keep a picture; its caption is what a reader who does not see it is told, too"
        self.pictures[name:=f'images/{self.stem}-{len(self.pictures)+1}.png'] = png
        img = f'![{caption}]({self.link(name)})'
        return f'{img}\n\n*{caption}*' if caption and captioned else img

    def look(self, text): return ''
    def head(self): return ''

    def save(self, fn, folder):
        "Write the text to `fn`, and the pictures to `folder` in place of older ones"
        fn.write_text(self.text, encoding='utf-8')
        (folder/'images').mkdir(parents=True, exist_ok=True)
        for o in folder.glob(f'images/{self.stem}-*.png'): o.unlink()
        for name,png in self.pictures.items(): (folder/name).write_bytes(png)

class SitePage(Page):
    "A page of the site: figures with captions, commands as in a terminal, columns that stay columns"
    def head(self): return '---\nsearch: {boost: 2}\n---\n' if self.stem.startswith('tutorial') else '' # guides are found before rooms

    def picture(self, png, caption, captioned):
        width,height = unpack('>II', png[16:24])
        img = super().picture(png, caption, False) + '{ .wide }'*(width>1.5*height)
        if not (caption and captioned): return img
        return f'<figure markdown="1">\n{img}\n<figcaption markdown="1">{caption}</figcaption>\n</figure>'

    def markdown(self, cell):
        "Blocks without a language are what something printed"
        def shown(m): return m[0] if m[1] else f'```{self.look(m[2])}\n{m[2]}\n```'
        return [re.sub(r'^```([^\n]*)\n(.*?)\n```$', shown, o, flags=re.M|re.S) for o in super().markdown(cell)]

    def look(self, text):
        "Classes for the style sheet, in the form of a fence's attributes"
        if text.startswith('$ '): return '{ .console .terminal }'
        columns = max(len(o) for o in text.splitlines() or [''])
        aligned = len(re.findall(r'\S {2,}\S', text))>1
        looks = ['.text', '.output', '.aligned'*aligned, '.wide'*(aligned and columns>104)]
        return f"{{ {' '.join(filter(None, looks))} }}"

def table_of(html):
    "A table of pandas: one row of headings, and the style of the site"
    html = re.sub(r'\n\s*', '\n', html).strip()
    html = re.sub(r'<table[^>]*>', '<table>', html)
    html = re.sub(r'(?<=<th>)\w+(?=</th>)', lambda m: m[0].replace('_', '_<wbr>'), html)   # long headings may break there
    heads = re.search(r'<thead>\n<tr[^>]*>(.*?)</tr>\n<tr[^>]*>(.*?)</tr>\n</thead>', html, re.S)
    if not heads: return html
    upper,lower = (re.findall(r'<th[^>]*>(.*?)</th>', o, re.S) for o in heads.groups())
    if len(upper)!=len(lower): return html
    name = next((f'{a}=' for a,b in zip(upper, lower) if a and b), '')   # of all columns, above the name of the index
    names = ''.join(f'<th>{b or name+a}</th>' for a,b in zip(upper, lower))
    return html.replace(heads[0], f'<thead>\n<tr>{names}</tr>\n</thead>')

def readme(dest:Path):
    "Write README.md into `dest`, its pictures into `dest`/nbs/images"
    Page(root/'nbs/index.ipynb', Filters(links=False), lambda o: normpath(f'nbs/{o}')).save(dest/'README.md', dest/'nbs')

def page_name(fn): return nbpath2html(PurePosixPath(fn)).with_suffix('.md').name
def site_link(o):
    "The page of a notebook, also with a heading behind `#`; of `../` the site has the changelog alone"
    path,mark,heading = o.partition('#')
    if not path: return mark+heading.lower()
    if path.endswith('.ipynb'): return page_name(path)+mark+heading.lower()
    if path=='../CHANGELOG.md': return 'changelog.md'+mark+heading
    return None if o.startswith('../') else o

def site(dest:Path):
    "Write a page a notebook into `dest`/_proc and the site made of them into `dest`/_docs; a broken link is an error"
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    logging.basicConfig(format='%(message)s') # or mkdocs counts its warnings without saying what they are
    pages = dest/'_proc'
    rmtree(pages, ignore_errors=True)
    copytree(root/'nbs', pages, ignore=ignore_patterns('*.ipynb', '.*'))
    for o in ('iframe-worker.js','style.css'): copy(root/'tools'/o, pages)
    fns = nbglob(root/'nbs', as_path=True).sorted(key=lambda o: o.name)
    link_names(fns)
    for fn in fns: SitePage(fn, Filters(links=True), site_link).save(pages/page_name(fn), pages)
    more_pages(pages, fns)
    build(load_config(str(root/'mkdocs.yml'), docs_dir=str(pages), site_dir=str(dest/'_docs'), nav=nav(fns), strict=True, **facts()))
    for o in (dest/'_docs').glob('*.html'): finish(o)
    if found := lost_links(dest/'_docs'): raise ValueError('\n'.join(['these links lead to a place that is not there:', *found]))
    if found := from_elsewhere(dest/'_docs'): raise ValueError('\n'.join(['these load something from elsewhere, and pages open without a network:', *found]))

def link_names(fns):
    "nbdev links a `name` to where it is documented: tell it of our entries, which only public names and their methods have"
    syms = NbdevLookup().syms
    for _,room,names in rooms(fns):
        module = import_module(f'self_supervised.{room}')
        for name in names:
            sym = getattr(module, name)
            each = [name, *(f'{name}.{n}' for n,_ in (methods(sym) if isinstance(sym, type) else ()))]
            syms |= {o: f'{room}.md#{o.lower()}' for o in each}

def facts():
    "What the site says of the project: its version at the foot of each page, its repository where pyproject.toml names one"
    import tomllib
    from self_supervised import __version__
    project = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
    res = dict(copyright=f'self_supervised {__version__}')
    repository = project.get('urls', {}).get('Repository')
    return res | (dict(repo_url=repository) if repository else {})

def more_pages(pages, fns):
    "Write the pages that no notebook has: the changelog, the index of names, the source"
    changes = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    changes = re.sub(r'\]\(nbs/([^)\s]+)\)', lambda m: f']({site_link(m[1])})', changes)
    (pages/'changelog.md').write_text(changes, encoding='utf-8')
    (pages/'api.md').write_text(index_text(list(rooms(fns))), encoding='utf-8')
    for o in source_files(): (pages/source_page(o)).write_text(source_text(o), encoding='utf-8')

def rooms(fns):
    "(wing, room, its own public names) in the order of the imports"
    for fn in fns:
        if not fn.name[0].isdigit() or fn.stem.endswith('_all'): continue
        room = fn.stem.partition('_')[2]
        module = import_module(f'self_supervised.{room}')
        own = [o for o in module.__all__ if getattr(getattr(module, o), '__module__', module.__name__)==module.__name__]
        yield wing_of(fn), room, sorted(own, key=str.lower)

def finish(page:Path):
    "Add to a built page: formulas as MathML, where lines may wrap, columns of numbers at the right"
    text = page.read_text(encoding='utf-8')
    text = re.sub(r'(?<=class="arithmatex">)\\([(\[])(.+?)\\[)\]]', formula, text, flags=re.S)
    text = re.sub(r'<code>.*?</code>', unbroken_options, text, flags=re.S)
    text = re.sub(r'(<div class="[^"]*\b(?:aligned|terminal)\b[^"]*"><pre><span></span><code>)(.*?)(?=</code>)', wrap_prose, text, flags=re.S)
    page.write_text(re.sub(r'<table>.*?</table>', right_align, text, flags=re.S), encoding='utf-8')

def unbroken_options(m):
    "Code in which an `--option` stays in one line"
    return re.sub(r'(?<![\w-])--?[a-zA-Z][\w-]*', r'<span class="option">\g<0></span>', m[0])

def wrap_prose(m):
    "A block that keeps its columns, in which lines without columns may wrap"
    def wrap(line):
        columns = re.search(r'\S {2,}\S', re.sub(r'<[^>]+>', '', line))
        return line if columns or not line else f'<span class="prose">{line}</span>'
    return m[1] + '\n'.join(map(wrap, m[2].split('\n')))

cell = re.compile(r'<(t[hd])\b([^>]*)>(.*?)</\1>', re.S)
number = re.compile(r'[-−+±]?\d[\d,.:]*(?: ?(?:[-–±×]|to) ?\d[\d,.:]*)?(?: ?(?:[%×]|[a-zA-Z]{1,3}))?|NaN|')

def right_align(m):
    "A table with its columns of numbers at the right; they are counted from the last one, since cells of an index may span rows"
    rows = [cell.findall(o) for o in re.findall(r'<tr.*?</tr>', m[0], re.S)]
    columns = zip_longest(*([text for tag,_,text in row[::-1] if tag=='td'] for row in rows), fillvalue='')
    right = {i for i,o in enumerate(columns) if any(o) and all(map(number.fullmatch, o))}
    def row(m):
        left = count(len(cell.findall(m[0]))-1, -1)
        return cell.sub(lambda c: f'<{c[1]}{c[2]} class="number">{c[3]}</{c[1]}>' if next(left) in right else c[0], m[0])
    return re.sub(r'<tr.*?</tr>', row, m[0], flags=re.S)

def lost_links(folder:Path):
    "Links between the pages of `folder` whose page or anchor is missing, a line each; mkdocs does not see the anchors of lines of code"
    texts = {o.name: o.read_text(encoding='utf-8') for o in sorted(folder.glob('*.html')) if o.name!='404.html'}
    anchors = {name: {'', *re.findall(r'\bid="([^"]+)"', text)} for name,text in texts.items()}
    links = {(name, page or name, anchor) for name,text in texts.items() for page,anchor in re.findall(r'href="([\w.]*)(?:#([^"]*))?"', text)}
    return [f'{name}: {page}#{anchor}' for name,page,anchor in sorted(links) if page.endswith('.html') and unquote(anchor) not in anchors.get(page, ())]

# What a browser fetches by itself: not the target of a link that a reader follows, nor the address a page says it has
loads = re.compile(r"""<(?:script|img|iframe|embed|source|video|audio|object|link(?![^>]*\brel=["']?(?:canonical|prev|next|edit)\b))\b[^>]*?\b(?:src|srcset|href|data)=["']?((?:https?:)?//[^\s"'>]+)|(?:@import\s+|url\()["']?((?:https?:)?//[^\s"')]+)|class="(mermaid)\"""", re.I)

def from_elsewhere(folder:Path):
    "What the pages and styles of `folder` load from other hosts, a line each; the theme draws mermaid with a script from one"
    texts = {o: re.sub(r'<(code|pre)\b.*?</\1>', '', o.read_text(encoding='utf-8'), flags=re.S) for o in sorted([*folder.rglob('*.html'), *folder.rglob('*.css')])}
    return [f'{fn.relative_to(folder)}: {"".join(m)}' for fn,text in texts.items() for m in loads.findall(text)]

# What a reader meets first; pages that are not named here follow at the end of the guides
parts = {'Get started': ['tutorial.install','tutorial.photographs','tutorial.how_byol_works','tutorial.commands','tutorial.journey'],
         'Guides': ['tutorial.settings','tutorial.views','tutorial.small_batches','tutorial.channels','tutorial.clips_and_tables',
                    'tutorial.cluster','tutorial.not_learning','tutorial.other_libraries'],
         'How it works': [], # the rooms
         'Evidence': ['tutorial.cifar10','tutorial.speed','hazards'],
         'Look up': ['api.md','tutorial.faq','tutorial.glossary','changelog.md']}
wings = dict(callback='Callbacks', data='Data', evaluate='Evaluation', transfer='Transfer', vision='BYOL', cli='Commands')

def wing_of(fn):
    wing,dot,_ = fn.stem.partition('_')[2].partition('.')
    return wings.get(wing, 'Foundations') if dot else 'Foundations'

def nav(fns):
    "Pages in the order they are read: first steps, guides, the rooms by wing in the order of the imports, evidence, what to look up"
    stems = [o.stem for o in fns]
    told = {title: [o if o.endswith('.md') else page_name(f'{o}.ipynb') for o in names if o in stems or o.endswith('.md')]
            for title,names in parts.items()}
    by_wing = {}
    for o in fns:
        if o.name[0].isdigit(): by_wing.setdefault(wing_of(o), []).append(page_name(o.name))
    told['How it works'] = [{k: v} for k,v in by_wing.items()]
    named = {o for names in parts.values() for o in names}
    told['Guides'] += [page_name(o.name) for o in fns if not o.name[0].isdigit() and o.stem not in {'index', *named}]
    return [dict(Overview='index.md'), *({k: v} for k,v in told.items())]

def formula(m):
    "TeX as MathML, which browsers draw themselves: no script to fetch; equations beside each other may stand below each other, too"
    from latex2mathml.converter import convert
    if m[1]=='(': return convert(unescape(m[2]), display='inline')
    each = [o for o in re.split(r'(?:\\qquad\s*)+', unescape(m[2])) if o.strip()]
    return ''.join(f'<span class="equation">{convert(o, display="block")}</span>' for o in each)

@call_parse
def main(
    what:Annotated[str, {'choices':['readme','site']}], # README.md from nbs/index.ipynb, or a site from all notebooks (needs the extra `docs`)
    dest:Path=root, # Folder to write into
): {'readme':readme, 'site':site}[what](dest)
