"""Store the images of an option file in LMDBs, and write the options that read them. `docs/prepare.md` tells how."""

import argparse
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from promptir_basicsr.data.allinone_dataset import check_dataset
from promptir_basicsr.data.image_util import ImageError
from promptir_basicsr.data.lmdb_folder_util import PrepareError
from promptir_basicsr.data.lmdb_util import STEM, STORAGES, LmdbSource, Record, whole_name
from promptir_basicsr.data.lmdb_writer_util import DatabasePlan, DatabaseWriter, make_records
from promptir_basicsr.data.prepare_util import HEADER, Preparation, difference, estimated_bytes, plan_preparation
from promptir_basicsr.data.protocol_util import protocol_datasets
from promptir_basicsr.data.task_util import Task
from promptir_basicsr.host.options import read_option_file
from promptir_basicsr.option_place_util import Places
from promptir_basicsr.option_util import OptionError, check_count

SAMPLE = 100
"""Images of each database that are compared where no number is given."""

_SHOWN = 10  # of the images that cannot be used

Item = TypeVar('Item')
Result = TypeVar('Result')


def main() -> int:
    """The verb `basicsr prepare`.

    Returns:
        Exit status: 0; 1 for damaged images, differences or trouble with the disk.

    Raises:
        OptionError: mistakes in the options or arguments.
    """
    args = argument_parser().parse_args()
    count = _verify_count(args.verify)
    workers = args.workers if args.workers is not None else _cores()
    problems = check_count('--workers', workers)
    if problems:
        raise OptionError(problems)
    cv2.setNumThreads(1)  # images are decoded side by side
    try:
        options, name, made_from, places = _read_options(args)
        try:
            preparation = plan_preparation(
                options,
                Path(args.out).expanduser(),
                name,
                made_from,
                args.storage,
                tuple(args.sub_images) if args.sub_images else None,
                args.only,
            )
        except OptionError as error:
            # What is wrong with the file begins with its place in it.
            located = places.located if places else f'{made_from}: {{}}'.format
            raise OptionError(
                located(problem) if problem.startswith('datasets') else problem for problem in error.problems
            ) from error
        prepared = prepare_databases(preparation, workers, args.overwrite)
        _report(preparation, prepared)
        if args.verify is not None:
            compared = verify_databases(preparation, count, workers)
            sys.stdout.write(f'{compared:,} images compared with their sources: no difference.\n')
    except PrepareError as error:
        sys.stderr.write(f'{error}\n')
        return 1
    except KeyboardInterrupt:
        sys.stderr.write('\nInterrupted. The same command continues where it stopped.\n')
        return 1
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='basicsr prepare', description='Store the images of an option file in LMDBs, and options that read them.'
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('-opt', metavar='FILE', help='option file (YAML)')
    what.add_argument('--protocol', metavar='NAME', help='a published protocol, without an option file')
    parser.add_argument('--dataroot', metavar='DIR', help='where the folders of --protocol start')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the databases and their options')
    parser.add_argument(
        '--storage',
        choices=STORAGES,
        default='original',
        help='of training images: the files as they are (default), PNG, or pixels',
    )
    parser.add_argument(
        '--sub-images',
        nargs=2,
        type=int,
        metavar=('SIZE', 'STEP'),
        help='store training images as overlapping pieces, so that a crop reads one of them',
    )
    parser.add_argument('--only', nargs='+', default=[], metavar='TASK', help='tasks that --sub-images is for')
    parser.add_argument('--workers', type=int, metavar='N', help='images at a time (default: number of cores)')
    parser.add_argument('--overwrite', action='store_true', help='replace databases of other content')
    parser.add_argument(
        '--verify',
        nargs='?',
        const=str(SAMPLE),
        metavar='N',
        help=f'compare N images of each database with their sources (default {SAMPLE}), or all',
    )
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', help='replace options of FILE')
    return parser


def _read_options(args: argparse.Namespace) -> tuple[dict[str, Any], str, str, Places | None]:
    """The options, their name, where they are from, and where each of them stands in a file."""
    if args.opt is not None:
        if args.dataroot is not None:
            raise OptionError(['--dataroot: goes with --protocol. For -opt: --force_yml datasets:train:dataroot=DIR'])
        options, places = read_option_file(args.opt, args.force_yml)
        return options, Path(args.opt).stem, args.opt, places
    if args.dataroot is None or args.force_yml:
        raise OptionError(['--protocol: give --dataroot, where its folders start, and no --force_yml.'])
    name = Path(args.protocol).stem
    return {'datasets': protocol_datasets(args.protocol, args.dataroot)}, name, f'the protocol {name}', None


