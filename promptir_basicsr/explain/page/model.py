"""What a report says, without a word on how it looks. Every text is plain text; the page escapes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A drawing that is there as two files.

    Attributes:
        png: for eyes without SVG, and for what is too large as SVG.
        svg: what the page shows where it can.
    """

    title: str
    png: Path
    svg: Path
    caption: str = ''


@dataclass(frozen=True)
class Table:
    """Rows of values as they are; the page formats them.

    Attributes:
        rows: as many values each as there are columns: text, numbers, bools, or None for what is not known.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ''


@dataclass(frozen=True, eq=False)
class Comparison:
    """A picture before and after, of equal sizes, and what it should be where that is known.

    Attributes:
        before, after, target: (H, W, 3) RGB, float [0, 1] or uint8.
        names: what the page calls the three.
    """

    title: str
    before: np.ndarray
    after: np.ndarray
    target: np.ndarray | None = None
    caption: str = ''
    names: tuple[str, str, str] = ('Input', 'Restored', 'Target')


@dataclass(frozen=True)
class Section:
    """A chapter; its parts stand in the order text, comparisons, figures, tables.

    Attributes:
        text: paragraphs, with an empty line between them.
    """

    title: str
    text: str = ''
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    comparisons: Sequence[Comparison] = ()


@dataclass(frozen=True)
class Report:
    """A whole page.

    Attributes:
        facts: names and values that stand at the head, such as ('Network', 'PromptIR').
    """

    title: str
    facts: Sequence[tuple[str, object]] = ()
    sections: Sequence[Section] = ()
