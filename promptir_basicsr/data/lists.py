"""Lists of images: text files with one line per image.

A line may use either slash, start with `./` or with folders of another machine, omit the extension, or have several
columns, as long as it matches exactly one image. Other lines are reported as missing, with their numbers.
"""

import codecs
import io
import itertools
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from promptir_basicsr.core.files import open_regular
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.pictures.picture import EXTENSIONS, extension_of

_SEPARATOR = re.compile(r'[\s,;]+')


class Entry(NamedTuple):
    """A name as written, and its line in the file; 0 if it is from an option file."""

    text: str
    line: int = 0

    def __str__(self) -> str:
        return f'{self.text} ({self.place})' if self.line else self.text

    @property
    def place(self) -> str:
        return f'line {self.line}' if self.line else ''


class Listing(NamedTuple):
    """The result of reading a list.

    Attributes:
        names: names of existing images, each once, in the order of the list.
        entries: number of entries.
        missing: entries without an image, each with similar names.
        mistakes: messages about errors in the list itself.
        notes: messages about how it was read.
    """

    names: list[str]
    entries: int
    missing: list[tuple[Entry, list[str]]]
    mistakes: list[str]
    notes: list[str]


class Names:
    """The images of a source, found by the ways to write their names."""

    def __init__(self, names: Iterable[str], root: str | os.PathLike[str]) -> None:
        self._names = set(names)
        self._roots = {f'{path}/'.replace(os.sep, '/') for path in (os.path.abspath(root), os.path.realpath(root))}

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        stems = defaultdict(list)
        for name in sorted(self._names):
            stems[posixpath.splitext(name)[0]].append(name)
        return dict(stems)

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        folded: defaultdict[str, list[str]] = defaultdict(list)
        for stem, names in self._stems.items():
            folded[stem.casefold()] += names
        return dict(folded)

    def find(self, texts: Sequence[str]) -> tuple[list[str | None], str]:
        """The image of each text, and the leading folders that all texts share and that were ignored.

        Folders are ignored only if no text matches an image with them, and as few of them as possible.
        """
        paths = [text if text in self._names else self._path(text) for text in texts]
        found = [self._known(path) for path in paths]
        if any(found):
            return found, ''
        parts = [path.split('/') for path in paths]
        levels = itertools.takewhile(
            lambda level: len(set(level)) == 1, zip(*(part[:-1] for part in parts), strict=False)
        )
        shared = [level[0] for level in levels]
        tries = [(found, '')]
        for count in range(1, len(shared) + 1):
            shorter = ['/'.join(part[count:]) for part in parts]
            tries.append(([self._known(path) for path in shorter], '/'.join([*shared[:count], ''])))
        return max(tries, key=lambda each: sum(name is not None for name in each[0]))

    def like(self, text: str) -> list[str]:
        """Images that differ from a text only in the extension or in upper and lower case."""
        path = self._path(text).casefold()
        return self._folded.get(path) or self._folded.get(posixpath.splitext(path)[0], [])

    def is_own(self, folder: str) -> bool:
        """Whether leading folders are those of the source's own path."""
        return any(root.endswith(f'/{folder}') for root in self._roots)

    def _path(self, text: str) -> str:
        path = posixpath.normpath(text.replace('\\', '/'))
        return next((path[len(root) :] for root in self._roots if path.startswith(root)), path)

    def _known(self, path: str) -> str | None:
        if path in self._names:
            return path
        like = self._stems.get(path, [])
        return like[0] if len(like) == 1 else None


class Clear(NamedTuple):
    """The clear images of a paired task.

    Attributes:
        of: returns the clear image of a degraded one by the pairing rule, or None.
    """

    names: Names
    of: Callable[[str], str | None]


def read_list(path: str | os.PathLike[str], names: Names, clear: Clear | None = None) -> Listing:
    """Read a text file that lists images: UTF-8, UTF-16 with a byte order mark, or GB18030.

    Args:
        names: the images to choose from; for a paired task the degraded ones.
        clear: for a paired task, whose lists may have a column of clear images.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text.
    """
    with open_regular(path) as file:
        content = file.read()
    for text, exact, note in _decoded(content):
        lines = enumerate(io.StringIO(text, newline=None), 1)
        stripped = [Entry(line.strip(), number) for number, line in lines]
        entries = [entry for entry in stripped if entry.text and not entry.text.startswith('#')]
        listing = find_names(entries, names, clear)
        plain = all(entry.text.isascii() for entry in entries)
        if exact or plain or not all(name.isascii() for name in listing.names):
            return listing._replace(notes=[*([] if plain else note), *listing.notes])
    raise AssertionError  # _decoded raises if nothing fits


