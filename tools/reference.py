"The reference: an entry for each exported name, its source, and an index of them all"
import ast
import inspect
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from pprint import pformat
from textwrap import fill
from types import FunctionType, UnionType
from typing import Union, get_args, get_origin

from fastai.callback.core import event
from fastcore.docments import docments
from fastcore.script import store_true

events = {o for o in vars(event) if not o.startswith('_')}
package = Path(import_module('self_supervised').__file__).parent

# ---- An entry: signature, docstring, a table of parameters, the methods of a class

def entry(sym, name, level=3):
    "Describe `sym`, in markdown"
    head = f'```python\n{signature(sym, name)}\n```'
    parts = [f"{'#'*level} {name} {{ .entry #{name.lower()} }}", head, f'*{doc_line(sym)}* {source_link(sym)}'.strip(), parameters(sym)]
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
    ps = [(n, p, (said.get(n) or {}).get('docment')) for n,p in sig.parameters.items() if n not in ('self','cls')]
    return ps,(sig.return_annotation,(said.get('return') or {}).get('docment'))

def signature(sym, name):
    "The call, wrapped at 90 characters"
    if isinstance(sym, property): return name
    stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    args = [stars.get(p.kind, '') + n + default(p, '=') for n,p,_ in arguments(sym)[0]]
    line = f"{name}({', '.join(args)})"
    if len(line)<=90: return line
    return fill(line, 90, subsequent_indent=' '*4, break_long_words=False, break_on_hyphens=False)

def default(p, before=''):
    if p.default is p.empty: return ''
    o = p.default
    if callable(o): return before + (getattr(o, '__name__', None) or '…')
    return before + (repr(o) if len(repr(o))<40 else '…')

def type_name(o):
    "A type as people write it"
    if o is inspect.Parameter.empty: return ''
    if o is store_true: return 'bool'
    if get_origin(o) in (Union,UnionType): return ' or '.join(type_name(a) for a in get_args(o))
    if o is type(None): return 'None'
    named = isinstance(o, type) and not hasattr(o, '__args__')
    text = o if isinstance(o, str) else o.__name__ if named else str(o)
    for module in ('torch.nn.modules.module.','collections.abc.','fastai.learner.','fastai.data.core.','pathlib.',
                   'typing.','numpy.','torch.'):
        text = text.replace(module, '')
    if text in ('Module','Module | None'): text = f'nn.{text}'
    return text.replace('|', ' or ').replace('  ', ' ')   # a bar would end the cell of a table

def parameters(sym):
    "A table of parameters and of what is returned"
    ps,returned = arguments(sym)
    if isinstance(sym, property): ps = []
    def cell(o): return ' '.join((o or '').split()).replace('|', '\\|')
    def code(o): return f'`{cell(o)}`' if o else ''
    rows = [(f'`{n}`', code(type_name(p.annotation)), code(default(p)), cell(said)) for n,p,said in ps]
    nothing = inspect.Parameter.empty,None
    if returned and (returned[1] or returned[0] not in nothing) and not isinstance(sym, type):
        rows.append(('*returns*', code(type_name(returned[0])), '', cell(returned[1])))
    if not any(any(r[1:]) for r in rows): return ''
    table = ['| parameter | type | default | meaning |', '|---|---|---|---|', *(f"| {' | '.join(r)} |" for r in rows)]
    return '\n'.join(['<div class="parameters" markdown="1">', '', *table, '', '</div>'])

# ---- Constants

def constants(module):
    "Names of `__all__` that the module assigns, other names of functions among them: name → (value, comment)"
    lines = Path(module.__file__).read_text(encoding='utf-8').splitlines()
    found = {}
    for node in ast.parse('\n'.join(lines)).body:
        if not isinstance(node, ast.Assign): continue
        names = [o.id for t in node.targets for o in ast.walk(t) if isinstance(o, ast.Name)]
        for name in names:
            if name in module.__all__: found[name] = getattr(module, name),comment_above(lines, node.lineno-1)
    return found

