"The house keeps its order: imports go down, public names are documented, lines and functions stay short, errors have one form"
import ast, io, json, re, subprocess, sys, tokenize
from importlib import import_module
from pathlib import Path

import pytest
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob

root = get_config(__file__).config_path
package = root/'self_supervised'
modules = sorted(p for p in package.rglob('*.py') if p.name not in ('__init__.py','_modidx.py'))
notebooks = nbglob(root/'nbs', as_path=True).sorted(key=lambda o: o.name)
LINE,CLASS,BODY = 120,150,40

def name_of(path): return path.relative_to(root).with_suffix('').as_posix().replace('/', '.')
def tree_of(path): return ast.parse(path.read_text(encoding='utf-8'))
def rooms():
    "Module → place in the reading order, which is that of the notebooks' numbers"
    res = {}
    for i,fn in enumerate(notebooks):
        found = re.search(r'^#\| default_exp (\S+)', '\n'.join(c.source for c in read_nb(fn).cells), re.M)
        if found: res[f'self_supervised.{found[1]}'] = i
    return res
place = rooms()

def imports(path):
    "Modules of this package that `path` imports anywhere, also within a function, with the names taken"
    here = name_of(path).split('.')
    for o in ast.walk(tree_of(path)):
        if isinstance(o, ast.Import): yield from ((a.name,[]) for a in o.names if a.name.startswith('self_supervised.'))
        if not isinstance(o, ast.ImportFrom): continue
        base = '.'.join(here[:-o.level] if o.level else []) + ('.' if o.level and o.module else '') + (o.module or '')
        if base.partition('.')[0]!='self_supervised': continue
        for a in o.names:
            whole = f'{base}.{a.name}'
            if whole in place: yield whole,[]
            elif base in place: yield base,[a.name]

def fail(found, rule):
    if found: pytest.fail('\n'.join([rule, *found]), pytrace=False)

def test_every_room_has_a_notebook(): assert set(place)==set(map(name_of, modules))

def test_numbers_are_unique():
    "Two rooms with one number would leave their order to the alphabet"
    numbers = [fn.name.partition('_')[0] for fn in notebooks if fn.name[:2].isdigit()]
    fail([o for o in set(numbers) if numbers.count(o)>1], 'two notebooks have the number:')

def test_imports_go_down():
    "The number of a notebook is the reading order: what it uses comes before it"
    against = [f'{name_of(p)} imports {m}' for p in modules for m,_ in imports(p) if place[m]>=place[name_of(p)]]
    fail(against, 'an import goes to a room with a lower number:')

def test_there_are_no_circles():
    "By the imports alone, whatever the numbers say"
    left = {name_of(p): {m for m,_ in imports(p)} for p in modules}
    while done := [m for m,needs in left.items() if not needs & left.keys()]:
        for m in done: del left[m]
    assert not left

def test_the_deepest_rooms_know_no_callbacks():
    deep = {f'self_supervised.{o}' for o in ('core','surgery','layers','image_ops','operations','augmentations','record','ema','lars')}
    found = [f'{name_of(p)}: {o.module}' for p in modules if name_of(p) in deep for o in ast.walk(tree_of(p))
             if isinstance(o, ast.ImportFrom) and 'callback' in (o.module or '')]
    fail(found, 'networks, operations and optimizers know nothing of callbacks:')

def test_private_names_stay_at_home():
    found = [f'{name_of(p)}: {m}.{n}' for p in modules for m,names in imports(p) for n in names if n.startswith('_') and not n.startswith('__')]
    fail(found, 'a name with a leading underscore is used in its own module only:')

@pytest.mark.parametrize('name', place)
def test_public_names_are_documented(name):
    module = import_module(name)
    missing = [n for n in module.__all__ if callable(o := getattr(module, n)) and not (getattr(o, '__doc__', None) or '').strip()]
    assert not missing
    assert (module.__doc__ or '').strip()

def longest(path, kind):
    "Lines of the longest class, or of the longest body of a function"
    for o in ast.walk(tree_of(path)):
        if isinstance(o, kind): yield o.end_lineno-(o.lineno if kind is ast.ClassDef else o.body[0].lineno)+1,o.name

