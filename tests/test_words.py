"""Texts that people read use the field's words; those that read like a translation are rare."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 25

# What not to write, and what to write.
WORDS = {
    r'tells?|told|telling': 'reports, is given, is passed',
    r'stands?|stood|standing': 'is',
    r'lies? (?:in|below|behind|beside|under)': 'is in',
    r'work(?:s|ed|ing)? (?:it |them )?out': 'computes',
    r'(?:is|are) none': 'there is no X, unknown',
    r'works? it out again|worked out again': 'recomputes',
    r'wins': 'overrides',
    r'behind (?:iteration|it|them|the last)': 'after',
    r'anew|afresh': 'again, from scratch',
    r'(?:is|are|be|was|were) left out|left out,': 'is omitted',
    r'mend(?:s|ed|ing)?': 'fix',
    r'foreign': 'third-party',
    r'of ours|as ours|(?:networks|models|schedules) of this package\'s own': 'built-in',
}
PATTERN = re.compile('|'.join(rf'\b(?:{word})\b' for word in WORDS), re.IGNORECASE)


def pages() -> Iterator[tuple[str, str]]:
    """Markdown without its code."""
    for path in [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')]:
        text = re.sub(r'^( *)```.*?^\1```', '', path.read_text(encoding='utf-8'), flags=re.M | re.S)
        yield path.relative_to(ROOT).as_posix(), re.sub(r'`[^`\n]*`', '', text)


def comments_of_options() -> Iterator[tuple[str, str]]:
    for path in [*ROOT.glob('options/*.yml'), *ROOT.glob('promptir_basicsr/**/*.yml')]:
        lines = path.read_text(encoding='utf-8').splitlines()
        yield path.relative_to(ROOT).as_posix(), '\n'.join(line.partition('#')[2] for line in lines)


def programs() -> Iterator[tuple[str, str]]:
    """Comments, and strings of several words: docstrings, messages, descriptions."""
    for path in ROOT.glob('promptir_basicsr/**/*.py'):
        source, name = path.read_text(encoding='utf-8'), path.relative_to(ROOT).as_posix()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield f'{name}:{token.start[0]}', token.string
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ' ' in node.value:
                yield f'{name}:{node.lineno}', re.sub(r'`[^`\n]*`', '', node.value)


def test_words_that_read_like_a_translation_are_rare() -> None:
    found = [
        f'{place}: {match.group()}'
        for place, text in (*pages(), *comments_of_options(), *programs())
        for match in PATTERN.finditer(text)
    ]
    assert len(found) <= MOST, '\n'.join(found)