def _verify_count(text: str | None) -> int | None:
    if text is None or text == 'all':
        return None
    if not text.isdecimal() or not int(text):
        raise OptionError([f"--verify: {text!r} is neither a number of images nor 'all'."])
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _report(preparation: Preparation, prepared: Sequence['Prepared']) -> None:
    """A table of the databases, and how to go on."""
    table = Table(box=box.SIMPLE)
    table.add_column('database', overflow='fold')
    for title in ('images', 'storage', 'sources', 'database', 'ratio', 'BasicSR reads', ''):
        table.add_column(title, justify='left' if title in ('storage', '') else 'right', no_wrap=True)
    for row in prepared:
        settings = row.plan.settings['sub_images']
        table.add_row(
            str(row.plan.path.relative_to(preparation.file.parent)),
            f'{row.images:,}',
            row.plan.storage + (f', {settings[0]} every {settings[1]}' if settings else ''),
            _size(row.source_bytes),
            _size(row.bytes),
            f'{row.bytes / max(1, row.source_bytes):.2f}',
            f'{row.readable:,}',
            'was there already' if row.already else '',
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    verb = 'train' if 'train' in preparation.options else 'test' if 'val' in preparation.options else ''
    if verb:
        console.print(f'basicsr {verb} -opt {preparation.file}', soft_wrap=True, markup=False)
    else:
        console.print(
            f'{preparation.file} holds data sets only: put its `datasets` into an option file.',
            soft_wrap=True,
            markup=False,
        )


@dataclass(frozen=True)
class Prepared:
    """A database that is there.

    Attributes:
        images: how many whole images.
        source_bytes: of the files it was made of.
        bytes: of the database on the disk.
        readable: how many of the images BasicSR's own LMDB backend finds.
        already: whether it was there before.
    """

    plan: DatabasePlan
    images: int
    source_bytes: int
    bytes: int
    readable: int
    already: bool


def prepare_databases(preparation: Preparation, workers: int = 1, overwrite: bool = False) -> list[Prepared]:
    """Write the databases and then the options that read them.

    What an earlier run has written is not written again. Nothing that is there is replaced, unless `overwrite`, and
    then only by what is complete.

    Args:
        preparation: of `plan_preparation`.
        workers: threads that read, decode and encode.

    Raises:
        PrepareError: damaged images, not enough room, or something else in the way; says how to go on.
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
        raise PrepareError(_list_of(problems, 'images or pairs cannot be used') + _what_to_do(preparation))
    *lists, options = preparation.files.items()
    for path, content in lists:
        _write(path, content)
    _check_same_tasks(preparation)
    _write(*options)
    return [_prepared(writer) for writer in writers]


def verify_databases(preparation: Preparation, count: int | None = SAMPLE, workers: int = 1) -> int:
    """Compare databases with their sources, pixel by pixel, and byte by byte where files are stored as they are.

    Args:
        count: images of each database, spread evenly. None: all.

    Returns:
        How many images were compared.

    Raises:
        PrepareError: names the images that differ.
    """
    problems: list[str] = []
    compared = 0
    with ThreadPoolExecutor(workers) as pool:
        for plan in preparation.databases:
            database = LmdbSource(plan.path)
            total = len(plan.names)
            places = range(total) if count is None or count >= total else _evenly(total, count)
            names = [plan.names[place] for place in places]

            found = _in_order(pool, partial(difference, plan, database), names, ahead=2 * workers)
            problems += [problem for problem in _shown(found, f'verify {plan.path.name}', len(names)) if problem]
            compared += len(names)
    if problems:
        raise PrepareError(_list_of(problems, f'of {compared:,} images compared differ from their sources'))
    return compared


def _check_target(preparation: Preparation, overwrite: bool) -> None:
    out = preparation.file.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise PrepareError(f"'{out}' cannot be written to ({error.strerror}). Choose another --out.") from error
    for path, content in preparation.files.items():
        if not path.exists() or path.read_bytes() == content:
            continue
        ours = path != preparation.file or path.read_bytes().startswith(HEADER.encode())
        if not ours or not overwrite:
            raise PrepareError(
                f"'{path}' is there and differs from what would be written. "
                + ('Replace it with --overwrite, or choose another --out.' if ours else 'Choose another --out.')
            )


def _check_room(out: Path, writers: Iterable[DatabaseWriter]) -> None:
    needed = {writer.plan.path: estimated_bytes(writer.plan, writer.missing) for writer in writers if writer.missing}
    free = shutil.disk_usage(out).free
    if sum(needed.values()) > free:
        parts = ', '.join(f'{path.name} {_size(size)}' for path, size in needed.items())
        raise PrepareError(
            f"the databases need about {_size(sum(needed.values()))} ({parts}), '{out}' has {_size(free)} free. "
            'Make room, choose another --out, or --storage original if it is another.'
        )


def _store(writer: DatabaseWriter, pool: ThreadPoolExecutor, ahead: int) -> list[str]:
    """Write the images that are missing; what is wrong with those that cannot be."""

    def make(name: str) -> tuple[Record, list[Any]] | str:
        try:
            return make_records(writer.plan, name, writer.kinds[name])
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
    """Results in the order of the items; no more than `ahead` of them are in memory."""
    # Threads do as well as processes here: reading, decoding and encoding release Python's lock.
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _shown(results: Iterable[Result], name: str, total: int, done: int = 0) -> Iterable[Result]:
    """With a progress bar, where there is a terminal."""
    return tqdm(results, desc=name, total=total, initial=done, unit=' images', disable=None)


def _size_mismatches(
    preparation: Preparation, records: Mapping[Path, Mapping[str, Record]]
) -> tuple[list[str], set[Path]]:
    """Pairs of different size, in words, and the databases that hold them."""
    problems: dict[str, None] = {}
    databases = set()
    for dataset in preparation.datasets:
        for task in dataset.tasks:
            paths = [dataset.database(source).path for source in (task.lq, task.gt)]
            for names in _whole_pairs(task):
                found = [records[path].get(name) for path, name in zip(paths, names, strict=True)]
                sizes = [f'{record.width}x{record.height}' for record in found if record]
                if len(set(sizes)) == 2:
                    where = f'{task.lq.where(names[0])} and {task.gt.where(names[1])}'
                    problems[f'{where} differ in size ({" and ".join(sizes)}).'] = None
                    databases.update(paths)
    return list(problems), databases


def _whole_pairs(task: Task) -> list[tuple[str, str]]:
    """The pairs of a task, each once, whether or not they are stored as pieces."""
    return list(dict.fromkeys((whole_name(lq_name), whole_name(gt_name)) for lq_name, gt_name in task.names))


def _check_same_tasks(preparation: Preparation) -> None:
    """The new options see the very pairs that the old ones see, in the same order."""
    for dataset in preparation.datasets:
        key = dataset.where.removeprefix('datasets.')
        tasks = check_dataset({**preparation.options['datasets'][key], 'phase': dataset.phase}, dataset.where)
        for before, after in zip(dataset.tasks, tasks, strict=True):
            if _whole_pairs(before) != _whole_pairs(after):
                raise PrepareError(
                    f"task '{before.name}' of {dataset.where} would take other images from the databases than from its "
                    'folders, because other tasks take more from the same folders. Name its images by `list` or '
                    '`files`.'
                )


def _write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise PrepareError(f"'{path}' cannot be written ({error.strerror}).") from error
    finally:
        part.unlink(missing_ok=True)


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


def _evenly(total: int, count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, total - 1, count)})


def _list_of(problems: Sequence[str], title: str) -> str:
    more = [f'  and {len(problems) - _SHOWN:,} more'] if len(problems) > _SHOWN else []
    return '\n'.join([f'{len(problems):,} {title}:', *(f'  {problem}' for problem in problems[:_SHOWN]), *more])


def _what_to_do(preparation: Preparation) -> str:
    return (
        '\nMend these images, or leave them out of the lists, and run the command again. What was good is kept in '
        f"'{preparation.file.parent}' and not done again."
    )


def _size(count: float) -> str:
    """Bytes in words."""
    for unit in ('bytes', 'kB', 'MB', 'GB'):
        if count < 1000:
            return f'{count:,.0f} {unit}' if unit == 'bytes' else f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.3g} TB'
