"""Write the images of an option file as LMDBs, and the options that read them. See `docs/prepare.md`."""

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from promptir_basicsr.core.errors import ImageError, SaveError
from promptir_basicsr.core.files import atomic_write, in_units
from promptir_basicsr.core.messages import printable
from promptir_basicsr.core.vocabulary import VERIFIED_IMAGES
from promptir_basicsr.data.allinone_dataset import check_dataset
from promptir_basicsr.data.images import without_border
from promptir_basicsr.data.lmdb.plan import HEADER, Preparation, difference, estimated_bytes
from promptir_basicsr.data.lmdb.reader import STEM, LmdbSource, Record
from promptir_basicsr.data.lmdb.writer import DatabasePlan, DatabaseWriter, PrepareError, Value, make_record

_SHOWN = 10  # unusable images in a message

Item = TypeVar('Item')
Result = TypeVar('Result')


@dataclass(frozen=True)
class Prepared:
    """A complete database.

    Attributes:
        images: number of images.
        source_bytes: size of the source files.
        bytes: size of the database on disk.
        readable: number of images that BasicSR's own LMDB backend can read.
        already: whether it existed before.
    """

    plan: DatabasePlan
    images: int
    source_bytes: int
    bytes: int
    readable: int
    already: bool


def prepare_databases(preparation: Preparation, workers: int = 1, overwrite: bool = False) -> list[Prepared]:
    """Write the databases, then the options that read them.

    Continues the work of an interrupted run. Existing files are only replaced with `overwrite`, and only by complete
    ones.

    Args:
        preparation: of `plan_preparation`.
        workers: threads that read, decode and encode.

    Raises:
        PrepareError: damaged images, not enough disk space, or other obstacles; the message says how to continue.
    """
    _check_target(preparation, overwrite)
    problems: list[str] = []
    with ExitStack() as stack, ThreadPoolExecutor(workers) as pool:
        writers = [stack.enter_context(DatabaseWriter(plan, overwrite)) for plan in preparation.databases]
        _check_room(preparation.file.parent, writers)
        for writer in writers:
            problems += _store(writer, pool, ahead=2 * workers)
        mismatches, mismatched = _size_mismatches(preparation, {writer.plan.path: writer.records for writer in writers})
        problems += mismatches
        for writer in writers:
            whole = len(writer.records) == len(writer.plan.names)
            if whole and not writer.finished and writer.plan.path not in mismatched:
                writer.complete()
    if problems:
        advice = (
            'Fix these images, or remove them from the lists, and run the command again. The other images are saved '
            f"in '{preparation.file.parent}' already."
        )
        raise PrepareError(*_list_of(problems, 'images or pairs cannot be used'), advice)
    *lists, options = preparation.files.items()
    for path, content in lists:
        _write(path, content)
    _check_same_tasks(preparation)
    _write(*options)
    return [_prepared(writer) for writer in writers]


def verify_databases(preparation: Preparation, count: int | None = VERIFIED_IMAGES, workers: int = 1) -> int:
    """Compare databases with their sources by pixels, and by bytes if the original files are stored.

    Args:
        count: images of each database, spread evenly. None: all.

    Returns:
        Number of compared images.

    Raises:
        PrepareError: names the images that differ.
    """
    problems: list[str] = []
    compared = 0
    with ThreadPoolExecutor(workers) as pool:
        for plan in preparation.databases:
            database = LmdbSource(plan.path)
            few = len(plan.names) if count is None else min(count, len(plan.names))
            names = [plan.names[round(place)] for place in np.linspace(0, len(plan.names) - 1, few)]
            found = _in_order(pool, partial(difference, plan, database), names, ahead=2 * workers)
            problems += [problem for problem in _shown(found, f'verify {plan.path.name}', len(names)) if problem]
            compared += len(names)
    if problems:
        raise PrepareError(*_list_of(problems, f'of {compared:,} images compared differ from their sources'))
    return compared


def _check_target(preparation: Preparation, overwrite: bool) -> None:
    out = preparation.file.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise PrepareError(f"'{out}' is not writable ({error.strerror}). Set another --out.") from error
    for path, content in preparation.files.items():
        if not path.exists() or path.read_bytes() == content:
            continue
        ours = path != preparation.file or path.read_bytes().startswith(HEADER.encode())
        if not ours or not overwrite:
            raise PrepareError(
                f"'{path}' exists already and has other content. "
                + ('Replace it with --overwrite, or set another --out.' if ours else 'Set another --out.')
            )


