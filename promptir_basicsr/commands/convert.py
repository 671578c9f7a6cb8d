"""The verb `basicsr convert`, and its summary of a weights file."""

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from promptir_basicsr.checkpoints.checkpoint import digest, halved, read_checkpoint, write_checkpoint
from promptir_basicsr.checkpoints.folder import bytes_of
from promptir_basicsr.checkpoints.reading import LAYOUTS
from promptir_basicsr.core.console import plain_console
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.files import megabytes, target_problems
from promptir_basicsr.core.messages import first_few, printable
from promptir_basicsr.core.vocabulary import LAYOUT_ENDINGS

_MARGIN = 14


def main(args: argparse.Namespace) -> int:
    """The verb `basicsr convert`.

    Raises:
        OptionError: wrong arguments, or a file that cannot be read.
        SaveError: the file could not be written.
    """
    target = _target(args)
    checkpoint = read_checkpoint(args.input, args.opt, args.key)
    if args.key is not None:
        checkpoint = replace(checkpoint, others={})
    console = plain_console()

    def say(*lines: str) -> None:
        for each in lines:
            console.print(printable(each))

    say(line('file', checkpoint.path), *(line('', note) for note in checkpoint.notes))
    say(network_line(checkpoint.network), *weights_lines(checkpoint.weights))
    say(*tensor_lines(checkpoint.dropped, checkpoint.outside, []), line('SHA-256', digest(checkpoint.weights)))
    say(*metadata_lines(checkpoint.metadata))
    if target is None:
        return 0
    checkpoint = halved(checkpoint) if args.half else checkpoint
    folder = os.path.dirname(os.path.abspath(args.output))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OptionError(f"the folder '{folder}' cannot be created: {error.strerror}.") from error
    written = write_checkpoint(checkpoint, args.output, target)
    lost = [name for name in checkpoint.weights if name not in written.weights]
    say('', line('written', args.output), line('', f'Layout: {LAYOUTS[written.layout]}.'))
    say(*weights_lines(written.weights), *tensor_lines(lost, [], written.dropped))
    say(line('SHA-256', digest(written.weights)))
    return 0


def _target(args: argparse.Namespace) -> str | None:
    """The layout to write; None if no output file is requested.

    Raises:
        OptionError: OUT is missing, exists already, or its ending does not match the layout.
    """
    if args.output is None:
        wanted = [flag for flag, given in (('--to', args.to), ('--half', args.half)) if given]
        if wanted:
            raise OptionError(f'{" and ".join(wanted)}: OUT, the file to write, is missing.')
        return None
    args.output = os.path.expanduser(args.output)
    ending = os.path.splitext(args.output)[1].lower()
    by_ending = next((layout for layout, usual in LAYOUT_ENDINGS.items() if ending in usual), None)
    target = args.to or by_ending
    problems = []
    if target is None:
        problems.append(f"'{args.output}': unknown ending. Set the layout: `--to {'|'.join(LAYOUT_ENDINGS)}`.")
    elif (target == 'safetensors') != (ending == '.safetensors'):  # readers choose the format by the ending
        problems.append(
            f"'{args.output}': the name of a file in the layout {target} must end in "
            f'{" or ".join(LAYOUT_ENDINGS[target])}.'
        )
    raise_problems(problems + target_problems(args.output, args.overwrite))
    return target


def line(name: str, text: str) -> str:
    """A name and, in the next column, a text."""
    return f'{name:{_MARGIN}}{text}'


def weights_lines(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Number, dtype and size of the weights."""
    types = sorted({str(value.dtype).removeprefix('torch.') for value in weights.values()})
    numbers = sum(value.numel() for value in weights.values())
    yield line('weights', f'{len(weights):,} tensors, {numbers:,} parameters, {", ".join(types)}')
    yield line('size', megabytes(bytes_of(weights)))


def network_line(network: Mapping[str, Any]) -> str:
    """Type and arguments of the network, as in an option file."""
    arguments = ', '.join(f'{name}: {_plain(value)}' for name, value in network.items() if name != 'type')
    return line('network', f'{network["type"]} {{{arguments}}}')


def metadata_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What a checkpoint says about its training."""
    for name in ('name', 'iteration', 'epoch', 'protocol'):
        if metadata.get(name) is not None:
            yield line(name, str(metadata[name]))
    for name in ('tasks', 'degradations'):
        if isinstance(metadata.get(name), list) and metadata[name]:
            yield line(name, ', '.join(map(str, metadata[name])))
    yield from _metrics_lines(metadata.get('metrics'))
    best = metadata.get('best')
    if isinstance(best, Mapping) and {'metric', 'value', 'iter'} <= best.keys():
        yield line('best', f'{best["metric"]} {_number(best["value"])} at iteration {best["iter"]}')


def tensor_lines(dropped: list[str], outside: list[str], filled: list[str]) -> Iterator[str]:
    """Names of tensors that only one of the files has; no lines if there are none."""
    for what, names in (('dropped', dropped), ('unknown', outside), ('filled', filled)):
        if names:
            yield line(what, f'{len(names)}: {first_few(names, most=8)}')


def _metrics_lines(metrics: object) -> Iterator[str]:
    rows = metrics.get('rows') if isinstance(metrics, Mapping) else None
    what = 'measured'
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping):
            continue
        place = ' '.join(str(row[key]) for key in ('dataset', 'task') if row.get(key))
        values = [
            f'{name} {_number(value)}'
            for name, value in row.items()
            if isinstance(value, float) and not name.startswith('input_')
        ]
        yield line(what, f'{place}: {", ".join(values)}')
        what = ''


def _number(value: object) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value)


def _plain(value: object) -> str:
    """A value as one line of YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{key}: {_plain(part)}' for key, part in value.items()) + '}'
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(_plain, value))}]'
    return '~' if value is None else str(value)
