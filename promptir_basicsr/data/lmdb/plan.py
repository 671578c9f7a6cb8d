"""Plan of the LMDBs for the datasets of an option file, and the options that read them."""

import copy
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from promptir_basicsr.core.errors import ImageError, OptionError, raise_problems
from promptir_basicsr.core.messages import unknown
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.core.vocabulary import STORAGES
from promptir_basicsr.data.allinone_dataset import check_dataset
from promptir_basicsr.data.images import EncodedImage
from promptir_basicsr.data.lmdb.reader import LmdbSource
from promptir_basicsr.data.lmdb.writer import DatabasePlan
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.data.sources import SKIMAGE, Source, StoredImage, resolve
from promptir_basicsr.data.tasks import Task

SOURCE_KEYS = {'clean': 'gt', 'root': 'lq', 'lq': 'lq', 'gt': 'gt'}
"""Options of a task that name a source, and the task's attribute with this source."""

HEADER = '# Written by `basicsr prepare`'
_SAMPLE = 300  # images to open for an estimate of a database's size
_PNG_RATIO = 0.7  # largest PNG size of photographs relative to their pixels


@dataclass(frozen=True)
class DatasetPlan:
    """An AllInOneDataset to prepare.

    Attributes:
        key: its key in `datasets`.
        phase: `train`, `val` or `test`.
        options: merged with its protocol.
        tasks: of its folders.
        databases: plan of each source's database, by the source's real path.
    """

    key: str
    phase: str
    options: Mapping[str, Any]
    tasks: Sequence[Task]
    databases: Mapping[str, DatabasePlan]

    def database(self, source: Source) -> DatabasePlan:
        return self.databases[os.path.realpath(source.root)]


@dataclass(frozen=True)
class Preparation:
    """The plan for preparing an option file.

    Attributes:
        options: options that read the databases.
        file: new option file.
        files: content of the text files next to the databases; the last one is the option file.
    """

    datasets: Sequence[DatasetPlan]
    databases: Sequence[DatabasePlan]
    options: Mapping[str, Any]
    file: Path
    files: Mapping[Path, bytes]


def plan_preparation(
    options: Mapping[str, Any], out: Path, name: str, made_from: str, storage: str = 'original'
) -> Preparation:
    """Plan the databases for the images of an option file.

    Args:
        options: as read; datasets of other types than AllInOneDataset are not changed.
        out: folder of the databases.
        name: of the new option file, without extension.
        made_from: source of the options, for the head of the new file.
        storage: of training sets; other sets need whole images and keep the original bytes.

    Raises:
        OptionError: all problems found.
    """
    datasets = options.get('datasets')
    chosen = {
        key: dataset
        for key, dataset in (datasets.items() if isinstance(datasets, Mapping) else ())
        if isinstance(dataset, Mapping) and dataset.get('type') == 'AllInOneDataset'
    }
    problems = [] if storage in STORAGES else [unknown('--storage', 'storage', storage, STORAGES)]
    if not chosen:
        problems.append(problem('datasets', 'none of the datasets is an AllInOneDataset.'))
    raise_problems(problems)

    found: list[tuple[str, str, dict[str, Any], list[Task]]] = []
    for key, dataset in chosen.items():
        where, phase = ('datasets', str(key)), str(key).split('_')[0]
        try:
            opt = expand_protocol({**dataset, 'phase': phase}, where)
            found.append((key, phase, opt, check_dataset(opt, where)))
        except OptionError as error:
            problems += error.problems
    raise_problems(problems)

    databases = _Databases(out, storage)
    for _, phase, opt, tasks in found:
        for task, task_options in zip(tasks, opt['tasks'], strict=True):
            databases.add(phase, task, task_options, opt.get('dataroot'))
    raise_problems(databases.problems())
    plans = [DatasetPlan(key, phase, opt, tasks, databases.plans(phase)) for key, phase, opt, tasks in found]
    return _with_files(plans, options, out, name, made_from)


class _Databases:
    """The databases to write: one for each source and phase."""

    def __init__(self, out: Path, storage: str) -> None:
        self._out, self._storage = out, storage
        self._plans: dict[tuple[str, str], DatabasePlan] = {}
        self._names: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def add(self, phase: str, task: Task, options: Mapping[str, Any], dataroot: str | None) -> None:
        """Add the images of a task."""
        for key, side in SOURCE_KEYS.items():
            source = getattr(task, side)
            place = phase, os.path.realpath(source.root)
            if key in options and place not in self._plans:
                taken = [plan.path.name for (other, _), plan in self._plans.items() if other == phase]
                name = _free_name(readable_name(source.root, options[key], dataroot), '.lmdb', taken)
                storage = self._storage if phase == 'train' else 'original'
                self._plans[place] = DatabasePlan(self._out / phase / name, source, (), storage)
        for column, source in enumerate((task.lq, task.gt)):
            self._names[phase, os.path.realpath(source.root)].update(pair[column] for pair in task.names)

    def problems(self) -> list[Problem]:
        """Problems of databases that cannot be stored as requested."""
        return [
            problem(
                '',
                f"'{plan.source.root}' contains pixels, not the original files"
                + (', which a validation needs' if phase != 'train' else '; set --storage lossless or --storage raw')
                + f'. Or prepare {phase} from its original folder.',
            )
            for (phase, _), plan in self._plans.items()
            if isinstance(plan.source, LmdbSource) and plan.source.storage == 'raw' and plan.storage == 'original'
        ]

    def plans(self, phase: str) -> dict[str, DatabasePlan]:
        """Plans of a phase by the real paths of their sources."""
        return {
            path: replace(plan, names=sorted(self._names[phase, path]))
            for (other, path), plan in self._plans.items()
            if other == phase
        }


