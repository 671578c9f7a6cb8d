"""Compute metrics of an image and its target, or of folders of restored images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY

from promptir_basicsr.core.arrays import to_bytes, to_float
from promptir_basicsr.core.errors import ImageError, OptionError, problems_of, raise_problems
from promptir_basicsr.core.messages import first_few, first_line
from promptir_basicsr.core.problems import Problem
from promptir_basicsr.data.allinone_dataset import unique_names
from promptir_basicsr.data.images import centre_crop
from promptir_basicsr.data.pairing import find_pairs
from promptir_basicsr.data.sources import BorderCut, Source, open_source, resolve
from promptir_basicsr.data.tasks import Task
from promptir_basicsr.evaluation.results import Mean
from promptir_basicsr.options.pairing import PAIRING_RULES, PairingRule


def measure_image(metrics: Mapping[str, Mapping[str, Any]], image: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Compute every metric of an (H, W, 3) RGB or (H, W, 1) grey float image in [0, 1].

    A metric with `wants_float` gets the clipped, unrounded images, others get BasicSR's format: (H, W, 3) BGR or
    (H, W) grey, rounded to 8 bit.

    Args:
        metrics: name -> options, as in `val.metrics`.

    Raises:
        OptionError: a metric cannot be computed for these images.
    """
    exact = {'img': np.clip(image, 0, 1), 'img2': target}
    rounded: dict[str, np.ndarray] = {}
    grey = image.shape[2] == 1
    results = {}
    for name, options in metrics.items():
        wants_float = getattr(METRIC_REGISTRY.get(options['type']), 'wants_float', False)
        if not wants_float and not rounded:
            rounded = {key: to_bytes(x)[..., 0 if grey else slice(None, None, -1)] for key, x in exact.items()}
        try:
            results[name] = float(calculate_metric(exact if wants_float else rounded, options))
        except MemoryError:
            raise
        except Exception as error:  # third-party metrics may only support colour
            if wants_float or not grey:
                raise OptionError(problems_of(('val', 'metrics', name), error)) from error
            what = f'{type(error).__name__}: {first_line(error)}'
            message = f'{options["type"]} failed on a grey image ({what}). Remove it for tasks with `channels: 1`.'
            raise OptionError(Problem(('val', 'metrics', name), message)) from error
    return results


@dataclass(frozen=True)
class Pairs:
    """Restored images and their targets.

    Attributes:
        name: of the task.
        restored, target: sources of the images.
        names: (restored, target), relative to their sources.
        crop_multiple: both are cropped at the centre to sides that are multiples of this.
        border: pixels that are cropped from each side of the targets before.
    """

    name: str
    restored: Source
    target: Source
    names: Sequence[tuple[str, str]]
    crop_multiple: int = 1
    border: int = 0


def pairs_by_rule(restored: str, target: str, rule: PairingRule, crop_multiple: int = 1) -> Pairs:
    """Pair restored images of a folder with targets of another one.

    Raises:
        OptionError: a folder does not exist, images have no target, or no image matches the rule.
    """
    sources = [_source(flag, path) for flag, path in (('RESTORED', restored), ('--target', target))]
    names, targets = (source.names() for source in sources)
    names = [name for name in names if not name.startswith('comparison/')]  # of `basicsr test`
    if not names:
        raise OptionError(f"RESTORED: no images in '{restored}'.")
    rule = rule.without_folder() if rule in PAIRING_RULES.values() else rule
    pairing = find_pairs('RESTORED', rule, names, targets, listed=True)
    raise_problems(pairing.problems)
    name = os.path.basename(os.path.abspath(restored))
    return Pairs(name, sources[0], sources[1], pairing.pairs, crop_multiple)


def pairs_of_task(restored: str, task: Task, crop_multiple: int) -> Pairs:
    """Find the restored images of a task of a protocol.

    They may be named as by `basicsr test`, as the degraded image or as the clear one, with any suffix after `_`.

    Raises:
        OptionError: images are missing, or several have the same name.
    """
    source = _source('RESTORED', os.path.join(restored, task.name))
    found: dict[str, list[str]] = {}
    for name in source.names():
        if '/' not in name:  # comparisons of a test are in a folder below
            found.setdefault(name.rpartition('.')[0], []).append(name)
    names, absent = [], []
    for short, (lq, gt) in zip(unique_names([lq for lq, _ in task.names]), task.names, strict=True):
        stems = dict.fromkeys([short, f'{short}_restored', lq.rpartition('/')[2].rpartition('.')[0]])
        matching = next((found[stem] for stem in stems if stem in found), [])
        if len(matching) > 1:
            raise OptionError(f"RESTORED: '{source.root}' has {' and '.join(matching)}. Keep one of them.")
        if matching:
            names.append((matching[0], gt))
        else:
            absent.append(short)
    if absent:
        raise OptionError(
            f"RESTORED: {len(absent):,} of {len(task.names):,} images of {task.name} are not in '{source.root}': "
            f'{first_few(absent)}. Name them like their inputs, or NAME_restored as `basicsr test` does.'
        )
    return Pairs(task.name, source, task.gt, names, crop_multiple, task.crop_border_gt)


def _source(flag: str, path: str) -> Source:
    try:
        return open_source(resolve(path))
    except ValueError as error:
        raise OptionError(f'{flag}: {error}') from error


def measure_pairs(pairs: Pairs, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Compute the mean of each metric over the images.

    Raises:
        OptionError: a metric cannot be computed for these images.
        ImageError: an image cannot be read, or two images differ in size.
    """
    mean = Mean()
    for restored, target in pairs.names:
        images = [pairs.restored.open(restored).pixels(), BorderCut(pairs.target.open(target), pairs.border).pixels()]
        cut = [centre_crop(image, pairs.crop_multiple) for image in images]
        if cut[0].shape != cut[1].shape:
            sizes = ' and '.join(f'{image.shape[1]}x{image.shape[0]}' for image in cut)
            raise ImageError(
                f'{pairs.restored.where(restored)} and {pairs.target.where(target)} differ in size ({sizes}). '
                'Check --pairing, and set --crop-multiple if only the restored images are cropped.'
            )
        mean.add(measure_image(metrics, to_float(cut[0]), to_float(cut[1])))
    return mean.result()
