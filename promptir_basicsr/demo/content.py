"""Content of the page of `basicsr demo`, without gradio: restored images, prompt weights, examples."""

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
"""Longest side of the preview in the slider, in pixels; the file to download has the full size."""

_MIDDLE = 768  # side of the crop whose prompt weights are shown; cheap compared with the restoration
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
    """A restored image for the page.

    Attributes:
        before, after: (H, W, 3) RGB uint8, reduced to sides of at most PREVIEW pixels.
        file: the restored image, with the input's size, bit depth and format.
        size: height and width of the image.
        weights: level -> prompt -> weight; empty if the network has none.
        part: description of the crop of the weights; '' for the whole image.
        seconds: duration of the restoration.
        notes: messages about changes of the image, such as its format.
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
        folder: folder of the restored file.
        most_pixels: larger images are refused.
        degradation, strength, progress: as in `Restorer.restore`.

    Raises:
        ValueError: with a message for the page: not an image, too large, or labels that the network does not know.
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
    """Read an image; its size is checked before it is decoded.

    Raises:
        PictureError: not an image, or too large.
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
            f'{name} has {width:,} x {height:,} pixels, {height * width / 1e6:.1f} megapixels. This page accepts at '
            f'most {most_pixels / 1e6:g}. Crop or reduce it, or use `basicsr restore`, which has no limit.'
        )


def _ending(picture: Picture, name: str) -> str:
    """The upload's extension if it matches the format of the result, else the usual one of the format."""
    usual = {'JPEG': ('.jpg', '.jpeg'), 'TIFF': ('.tif', '.tiff'), 'PPM': ('.ppm', '.pgm', '.pnm')}
    endings = usual.get(picture.format, (f'.{picture.format.lower()}',))
    ending = os.path.splitext(name)[1]
    return ending if ending.lower() in endings else endings[0]


def preview(image: np.ndarray) -> np.ndarray:
    """Preview of any image: (H', W', 3) RGB uint8 with sides of at most PREVIEW pixels, without alpha."""
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
    """Prompt weights of an image, level -> prompt -> weight, and a description of the crop that was used.

    It is the whole image, or the centre of a large one, because reducing it would remove its noise.
    """
    net, traits = unwrapped(restorer.net), restorer.traits
    if not traits.has_prompt_weights or traits.levels == ():
        return {}, ''
    whole = image_tensor(image, restorer.channels)[None].to(restorer.device)
    if traits.takes_degradation and degradation is None:
        degradation = net.degradation_weights(whole)  # the sensor sees the whole image, as in the restoration
    height, width = whole.shape[-2:]
    top, left = max(0, height - _MIDDLE) // 2, max(0, width - _MIDDLE) // 2
    part = whole[..., top : top + _MIDDLE, left : left + _MIDDLE]
    shares = named_weights(net, pad_to_multiple(part, traits.size_multiple), degradation)
    cut = part.shape != whole.shape and not traits.takes_degradation
    return shares, f'the central {part.shape[-1]} x {part.shape[-2]} pixels' if cut else ''


def comparison_markup(before: str, after: str, width: int) -> str:
    """HTML of a before/after slider, which works with pointer and keyboard.

    Args:
        before, after: URLs of the images, RGB.
        width: of both, in pixels.
    """
    first, second = html.escape(before), html.escape(after)
    return (
        f'<div class="comparison" style="--edge: 50%; --width: {width}px"><div class="view" tabindex="0" role="group" '
        f'aria-label="Before and after"><div class="frame"><img src="{first}" alt="Before">'
        f'<img class="after" src="{second}" alt="After"><input type="range" step="0.5" aria-label="Edge: before on '
        "the left, after on the right\" oninput=\"this.closest('.comparison').style.setProperty('--edge', "
        "this.value + '%')\"></div></div><p>Before (left) and after (right)"
        '<label><input type="checkbox"> Actual size</label></p></div>'
    )


def weights_markup(weights: Mapping[str, Mapping[str, float]], part: str = '') -> str:
    """HTML table of bars, with one row per prompt and one column per level; '' without weights."""
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
        f'<table class="prompt-weights"><caption>Weight of each prompt{of}</caption>'
        f'<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _bar(share: float) -> str:
    if math.isnan(share):
        return '<td>–</td>'
    percent = f'{100 * share:.0f} %'
    return f'<td><span class="bar"><span style="width: {100 * share:.1f}%"></span></span><span>{percent}</span></td>'


def _level_name(level: str) -> str:
    """Readable name of a level: `level 3` for `level3`."""
    return re.sub(r'(?<=\D)(?=\d)', ' ', level)


def summary(restored: Restored, device: str) -> str:
    """A line about a restored image, as plain text."""
    height, width = restored.size
    pixels = height * width / 1e6
    line = f'{width:,} x {height:,} pixels in {restored.seconds:.1f} s on the {device} '
    line += f'({pixels / max(restored.seconds, 1e-9):.2g} megapixels/s).'
    if max(restored.size) > PREVIEW:
        line += f' The slider shows it reduced to {PREVIEW:,} pixels; the file has the full size.'
    return ' '.join([line, *(f'{note[:1].upper()}{note[1:]}.' for note in restored.notes)])


def make_examples(folder: Path) -> list[tuple[str, Path]]:
    """Write degraded photographs of scikit-image as examples: name and file of each."""
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
    """Copy the first images of a folder as examples: name and file of each.

    Raises:
        OptionError: the folder does not exist, or contains no images.
    """
    if not source.is_dir():
        raise OptionError(f"--examples: '{source}' is not a folder.")
    found = sorted(path for path in source.iterdir() if path.suffix[1:].lower() in EXTENSIONS and path.is_file())
    readable = [path for path in found if measure_picture(path) is not None][:_MOST_EXAMPLES]
    if not readable:
        raise OptionError(f"--examples: no images in '{source}'. Allowed: {', '.join(EXTENSIONS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in readable:
        atomic_write(path.read_bytes(), folder / path.name)
    return [(path.stem, folder / path.name) for path in readable]


def remove_older(folder: Path, seconds: float) -> None:
    """Remove subfolders that are older."""
    limit = time.time() - seconds
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.stat().st_mtime < limit:
            shutil.rmtree(each, ignore_errors=True)
