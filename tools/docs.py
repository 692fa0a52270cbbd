"Render notebooks: `python tools/docs.py readme` writes README.md, `python tools/docs.py site` a site of all of them"
import inspect
import logging
import re
from base64 import b64decode
from html import unescape
from itertools import groupby
from importlib import import_module
from pathlib import Path, PurePosixPath
from posixpath import normpath
from shutil import copy, ignore_patterns, copytree, rmtree
from textwrap import fill
from types import FunctionType
from typing import Annotated

from fastcore.nbio import mk_display, preferred_msg_out, read_nb
from fastcore.docments import docments
from fastcore.script import call_parse, store_true
from fastai.callback.core import event
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbglob
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, exec_show_docs

root = get_config(__file__).config_path
events = {o for o in vars(event) if not o.startswith('_')}

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

# ---- An entry of the reference: signature, docstring, a table of parameters, the methods of a class

def entry(sym, name, level=3):
    "Describe `sym`, in markdown"
    parts = [f"{'#'*level} {name}", f'```python\n{signature(sym, name)}\n```', f'*{doc_line(sym)}*', parameters(sym)]
    if isinstance(sym, type): parts += [entry(o, f'{name}.{n}', level+1) for n,o in methods(sym)]
    return '\n\n'.join(o for o in parts if o)

def doc_line(sym): return (getattr(sym, '__doc__', None) or '').strip()

def methods(cls):
    "Public methods and properties of `cls` itself that say what they do; fastai's events do not need to be called"
    for n,o in vars(cls).items():
        f = o.__func__ if isinstance(o, (classmethod, staticmethod)) else o
        if n.startswith('_') or n in events or not doc_line(f): continue
        if isinstance(f, (FunctionType, property)): yield n,f

def arguments(sym):
    "Parameters as (name, what `inspect` knows of it, comment), and at last ('return', …)"
    f = sym.fget if isinstance(sym, property) else sym
    try: sig = inspect.signature(f)
    except (TypeError, ValueError): return [],None
    said = docments(f, full=True, args_kwargs=True)
    ps = [(n,p,(said.get(n) or {}).get('docment')) for n,p in sig.parameters.items() if n not in ('self','cls')]
    return ps,(sig.return_annotation,(said.get('return') or {}).get('docment'))

def signature(sym, name):
    "The call, wrapped at 90 characters"
    if isinstance(sym, property): return name
    args = [('*' if p.kind is p.VAR_POSITIONAL else '**' if p.kind is p.VAR_KEYWORD else '') + n + default(p, '=') for n,p,_ in arguments(sym)[0]]
    line = f"{name}({', '.join(args)})"
    return line if len(line)<=90 else fill(line, 90, subsequent_indent=' '*4, break_long_words=False, break_on_hyphens=False)

def default(p, before=''):
    if p.default is p.empty: return ''
    o = p.default
    return before + (getattr(o, '__name__', None) if callable(o) else repr(o) if len(repr(o))<40 else '…')

def type_name(o):
    "A type as people write it"
    if o is inspect.Parameter.empty: return ''
    if o is store_true: return 'bool'
    text = o if isinstance(o, str) else o.__name__ if isinstance(o, type) and not hasattr(o, '__args__') else str(o)
    for module in ('torch.nn.modules.module.','collections.abc.','fastai.learner.','fastai.data.core.','pathlib.','typing.','numpy.','torch.'): text = text.replace(module, '')
    if text in ('Module','Module | None'): text = f'nn.{text}'
    return text.replace('|', ' or ').replace('  ', ' ') # a bar would end the cell of a table

