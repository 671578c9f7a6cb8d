"""Figures of `basicsr explain`.

They do not use matplotlib's `pyplot`, so they share no state with other figures of a program. Colours are those of
Okabe and Ito, which are distinguishable with any colour vision; every colour also has its own marker.

Shapes: n images, T tasks, K prompts of a level, D channels, S prompt size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.explain.scores import ALL_LEVELS, Score, principal_components

DPI = 150
WIDTH = 7.0
"""Width of a figure in inches: both columns of a paper."""

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#999999', '#000000')
MARKERS = 'osD^vPX*'
GREY = '#767676'
SEQUENTIAL, DIVERGING = 'cividis', 'PuOr'
"""Colour maps for non-negative values, and for values of either sign."""

RC: dict[Any, Any] = {
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],  # part of matplotlib, so figures are the same everywhere
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

Array = np.ndarray

LEAST_SPAN = 0.1
"""In dB: smallest range of the colour map, so that small differences do not get the strongest colours."""

_MOST_COLUMNS = 4  # of small maps side by side
_TILE = 0.62  # inches per prompt drawn as an image


@contextmanager
def style() -> Iterator[None]:
    """Context for making and writing figures, independent of the user's matplotlib settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def drawing(height: float, width: float = WIDTH) -> Drawing:
    """Create an empty figure; sizes in inches."""
    return Drawing(figsize=(width, height), layout='constrained')


def save_both(figure: Drawing, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.png and NAME.svg, reproducibly to the byte. Returns both paths."""
    png, svg = folder / f'{name}.png', folder / f'{name}.svg'
    _print(FigureCanvasAgg(figure), png, 'png', {'Software': None})
    figure.set_layout_engine('none')  # keeps the layout, so both files are alike
    _print(FigureCanvasSVG(figure), svg, 'svg', {'Date': None})
    return png, svg


def _print(canvas: Any, path: Path, kind: str, metadata: Mapping[str, Any]) -> None:
    atomic_write(lambda file: canvas.print_figure(file, dpi=DPI, format=kind, metadata=metadata), path)


def words(name: str) -> str:
    """Readable name of a task, a degradation or a level: `denoise_25` is `Noise 25`."""
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
    """Draw values (R, C) as coloured cells. Returns the mesh, for a colour bar.

    Args:
        form: format of the numbers in the cells; '' for no numbers.
        numbers: (R, C), shown instead of the values.
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
                number: Any = value if numbers is None else numbers[row, column]
                text = in_digits(number, form)
                axes.text(column + 0.5, row + 0.5, text, ha='center', va='center', color=colour, fontsize=size)
    return mesh


def slant(axes: Axes, degrees: float) -> None:
    """Rotate the labels below a map, so that they end below their columns."""
    for text in axes.get_xticklabels():
        text.set(rotation=degrees, ha='right', rotation_mode='anchor')


def in_digits(value: float, form: str) -> str:
    """Format a value for figures: with a minus sign, but none before zero."""
    text = format(value, form)
    return text.replace('-', '\N{MINUS SIGN}') if text.strip('-0.') else text.lstrip('-')


def _ink(colour: Any) -> str:
    """Black or white, whichever is more readable on a colour."""
    red, green, blue = colour[:3]
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else 'white'


def weights_figure(weights: Mapping[str, Array], tasks: Array, names: Sequence[str]) -> Drawing:
    """Heat maps of the weights, one row per image: {level: (n, K)}, tasks (n,) ids, T names."""
    order = np.argsort(tasks, kind='stable')
    edges = np.cumsum(np.bincount(tasks, minlength=len(names)))
    figure, panels = _panels(len(weights), min(max(0.08 * len(tasks) + 0.9, 2.2), 8.0))
    high = max(1e-9, *(float(each.max()) for each in weights.values()))
    for number, (axes, (level, each)) in enumerate(zip(panels, weights.items(), strict=True)):
        mesh = heat_map(axes, each[order], [''] * len(order), _numbers(each), low=0, high=high)
        axes.hlines(edges[:-1], 0, each.shape[1], color='white', linewidth=1.2)
        middles = edges - np.bincount(tasks, minlength=len(names)) / 2
        axes.set_yticks(middles, map(words, names) if number % _MOST_COLUMNS == 0 else [''] * len(names))
        axes.set(title=words(level), xlabel='Prompt')
    figure.colorbar(mesh, ax=panels, label='Weight', fraction=0.03, pad=0.02)
    return figure


def mean_weights_figure(means: Mapping[str, Array], names: Sequence[str]) -> Drawing:
    """Heat maps of the mean weight of each prompt in each task, with numbers: {level: (T, K)}."""
    figure, panels = _panels(len(means), max(0.28 * len(names) + 0.9, 1.8))
    high = max(1e-9, *(float(each.max()) for each in means.values()))
    for number, (axes, (level, each)) in enumerate(zip(panels, means.items(), strict=True)):
        rows = list(map(words, names)) if number % _MOST_COLUMNS == 0 else [''] * len(names)
        mesh = heat_map(axes, each, rows, _numbers(each), low=0, high=high, form='.2f')
        axes.set(title=words(level), xlabel='Prompt')
    figure.colorbar(mesh, ax=panels, label='Mean weight', fraction=0.03, pad=0.02)
    return figure


def scores_figure(scores: Mapping[str, Score], unit: str) -> Drawing:
    """Scores with chance and untrained networks, one row each."""
    figure = drawing(0.32 * len(scores) + 1.1, WIDTH * 0.75)
    axes = figure.subplots()
    for row, score in enumerate(scores.values()):
        axes.plot(score.untrained, [row] * len(score.untrained), '|', color=GREY, markersize=9)
        axes.plot(score.chance, row, 'o', markerfacecolor='white', markeredgecolor='black', markersize=5)
        axes.plot(score.value, row, 'D', color=COLOURS[0], markersize=6)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel(unit)
    axes.grid(axis='y', color='0.9', linewidth=0.6)
    axes.set_axisbelow(True)
    marks = [
        Line2D([], [], color=COLOURS[0], marker='D', linestyle='', label='This network'),
        Line2D([], [], color=GREY, marker='|', markersize=9, linestyle='', label='Untrained networks'),
        Line2D([], [], markerfacecolor='white', markeredgecolor='black', marker='o', linestyle='', label='Shuffled'),
    ]
    if not any(score.untrained for score in scores.values()):
        del marks[1]
    figure.legend(handles=marks, loc='outside upper center', ncols=3)
    return figure


def embedding_figure(
    maps: Mapping[str, tuple[Array, str, str]], tasks: Array, names: Sequence[str], columns: int = 3
) -> Drawing:
    """Points of the images in one or more planes, with one colour and marker per task.

    Args:
        maps: title -> coordinates (n, 2), and the labels of both axes; '' for axes without a meaning.
    """
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure = drawing(WIDTH / max(columns, 2) * rows * 0.95 + 0.4)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    for axes, (title, (points, across, up)) in zip(panels, maps.items(), strict=False):
        for task in range(len(names)):
            mine = points[tasks == task]
            axes.plot(mine[:, 0], mine[:, 1], **_mark(task), markersize=4.5, alpha=0.85)
        axes.set(title=title, xlabel=across, ylabel=up)
        axes.locator_params(nbins=4)
        if not across:
            axes.set(xticks=[], yticks=[])
    handles = [Line2D([], [], **_mark(task), label=words(name)) for task, name in enumerate(names)]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(6, len(names)))
    return figure


