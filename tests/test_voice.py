"""The pages name their subjects, speak to the reader and give examples.

Limits per 1,000 words of prose, from fastxtend's pages (free 'what' 0.5, whoever … whose 0.0, you 4.2, example 1.5): at most twice
as many hidden subjects, at least half as many readers and examples. `python tools/voice.py` prints the counts."""
from math import ceil
from pathlib import Path

import pytest
import voice # tools/voice.py
from nbdev.config import get_config

root = Path(get_config(__file__).config_path)
WHAT,HIDDEN,YOU,EXAMPLE = 1.,0.,2.1,.75
counts = {c.page: c for c in voice.pages(root/'nbs')}

# Pages that do not keep the limits yet: free 'what' and hidden subjects that they have at most. A page that does is taken off the list
LATER = dict([('index', (37,3)), ('tutorial.cifar10', (12,0)), ('tutorial.channels', (10,0)), ('tutorial.small_batches', (7,0)),
              ('tutorial.not_learning', (8,2)), ('tutorial.clips_and_tables', (3,1)), ('tutorial.cluster', (5,0)),
              ('tutorial.journey', (2,1)), ('tutorial.commands', (3,0)), ('tutorial.faq', (1,1))])

def problems(c, what=WHAT, hidden=HIDDEN, you=YOU, example=EXAMPLE):
    "What a text with these counts breaks; a short page may have one free 'what'"
    k = c.words/1000
    if c.what>ceil(what*k): yield f"{c.what} free 'what': name the subject"
    if c.hidden>hidden*k: yield f'{c.hidden} of whoever, whatever, nobody, whose …: name the subject'
    if c.you<int(you*k): yield f"{c.you} times 'you' in {c.words} words: speak to the reader"
    if c.example<int(example*k): yield f'{c.example} examples in {c.words} words: give one after each rule'
    if c.avoided: yield f'avoided words {c.avoided}: see tools/voice.py for plain ones'

@pytest.mark.parametrize('page', [o for o in counts if o not in LATER])
def test_a_page_speaks_to_its_reader(page):
    found = list(problems(counts[page]))
    if found: pytest.fail('\n'.join([f'{page}:', *found]), pytrace=False)

@pytest.mark.parametrize('page', [o for o in LATER if o in counts])
def test_no_page_gets_worse(page):
    c,(what,hidden) = counts[page],LATER[page]
    assert c.what<=what and c.hidden<=hidden

def test_docstrings_name_their_subjects():
    "Also the comments of parameters, which are the help of the commands"
    c = voice.together(voice.modules(root/'self_supervised'))
    assert c.per_1000(c.what)<=WHAT and c.per_1000(c.hidden)<=.2, voice.line(c)
    assert not c.avoided, c.avoided

@pytest.mark.parametrize('text,expected', [
    ('What is drawn is not drawn again.', "free 'what'"), ('Whoever asks, all know.', 'whoever'), ('5 labels a class', 'a_for_per'),
    ('in .6 of the time', 'point'), ('dice of its own', 'dice'), ('You say how. '*30+'word '*2000, 'examples'), ('Word. '*1000, "'you'")])
def test_the_counter_finds_them(text, expected):
    assert any(expected in o for o in problems(voice.count('page', text), what=0))

def test_code_links_and_questions_do_not_count(tmp_path):
    source = 'What is this? `what` [it](whose.html)\n```\nwhat\n```\n$.5$'
    (tmp_path/'a.ipynb').write_text('{"cells":[{"cell_type":"markdown","source":[%s]}]}' % __import__('json').dumps(source))
    c, = voice.pages(tmp_path)
    assert not c.what and not c.hidden and not c.avoided
