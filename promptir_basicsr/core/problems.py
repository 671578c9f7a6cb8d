"""Mistakes in options: their place, message and text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Keys = tuple[str | int, ...]
"""The place of an option: keys of mappings and indices of lists, from the top of the file."""

Kind = Literal['options', 'machine', 'missing', 'orphans', 'short']


class Item(int):
    """An index of a list with the name of the item; a protocol's tasks are changed by name."""

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

    Its text is `str(problem)`, used by the command line, the log and reports. The line in the option file is always
    that of `path`.

    Attributes:
        path: the option to change; () if there is no option, as for an argument of the command line.
        message: what was found and how to fix it.
        kind: `machine` for options that may be valid on another machine, `missing` and `orphans` for images without
            which the options are valid, `short` for what only a longer run would reach.
        items: the affected images, each with a detail.
        shown: what the text starts with instead of `path`, if the message names the rest of the path.
        others: more options involved. If `path` is not in the file, the line is that of the first of these that is.
    """

    path: Keys
    message: str
    kind: Kind = 'options'
    items: tuple[tuple[str, str], ...] = ()
    shown: Keys | None = None
    others: tuple[Keys, ...] = ()

    @property
    def place(self) -> Keys:
        """The place that the text starts with."""
        return self.path if self.shown is None else self.shown

    def __str__(self) -> str:
        where = place(self.place)
        return f'{where}: {self.message}' if where else self.message

    def below(self, where: 'str | Keys') -> 'Problem':
        """Return the same problem for options nested at `where`."""
        before = keys(where)
        return replace(
            self,
            path=before + self.path,
            shown=None if self.shown is None else before + self.shown,
            others=tuple(before + other for other in self.others),
        )

    def said_by(self, owner: str) -> 'Problem':
        """Return the same problem with the name of the class that found it first: `PromptIR: heads[1]: ...`."""
        return replace(self, message=f'{owner}: {self}', shown=())


def problem(where: 'str | Keys', message: str, *options: Keys) -> Problem:
    """Return a problem at a place.

    Args:
        where: place that the text starts with.
        options: options inside `where` that the message names; the line is that of the first that is in the file.
            Default: `where` itself.
    """
    outer = keys(where)
    if not options:
        return Problem(outer, message)
    first, *others = [outer + option for option in options]
    return Problem(first, message, shown=outer, others=tuple(others))


def as_problem(problem: str | Problem) -> Problem:
    """Return text as a problem without a place; return a problem unchanged."""
    return Problem((), problem) if isinstance(problem, str) else problem


def keys(where: 'str | Sequence[str | int]') -> Keys:
    """Return a place as keys; text is a single key, '' the top."""
    if isinstance(where, str):
        return (where,) if where else ()
    return tuple(where)


def place(where: 'str | Sequence[str | int]') -> str:
    """Return the text of a place: `datasets.train.tasks[1] (derain).copies`."""
    text = ''
    for key in keys(where):
        if isinstance(key, int):
            text += f'[{int(key)}]' + (f' ({key.name})' if isinstance(key, Item) else '')
        else:
            text += f'.{key}' if text else key
    return text
