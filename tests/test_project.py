"What is kept twice agrees: notebooks and modules, index notebook and README, modules and wheel"
import json, os, re, shutil, subprocess, sys, tomllib
from configparser import ConfigParser
from difflib import unified_diff
from email import message_from_bytes
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest
from fastcore.nbio import read_nb
from nbdev.clean import nbdev_clean
from nbdev.config import get_config, read_version
from nbdev.doclinks import nbdev_export, nbglob
from packaging.requirements import Requirement
import docs, reference # tools/

root = get_config(__file__).config_path
notebooks = nbglob(root/'nbs', as_path=True).sorted()
pyproject = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))

def files(path, *globs):
    "Contents of the files below `path` that match one of `globs`, by relative name"
    return {p.relative_to(path).as_posix(): p.read_bytes() for g in globs for p in path.glob(g) if '.ipynb_checkpoints' not in p.parts}

def assert_same(
    have:dict, # Contents by name, as they are
    want:dict, # Contents by name, as they should be
    fix:str, # What to do about a difference
):
    "Fail with the names that are in one only, and the first changed lines of those that differ"
    res = [f'stale:   {o}' for o in sorted(have.keys()-want.keys())] + [f'missing: {o}' for o in sorted(want.keys()-have.keys())]
    for o in sorted(have.keys()&want.keys()):
        if have[o]!=want[o]: res += [f'differs: {o}', *text_diff(have[o], want[o])[:20]]
    if res: pytest.fail('\n'.join([fix, *res]), pytrace=False)

def text_diff(*contents):
    "Changed lines of two files, shortened: a picture in a notebook is one long line"
    try: a,b = (o.decode().splitlines() for o in contents)
    except UnicodeDecodeError: return [] # a picture of its own
    return [o[:150] for o in unified_diff(a, b, 'as it is', 'as it should be', lineterm='', n=0)]

def run(*args, **env):
    "Run this Python, failing with what it printed"
    res = subprocess.run([sys.executable, *map(str, args)], env=os.environ|env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if res.returncode: pytest.fail(f"python {' '.join(map(str, args))}\n{res.stdout[-5000:]}", pytrace=False)

@pytest.fixture
def bare(tmp_path, monkeypatch):
    "Stand in a copy of what modules are made from, and none of what was made, where no user's settings are seen"
    shutil.copytree(root/'nbs', tmp_path/'nbs')
    (tmp_path/'self_supervised').mkdir()
    for o in 'pyproject.toml','self_supervised/__init__.py': shutil.copy(root/o, tmp_path/o)
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))
    monkeypatch.delenv('IN_TEST', raising=False) # nbdev exports nothing where it is set
    monkeypatch.chdir(tmp_path)
    return tmp_path

def test_modules_are_exported(bare):
    nbdev_export()
    assert_same(files(root, 'self_supervised/**/*.py'), files(bare, 'self_supervised/**/*.py'),
                'self_supervised/ is not what nbs/ exports: run nbdev-export, and delete what is stale')

@pytest.mark.filterwarnings('error:Failed to clean')
def test_notebooks_are_clean(bare):
    nbdev_clean()
    assert_same(files(root, 'nbs/**/*.ipynb'), files(bare, 'nbs/**/*.ipynb'), 'run nbdev-clean')

def texts(cell):
    "Source and text outputs of `cell`"
    yield cell.source
    for o in cell.get('outputs', []):
        yield ''.join(o.get('text', ''))
        yield from (''.join(v) for k,v in o.get('data', {}).items() if k.startswith('text/'))

@pytest.mark.parametrize('fn', notebooks, ids=lambda fn: fn.stem)
def test_no_machine_paths(fn):
    path = re.compile(r'(?<![\w.~})])/(?:root|work|home|tmp|opt|var|private|Users)/[^\s\'",]*')
    found = [f'cell {c.id}: {p}' for c in read_nb(fn).cells for t in texts(c) for p in path.findall(t)]
    if found: pytest.fail('\n'.join([f'{fn.name} has folders of one machine: use relative paths, a temporary folder', *found]), pytrace=False)

def test_readme_is_rendered(tmp_path):
    docs.readme(tmp_path)
    made = 'README.md','nbs/images/index-*.png'
    assert_same(files(root, *made), files(tmp_path, *made), 'README.md is not what nbs/index.ipynb renders to: run `python tools/docs.py readme`')

def python_lines(md):
    "The lines of the ```python blocks of `md` where they are, all others blank: line numbers of an error are those of `md`"
    inside,res = False,[]
    for line in md.splitlines():
        if line.startswith('```'): inside,line = line.strip()=='```python',''
        res.append(line if inside else '')
    return '\n'.join(res)