def parameters(sym):
    "A table of parameters and of what is returned"
    ps,returned = arguments(sym)
    if isinstance(sym, property): ps = []
    def cell(o): return ' '.join((o or '').split()).replace('|', '\\|')
    def code(o): return f'`{cell(o)}`' if o else ''
    rows = [(f'`{n}`', code(type_name(p.annotation)), code(default(p)), cell(said)) for n,p,said in ps]
    if returned and (returned[1] or returned[0] not in (inspect.Parameter.empty, None)) and not isinstance(sym, type):
        rows.append(('*returns*', code(type_name(returned[0])), '', cell(returned[1])))
    if not any(any(r[1:]) for r in rows): return ''
    return '\n'.join(['| parameter | type | default | |', '|---|---|---|---|', *(f"| {' | '.join(r)} |" for r in rows)])

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
        self.text = '\n\n'.join(o for o in parts if o.strip()) + '\n'

    def markdown(self, cell):
        src = re.sub(r'\[\[([^][]*)\]\([^)]*\)\](?=\()', r'[\1]', cell.source) # nbdev links a `name` that is the text of a link: the author's link stays
        return [re.sub(r'(!?)\[([^][]*)\]\((?!\w+:)([^)\s]+)\)', self.relink, src)]
    def relink(self, m): return f'{m[1]}[{m[2]}]({target})' if (target:=self.link(m[3])) else m[2]

    def code(self, cell):
        "The source and the outputs that the cell's directives ask for"
        echo,output = (cell.directives.get(o)!='false'!=cell.directives.get('include') for o in ('echo','output'))
        cell.remove_directives()
        return [f'```python\n{cell.source.strip()}\n```']*echo + [self.output(o) for o in cell.outputs if output]

    def output(self, out):
        "A picture, markdown, plain text, or HTML without styles and blank lines (either would end it early)"
        mime,data = preferred_msg_out(out, include_imgs=True)
        data = ''.join(data)
        if mime=='image/png':
            self.pictures[name:=f'images/{self.stem}-{len(self.pictures)+1}.png'] = b64decode(data)
            return f'![]({self.link(name)})'
        if mime=='text/html': return re.sub(r'\n\s*', '\n', re.sub(r'<style.*?</style>', '', data, flags=re.S)).strip()
        return data if mime=='text/markdown' else f'```\n{data.strip()}\n```'

    def save(self, fn, folder):
        "Write the text to `fn`, and the pictures to `folder` in place of older ones"
        fn.write_text(self.text, encoding='utf-8')
        (folder/'images').mkdir(parents=True, exist_ok=True)
        for o in folder.glob(f'images/{self.stem}-*.png'): o.unlink()
        for name,png in self.pictures.items(): (folder/name).write_bytes(png)

def readme(dest:Path):
    "Write README.md into `dest`, its pictures into `dest`/nbs/images"
    Page(root/'nbs/index.ipynb', Filters(links=False), lambda o: normpath(f'nbs/{o}')).save(dest/'README.md', dest/'nbs')

def page_name(fn): return nbpath2html(PurePosixPath(fn)).with_suffix('.md').name
def site_link(o):
    "The page of a notebook, also with a heading behind `#`; the site has nothing of `../`"
    path,mark,heading = o.partition('#')
    if not path: return mark+heading.lower()
    if path.endswith('.ipynb'): return page_name(path)+mark+heading.lower()
    return None if o.startswith('../') else o

