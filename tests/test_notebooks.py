"Run each notebook of nbs/ from top to bottom; `pytest tests/test_notebooks.py -k 02_layers` runs one, `nbdev-test --flags cuda` the cells skipped here"
import ast, gc, os, re, signal, sys
from unittest.mock import patch

import matplotlib.pyplot as plt, pandas as pd, pytest, torch
from fastai.vision.all import Learner, defaults, set_seed # all of fastai, so that `defaults` is complete before the first notebook
from fastcore.nbio import read_nb
from IPython.core.interactiveshell import InteractiveShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb # under its own name pytest would collect it

cfg = get_config(__file__)
notebooks = nbglob(cfg.nbs_path, as_path=True).sorted()

def close_shell():
    "Stop the thread of the notebook that ran and let go of its variables, models among them"
    shell,InteractiveShell._instance = InteractiveShell._instance,None
    shell.close()
    shell.user_ns.clear()
    gc.collect()

def pop_package():
    "Take this library out of `sys.modules`, with what it remembers, such as what it has warned of once"
    return {o:sys.modules.pop(o) for o in list(sys.modules) if o.partition('.')[0]=='self_supervised'}

@pytest.fixture
def alone():
    "Notebooks share this process: seed each one, and undo afterwards what it has set"
    undo = [(os.chdir, os.getcwd()), (signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)),
            (torch.set_num_threads, torch.get_num_threads()), (torch.set_default_dtype, torch.get_default_dtype()),
            (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
            *((setattr, torch.backends.cudnn, o, getattr(torch.backends.cudnn, o)) for o in ('benchmark','deterministic')),
            (sys.modules.__setitem__, '__main__', sys.modules['__main__'])]
    package = pop_package() # other tests go on with the one they have imported, and with its methods of a learner
    undo += [(setattr, Learner, k, v) for k,v in vars(Learner).items() if str(getattr(v, '__module__', '')).startswith('self_supervised')]
    set_seed(0)
    pd.reset_option(r'^display\.')
    with (patch.dict(os.environ, COLUMNS='80'), patch.dict(vars(defaults), callbacks=list(defaults.callbacks)),
          patch.object(sys, 'path', list(sys.path)), plt.rc_context()): yield
    plt.close('all')
    pd.reset_option(r'^display\.')
    close_shell()
    pop_package()
    sys.modules.update(package)
    for f,*args in undo: f(*args)

def shown(cell):
    "The words of a cell's text outputs: without numbers, times, widths of tables, progress bars and warnings"
    parts = [o.get('text') or o.get('data', {}).get('text/plain', '') for o in cell.get('outputs', []) if o.get('name')!='stderr']
    text = '\n'.join(''.join(o) for o in parts)
    text = re.sub(r'\d+ % of training done, .* left|[\d.,]+ (?:s|min|h)\b', ' ', text)   # on a slow machine there are more, and minutes
    text = re.sub(r'\x1b\[[0-9;]*m|<[^>]*>|Epoch \d+/\d+ :(?:.*?\[[^\]]*\])?|[█%|]', ' ', text)
    return re.findall(r'[^\W\d_]+', re.sub(r'\b(nan|inf|e)\b|\w*\d\w*', ' ', text))

def differing(stored, fresh):
    "The visible cells whose stored outputs say something else than a run of now"
    for old,new in zip(stored.cells, fresh.cells, strict=True):
        assert old.id==new.id
        if old.cell_type!='code' or re.search(r'^#\|\s*(hide|no_?test|eval)', old.source, re.M): continue
        if shown(old)!=shown(new): yield f'cell {old.id}\n  stored: {" ".join(shown(old))[:600]}\n  now:    {" ".join(shown(new))[:600]}'

@pytest.mark.parametrize('fn', notebooks, ids=lambda fn: fn.stem)
def test_notebook(fn, alone, capfd):
    "Each cell runs, and its stored output says what it says now"
    with patch('nbdev.test.write_nb') as write:
        passed,_ = run_nb(fn, skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path, profile=False, cell_timeout=cfg.cell_timeout, save=True)
    if not passed: pytest.fail(capfd.readouterr().err.strip(), pytrace=False)
    stale = [o for c in write.call_args_list for o in differing(read_nb(fn), c.args[0])]
    if stale: pytest.fail('\n'.join(['stored outputs are not those of now: run the notebook and save it', *stale]), pytrace=False)

# Notebooks with a longer hidden cell, and why; take one off when its cells are short
HIDDEN = 15
long_hidden = {
    'tutorial.commands': '`shell` runs the commands that the page shows'}

def code_lines(source):
    "Lines of code without imports, and not fewer than there are statements"
    tree = ast.parse(source)
    imports = [o for o in ast.walk(tree) if isinstance(o, (ast.Import,ast.ImportFrom))]
    within = {i for o in imports for i in range(o.lineno, o.end_lineno+1)}
    lines = [o for i,o in enumerate(source.splitlines(), 1) if o.strip() and not o.lstrip().startswith('#') and i not in within]
    return max(len(lines), sum(isinstance(o, ast.stmt) for o in ast.walk(tree))-len(imports))

@pytest.mark.parametrize('fn', notebooks, ids=lambda fn: fn.stem)
def test_hidden_cells_are_short(fn):
    "A page shows how a thing is used; its long tests are in tests/"
    hidden = [o for o in read_nb(fn).cells if o.cell_type=='code' and re.search(r'^#\|\s*hide\b', o.source, re.M)]
    found = [f'{o.id}: {n} lines' for o in hidden if (n := code_lines(o.source))>HIDDEN]
    if fn.stem in long_hidden: assert found, f'take {fn.stem} off `long_hidden`'
    elif found: pytest.fail('\n'.join([f'a hidden cell has {HIDDEN} lines of code at most; move its tests to tests/:', *found]), pytrace=False)

@pytest.mark.parametrize('source,n', [('#| hide\nimport os\nfrom a import (b,\n    c)\n', 0), ('a = 1; b = 2\n\n# c\n', 2), ('a = [\n1,\n2]', 3)])
def test_lines_of_code_are_counted(source, n): assert code_lines(source)==n

@pytest.mark.parametrize('slow', ['Trained in 2 min\n', '58 % of training done, 2 min left\nTrained in 95 s\n', '9 % of training done, 1.5 h left\nTrained in 1.2 h\n'])
def test_outputs_of_a_slow_machine_are_the_same(slow):
    def cell(text): return dict(outputs=[dict(text=text)])
    assert shown(cell(slow))==shown(cell('Trained in 7 s\n'))!=shown(cell('Stopped in 7 s\n'))
