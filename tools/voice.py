"""Count how the pages speak: `python tools/voice.py` prints a table, the pages with the most hidden subjects first.

Per page: the words of its markdown prose (without code, targets of links, formulas and rules of tables) and, among them,
words that hide the subject of a sentence, words that address the reader, examples, and words that the library avoids."""
import ast
import io
import json
import re
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

HIDDEN = r'\b(?:whoever|whatever|whichever|nobody|somebody|whom|whose)\b'
READER = r'\b(?:you|your|yours|yourself)\b'
EXAMPLE = r'\b(?:for example|for instance|e\.g\.|such as)'

# Name → pattern of words that a page does without; the plain word is in brackets
_thing = r'(?:pictures|images|labels|samples|rows|entries|times|seconds|minutes|bytes|MB|GB|ms|steps|batches|values|numbers)'
_unit = r'(?:class|step|batch|picture|image|second|epoch|channel|minute|hour|run|sample|row|process|GPU|rank)'
AVOIDED = dict(dice=r'\bdice\b',                                                     # (random state)
               said=r'\bsaid\b',                                                     # (warned, printed)
               lent=r'\b(?:lent|lends?|lending)\b',                                  # (added for the length of a fit)
               heirs=r'\bheirs?\b',                                                  # (subclasses)
               rooms=r'\b(?:rooms|stor(?:y|ies))\b',                                 # (modules, guides)
               sick=r'\b(?:sick|unsound|(?<!cli\.)mend(?:ed|s|ing)?)\b|\bsound\b',   # (broken, healthy, fixed)
               behind=r'\bbehind us\b',                                              # (already done)
               point=r'(?<![\w.\d])\.\d',                                            # .6 (0.6)
               a_for_per=rf'\b{_thing} an? {_unit}\b')                               # pictures a step (per step)


def prose(path: Path) -> str:
    "The markdown of a notebook without code, targets of links, formulas and rules of tables."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    text = re.sub(r'```.*?```|<!--.*?-->|<(svg|style|script)\b.*?</\1>|\$\$.*?\$\$', ' ', text, flags=re.S)
    text = re.sub(r'`[^`]*`|\$[^$\n]*\$', ' ', text)
    text = re.sub(r'\]\([^)]*\)', '] ', text)
    return re.sub(r'<[^>\n]*>|^\|?[-|: ]+$', ' ', text, flags=re.M)


def _signature_lines(tree):
    "The lines of all signatures."
    for o in ast.walk(tree):
        if isinstance(o, ast.FunctionDef): yield from range(o.lineno, o.body[0].lineno)


def documented(path: Path) -> str:
    "The docstrings of a module, and the comments of its parameters."
    source = path.read_text(encoding='utf-8')
    tree = ast.parse(source)
    with_docs = (o for o in ast.walk(tree) if isinstance(o, ast.Module | ast.ClassDef | ast.FunctionDef))
    texts = [ast.get_docstring(o) or '' for o in with_docs]
    lines = set(_signature_lines(tree))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts += [t.string for t in tokens if t.type == tokenize.COMMENT and t.start[0] in lines]
    return re.sub(r'`[^`]*`', ' ', '\n'.join(texts))


def times(pattern: str, text: str) -> int: return len(re.findall(pattern, text, re.I))


def free_what(text: str) -> int:
    "How often 'what' stands for something without a name; in a question it may."
    return times(r'\bwhat\b(?![^.!?:;|\n]*\?)', text)


class Count(NamedTuple):
    "How one text speaks."
    page: str
    words: int
    what: int
    hidden: int
    you: int
    example: int
    avoided: dict

    def per_1000(self, n: int) -> float: return 1000*n/max(self.words, 1)


def count(page: str, text: str) -> Count:
    avoided = {name: n for name, pattern in AVOIDED.items() if (n := times(pattern, text))}
    n_words = len(re.findall(r"[A-Za-z][A-Za-z'’-]*", text))
    return Count(page, n_words, free_what(text), *(times(o, text) for o in (HIDDEN, READER, EXAMPLE)), avoided)


def pages(folder: Path) -> list[Count]: return [count(p.stem, prose(p)) for p in sorted(folder.glob('*.ipynb'))]


def modules(folder: Path) -> list[Count]:
    files = (p for p in sorted(folder.rglob('*.py')) if p.name != '_modidx.py')
    return [count(p.relative_to(folder).as_posix(), documented(p)) for p in files]


def together(counts: list[Count], name: str = 'all') -> Count:
    avoided: dict = {}
    for c in counts:
        for k, n in c.avoided.items(): avoided[k] = avoided.get(k, 0)+n
    return Count(name, *(sum(c[i] for c in counts) for i in range(1, 6)), avoided)


def line(c: Count) -> str:
    rates = ''.join(f'{c.per_1000(n):8.1f}' for n in (c.what, c.hidden, c.you, c.example))
    return f'{c.page:32}{c.words:7}{rates}  '+' '.join(f'{k}={n}' for k, n in c.avoided.items())


if __name__ == '__main__':
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
    found = pages(root/'nbs')
    print(f'{"per 1,000 words":32}{"words":>7}{"what":>8}{"hidden":>8}{"you":>8}{"example":>8}  avoided')
    for c in [together(found, 'all pages'), together(modules(root/'self_supervised'), 'all docstrings'),
              *sorted(found, key=lambda c: -c.per_1000(c.what+c.hidden))]: print(line(c))
