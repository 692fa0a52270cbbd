"Render notebooks: `python tools/docs.py readme` writes README.md, `python tools/docs.py site` a site of all of them"
import logging, re
from base64 import b64decode
from html import unescape
from importlib import import_module
from pathlib import Path, PurePosixPath
from posixpath import normpath
from shutil import copy, ignore_patterns, copytree, rmtree
from typing import Annotated

from fastcore.nbio import mk_display, preferred_msg_out, read_nb
from fastcore.script import call_parse
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbglob
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, exec_show_docs
from nbdev.showdoc import show_doc

root = get_config(__file__).config_path

class ShowExported(Processor):
    "Fill the `show_doc` cells nbdev adds, from the exported module: of the notebook nothing needs to run"
    def cell(self, cell):
        if 'default_exp' in cell.directives_: self.module = import_module(f"self_supervised.{cell.directives_['default_exp']}")
        if not getattr(cell, 'has_sd', False): return
        sym = eval(re.search(r'show_doc\((.+)\)', cell.source)[1], vars(self.module))
        cell.outputs = [mk_display(**{'text/markdown': show_doc(sym)._repr_markdown_()})]

class Filters(FilterDefaults):
    "nbdev's filters; its `links` into other libraries' documentation change with what is installed"
    def __init__(self, links): self.links = links
    def base_procs(self): return [ShowExported if o is exec_show_docs else o for o in super().base_procs() if self.links or o is not add_links]

class Page:
    "A notebook as markdown `text`, and its `pictures`; `link` turns a target relative to nbs/ into the one to write, None drops the link"
    def __init__(self, fn, filters, link):
        self.stem,self.link,self.pictures = fn.stem,link,{}
        nb = read_nb(fn)
        filters(nb)
        parts = [f'{mark} {nb.frontmatter_[o]}' for mark,o in (('#','title'),('>','description')) if o in nb.frontmatter_]
        for c in nb.cells: parts += {'markdown':self.markdown, 'code':self.code}.get(c.cell_type, lambda c: [])(c)
        self.text = '\n\n'.join(o for o in parts if o.strip()) + '\n'

    def markdown(self, cell):
        src = re.sub(r'\[\[([^][]*)\]\([^)]*\)\](?=\()', r'[\1]', cell.source) # nbdev links a `name` that is the text of a link: the author's link stays
        return [re.sub(r'(!?)\[([^][]*)\]\((?!\w+:|#)([^)\s]+)\)', self.relink, src)]
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
def site_link(o): return page_name(o) if o.endswith('.ipynb') else None if o.startswith('../') else o # of ../ the site has nothing

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
    copy(root/'tools/iframe-worker.js', pages)
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

def nav(fns):
    "The rooms in their order, and before them what tells a story"
    rooms,stories = ([page_name(o) for o in fns if o.stem!='index' and o.name[0].isdigit()==room] for room in (True,False))
    return ['index.md', dict(Stories=stories), dict(Rooms=rooms)]

def formula(m):
    "TeX as MathML, which browsers draw themselves: no script to fetch"
    from latex2mathml.converter import convert
    return convert(unescape(m[2]), display='block' if m[1]=='[' else 'inline')

@call_parse
def main(
    what:Annotated[str, {'choices':['readme','site']}], # README.md from nbs/index.ipynb, or a site from all notebooks (needs the extra `docs`)
    dest:Path=root, # Folder to write into
): {'readme':readme, 'site':site}[what](dest)
