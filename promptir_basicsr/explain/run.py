"""Show what prompts or an encoder have learned: figures, tables, one HTML page. See `docs/explain.md`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from promptir_basicsr.checkpoints.checkpoint import build, read_checkpoint
from promptir_basicsr.checkpoints.pretrained import load_sensor
from promptir_basicsr.core.errors import OptionError, need_extra, raise_problems
from promptir_basicsr.core.files import atomic_folder
from promptir_basicsr.core.messages import check_count
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.core.version import __version__
from promptir_basicsr.core.vocabulary import EXPLAIN_DEFAULTS
from promptir_basicsr.data.allinone_dataset import AllInOneDataset, check_dataset
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.explain.experiments import investigate, passes, untrained_network
from promptir_basicsr.explain.page import Report, write_page
from promptir_basicsr.explain.prompted import PromptedNet, Sample, choose_samples
from promptir_basicsr.options.file import read_option_file
from promptir_basicsr.runtime.precision import find_device

EXTRA = ('matplotlib', 'sklearn')
"""Packages that `basicsr explain` needs in addition to the package's own requirements."""

PAGE = 'report.html'
_LEAST_SIZE = 16


@dataclass(frozen=True)
class Settings:
    """Settings of `explain`.

    Attributes:
        images: largest number of images of each task.
        size: longest side of an image in pixels; larger images are cropped at their centre.
        untrained: number of networks with random weights to compare with. A network that has learned nothing exceeds
            all of N with a probability of 1 / (N + 1).
        permutations: number of permutations of the tasks among the images.
        seed: of the choice of images, of untrained networks, of permutations and of t-SNE.
        device: a torch device; 'auto' for a GPU if there is one.
        page: write the HTML page.

    Raises:
        OptionError: all problems found.

    Examples:
        >>> from promptir_basicsr.explain import Settings
        >>> Settings(images=20, device='cpu').untrained
        19
    """

    images: int = EXPLAIN_DEFAULTS['images']
    size: int = EXPLAIN_DEFAULTS['size']
    untrained: int = EXPLAIN_DEFAULTS['untrained']
    permutations: int = EXPLAIN_DEFAULTS['permutations']
    seed: int = EXPLAIN_DEFAULTS['seed']
    device: str = 'auto'
    page: bool = True

    def __post_init__(self) -> None:
        least = {'images': 1, 'size': _LEAST_SIZE, 'untrained': 0, 'permutations': 19, 'seed': 0}
        problems: list[str | Problem] = []
        for name, low in least.items():
            problems += check_count(f'--{name}', getattr(self, name), low)
        try:
            find_device(self.device)
        except OptionError as error:
            problems += [f'--{each}' for each in error.problems]
        raise_problems(problems)


def explain(
    opt: str,
    weights: str | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: Settings = Settings(),
    force_yml: list[str] | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Report, Path]:
    """Analyse the prompts or encodings of a network, and write figures, tables, `report.json` and a page.

    Args:
        opt: option file; its validation or test sets provide images of each task.
        weights: weights of the network. Default: `path.pretrain_network_g` of the option file.
        out: folder, which is written atomically. Default: explain/NAME.
        settings: number of images, and other settings.
        force_yml: overrides, as in `basicsr train --force_yml`.
        overwrite: replace a folder of an earlier run of this command.
        progress: show a progress bar on standard error if that is a terminal.

    Returns:
        The report, whose figures are files in the folder, and the folder.

    Raises:
        OptionError: wrong options, or a network with neither prompts nor encodings.
        ImageError: an image cannot be read.
        SaveError: a file could not be written.

    Examples:
        >>> from promptir_basicsr.explain import Settings, explain
        >>> brief = Settings(images=1, size=16, untrained=1, permutations=19, page=False)
        >>> report, folder = explain('mine.yml', 'net_g_latest.pth', settings=brief)
        >>> str(folder), (folder / 'report.json').exists()
        ('explain/mine', True)
    """
    need_extra('basicsr explain', EXTRA, 'explain')
    options, places = read_option_file(opt, force_yml)
    if not isinstance(options, Mapping):
        raise OptionError(f"'{opt}' contains no options.")
    folder = Path(out or Path('explain') / str(options.get('name') or Path(opt).stem)).expanduser()
    _check_folder(folder, overwrite)
    try:
        datasets = _datasets(options)
        net, network, path = _load(options, weights)
        prompted = PromptedNet(net, find_device(settings.device))
    except OptionError as error:
        raise OptionError(error.problems, places.located) from error
    samples = _samples(datasets, prompted, settings)
    tasks = list(dict.fromkeys(sample.task for sample in samples))
    if len(tasks) < 2:
        raise OptionError(f"'{opt}': its validation or test sets have only one task, {tasks[0]}. Set two or more.")
    with atomic_folder(folder) as unfinished:
        report = _report(opt, path, network, prompted, samples, tasks, settings, unfinished, progress)
    return report, folder