def site(dest:Path):
    "Write a page a notebook into `dest`/_proc and the site made of them into `dest`/_docs; a broken link is an error"
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from self_supervised._modidx import d
    logging.basicConfig(format='%(message)s') # or mkdocs counts its warnings without saying what they are
    for mod,syms in d['syms'].items(): # nbdev links `name` to where it is documented: tell it of our pages
        for o,(page,_) in syms.items():
            name = o.removeprefix(f'{mod}.')
            NbdevLookup().syms[name] = f"{page.partition('.html')[0]}.md#{name.partition('.')[0].lower()}"
    pages = dest/'_proc'
    rmtree(pages, ignore_errors=True)
    copytree(root/'nbs', pages, ignore=ignore_patterns('*.ipynb', '.*'))
    for o in ('iframe-worker.js','style.css'): copy(root/'tools'/o, pages)
    fns = nbglob(root/'nbs', as_path=True).sorted(key=lambda o: o.name)
    for fn in fns: Page(fn, Filters(links=True), site_link).save(pages/page_name(fn), pages)
    build(load_config(str(root/'mkdocs.yml'), docs_dir=str(pages), site_dir=str(dest/'_docs'), nav=nav(fns), strict=True))
    for o in (dest/'_docs').glob('*.html'): o.write_text(re.sub(r'(?<=class="arithmatex">)\\([(\[])(.+?)\\[)\]]', formula, o.read_text(encoding='utf-8'), flags=re.S), encoding='utf-8')
    if found := from_elsewhere(dest/'_docs'): raise ValueError('\n'.join(['these load something from elsewhere, and pages open without a network:', *found]))

# What a browser fetches by itself: not the target of a link that a reader follows, nor the address a page says it has
loads = re.compile(r"""<(?:script|img|iframe|embed|source|video|audio|object|link(?![^>]*\brel=["']?(?:canonical|prev|next|edit)\b))\b[^>]*?\b(?:src|srcset|href|data)=["']?((?:https?:)?//[^\s"'>]+)|(?:@import\s+|url\()["']?((?:https?:)?//[^\s"')]+)|class="(mermaid)\"""", re.I)

def from_elsewhere(folder:Path):
    "What the pages and styles of `folder` load from other hosts, a line each; the theme draws mermaid with a script from one"
    texts = {o: re.sub(r'<(code|pre)\b.*?</\1>', '', o.read_text(encoding='utf-8'), flags=re.S) for o in sorted([*folder.rglob('*.html'), *folder.rglob('*.css')])}
    return [f'{fn.relative_to(folder)}: {"".join(m)}' for fn,text in texts.items() for m in loads.findall(text)]

# What a reader meets first; pages that are not named here follow at the end of their part
parts = {'Get started': ['tutorial.install','tutorial.photographs','tutorial.how_byol_works','tutorial.journey'],
         'Guides': ['tutorial.settings','tutorial.views','tutorial.not_learning','tutorial.small_batches','tutorial.channels','tutorial.clips_and_tables','tutorial.cluster',
                    'tutorial.other_libraries','tutorial.faq','tutorial.glossary'],
         'Evidence': ['tutorial.cifar10','tutorial.speed','hazards']}
wings = dict(callback='Callbacks', data='Data', evaluate='Evaluation', transfer='Transfer', vision='BYOL', cli='Commands')

def nav(fns):
    "Pages in the order they are read: the first steps, guides, evidence, and the reference by wing, in the order of the imports"
    stems = [o.stem for o in fns]
    told = [dict([(title, [page_name(f'{o}.ipynb') for o in names if o in stems])]) for title,names in parts.items()]
    rooms = {}
    for o in fns:
        if not o.name[0].isdigit(): continue
        wing = o.stem.partition('_')[2].partition('.')
        rooms.setdefault(wings.get(wing[0], 'Foundations') if wing[1] else 'Foundations', []).append(page_name(o.name))
    left = [page_name(o.name) for o in fns if not o.name[0].isdigit() and o.stem!='index' and not any(o.stem in v for v in parts.values())]
    told[1]['Guides'] += left
    return ['index.md', *told, dict(Reference=[dict([(k,v)]) for k,v in rooms.items()])]

def formula(m):
    "TeX as MathML, which browsers draw themselves: no script to fetch"
    from latex2mathml.converter import convert
    return convert(unescape(m[2]), display='block' if m[1]=='[' else 'inline')

@call_parse
def main(
    what:Annotated[str, {'choices':['readme','site']}], # README.md from nbs/index.ipynb, or a site from all notebooks (needs the extra `docs`)
    dest:Path=root, # Folder to write into
): {'readme':readme, 'site':site}[what](dest)
