"""What the page of `basicsr demo` shows: restored pictures, the weights of the prompts, examples. No gradio here."""

import html
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from promptir_basicsr.archs.traits import named_weights, unwrapped
from promptir_basicsr.core.arrays import pad_to_multiple, save_picture, to_bytes, to_float
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import printable
from promptir_basicsr.data.images import decode
from promptir_basicsr.data.sources import resolve
from promptir_basicsr.degradations.spec import Degrade
from promptir_basicsr.inference.restorer import Restorer, image_tensor
from promptir_basicsr.pictures.io import decode_picture, measure_picture, write_picture
from promptir_basicsr.pictures.picture import EXTENSIONS, Picture, PictureError

PREVIEW = 2048
"""Longest side of what the slider shows, in pixels; the file to download has all of them."""

_MIDDLE = 768  # side of what the weights are told of; that much is cheap next to the restoration
_MOST_EXAMPLES = 12
_EXAMPLES = (
    ('noise', 'astronaut.png', {'type': 'gaussian_noise', 'sigma': 25}),
    ('rain', 'coffee.png', {'type': 'rain', 'density': 45, 'intensity': 0.6}),
    ('haze', 'coffee.png', {'type': 'haze', 'beta': 0.09}),
    ('blur', 'astronaut.png', {'type': 'defocus_blur', 'radius': 3}),
    ('low light', 'astronaut.png', {'type': 'low_light', 'exposure': 0.15, 'cast': 0}),
)


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored picture as the page shows it.

    Attributes:
        before, after: (H, W, 3) RGB uint8, reduced to at most PREVIEW pixels a side.
        file: the restored picture, at the input's size, depth and format.
        size: height and width of the picture.
        weights: level -> prompt -> weight; empty where the network has none.
        part: what the weights are of, in words; '' for the whole picture.
        seconds: of the restoration.
        notes: what was changed about the picture, in words.
    """

    before: np.ndarray
    after: np.ndarray
    file: Path
    size: tuple[int, int]
    weights: Mapping[str, Mapping[str, float]]
    part: str
    seconds: float
    notes: Sequence[str]


def restore_upload(
    restorer: Restorer,
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    most_pixels: int,
    degradation: Any = None,
    strength: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore a file for the page.

    Args:
        folder: where the restored file goes.
        most_pixels: larger pictures are refused.
        degradation, strength, progress: as of `Restorer.restore`.

    Raises:
        ValueError: in words for the page: no picture, too large, or the network does not understand what it is told.
    """
    name = printable(os.path.basename(path))
    picture = read_upload(path, most_pixels)
    restorer.check_labels(degradation, strength)
    begun = time.perf_counter()
    restored = restorer.restore(picture.image, degradation, strength, progress)
    seconds = time.perf_counter() - begun
    weights, part = prompt_shares(restorer, picture.image, degradation)
    target = Path(folder) / f'{Path(name).stem}_restored{_ending(picture, name)}'
    result = picture.with_image(restored)
    write_picture(target, result, picture.format)
    before, after = preview(picture.image), preview(restored)
    return Restored(before, after, target, picture.size, weights, part, seconds, result.notes)


def read_upload(path: str | os.PathLike[str], most_pixels: int) -> Picture:
    """A picture that is not too large; it is not decoded to find out.

    Raises:
        PictureError: no picture, or too large.
    """
    name = f"'{printable(os.path.basename(path))}'"
    size = measure_picture(path)
    if size is not None:
        _check_size(name, size, most_pixels)
    picture = decode_picture(Path(path).read_bytes(), name)
    _check_size(name, picture.size, most_pixels)
    return picture


def _check_size(name: str, size: tuple[int, int], most_pixels: int) -> None:
    height, width = size
    if height * width > most_pixels:
        raise PictureError(
            f'{name} has {width:,} x {height:,} pixels, {height * width / 1e6:.1f} megapixels. This page takes at most '
            f'{most_pixels / 1e6:g}: crop or reduce it. `basicsr restore` has no limit.'
        )


def _ending(picture: Picture, name: str) -> str:
    """The ending of the upload where it tells the format of the result, else that of the format."""
    usual = {'JPEG': ('.jpg', '.jpeg'), 'TIFF': ('.tif', '.tiff'), 'PPM': ('.ppm', '.pgm', '.pnm')}
    endings = usual.get(picture.format, (f'.{picture.format.lower()}',))
    ending = os.path.splitext(name)[1]
    return ending if ending.lower() in endings else endings[0]


