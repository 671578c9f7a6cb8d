"""A mistake in options: where it is, what it is, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Keys = tuple[str | int, ...]
"""The place of an option: keys of mappings and positions in lists, from the top of the file."""

Kind = Literal['options', 'machine', 'missing', 'orphans', 'short']


class Item(int):
    """A position in a list with the name of what is there, by which a protocol's tasks are changed."""

    name: str

    def __new__(cls, position: int, name: str) -> 'Item':
        item = super().__new__(cls, position)
        item.name = name
        return item

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.name


@dataclass(frozen=True)
class Problem:
    """A mistake in options.

    Its text is `str(problem)`; only the command line, the log and reports make one. The line in the option file is
    that of `path`, whatever the text says.

    Attributes:
        path: the option to change; () where there is none, as of an argument of the command line.
        message: what was found and how to fix it.
        kind: `machine` for options that may be right on another machine, `missing` and `orphans` for images without
            which the options are right, `short` for what a longer run would reach.
        items: the images that the problem is about, each with a detail.
        shown: what the text begins with, where that is not `path`: the message names the rest of the path itself.
        others: further options that it is about. Where `path` is not in the file, the line is that of the first of
            these that is.
    """

    path: Keys
    message: str
    kind: Kind = 'options'
    items: tuple[tuple[str, str], ...] = ()
    shown: Keys | None = None
    others: tuple[Keys, ...] = ()

    @property
    def place(self) -> Keys:
        """What the text begins with."""
        return self.path if self.shown is None else self.shown

    def __str__(self) -> str:
        where = place(self.place)
        return f'{where}: {self.message}' if where else self.message

    def below(self, where: 'str | Keys') -> 'Problem':
        """The same problem in options that are a part of others."""
        before = keys(where)
        return replace(
            self,
            path=before + self.path,
            shown=None if self.shown is None else before + self.shown,
            others=tuple(before + other for other in self.others),
        )

    def said_by(self, owner: str) -> 'Problem':
        """The same problem, with its place after the name of who found it: `PromptIR: heads[1]: ...`."""
        return replace(self, message=f'{owner}: {self}', shown=())


def problem(where: 'str | Keys', message: str, *options: Keys) -> Problem:
    """A problem with what is at a place.

    Args:
        where: what the text begins with.
        options: below `where`, those that the message names; the line is that of the first that is in the file.
            Default: `where` itself.
    """
    outer = keys(where)
    if not options:
        return Problem(outer, message)
    first, *others = [outer + option for option in options]
    return Problem(first, message, shown=outer, others=tuple(others))


def as_problem(problem: str | Problem) -> Problem:
    """A sentence as a problem without a place; a problem as it is."""
    return Problem((), problem) if isinstance(problem, str) else problem


def keys(where: 'str | Sequence[str | int]') -> Keys:
    """A place as keys; a text is a single one, '' the top."""
    if isinstance(where, str):
        return (where,) if where else ()
    return tuple(where)


def place(where: 'str | Sequence[str | int]') -> str:
    """How a place is shown: `datasets.train.tasks[1] (derain).copies`."""
    text = ''
    for key in keys(where):
        if isinstance(key, int):
            text += f'[{int(key)}]' + (f' ({key.name})' if isinstance(key, Item) else '')
        else:
            text += f'.{key}' if text else key
    return text
