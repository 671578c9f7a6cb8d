"""The verb `basicsr prepare`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from rich import box
from rich.table import Table
from rich.text import Text

from promptir_basicsr.core.command_line import cores
from promptir_basicsr.core.console import table_console
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.files import in_units
from promptir_basicsr.core.messages import check_count, printable
from promptir_basicsr.core.problems import Problem
from promptir_basicsr.data.lmdb.plan import Preparation, plan_preparation
from promptir_basicsr.data.lmdb.prepare import Prepared, prepare_databases, verify_databases
from promptir_basicsr.data.lmdb.writer import PrepareError
from promptir_basicsr.data.protocol import protocol_datasets
from promptir_basicsr.options.file import Places, read_option_file


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr prepare`.

    Returns:
        Exit status: 0; 1 for damaged images, differences or disk errors.

    Raises:
        OptionError: wrong options or arguments.
    """
    count = _verify_count(args.verify)
    workers = args.workers if args.workers is not None else cores()
    raise_problems(check_count('--workers', workers))
    cv2.setNumThreads(1)  # images are decoded in parallel
    try:
        options, name, made_from, places = _read_options(args)
        try:
            preparation = plan_preparation(options, Path(args.out).expanduser(), name, made_from, args.storage)
        except OptionError as error:
            raise OptionError(error.problems, lambda problem: _located(problem, places, made_from)) from error
        prepared = prepare_databases(preparation, workers, args.overwrite)
        _report(preparation, prepared)
        if args.verify is not None:
            compared = verify_databases(preparation, count, workers)
            sys.stdout.write(f'{compared:,} images verified: identical to their sources.\n')
    except PrepareError as error:
        sys.stderr.writelines(f'{printable(line)}\n' for line in error.args)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write('\nInterrupted. Run the same command again to continue.\n')
        return 1
    return 0


def _read_options(args: argparse.Namespace) -> tuple[dict[str, Any], str, str, Places | None]:
    """The options, their name, where they are from, and the line of each of them in the file."""
    if args.opt is not None:
        if args.dataroot is not None:
            raise OptionError('--dataroot: only for --protocol. With -opt use --force_yml datasets:train:dataroot=DIR')
        options, places = read_option_file(args.opt, args.force_yml)
        return options, Path(args.opt).stem, args.opt, places
    if args.dataroot is None or args.force_yml:
        raise OptionError('--protocol: pass its root folder by --dataroot, and omit --force_yml.')
    name = Path(args.protocol).stem
    return {'datasets': protocol_datasets(args.protocol, args.dataroot)}, name, f'the protocol {name}', None


def _located(problem: Problem, places: Places | None, made_from: str) -> str:
    """The text of a problem; problems of datasets start with the file or protocol that they are from."""
    if problem.path[:1] != ('datasets',):
        return str(problem)
    return places.located(problem) if places else f'{made_from}: {problem}'


def _verify_count(text: str | None) -> int | None:
    if text is None or text == 'all':
        return None
    if not text.isdecimal() or not int(text):
        raise OptionError(f"--verify: {text!r} is not a number of images or 'all'.")
    return int(text)


def _report(preparation: Preparation, prepared: Sequence['Prepared']) -> None:
    """Print a table of the databases, and the next command."""
    table = Table(box=box.SIMPLE)
    table.add_column('database', overflow='fold')
    for title in ('images', 'storage', 'sources', 'database', 'ratio', 'BasicSR reads', ''):
        table.add_column(title, justify='left' if title in ('storage', '') else 'right', no_wrap=True)
    for row in prepared:
        table.add_row(
            Text(printable(row.plan.path.relative_to(preparation.file.parent))),
            f'{row.images:,}',
            row.plan.storage,
            in_units(row.source_bytes),
            in_units(row.bytes),
            f'{row.bytes / max(1, row.source_bytes):.2f}',
            f'{row.readable:,}',
            'existed already' if row.already else '',
        )
    console = table_console()
    console.print(table)
    verb = 'train' if 'train' in preparation.options else 'test' if 'val' in preparation.options else ''
    file = printable(preparation.file)
    only = f'{file} contains only datasets: copy its `datasets` to an option file.'
    console.print(f'basicsr {verb} -opt {file}' if verb else only, soft_wrap=True, markup=False)