def preview(image: np.ndarray) -> np.ndarray:
    """An image of any kind -> (H', W', 3) RGB uint8 for a screen, at most PREVIEW pixels a side; alpha is left out."""
    image = image if image.dtype == np.uint8 else to_bytes(to_float(image))
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels <= 2:
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    image = np.ascontiguousarray(image[..., :3])
    longest = max(image.shape[:2])
    if longest <= PREVIEW:
        return image
    height, width = (max(1, round(side * PREVIEW / longest)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


@torch.no_grad()
def prompt_shares(
    restorer: Restorer, image: np.ndarray, degradation: Any = None
) -> tuple[dict[str, dict[str, float]], str]:
    """How much of each prompt a picture is given: level -> prompt -> weight, and what part of it was looked at.

    It is the whole, or the middle of large pictures: reducing them would take away their noise.
    """
    net, traits = unwrapped(restorer.net), restorer.traits
    if not traits.has_prompt_weights or traits.levels == ():
        return {}, ''
    whole = image_tensor(image, restorer.channels)[None].to(restorer.device)
    if traits.takes_degradation and degradation is None:
        degradation = net.degradation_weights(whole)  # the sensor sees all of the picture, as in the restoration
    height, width = whole.shape[-2:]
    top, left = max(0, height - _MIDDLE) // 2, max(0, width - _MIDDLE) // 2
    part = whole[..., top : top + _MIDDLE, left : left + _MIDDLE]
    shares = named_weights(net, pad_to_multiple(part, traits.size_multiple), degradation)
    cut = part.shape != whole.shape and not traits.takes_degradation
    return shares, f'the middle {part.shape[-1]} x {part.shape[-2]} pixels' if cut else ''


def comparison_markup(before: str, after: str, width: int) -> str:
    """Two pictures on each other and the edge between them, as HTML: a slider that a pointer and the keyboard move.

    Args:
        before, after: addresses of the pictures, RGB.
        width: of both, in pixels.
    """
    first, second = html.escape(before), html.escape(after)
    return (
        f'<div class="comparison" style="--edge: 50%; --width: {width}px"><div class="view" tabindex="0" role="group" '
        f'aria-label="Before and after"><div class="frame"><img src="{first}" alt="Before">'
        f'<img class="after" src="{second}" alt="After"><input type="range" step="0.5" aria-label="Edge: before is '
        "left of it, after is right\" oninput=\"this.closest('.comparison').style.setProperty('--edge', "
        "this.value + '%')\"></div></div><p>Before (left) and after (right)"
        '<label><input type="checkbox"> Actual size</label></p></div>'
    )


def weights_markup(weights: Mapping[str, Mapping[str, float]], part: str = '') -> str:
    """A table of bars as HTML: a row a prompt, a column a level. Nothing for no weights."""
    if not weights:
        return ''
    levels = list(weights)
    names = list(dict.fromkeys(name for shares in weights.values() for name in shares))
    heads = ''.join(f'<th scope="col">{html.escape(_level_name(level))}</th>' for level in levels)
    rows = ''.join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + ''.join(_bar(weights[level].get(name, math.nan)) for level in levels)
        + '</tr>'
        for name in names
    )
    of = f' in {html.escape(part)}' if part else ''
    return (
        f'<table class="prompt-weights"><caption>How much of each prompt the network has used{of}</caption>'
        f'<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _bar(share: float) -> str:
    if math.isnan(share):
        return '<td>–</td>'
    percent = f'{100 * share:.0f} %'
    return f'<td><span class="bar"><span style="width: {100 * share:.1f}%"></span></span><span>{percent}</span></td>'


def _level_name(level: str) -> str:
    """`level 3` of `level3`."""
    return re.sub(r'(?<=\D)(?=\d)', ' ', level)


def summary(restored: Restored, device: str) -> str:
    """A line on a restored picture, in Markdown without any."""
    height, width = restored.size
    pixels = height * width / 1e6
    line = f'{width:,} x {height:,} pixels in {restored.seconds:.1f} s on the {device} '
    line += f'({pixels / max(restored.seconds, 1e-9):.2g} megapixels/s).'
    if max(restored.size) > PREVIEW:
        line += f' The slider shows it reduced to {PREVIEW:,} pixels; the file has all.'
    return ' '.join([line, *(f'{note[:1].upper()}{note[1:]}.' for note in restored.notes)])


def make_examples(folder: Path) -> list[tuple[str, Path]]:
    """Degraded photographs of scikit-image: name and file of each."""
    made = []
    for name, photograph, spec in _EXAMPLES:
        path = resolve(f'skimage://{photograph}')
        image = decode(path.read_bytes(), str(path))
        degraded = Degrade(spec)(to_float(image), np.random.default_rng(0))
        target = folder / f'{path.stem}_{name.replace(" ", "_")}.png'
        save_picture(to_bytes(degraded), target)
        made.append((name, target))
    return made


def copy_examples(source: Path, folder: Path) -> list[tuple[str, Path]]:
    """The first pictures of a folder, copied: name and file of each.

    Raises:
        OptionError: there is no such folder, or no picture in it.
    """
    if not source.is_dir():
        raise OptionError(f"--examples: '{source}' is not a folder.")
    found = sorted(path for path in source.iterdir() if path.suffix[1:].lower() in EXTENSIONS and path.is_file())
    readable = [path for path in found if measure_picture(path) is not None][:_MOST_EXAMPLES]
    if not readable:
        raise OptionError(f"--examples: there is no picture in '{source}'. Allowed: {', '.join(EXTENSIONS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in readable:
        atomic_write(path.read_bytes(), folder / path.name)
    return [(path.stem, folder / path.name) for path in readable]


def remove_older(folder: Path, seconds: float) -> None:
    """Remove the subfolders that were made longer ago."""
    limit = time.time() - seconds
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.stat().st_mtime < limit:
            shutil.rmtree(each, ignore_errors=True)
