"""The commands that README.md, CONTRIBUTING.md and the pages of docs/ show, and a way to run them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promptir_basicsr  # noqa: F401  (prepares BasicSR)

# isort: split
from basicsr.utils import logger as host_logger

from promptir_basicsr import cli

ROOT = Path(__file__).parents[1]
PAGES = ['README.md', *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / 'docs').rglob('*.md')))]
PROGRAMS = ('basicsr', 'docker', 'make', 'pip', 'python', 'python3', 'srun', 'torchrun')

_BLOCK = re.compile(r'^( *)```(\w*)\n(.*?)^\1```', re.M | re.S)
_CODE = re.compile(r'(?<!`)`([^`]+)`(?!`)')
_ASSIGNMENT = re.compile(r'[A-Z_]+=\S*')


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: relative to the repository.
        text: as shown, on one line, without prompt and comment.
        words: the command and its arguments, without assignments to variables.
    """

    page: str
    text: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.page}: {self.text}'

    @property
    def arguments(self) -> tuple[str, ...]:
        """The verb of `basicsr` and its arguments, whatever starts it; () for other commands."""
        for start in (('basicsr',), ('-m', 'promptir_basicsr')):
            for place in range(len(self.words)):
                if self.words[place : place + len(start)] == start:
                    return self.words[place + len(start) :]
        return ()

    @property
    def module(self) -> tuple[str, ...]:
        """The module that `python -m` runs and its arguments; () for other commands."""
        return self.words[2:] if self.words[0].startswith('python') and self.words[1:2] == ('-m',) else ()


def text_of(page: str) -> str:
    """The page as it is in the repository."""
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a page."""
    return [(language, text) for _, language, text in _BLOCK.findall(text_of(page))]


def shown_commands(page: str) -> list[Command]:
    """The commands in fenced blocks; of a block with prompts, only what follows them."""
    found = []
    for language, text in blocks(page):
        if language not in ('', 'bash', 'sh', 'console'):
            continue
        lines = text.replace('\\\n', ' ').splitlines()
        prompted = [line[2:] for line in lines if line.startswith('$ ')]
        found += [command for line in prompted or lines for command in _command(page, line)]
    return found


def mentioned_commands(page: str) -> list[Command]:
    """The commands in running text and tables, often shortened."""
    text = _BLOCK.sub('', text_of(page))
    return [command for code in _CODE.findall(text) for command in _command(page, ' '.join(code.split()))]


def _command(page: str, line: str) -> Iterator[Command]:
    try:
        words = shlex.split(line.lstrip('!%'), comments=True)
    except ValueError:  # code with a single quote
        return
    while words and _ASSIGNMENT.fullmatch(words[0]):
        del words[0]
    if words:
        words[0] = words[0].removeprefix('.venv/bin/')
        if words[0] in PROGRAMS:
            yield Command(page, ' '.join(line.partition(' #')[0].split()), tuple(words))


def run(command: Command, *more: str) -> int:
    """Run a command of `basicsr` in this process, as a process of its own would."""
    assert command.words[0] == 'basicsr', command
    host_logger.initialized_logger.clear()
    return cli.main([*command.words[1:], *more])
