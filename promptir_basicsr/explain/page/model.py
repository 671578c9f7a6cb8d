"""Content of a report, independent of its appearance. Texts are plain text, which the page escapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A drawing in two files.

    Attributes:
        png: shown if the SVG is missing or too large.
        svg: shown in the page if possible.

    Examples:
        >>> from pathlib import Path
        >>> from promptir_basicsr.explain.page import Figure
        >>> Figure('Weights', Path('weights.png'), Path('weights.svg')).svg.name
        'weights.svg'
    """

    title: str
    png: Path
    svg: Path
    caption: str = ''


@dataclass(frozen=True)
class Table:
    """Rows of values, which the page formats.

    Attributes:
        rows: one value per column: text, numbers, bools, or None for unknown values.

    Examples:
        >>> from promptir_basicsr.explain.page import Table
        >>> table = Table('PSNR', columns=['task', 'PSNR'], rows=[['derain', 36.4], ['dehaze', None]])
        >>> len(table.rows)
        2
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ''


@dataclass(frozen=True, eq=False)
class Comparison:
    """An image before and after restoration, and its target if known, all of the same size.

    Attributes:
        before, after, target: (H, W, 3) RGB, float [0, 1] or uint8.
        names: names of the three in the page.

    Examples:
        >>> from promptir_basicsr.explain.page import Comparison
        >>> dark = np.zeros((8, 8, 3), np.uint8)
        >>> Comparison('coffee', before=dark, after=dark + 128).names
        ('Input', 'Restored', 'Target')
    """

    title: str
    before: np.ndarray
    after: np.ndarray
    target: np.ndarray | None = None
    caption: str = ''
    names: tuple[str, str, str] = ('Input', 'Restored', 'Target')


@dataclass(frozen=True)
class Section:
    """A chapter, in the order text, comparisons, figures, tables.

    Attributes:
        text: paragraphs, separated by empty lines.

    Examples:
        >>> from promptir_basicsr.explain.page import Section, Table
        >>> section = Section('Weights', tables=[Table('By task', ['task', 'weight'], [['derain', 0.25]])])
        >>> section.tables[0].rows
        [['derain', 0.25]]
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
        facts: names and values at the head of the page, such as ('Network', 'PromptIR').

    Examples:
        >>> from promptir_basicsr.explain.page import Report, Section
        >>> report = Report('Prompts', facts=[('Network', 'PromptIR')], sections=[Section('Weights', 'One paragraph.')])
        >>> len(report.sections)
        1
    """

    title: str
    facts: Sequence[tuple[str, object]] = ()
    sections: Sequence[Section] = ()