def test_readme_runs(tmp_path, monkeypatch):
    readme = root/'README.md'
    assert readme.exists(), 'no README.md: run `python tools/docs.py readme`'
    script = python_lines(readme.read_text(encoding='utf-8'))
    assert script.strip(), 'README.md shows no python'
    monkeypatch.chdir(tmp_path)
    (tmp_path/'README.py').write_text(script, encoding='utf-8')
    run('README.py', MPLBACKEND='agg', PYTHONPATH=str(root))

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\((?!\w+:|#)([^)\s#]+)', (root/'README.md').read_text(encoding='utf-8'))
    assert links and not [o for o in links if not (root/o).exists()]

def words(md):
    "The words of markdown, without the targets of its links"
    return re.findall(r'\w+', re.sub(r'\]\([^)]*\)', ']', md))

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built once; links lead somewhere (mkdocs is strict), and nothing is loaded from elsewhere"
    dest = tmp_path_factory.mktemp('site')
    run('-W', 'ignore', root/'tools/docs.py', 'site', '--dest', dest, PYTHONPATH=str(root))
    return dest

def page_of(site, name): return (site/'_docs'/name).with_suffix('.html').read_text(encoding='utf-8')
def pages(site): return {o.name: o.read_text(encoding='utf-8') for o in sorted((site/'_docs').glob('*.html')) if o.name!='404.html'}
def article(page): return page[page.index('<article'):page.index('</article>')]

def test_site_shows_every_cell(site):
    "A page for each notebook with all its text"
    for fn in notebooks:
        cells = [c for c in read_nb(fn).cells if c.cell_type=='markdown' and not c.source.startswith('#|')]
        page = (site/'_proc'/docs.page_name(fn.name)).read_text(encoding='utf-8')
        page = ' '.join(words(re.sub(r'^```\{.*?\}$', '', page, flags=re.M)))   # the looks of a block
        lost = [c.source[:60] for c in cells if ' '.join(words(c.source)[:20]) not in page]
        assert not lost, (fn.name, lost)
        assert (site/'_docs'/docs.page_name(fn.name)).with_suffix('.html').exists()

def test_site_shows_what_runs_print(site):
    "Outputs of visible cells are on the page, and directives of nbdev are not"
    for fn in notebooks:
        page = re.sub(r'\s', '', (site/'_proc'/docs.page_name(fn.name)).read_text(encoding='utf-8'))
        assert not re.search(r'^#\|', page, re.M), fn.name
        for c in read_nb(fn).cells:
            if c.cell_type!='code' or re.search(r'^#\| *(hide|export|include|output)', c.source, re.M): continue
            for o in c.outputs:
                text = re.sub(r'\s', '', ''.join(o.get('text', '')))[:200]
                assert text in page, (fn.name, c.id, text)

def rooms():
    "Name of its page, and module, of each room"
    for fn in notebooks:
        room = next((c.directive('default_exp') for c in read_nb(fn).cells if c.has_directive('default_exp')), None)
        if room and room!='all': yield docs.page_name(fn.name), import_module(f'self_supervised.{room}')

def test_site_has_an_entry_for_every_public_name_in_the_order_of_the_code(site):
    "Functions, classes with their methods, and constants; those that a room takes over from another are there"
    for name,module in rooms():
        page = page_of(site, name)
        own = [o for o in module.__all__ if getattr(getattr(module, o), '__module__', module.__name__)==module.__name__]
        code = Path(module.__file__).read_text(encoding='utf-8')
        constants = reference.constants(module)
        at = {}
        for o in own:
            assert (found:=re.search(rf'<h3[^>]*\bid="{o.lower()}"', page)), (name, o)
            if o in constants: continue
            at[o] = found.start(), re.search(rf'^(?:async )?(def|class) {o}\b', code, re.M).start()
        assert sorted(at, key=lambda o: at[o][0])==sorted(at, key=lambda o: at[o][1]), name
        for cls in (getattr(module, o) for o in at if isinstance(getattr(module, o), type)):
            for m,_ in reference.methods(cls): assert f'>{cls.__name__}.{m}<' in page.replace('</a>', '<'), (name, cls, m)

def test_site_is_written_for_people(site):
    "Types as one writes them, pictures that say what they show, the version below each page"
    for name,page in pages(site).items():
        if name.startswith('source.'): continue
        text = article(page)
        for noise in ('torch.nn.modules.','<function','&lt;function','at 0x','NoneType'):
            assert noise not in re.sub(r'<div class="[^"]*output.*?</div>', '', text, flags=re.S), (name, noise)
        assert '```' not in text, name   # a block that was not closed
        assert not [o for o in re.findall(r'<img[^>]*>', text) if not re.search(r'alt="[^"]{10,}', o)], name
        assert f"self_supervised {read_version(root/'self_supervised')}" in page, name

def test_site_links_to_lines_and_names_that_exist(site):
    "The source of each entry, and all that the index of names lists"
    have = {name: set(re.findall(r'\bid="([^"]+)"', page)) for name,page in pages(site).items()}
    n = 0
    for name,page in pages(site).items():
        for target,anchor in re.findall(r'href="((?:source\.[\w.]+|[\w.]+)\.html)#([^"]+)"', article(page) if name=='api.html' else
                                        ' '.join(re.findall(r'<a class="source"[^>]*>', page))):
            assert anchor in have[target], (name, target, anchor)
            n += 1
    assert n>300

def test_no_link_leads_to_a_missing_anchor(site):
    have = {name: set(re.findall(r'\bid="([^"]+)"', page)) for name,page in pages(site).items()}
    links = {(name, page or name, anchor) for name,text in pages(site).items() for page,anchor in re.findall(r'href="([\w.]*)#([^"]+)"', text)}
    assert len(links)>1000 and not [o for o in links if o[2] not in have[o[1]]]

def test_lost_links_are_named(tmp_path):
    links = '#here', 'b.html', 'b.html#there', '#gone', 'c.html', 'https://b.org/d.html#e'
    (tmp_path/'a.html').write_text('<h2 id="here">' + ''.join(f'<a href="{o}">' for o in links))
    (tmp_path/'b.html').write_text('<h2 id="There">')
    assert docs.lost_links(tmp_path)==['a.html: a.html#gone', 'a.html: b.html#there', 'a.html: c.html#']

def test_names_link_to_entries(site):
    "A public name wins over a private one, and a private one is no link"
    linked = set(re.findall(r'href="([\w.]+#[^"]+)"><code>', ' '.join(article(o) for o in pages(site).values())))
    assert 'evaluate.features.html#spread' in linked
    assert not {'operations.html#spread', 'callback.health.html#distance', 'core.html#undisturbed'} & linked

def test_files_outside_of_the_site_are_no_links(site):
    text = article(page_of(site, 'index'))
    assert 'href="changelog.html">Changelog</a>' in text and '<code>CONTRIBUTING.md</code>' in text and 'CONTRIBUTING.md"' not in text

def heads(df): return re.findall(r'<th>([^<]*)</th>', docs.table_of(df.to_html()).partition('</thead>')[0])

def test_tables_name_their_index_and_their_columns():
    df = pd.DataFrame([[1,2]], index=pd.Index(['crop'], name='operation'), columns=[32,64])
    assert heads(df)==['operation','32','64']
    assert heads(df.rename_axis(columns='px'))==['operation','px=32','px=64']

def test_numbers_stand_to_the_right():
    def right(*columns):
        df = pd.DataFrame(dict(zip('abcdefgh', columns)), index=pd.MultiIndex.from_product([['x'],range(len(columns[0]))]))
        return re.findall(r'<th class="number">(.)</th>', re.sub('<table>.*</table>', docs.right_align, docs.table_of(df.to_html()), flags=re.S))
    assert right([1,2], ['1','b'], ['0.93 ± 0.01','−2.7'], ['12 %','1,000 MB'], ['',''], [.5,float('nan')])==['a','c','d','f']

def test_lines_wrap_where_they_may(tmp_path):
    "Not within an option; in a block of columns, the lines that have none"
    lines = '<a id="1"></a>epoch   loss\n<a id="2"></a>training <b>is</b> done, all <i>--of it</i>\n'
    block = f'<div class="output aligned highlight"><pre><span></span><code>{lines}</code></pre></div>'
    (page:=tmp_path/'a.html').write_text(f'<p><code>--out a-b -v -2.7</code></p>\n{block}')
    docs.finish(page)
    text = page.read_text()
    assert '<code><span class="option">--out</span> a-b <span class="option">-v</span> -2.7</code>' in text
    assert '</a>epoch   loss\n<span class="prose"><a id="2"></a>training <b>is</b> done, all <i><span class="option">--of</span> it</i></span>\n</code>' in text

def test_wide_figures_are_told_from_tall_ones(site):
    "On a phone only the wide ones scroll"
    page = page_of(site, 'tutorial.views.html')
    looks = [re.search(r'class="wide"', o) is not None for o in re.findall(r'<img[^>]*tutorial\.views-[^>]*>', page)]
    assert looks[0] and not looks[-1]

def test_search_finds_the_parts_of_a_name(site):
    separator = json.loads((site/'_docs/search/search_index.json').read_text(encoding='utf-8'))['config']['separator']
    for text,part in (('transfer.finetune','finetune'), ('transfer.encoder_file','encoder'), ('byol_pretrain --hidden-size','hidden'), ('at 0.948','0.948')):
        assert part in re.split(separator, text), text

def test_site_begins_with_the_first_steps(site):
    "Get started, guides, how it works, evidence, what to look up"
    page = page_of(site, 'index')
    parts = ['Get started','Guides','How it works','Evidence','Look up','API index','Questions and answers','Glossary','Changelog']
    side = re.sub(r'<[^>]+>', ' ', page[page.index('md-sidebar--primary'):page.index('md-sidebar--secondary')])
    where = [side.index(o) for o in parts]
    assert where==sorted(where)

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel made from the sdist that is made from a copy of the sources"
    src,dist = (tmp_path_factory.mktemp(o) for o in ('src','dist'))
    for o in 'pyproject.toml','settings.ini','setup.py','MANIFEST.in','LICENSE','README.md':
        if (root/o).exists(): shutil.copy(root/o, src)
    shutil.copytree(root/'self_supervised', src/'self_supervised', ignore=shutil.ignore_patterns('__pycache__'))
    run('-m', 'build', '--no-isolation', '--outdir', dist, src)
    with ZipFile(next(dist.glob('*.whl'))) as z: return {o:z.read(o) for o in z.namelist()}

def dist_info(wheel, name): return next(v for k,v in wheel.items() if k.endswith(f'.dist-info/{name}'))

def test_wheel_has_every_module(wheel):
    modules = {k:v for k,v in wheel.items() if k.endswith('.py')}
    assert_same(modules, files(root, 'self_supervised/**/*.py'), 'the wheel does not have the modules of self_supervised/: see setup.py')

def test_wheel_says_that_it_is_typed(wheel): assert 'self_supervised/py.typed' in wheel

def test_wheel_has_the_facts(wheel):
    meta = message_from_bytes(dist_info(wheel, 'METADATA'))
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    ini = ini['DEFAULT']
    assert meta['Version']==read_version(root/'self_supervised')
    assert (meta['Summary'],meta['Author'],meta['License-Expression']) == (ini['description'],ini['author'],ini['license'])
    needs = [Requirement(o) for o in meta.get_all('Requires-Dist')]
    assert {o for o in needs if not o.marker} == {Requirement(o) for o in ini['requirements'].split()}
    assert {o.name for o in needs if 'dev' in str(o.marker)} == {Requirement(o).name for o in ini['dev_requirements'].split()}

def test_the_lowest_versions_are_those_that_are_tested():
    "`.ci/run --lowest` installs what settings.ini allows at the least"
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    needs = [Requirement(o) for o in ini['DEFAULT']['requirements'].split()]
    allowed = {o.name: s.version for o in needs for s in o.specifier if s.operator=='>='}
    tested = dict(o.split('==') for o in (root/'.ci'/'lowest.txt').read_text().splitlines() if o and o[0]!='#')
    assert tested==allowed

def test_wheel_has_the_commands(wheel):
    ini = ConfigParser()
    ini.read_string(dist_info(wheel, 'entry_points.txt').decode())
    assert dict(ini['console_scripts'])==pyproject['project']['scripts']

@pytest.mark.parametrize('name,value', pyproject['project']['scripts'].items())
def test_commands_exist(name, value): assert callable(EntryPoint(name, value, 'console_scripts').load())

def test_contributing_lists_every_room_in_order_and_names_what_there_is():
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    listed = {}
    for wing,rooms in re.findall(r'^\| *(\w+/)? *\| (`[^|]*) \|', text, re.M):
        if wing or '`core`' in rooms: listed[wing.rstrip('/')] = re.findall(r'`(\w+)`', rooms)
    made = {}
    for o in notebooks:
        number,_,name = o.stem.partition('_')
        if not number.isdigit() or name=='all': continue
        wing,_,room = name.rpartition('.')
        made.setdefault(wing, []).append(room)
    assert listed==made
    ways = text[text.index('ways through it'):text.index('## What makes')]
    for room,what in re.findall(r'^\d\. `([\w.]+)`: (.*)', ways, re.M):
        module = (root/'self_supervised'/(room.replace('.', '/')+'.py')).read_text(encoding='utf-8')
        for name in re.findall(r'`(\w+)(?:\([\w, ]*\))?`', what):   # those with a dot may be of another room
            assert re.search(rf'\b{name}\b', module), (room,name)