def _datasets(options: Mapping[str, Any]) -> list[AllInOneDataset]:
    """The validation or test sets. The training set need not exist.

    Raises:
        OptionError: all problems found, or there is no AllInOneDataset.
    """
    sets = options.get('datasets')
    problems: list[Problem] = []
    found: dict[str, dict[str, Any]] = {}
    for key, given in sets.items() if isinstance(sets, Mapping) else ():
        phase = str(key).partition('_')[0]
        if phase in ('val', 'test') and isinstance(given, Mapping) and given.get('type') == 'AllInOneDataset':
            where = ('datasets', str(key))
            try:
                found[key] = expand_protocol({**given, 'phase': phase}, where)
                check_dataset(found[key], where, keep=True)
            except OptionError as error:
                problems += error.problems
    if not problems and not found:
        message = 'no AllInOneDataset for validation or test. Add one with the images (val, val_1 or test).'
        problems.append(problem('datasets', message))
    raise_problems(problems)
    return [AllInOneDataset(given) for given in found.values()]


def _load(options: Mapping[str, Any], weights: str | None) -> tuple[nn.Module, dict[str, Any], str]:
    """The network in evaluation mode, its options, and the file of its weights.

    Raises:
        OptionError: the weights are missing, or do not fit.
    """
    paths = options.get('path') if isinstance(options.get('path'), Mapping) else {}
    path = weights or (paths or {}).get('pretrain_network_g')
    if not path:
        raise OptionError('--weights: missing. Pass it, or set path.pretrain_network_g in the option file.')
    network = options.get('network_g') if isinstance(options.get('network_g'), Mapping) else None
    sensor = (paths or {}).get('pretrain_network_sensor')
    try:
        checkpoint = read_checkpoint(path, network)
        return build(checkpoint), checkpoint.network, path
    except OptionError:
        if not (network and network.get('sensor') and sensor):
            raise
        # The file lacks the sensor's weights, which are in a separate file.
        checkpoint = read_checkpoint(path, {key: value for key, value in network.items() if key != 'sensor'})
    net: Any = build(checkpoint)
    net.attach_sensor(network['sensor'], network.get('hard_sensor', False))
    load_sensor([net], {'pretrain_network_sensor': sensor})
    return net, dict(network), path


def _samples(datasets: Sequence[AllInOneDataset], prompted: PromptedNet, settings: Settings) -> list[Sample]:
    """Samples of all datasets; tasks of the same name get the names of their datasets as prefixes.

    Raises:
        OptionError: a label is unknown to the network, or the number of channels differs.
        ImageError: an image cannot be read.
    """
    names = [task.name for dataset in datasets for task in dataset.tasks]
    known = len(prompted.degradations)
    problems = [
        f"the task '{task.name}' has the label {task.label}, but the network has labels 0 to {known - 1}."
        for dataset in datasets
        for task in dataset.tasks
        if prompted.told and task.label >= known
    ]
    problems += [
        f"the task '{task.name}' has `channels: {task.channels}`, but the network expects {prompted.channels}."
        for dataset in datasets
        for task in dataset.tasks
        if task.channels != prompted.channels
    ]
    raise_problems(problems)
    found = []
    for dataset in datasets:
        for sample in choose_samples(dataset, settings.images, settings.seed, settings.size, prompted.multiple):
            if names.count(sample.task) > 1:
                sample = replace(sample, task=f'{dataset.opt["name"]}/{sample.task}')
            found.append(sample)
    return found


def _report(
    opt: str,
    path: str,
    network: Mapping[str, Any],
    prompted: PromptedNet,
    samples: Sequence[Sample],
    tasks: Sequence[str],
    settings: Settings,
    folder: Path,
    progress: bool,
) -> Report:
    from promptir_basicsr.explain.chapters import chapters
    from promptir_basicsr.explain.writer import Study, Writer

    ids = np.array([tasks.index(sample.task) for sample in samples])
    total = passes(prompted, len(tasks), True) + settings.untrained * passes(prompted, len(tasks), False)
    with tqdm(
        total=total * len(samples), desc='Running the network', unit='pass', disable=None if progress else True
    ) as bar:
        found = investigate(prompted, samples, ids, tasks, passed=bar.update)
        untrained = []
        for number in range(settings.untrained):
            other = PromptedNet(untrained_network(network, settings.seed + number), prompted.device)
            untrained.append(investigate(other, samples, ids, tasks, detailed=False, passed=bar.update))
    study = Study(prompted, samples, tasks, ids, found, untrained, settings.seed, settings.permutations)
    writer = Writer(folder)
    sections = chapters(study, writer)
    facts = [
        ('Network', network['type']),
        ('Parameters', sum(each.numel() for each in prompted.net.parameters())),
        ('Weights', path),
        ('Options', opt),
        ('Images', study.sizes()),
        ('Longest side', settings.size),
        ('Untrained networks', settings.untrained),
        ('Permutations', settings.permutations),
        ('Seed', settings.seed),
        ('Device', prompted.device.type),
        ('Versions', f'promptir_basicsr {__version__}, torch {torch.__version__}'),
    ]
    what = 'What the encoder of {} has learned' if prompted.encodes else 'What the prompts of {} have learned'
    report = Report(what.format(Path(path).name), facts, sections)
    writer.json(report)
    if settings.page:
        write_page(folder / PAGE, report)
    return report


# the output folder


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with files that this command has not written.

    Raises:
        OptionError: the folder has other files, or is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--out: '{folder}' is a file. Pass the name of a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OptionError(f"--out: '{folder}' is not empty. Use another folder, or replace it with --overwrite.")
    if not (folder / 'report.json').is_file():
        raise OptionError(f"--out: '{folder}' was not written by this command. Use another folder.")
