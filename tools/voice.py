"""Count how the pages speak: `python tools/voice.py` prints a table, the furthest from its bounds first.

Per page: words of markdown prose (code, tables' rules, links' targets and formulas left out) and, among them, the words
by which a sentence hides its subject, the words that address the reader, and the examples."""
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

HIDDEN = r"\b(?:whoever|whatever|whichever|nobody|somebody|whom|whose)\b"
"Words that stand for a subject that the reader has to find."
READER = r"\b(?:you|your|yours|yourself)\b"
EXAMPLE = r"\b(?:for example|for instance|e\.g\.|such as)"
BANNED = dict(dice=r'\bdice\b',
              said=r'\b(?:said|says)\b',
              lent=r'\b(?:lent|lends?|lending)\b',
              answers=r'\banswers?\b(?! to)',
              heirs=r'\bheirs?\b',
              rooms=r'\b(?:rooms?\b(?! for)|stor(?:y|ies)\b)',
              sick=r'\b(?:sick|unsound|(?<!cli\.)mend(?:ed|s|ing)?)\b|\bsound\b(?!s)',
              figures=r'\bfigures?\b',
              behind=r'\bbehind us\b',
              point=r'(?<![\w.\d])\.\d',
              a_for_per=r'\b(?:pictures?|images?|labels?|samples?|examples?|rows?|entr(?:y|ies)|times?|seconds?|minutes?|'
                        r'bytes?|MB|GB|ms|s|steps?|epochs?|batches|values?|numbers?|once|one|twice) an? '
                        r'(?:class|step|batch|picture|image|second|epoch|channel|minute|hour|run|sample|row|process|GPU|rank)\b')


def prose(path: Path) -> str:
    "The markdown of a notebook without code, links' targets, formulas and tables' rules."
    if path.suffix == '.md':
        text = path.read_text()
    else:
        cells = json.loads(path.read_text())['cells']
        text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    text = re.sub(r'```.*?```', ' ', text, flags=re.S)
    text = re.sub(r'<!--.*?-->|<(?:svg|style|script)\b.*?</(?:svg|style|script)>', ' ', text, flags=re.S)
    text = re.sub(r'\$\$.*?\$\$', ' ', text, flags=re.S)
    text = re.sub(r'`[^`]*`', ' ', text)
    text = re.sub(r'\$[^$\n]*\$', ' ', text)
    text = re.sub(r'\]\([^)]*\)', '] ', text)
    return re.sub(r'<[^>\n]*>|^\|?[-|: ]+$', ' ', text, flags=re.M)


def words(text: str) -> int: return len(re.findall(r"[A-Za-z][A-Za-z'’-]*", text))


def times(pattern: str, text: str) -> int: return len(re.findall(pattern, text, re.I))


def free_what(text: str) -> int:
    "How often 'what' stands for a thing that is not named; a question may ask it."
    return times(r"\bwhat\b(?![^.!?:;|\n]*\?)", text)


class Count(NamedTuple):
    "How one page speaks."
    page: str
    words: int
    what: int
    hidden: int
    you: int
    example: int
    banned: dict

    def per_1000(self, n: int) -> float: return 1000*n/max(self.words, 1)


def count(path: Path) -> Count:
    "Count the prose of one notebook or markdown file."
    text = prose(path)
    banned = {name: n for name, pattern in BANNED.items() if (n := times(pattern, text))}
    return Count(path.stem, words(text), free_what(text), times(HIDDEN, text), times(READER, text),
                 times(EXAMPLE, text), banned)


def pages(folder: Path) -> list[Count]: return [count(p) for p in sorted(folder.glob('*.ipynb'))]


def whole(counts: list[Count]) -> Count:
    "The counts of all pages together."
    banned: dict = {}
    for c in counts:
        for name, n in c.banned.items(): banned[name] = banned.get(name, 0)+n
    return Count('all', *(sum(c[i] for c in counts) for i in range(1, 6)), banned)


def line(c: Count) -> str:
    rates = ''.join(f'{c.per_1000(n):8.1f}' for n in (c.what, c.hidden, c.you, c.example))
    return f'{c.page:32}{c.words:7}{rates}  '+' '.join(f'{k}={n}' for k, n in c.banned.items())


if __name__ == '__main__':
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent/'nbs'
    counts = pages(folder)
    print(f'{"page":32}{"words":>7}{"what":>8}{"hidden":>8}{"you":>8}{"example":>8}  banned')
    for c in [whole(counts), *sorted(counts, key=lambda c: -c.per_1000(c.what+c.hidden))]: print(line(c))