def _decoded(content: bytes) -> Iterator[tuple[str, bool, list[str]]]:
    """Possible decodings of the bytes: text, whether it is certain, and a note on the encoding.

    Raises:
        ValueError: the bytes are not text, or no decoding was accepted.
    """
    if b'\0' in content:
        if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or '\0' in content.decode('utf-16'):
            raise ValueError('it contains zero bytes; save it as UTF-8')
        yield content.decode('utf-16'), True, []
        return
    try:
        yield content.decode('utf-8-sig'), True, []
    except UnicodeDecodeError as error:
        yield content.decode('utf-8-sig', errors='surrogateescape'), False, []  # as file names are decoded
        with suppress(UnicodeDecodeError):
            yield content.decode('gb18030'), False, ['the list is read as GB18030']
        line = content.count(b'\n', 0, error.start) + 1
        raise ValueError(f'line {line} is not UTF-8; save it as UTF-8') from error


def find_names(entries: Sequence[Entry], names: Names, clear: Clear | None = None) -> Listing:
    """Find the images of entries; for `names` and `clear` see `read_list`."""
    texts = [entry.text for entry in entries]
    found, folder = names.find(texts)
    mistakes: list[str] = []
    notes: list[str] = []
    rows = [_SEPARATOR.split(text) for text in texts]
    if not any(found) and len(set(map(len, rows))) == 1 < len(rows[0]):
        column, mistakes = _choose(entries, list(zip(*rows, strict=True)), names, clear)
        if column is not None:
            entries = [Entry(row[column], entry.line) for row, entry in zip(rows, entries, strict=True)]
            found, folder = names.find([entry.text for entry in entries])
            notes.append(f'column {column + 1} of {len(rows[0])} of the list is used')
    if folder and not names.is_own(folder):
        notes.append(f"the leading '{folder}' of every entry of the list is ignored")
    first: dict[str, Entry] = {}
    missing, repeated = [], []
    for entry, name in zip(entries, found, strict=True):
        if name is None:
            missing.append((entry, names.like(entry.text)))
        elif (before := first.setdefault(name, entry)) is not entry:
            repeated.append(f'{entry}' + (f', first in {before.place}' if before.line else ''))
    if repeated:
        mistakes.append(
            f'{len(repeated):,} of {len(entries):,} entries repeat an earlier one: {first_few(repeated)}. '
            'Remove them. To repeat images, set `copies`.'
        )
    return Listing(list(first), len(entries), missing, mistakes, notes)


def _choose(
    entries: Sequence[Entry], columns: Sequence[Sequence[str]], names: Names, clear: Clear | None
) -> tuple[int | None, list[str]]:
    """The column to use, or None, and problems of the columns."""
    found = [names.find(column)[0] for column in columns]
    usable = [number for number, column in enumerate(found) if any(column)]
    images = [number for number, column in enumerate(columns) if extension_of(column[0]) in EXTENSIONS]
    images = sorted({*usable, *images})
    if not usable:
        return None, []
    if len(images) == 1 or (clear is None and len(usable) == 1):
        return usable[0], []
    if clear is None:
        return usable[0], [f'{len(usable)} columns name images of the folder ({entries[0]}). Write one name per line.']
    partners = [clear.names.find(column)[0] for column in columns]
    expected = {number: [name and clear.of(name) for name in found[number]] for number in usable}

    def agreeing(pair: tuple[int, int]) -> int:
        both = zip(expected[pair[0]], partners[pair[1]], strict=True)
        return sum(gt is not None and gt == partner for gt, partner in both)

    lq, gt = max((pair for pair in itertools.permutations(images, 2) if pair[0] in usable), key=agreeing)
    differing = [
        f'{entry}, expected {by_rule}'
        for entry, by_rule, partner in zip(entries, expected[lq], partners[gt], strict=True)
        if by_rule not in (None, partner)
    ]
    if not differing:
        return lq, []
    message = f'{len(differing):,} of {len(entries):,} lines contradict the pairing rule: '
    return lq, [f'{message}{first_few(differing)}. Fix the list or `pairing`.']