def readable_name(root: Path, option: str, dataroot: str | None) -> str:
    """Name of a database: `Train_Dehaze` for `Train/Dehaze`; for a path outside the root, its last two folders."""
    path = Path(option.replace(SKIMAGE, 'skimage/')).expanduser()
    if path.is_absolute():
        below = Path(dataroot or '.').expanduser().absolute()
        path = path.relative_to(below) if path.is_relative_to(below) else Path(*path.parts[-2:])
    parts = [part for part in Path(str(path).removesuffix('.lmdb')).parts if part != '..']
    return re.sub(r'[^\w.-]+', '_', '_'.join(parts) or root.resolve().name).strip('_.') or 'images'


def _with_files(
    datasets: Sequence[DatasetPlan], options: Mapping[str, Any], out: Path, name: str, made_from: str
) -> Preparation:
    """The new options, and the lists that they use."""
    lists: dict[str, str] = {}  # real path -> name of the copy
    files: dict[Path, bytes] = {}
    new = copy.deepcopy(dict(options))
    for dataset in datasets:
        given = copy.deepcopy({k: v for k, v in dataset.options.items() if k != 'phase'})
        first: dict[str, Any] = {k: given.pop(k) for k in ('name', 'type', 'dataroot') if k in given}
        changed = {**first, 'dataroot': str(out.absolute()), **given}
        for task, task_options in zip(dataset.tasks, changed['tasks'], strict=True):
            for source_key, side in SOURCE_KEYS.items():
                if source_key in task_options:
                    path = dataset.database(getattr(task, side)).path
                    task_options[source_key] = path.relative_to(out).as_posix()
            if 'list' in task_options:
                path = resolve(str(task_options['list']), dataset.options.get('dataroot'))
                name_there = _free_name(path.stem, path.suffix, lists.values())
                name_there = lists.setdefault(os.path.realpath(path), name_there)
                files[out / 'lists' / name_there] = path.read_bytes()
                task_options['list'] = f'lists/{name_there}'
        new['datasets'][dataset.key] = changed
    databases = {plan.path: plan for dataset in datasets for plan in dataset.databases.values()}
    file = out / f'{name}.yml'
    head = (
        f'{HEADER} from {made_from}: the same options on the databases of this folder.\n'
        '# If you move the folder, change only `dataroot` of each dataset.\n\n'
    )
    text = head + yaml.safe_dump(new, sort_keys=False, allow_unicode=True, width=120)
    files[file] = text.encode(errors='surrogateescape')
    return Preparation(datasets, list(databases.values()), new, file, files)


def _free_name(stem: str, ending: str, taken: Iterable[str]) -> str:
    """The name, with a number if it is taken; case-insensitive."""
    known, number, name = {each.casefold() for each in taken}, 1, f'{stem}{ending}'
    while name.casefold() in known:
        number += 1
        name = f'{stem}_{number}{ending}'
    return name


def estimated_bytes(plan: DatabasePlan, names: Sequence[str]) -> int:
    """Estimate the size of these images in the database."""
    pages = 2560 * len(names)  # LMDB stores records in whole pages; plus the index
    if plan.storage == 'original':
        if isinstance(plan.source, LmdbSource):
            return os.path.getsize(plan.source.root / 'data.mdb')
        return pages + sum(max(0, plan.stamp(name)[0]) for name in names)
    places = np.unique(np.linspace(0, len(names) - 1, min(len(names), _SAMPLE)).astype(int))
    sizes = []
    for place in places:
        with suppress(ImageError):  # reported when it is stored
            height, width = plan.source.open(names[place]).size
            sizes.append(3 * height * width)  # in 8 bits
    mean = sum(sizes) / max(1, len(sizes)) * (_PNG_RATIO if plan.storage == 'lossless' else 1)
    return pages + round(mean * len(names))


def difference(plan: DatabasePlan, database: LmdbSource, name: str) -> str:
    """How an image of a database differs from its source, or ''."""
    try:
        stored, source = database.open(name), plan.source.open(name)
        if plan.storage == 'original' and _content(stored) != _content(source):
            return f'{database.where(name)}: other bytes than {plan.source.where(name)}.'
        pixels, expected = stored.pixels(), source.pixels()
        if pixels.shape != expected.shape:
            return f'{database.where(name)}: another size than {plan.source.where(name)}.'
        if pixels.dtype != expected.dtype or not np.array_equal(pixels, expected):
            return f'{database.where(name)}: other pixels than {plan.source.where(name)}.'
    except ImageError as error:
        return str(error)
    return ''


def _content(stored: StoredImage) -> bytes | None:
    return stored.content if isinstance(stored, EncodedImage) else None
