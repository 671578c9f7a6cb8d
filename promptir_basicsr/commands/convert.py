"""What `basicsr convert` tells of a file of weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from promptir_basicsr.models.checkpoint_util import bytes_of, megabytes
from promptir_basicsr.option_util import first_few

_MARGIN = 14


def line(name: str, text: str) -> str:
    """A name, and in a column beside it a text."""
    return f'{name:{_MARGIN}}{text}'


def weights_lines(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Count, type and size of weights."""
    types = sorted({str(value.dtype).removeprefix('torch.') for value in weights.values()})
    numbers = sum(value.numel() for value in weights.values())
    yield line('weights', f'{len(weights):,} tensors, {numbers:,} parameters, {", ".join(types)}')
    yield line('size', megabytes(bytes_of(weights)))


def network_line(network: Mapping[str, Any]) -> str:
    """Type and arguments, as an option file has them."""
    arguments = ', '.join(f'{name}: {_plain(value)}' for name, value in network.items() if name != 'type')
    return line('network', f'{network["type"]} {{{arguments}}}')


def metadata_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What the training has told."""
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
    """Names that are not in the one or the other file; nothing where there are none."""
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
    """A value as YAML has it in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{key}: {_plain(part)}' for key, part in value.items()) + '}'
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(_plain, value))}]'
    return '~' if value is None else str(value)