def _check_room(out: Path, writers: Iterable[DatabaseWriter]) -> None:
    needed = {writer.plan.path: estimated_bytes(writer.plan, writer.missing) for writer in writers if writer.missing}
    free = shutil.disk_usage(out).free
    if sum(needed.values()) > free:
        parts = ', '.join(f'{path.name} {in_units(size)}' for path, size in needed.items())
        raise PrepareError(
            f"the databases need about {in_units(sum(needed.values()))} ({parts}), '{out}' has {in_units(free)} free. "
            'Free some space, set another --out, or use --storage original.'
        )


def _store(writer: DatabaseWriter, pool: ThreadPoolExecutor, ahead: int) -> list[str]:
    """Write the missing images; return the problems of unusable ones."""

    def make(name: str) -> tuple[Record, Value] | str:
        try:
            return make_record(writer.plan, name, writer.kinds[name])
        except ImageError as error:
            return str(error)

    problems = []
    results = _in_order(pool, make, writer.missing, ahead)
    for result in _shown(results, writer.plan.path.name, len(writer.plan.names), len(writer.records)):
        if isinstance(result, str):
            problems.append(result)
        else:
            writer.add(*result)
    writer.commit()
    return problems


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in the order of the items, with at most `ahead` of them in memory."""
    # Threads suffice: reading, decoding and encoding release the GIL.
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _shown(results: Iterable[Result], name: str, total: int, done: int = 0) -> Iterable[Result]:
    """Show a progress bar on a terminal."""
    return tqdm(results, desc=printable(name), total=total, initial=done, unit=' images', disable=None)


def _size_mismatches(
    preparation: Preparation, records: Mapping[Path, Mapping[str, Record]]
) -> tuple[list[str], set[Path]]:
    """Messages about pairs of different size, and the databases that contain them."""
    problems: dict[str, None] = {}
    databases = set()
    for dataset in preparation.datasets:
        for task in dataset.tasks:
            paths = [dataset.database(source).path for source in (task.lq, task.gt)]
            for names in task.names:
                found = [records[path].get(name) for path, name in zip(paths, names, strict=True)]
                sizes = [
                    without_border((record.height, record.width), border)
                    for record, border in zip(found, (0, task.crop_border_gt), strict=True)
                    if record
                ]
                if len(set(sizes)) == 2:
                    shown = ' and '.join(f'{width}x{height}' for height, width in sizes)
                    where = f'{task.lq.where(names[0])} and {task.gt.where(names[1])}'
                    problems[f'{where} differ in size ({shown}).'] = None
                    databases.update(paths)
    return list(problems), databases


def _check_same_tasks(preparation: Preparation) -> None:
    """Check that the new options result in the same pairs as the old ones, in the same order."""
    for dataset in preparation.datasets:
        options = preparation.options['datasets'][dataset.key]
        tasks = check_dataset({**options, 'phase': dataset.phase}, ('datasets', dataset.key))
        for before, after in zip(dataset.tasks, tasks, strict=True):
            if list(before.names) != list(after.names):
                raise PrepareError(
                    f"task '{before.name}' of datasets.{dataset.key} would use other images of the databases than of "
                    'its folders, because other tasks use more images of the same folders. List its images by `list` '
                    'or `files`.'
                )


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        atomic_write(content, path)
    except SaveError as error:
        raise PrepareError(str(error)) from error


def _prepared(writer: DatabaseWriter) -> Prepared:
    plan, records = writer.plan, writer.records.values()
    sizes = [record.source_bytes for record in records]
    return Prepared(
        plan,
        len(records),
        max(sizes, default=0) if isinstance(plan.source, LmdbSource) else sum(sizes),
        os.path.getsize(plan.path / 'data.mdb'),
        sum(record.key == STEM for record in records),
        writer.finished,
    )


def _list_of(problems: Sequence[str], title: str) -> list[str]:
    more = [f'  and {len(problems) - _SHOWN:,} more'] if len(problems) > _SHOWN else []
    return [f'{len(problems):,} {title}:', *(f'  {problem}' for problem in problems[:_SHOWN]), *more]
