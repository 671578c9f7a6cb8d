"""The verb `basicsr options`."""

import argparse
import itertools
import os
from pathlib import Path

from promptir_basicsr.core.console import plain_console
from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.files import atomic_write, target_problems
from promptir_basicsr.core.messages import printable, unknown
from promptir_basicsr.options.file import shipped_option_files


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr options`.

    Raises:
        OptionError: unknown file, or a file of this name exists already.
        SaveError: the copy could not be written.
    """
    console = plain_console()
    if args.copy is None:
        files = shipped_option_files()
        width = max(len(file.name) for file in files)
        for file in files:
            console.print(f'{file.name:{width}}  {_about(file)}')
        return 0
    shipped = {file.name: file for file in shipped_option_files()}
    raise_problems([] if args.copy in shipped else [unknown('--copy', 'option file', args.copy, shipped)])
    source = shipped[args.copy]
    target = os.path.expanduser(args.out or source.name)
    target = os.path.join(target, source.name) if os.path.isdir(target) else target
    raise_problems(target_problems(target, args.overwrite))
    atomic_write(source.read_bytes(), target)
    console.print(printable(f'{source.name} -> {target}'))
    return 0


def _about(file: Path) -> str:
    """The first sentence of a file's leading comment."""
    with open(file, encoding='utf-8') as lines:
        comment = ' '.join(line.strip('# \n') for line in itertools.takewhile(lambda line: line[:1] == '#', lines))
    return comment.partition('. ')[0].rstrip('.')