def _mark(task: int) -> dict:
    turn = task // len(COLOURS)  # beyond eight tasks the markers change
    return {
        'color': COLOURS[task % len(COLOURS)],
        'marker': MARKERS[(task + turn) % len(MARKERS)],
        'linestyle': '',
        'markeredgecolor': 'white',
        'markeredgewidth': 0.4,
    }


def prompts_figure(pictures: Mapping[str, Array]) -> Drawing:
    """Prompts as images, two rows per level: three principal components as RGB, and the mean channel.

    Args:
        pictures: level -> (K, D, S, S). Components and ranges are those of all prompts of the level, so equal colours
            mean equal content within a row.
    """
    count = max(len(each) for each in pictures.values())
    figure = drawing(2 * len(pictures) * (_TILE + 0.17) + 0.3, max(1.2 + count * (_TILE + 0.1), 3.0))
    panels = figure.subplots(2 * len(pictures), count, squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    for number, (level, each) in enumerate(pictures.items()):
        side = f'{each.shape[2]}×{each.shape[3]}'
        kinds = {'components': component_images(each), 'mean': _stretched(each.mean(axis=1))}
        for row, (kind, images) in enumerate(kinds.items()):
            line = panels[2 * number + row]
            line[0].set_axis_on()
            line[0].set(xticks=[], yticks=[])
            for spine in line[0].spines.values():
                spine.set_visible(False)
            label = f'{words(level)}\n{side}\n{kind}' if row == 0 else kind
            line[0].set_ylabel(label, rotation=0, ha='right', va='center')
            for prompt, image in enumerate(images):
                line[prompt].imshow(enlarged(image), cmap='gray', vmin=0, vmax=1)
                if row == 0 and len(each) > 1:
                    line[prompt].set_title(f'{prompt + 1}', fontsize=8, pad=2)
    return figure


def component_images(prompts: Array) -> Array:
    """Principal components of the channels over all pixels and prompts: (K, D, S, S) -> (K, S, S, 3) in [0, 1]."""
    count, channels, height, width = prompts.shape
    pixels = prompts.transpose(0, 2, 3, 1).reshape(-1, channels)
    found, _ = principal_components(pixels, 3)
    return _stretched(found, axis=0).reshape(count, height, width, 3)


def _stretched(x: Array, axis: int | None = None) -> Array:
    """Map the 2nd to 98th percentile to [0, 1]; constant values become grey."""
    low, high = np.percentile(x, [2, 98], axis=axis, keepdims=True)
    span = high - low
    return np.clip(np.where(span > 0, (x - low) / np.where(span > 0, span, 1), 0.5), 0, 1)


def enlarged(image: Array, least: int = 128) -> Array:
    """Repeat the pixels of (S, S[, 3]) until a side has at least `least`, so that viewers do not smooth them."""
    times = -(-least // min(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def similarity_figure(matrices: Mapping[str, Array], names: Sequence[str] | None = None) -> Drawing:
    """Cosine similarity of the prompts of each level: {level: (K, K)}; optional names of the K."""
    figure, panels = _panels(len(matrices), 2.6 if names is None else 3.0)
    for number, (axes, (level, each)) in enumerate(zip(panels, matrices.items(), strict=True)):
        labels = list(map(words, names)) if names else _numbers(each)
        first = number % _MOST_COLUMNS == 0
        rows = labels if first else [''] * len(labels)
        mesh = heat_map(axes, each, rows, labels, low=-1, high=1, colours=DIVERGING, form='.2f')
        axes.set(title=words(level), aspect='equal')
        if names is None:
            axes.set(xlabel='Prompt', ylabel='Prompt' if first else '')
        else:
            slant(axes, 60)
    figure.colorbar(mesh, ax=panels, label='Cosine similarity', fraction=0.03, pad=0.02)
    return figure


def vectors_figure(vectors: Mapping[str, Array], names: Sequence[str]) -> Drawing:
    """PIP's degradation prompts, one row per degradation and one column per channel: {level: (T, D)}."""
    figure = drawing((0.17 * len(names) + 0.55) * len(vectors) + 0.3)
    panels = np.atleast_1d(figure.subplots(len(vectors), 1))
    high = max(1e-9, *(float(np.abs(each).max()) for each in vectors.values()))
    for axes, (level, each) in zip(panels, vectors.items(), strict=True):
        mesh = heat_map(axes, each, list(map(words, names)), [], low=-high, high=high, colours=DIVERGING)
        axes.set_title(f'{words(level)}, {each.shape[1]} channels')
    figure.colorbar(mesh, ax=panels, label='Value', fraction=0.03, pad=0.02)
    return figure


def effects_figure(
    effects: Mapping[str, Array], names: Sequence[str], columns: Mapping[str, Sequence[str]], label: str
) -> Drawing:
    """Effect of changes on each task in dB, by level: {level: (T, changes)}, {level: names of the changes}."""
    figure = drawing((0.24 * len(names) + 1.15) * len(effects) + 0.3)
    panels = np.atleast_1d(figure.subplots(len(effects), 1))
    finite = [np.abs(each[np.isfinite(each)]) for each in effects.values()]
    high = max(LEAST_SPAN, *(float(each.max(initial=0)) for each in finite))
    for axes, (level, each) in zip(panels, effects.items(), strict=True):
        rows = list(map(words, names))
        mesh = heat_map(axes, each, rows, columns[level], low=-high, high=high, colours=DIVERGING, form='.2f')
        axes.set_title(words(level))
        slant(axes, 35)
    figure.colorbar(mesh, ax=panels, label=label, fraction=0.03, pad=0.02)
    return figure


def curves_figure(curves: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> Drawing:
    """Learning curves: name -> (iteration, value) of each validation."""
    figure = drawing(3.0, WIDTH)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        mark = MARKERS[number % len(MARKERS)]
        axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[number % len(COLOURS)], marker=mark, ms=3, lw=1)
    axes.set(xlabel='iteration', ylabel=unit)
    axes.legend()
    return figure


def table_figure(
    values: Array, rows: Sequence[str], columns: Sequence[str], across: str, up: str, form: str, shades: Array | None
) -> Drawing:
    """A matrix of numbers (R, C), shaded by their values or by `shades` (R, C) in dB."""
    figure = drawing(0.34 * len(rows) + 1.2, min(WIDTH, 0.75 * len(columns) + 2.2))
    axes: Axes = figure.subplots()
    if shades is None:
        heat_map(axes, values, rows, columns, low=0, high=max(1e-9, float(values.max())), form=form)
    else:
        high = max(LEAST_SPAN, float(np.abs(shades[np.isfinite(shades)]).max(initial=0)))
        heat_map(axes, shades, rows, columns, low=-high, high=high, colours=DIVERGING, form=form, numbers=values)
    axes.set(xlabel=across, ylabel=up)
    if max(map(len, columns)) > 6:
        slant(axes, 30)
    return figure


def _panels(count: int, height: float) -> tuple[Drawing, list[Axes]]:
    """Create a figure with panels in rows of at most a few; `height` is the height of a row."""
    across = min(count, _MOST_COLUMNS)
    down = -(-count // across)
    figure = drawing(height * down, WIDTH if across > 1 else WIDTH * 0.6)
    panels = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, list(panels[:count])


def _numbers(matrix: Array) -> list[str]:
    return [str(number + 1) for number in range(matrix.shape[1])]
