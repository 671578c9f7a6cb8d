"""How the figures of `basicsr explain` look, and how they are written.

Nothing of matplotlib's `pyplot` is used, so no state is shared with a program that draws figures of its own. Colours
are those of Okabe and Ito, which people with any colour vision tell apart; every colour has a marker of its own, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing

from promptir_basicsr.explaining.score_util import ALL_LEVELS

DPI = 150
WIDTH = 7.0
"""Of a figure in inches: both columns of a paper."""

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#999999', '#000000')
MARKERS = 'osD^vPX*'
GREY = '#767676'
SEQUENTIAL, DIVERGING = 'cividis', 'PuOr'
"""Colour maps for values from 0 up, and for values of either sign."""

RC: dict[Any, Any] = {
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],  # comes with matplotlib, so figures are the same everywhere
    'font.size': 8,
    'axes.titlesize': 9,
    'axes.labelsize': 8,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.6,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'image.interpolation': 'nearest',
    'svg.hashsalt': 'promptir_basicsr',
    'svg.fonttype': 'path',
}

_WORDS = {'denoise': 'Noise', 'derain': 'Rain', 'dehaze': 'Haze', 'deblur': 'Blur', 'lowlight': 'Low light'}


@contextmanager
def style() -> Iterator[None]:
    """A context in which figures are made and written, whatever settings of matplotlib the user has."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def drawing(height: float, width: float = WIDTH) -> Drawing:
    """An empty figure, in inches."""
    return Drawing(figsize=(width, height), layout='constrained')


def save(figure: Drawing, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.svg; the same figure gives the same bytes. Returns both paths."""
    png, svg = folder / f'{name}.png', folder / f'{name}.svg'
    FigureCanvasAgg(figure).print_figure(png, dpi=DPI, metadata={'Software': None})
    figure.set_layout_engine('none')  # what was laid out stays, for both files alike
    FigureCanvasSVG(figure).print_figure(svg, dpi=DPI, format='svg', metadata={'Date': None})
    return png, svg


def words(name: str) -> str:
    """The name of a task, a degradation or a level for people: `denoise_25` is `Noise 25`."""
    for known, word in _WORDS.items():
        if name == known or name.startswith(f'{known}_'):
            return f'{word}{name.removeprefix(known).replace("_", " ")}'
    if name.startswith('level') and name[5:].isdecimal():
        return f'Level {name[5:]}'
    return 'All levels' if name == ALL_LEVELS else name.replace('_', ' ')


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    colours: str = SEQUENTIAL,
    form: str = '',
    numbers: np.ndarray | None = None,
) -> Any:
    """Values (R, C) as coloured cells. Returns what a colour bar needs.

    Args:
        form: of the numbers in the cells; none where it is empty.
        numbers: (R, C), instead of the values.
    """
    mesh = axes.pcolormesh(values, cmap=colours, vmin=low, vmax=high, edgecolors='face', linewidth=0.1)
    axes.set_xticks(np.arange(values.shape[1]) + 0.5, columns)
    axes.set_yticks(np.arange(values.shape[0]) + 0.5, rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.invert_yaxis()
    if form:
        size = 7 if values.shape[1] <= 12 else 5.5
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = _ink(mesh.cmap(mesh.norm(value)))
                text = in_digits(float(value if numbers is None else numbers[row, column]), form)
                axes.text(column + 0.5, row + 0.5, text, ha='center', va='center', color=colour, fontsize=size)
    return mesh


def slant(axes: Axes, degrees: float) -> None:
    """Turn the labels below a map, so that their ends stand below their columns."""
    for text in axes.get_xticklabels():
        text.set(rotation=degrees, ha='right', rotation_mode='anchor')


def in_digits(value: float, form: str) -> str:
    """A value as figures show it: with a real minus, and none before zero."""
    text = format(value, form)
    return text.replace('-', '\N{MINUS SIGN}') if text.strip('-0.') else text.lstrip('-')


def _ink(colour: Any) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = colour[:3]
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else 'white'