def test_classes_and_functions_are_short():
    found = [f'{name_of(p)}.{n}: {k} lines' for p in modules for kind,most in ((ast.ClassDef,CLASS),(ast.FunctionDef,BODY))
             for k,n in longest(p, kind) if k>most]
    fail(found, f'a class has {CLASS} lines at most, the body of a function {BODY}:')

# Lines that may be longer, with the reason
long_lines = {}

def test_lines_are_short():
    lines = [(name_of(p),i,o) for p in modules for i,o in enumerate(p.read_text(encoding='utf-8').splitlines(), 1) if o.strip() and not o.startswith(('# %%','__all__'))]
    found = [f'{m}:{i}: {len(o)}' for m,i,o in lines if len(o)>LINE]
    allowed = [o for o in found if o.rpartition(':')[0] in long_lines]
    fail([o for o in found if o not in allowed], f'a line has {LINE} characters at most:')
    assert len(allowed)<=.01*len(lines)

def test_a_line_is_one_statement():
    found = [f'{name_of(p)}:{t.start[0]}: {t.line.strip()}' for p in modules
             for t in tokenize.generate_tokens(io.StringIO(p.read_text(encoding='utf-8')).readline) if t.type==tokenize.OP and t.string==';']
    fail(found, 'one statement a line:')

def test_attributes_have_lines_of_their_own():
    found = [f'{name_of(p)}:{o.lineno}' for p in modules for o in ast.walk(tree_of(p)) if isinstance(o, ast.Assign) for t in o.targets
             if isinstance(t, ast.Tuple) and sum(isinstance(x, ast.Attribute) for x in t.elts)>2]
    fail(found, 'an attribute has a line of its own, with its meaning:')

def test_errors_have_one_form():
    "`core.invalid` builds them: what was passed, what is wrong with it, what to do"
    builtin = {'ValueError','TypeError','RuntimeError','FileNotFoundError','KeyError'}   # an OSError is the reason within one of ours
    found = [f'{name_of(p)}:{o.lineno}' for p in modules if name_of(p)!='self_supervised.core' for o in ast.walk(tree_of(p))
             if isinstance(o, ast.Raise) and isinstance(o.exc, ast.Call) and getattr(o.exc.func, 'id', '') in builtin]
    fail(found, 'raise core.invalid(given, problem, fix):')

@pytest.mark.parametrize('fn', [o for o in notebooks if o.name[0].isdigit()], ids=lambda fn: fn.stem)
def test_a_page_begins_with_its_title(fn):
    "Title and one line, in a cell of their own: what follows in the same cell is lost when it is rendered"
    first = read_nb(fn).cells[0]
    lines = first.source.splitlines()
    assert first.cell_type=='markdown' and len(lines)==2 and lines[0].startswith('# ') and lines[1].startswith('> ')
    assert len(lines[1])<=LINE-2   # it is the docstring of the module, too

@pytest.mark.parametrize('args', [('ruff','check'), ('mypy',)], ids=lambda o: o[0])
def test_the_linters_are_content(args):
    "With the settings of pyproject.toml"
    res = subprocess.run([sys.executable, '-m', *args, '--no-cache' if args[0]=='ruff' else '--cache-dir=/dev/null'], cwd=root, capture_output=True, text=True)
    if res.returncode: pytest.fail(res.stdout+res.stderr, pytrace=False)

# Words that a notebook may well want for itself
common = set('plain share most least once gather features results limits choose published recorded heard several sides cross prepare fixes finite spread distance recipes newest'.split())

def test_all_is_what_a_notebook_needs():
    "About 60 names, each documented, none of them a bare common word"
    import self_supervised.all as everything
    names = everything.__all__
    assert 50<=len(names)<=75 and len(set(names))==len(names)
    assert not common & set(names)
    assert all(getattr(everything, n).__doc__ for n in names if callable(getattr(everything, n)))
    from fastai.learner import Learner
    assert hasattr(Learner, 'fit_byol')

def test_paths_of_the_older_library_stay():
    "`self_supervised.augmentations`, `.layers` and `.vision.byol` offer every public name they had"
    had = json.loads((root/'tests/public_names.json').read_text())
    missing = [f'self_supervised.{m}.{n}' for m,names in had.items() for n in names if not hasattr(import_module(f'self_supervised.{m}'), n)]
    assert not missing