def comment_above(lines, i):
    "The comment on the line before the `i`th, or behind it"
    if lines[i-1].startswith('# ') and not lines[i-1].startswith('# %%'): return lines[i-1][2:].strip()
    return (re.findall(r'\s# (.+)$', lines[i]) or [''])[0]

def constant_entries(module):
    "A section that shows the values of a module's constants; empty where it has none"
    entries = [constant_entry(name, *o) for name,o in constants(module).items()]
    return '\n\n'.join(['## Constants', *entries]) if entries else ''

def constant_entry(name, value, comment):
    "The value of a constant; what can be called is described as functions are, and another name of a function named"
    if callable(value) and getattr(value, '__name__', None)==name: return entry(value, name)
    shown = other_name(value) if callable(value) else pformat(value, width=86, sort_dicts=False, compact=True)
    parts = [f'### {name} {{ .entry #{name.lower()} }}', f'*{comment}*' if comment else '', f'```python\n{name} = {shown}\n```']
    return '\n\n'.join(o for o in parts if o)

def other_name(f):
    "What stands behind another name of a function"
    if not isinstance(f, partial): return f.__name__
    given = [*map(repr, f.args), *(f'{k}={v!r}' for k,v in f.keywords.items())]
    return f"partial({', '.join([f.func.__name__, *given])})"

# ---- Source

def source_page(file): return 'source.' + '.'.join(file.relative_to(package).with_suffix('').parts) + '.md'

def source_link(sym):
    "A link to the line of the package where `sym` begins; empty for what is not of this package"
    f = inspect.unwrap(sym.fget if isinstance(sym, property) else sym)
    try: file,line = Path(inspect.getsourcefile(f)),inspect.getsourcelines(f)[1]
    except (TypeError, OSError): return ''
    if not file.is_relative_to(package): return ''
    return f'[source]({source_page(file)}#__codelineno-0-{line}){{ .source }}'

def source_files():
    "The modules that notebooks made"
    return [o for o in sorted(package.rglob('*.py')) if o.name not in ('__init__.py','_modidx.py')]

def source_text(file):
    "A page with the lines of `file`, each with a number; the search leaves it out"
    name = file.relative_to(package.parent).as_posix()
    made = re.search(r'File to edit: (?:\.\./)+nbs/(\S+?)\.?$', file.read_text(encoding='utf-8'), re.M)
    room = '.'.join(file.relative_to(package).with_suffix('').parts)
    return '\n'.join(['---', 'search: {exclude: true}', '---', f'# {name}', '',
        f"> The module that [{room}]({room}.md) describes; made from `nbs/{made[1] if made else ''}`", '',
        '```python linenums="1"', file.read_text(encoding='utf-8').rstrip(), '```', ''])

# ---- Index

def first_line(sym):
    line = ' '.join(doc_line(sym).split('\n\n')[0].split())
    return line.replace('|', '\\|')

def index_text(modules):
    "A page with all exported names, by wing and room; `modules`: (wing, room, names)"
    parts = ['# API index', '> Every public name, where it lives, and what it does in one line', '',
             'Names in **bold** come with `from self_supervised.all import *`. Import the others from their room, '
             'for example `from self_supervised.evaluate.features import spread`.']
    notebook = set(import_module('self_supervised.all').__all__)
    by_wing = {}
    for wing,room,names in modules: by_wing.setdefault(wing, []).append((room,names))
    for wing,rooms in by_wing.items():
        parts.append(f'## {wing}')
        parts += [index_table(room, names, notebook) for room,names in rooms if names]
    return '\n\n'.join(parts) + '\n'

def index_table(room, names, notebook):
    rows = [index_row(room, n, notebook) for n in names]
    return '\n'.join([f'### {room}', '', '| name | what it is |', '|---|---|', *rows])

def index_row(room, name, notebook):
    "A row of the index: linked to the entry"
    sym = getattr(import_module(f'self_supervised.{room}'), name)
    link = f'[`{name}`]({room}.md#{name.lower()})'
    said = first_line(sym) if callable(sym) else 'a constant'
    if callable(sym) and getattr(sym, '__name__', '')!=name: said = f'another name: `{other_name(sym)}`'
    return f"| {f'**{link}**' if name in notebook else link} | {said} |"
