"""Write a report as one self-contained HTML file, without external fonts, scripts or network access."""

import base64
import hashlib
import importlib.metadata
import importlib.resources
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.explain.page.embed import figure_markup, picture_uri
from promptir_basicsr.explain.page.model import Comparison, Figure, Report, Section, Table

_LOSSLESS = 8_000_000  # pixels of all images; with more, a lossless page would have more than about 25 MB


def write_page(path: str | Path, report: Report) -> None:
    """Write the page atomically.

    The same report results in the same bytes. Images are lossless, or JPEG of quality 95 above 8 megapixels in total;
    the last line of the page says which.

    Raises:
        OptionError: a table has rows of different lengths, or a comparison has images of different sizes.
        SaveError: the file could not be written.
        OSError: a figure cannot be read.

    Examples:
        >>> from promptir_basicsr.explain.page import Report, write_page
        >>> write_page('report.html', Report('Prompts', facts=[('Network', 'PromptIR')]))
        >>> '<title>' in open('report.html').read()
        True
    """
    text = render(report)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(text, path)


def render(report: Report) -> str:
    """Render the page as text; see `write_page`."""
    raise_problems([problem for section in report.sections for problem in _problems(section)])
    shown = [image for section in report.sections for each in section.comparisons for image in _images(each).values()]
    pixels = sum(image.shape[0] * image.shape[1] for image in shown)
    lossless = pixels <= _LOSSLESS
    files = importlib.resources.files(__package__)
    script, style = (files.joinpath(name).read_text(encoding='utf-8') for name in ('page.js', 'page.css'))
    digest = base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')
    environment = Environment(
        loader=PackageLoader(__package__, '.'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template('page.html').render(
        title=report.title,
        facts=[(name, _plain(value)) for name, value in report.facts],
        sections=_Numbering(lossless).sections(report.sections),
        pictures='lossless' if lossless else 'JPEG of quality 95',
        has_pictures=pixels > 0,
        version=importlib.metadata.version('promptir_basicsr'),
        script=Markup(script),
        style=Markup(style),
        digest=digest,
    )


class _Numbering:
    """Converts the parts of a report to template variables, with numbers."""

    def __init__(self, lossless: bool) -> None:
        self._lossless = lossless
        self._numbers: Counter[str] = Counter()
        self._ids: set[str] = set()

    def sections(self, sections: Sequence[Section]) -> list[dict[str, Any]]:
        return [
            {
                'id': self._id(section.title),
                'title': section.title,
                'paragraphs': [part.strip() for part in re.split(r'\n\s*\n', section.text) if part.strip()],
                'comparisons': [self._comparison(comparison) for comparison in section.comparisons],
                'figures': [self._figure(figure) for figure in section.figures],
                'tables': [self._table(table) for table in section.tables],
            }
            for section in sections
        ]

    def _shown(self, kind: str, shown: Comparison | Figure | Table) -> dict[str, Any]:
        """Common variables of comparisons, figures and tables; the heading is a sentence if a caption follows."""
        self._numbers[kind] += 1
        ends = not shown.caption or shown.title.endswith(('.', '?', '!', ':'))
        return {
            'id': f'{kind}-{self._numbers[kind]}',
            'number': self._numbers[kind],
            'title': shown.title,
            'heading': shown.title if ends else f'{shown.title}.',
            'caption': shown.caption,
        }

    def _comparison(self, shown: Comparison) -> dict[str, Any]:
        pictures = [
            {'role': role, 'name': name, 'uri': picture_uri(image, self._lossless)}
            for (role, image), name in zip(_images(shown).items(), shown.names, strict=False)
        ]
        height, width = shown.before.shape[:2]
        return {**self._shown('figure', shown), 'width': width, 'height': height, 'pictures': pictures}

    def _figure(self, figure: Figure) -> dict[str, Any]:
        shown = self._shown('figure', figure)
        svg, png = figure_markup(Path(figure.png), Path(figure.svg), f'{shown["id"]}-')
        return {**shown, 'svg': Markup(svg), 'png': png}

    def _table(self, table: Table) -> dict[str, Any]:
        values = [[row[column] for row in table.rows] for column in range(len(table.columns))]
        columns = [(str(name), _is_numeric(column)) for name, column in zip(table.columns, values, strict=True)]
        return {
            **self._shown('table', table),
            'columns': columns,
            'rows': list(zip(*map(_cells, values), strict=True)),
        }

    def _id(self, title: str) -> str:
        """A unique id for links, such as `prompt-weights`."""
        base = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-') or 'section'
        number, name = 1, f'{base}-section' if re.fullmatch(r'(figure|table)-\d+', base) else base
        while name in self._ids:
            number += 1
            name = f'{base}-{number}'
        self._ids.add(name)
        return name


def _cells(column: Sequence[object]) -> list[dict[str, str]]:
    """Format the values of a column; the number of decimals depends on the largest float."""
    numbers = [_number(value) for value in column]
    sizes = [abs(n) for n, value in zip(numbers, column, strict=True) if not isinstance(value, Integral)]
    largest = max(filter(math.isfinite, sizes), default=0.0)
    form = ',.4f' if largest <= 1 else ',.2f' if largest < 1000 else ',.0f'
    if 0 < largest < 1e-3:
        form = '.2e'
    keys = ['' if math.isnan(number) else repr(number) for number in numbers]
    return [{'text': _plain(value, form), 'value': key} for value, key in zip(column, keys, strict=True)]


def _plain(value: object, form: str = ',.6g') -> str:
    """Format a value; the format is for floats."""
    if isinstance(value, (bool, np.bool_)):
        return 'yes' if value else 'no'
    if value is None or not isinstance(value, Real):
        return '–' if value is None else str(value)
    number = float(value)
    if math.isnan(number):
        return '–'
    if isinstance(value, Integral):
        text = f'{abs(int(value)):,}'
    else:
        text = '∞' if math.isinf(number) else f'{abs(number):{form}}'
    return f'−{text}' if number < 0 else text


def _number(value: object) -> float:
    """The value as a float; NaN if it is not a number."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _is_numeric(column: Sequence[object]) -> bool:
    """Whether all known values of a column are numbers."""
    known = [value for value in column if value is not None]
    return bool(known) and all(isinstance(value, Real) and not isinstance(value, bool) for value in known)


def _images(shown: Comparison) -> dict[str, np.ndarray]:
    images = {'before': shown.before, 'after': shown.after, 'target': shown.target}
    return {role: image for role, image in images.items() if image is not None}


def _problems(section: Section) -> Iterator[str]:
    where = f"section '{section.title}'"
    for table in section.tables:
        for number, row in enumerate(table.rows, start=1):
            if len(row) != len(table.columns):
                yield (
                    f"{where}, table '{table.title}': row {number} has {len(row)} values for {len(table.columns)} "
                    'columns. Use None for unknown values.'
                )
    for shown in section.comparisons:
        shapes = {role: image.shape for role, image in _images(shown).items()}
        if any(len(shape) != 3 or shape[2] != 3 or 0 in shape for shape in shapes.values()):
            yield f"{where}, comparison '{shown.title}': images must be (H, W, 3), found {shapes}."
        elif len(set(shapes.values())) > 1:
            yield f"{where}, comparison '{shown.title}': images of different sizes, {shapes}. Crop them to one size."
