"""What a training tells about its weights, in the file of the weights."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from promptir_basicsr import __version__
from promptir_basicsr.data.protocol_util import expand_protocol
from promptir_basicsr.models.result_util import Row
from promptir_basicsr.option_util import OptionError

METADATA = 'metadata'
"""The key under which it stands beside `params`."""

FORMAT = 1
"""Of the metadata; another number where the meaning of a key changes."""


def training_metadata(
    opt: Mapping[str, Any],
    net: nn.Module,
    iteration: int,
    epoch: int | None,
    metrics: Mapping[str, Any] | None,
    best: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Mappings, lists, numbers and texts, so that every reader of weights allows them.

    Args:
        opt: the options of the run.
        net: the network, without wrappers.
        iteration: of the weights.
        epoch: which it belongs to, from 0.
        metrics: of the last validation, from `measured` or `last_measured`.
        best: metric, value and iter of the best average so far.
    """
    training = (opt.get('datasets') or {}).get('train') or {}
    tasks = _tasks(training)
    types = list(dict.fromkeys(str(task['type']) for task in tasks if 'type' in task))
    known = {
        'name': opt.get('name'),
        'iteration': iteration,
        'epoch': epoch,
        'protocol': training.get('protocol'),
        'tasks': [str(task.get('name') or task.get('type')) for task in tasks],
        'degradations': getattr(net, 'degradations', None) or types,
        'metrics': metrics,
        'best': best,
    }
    told = {key: value for key, value in known.items() if value is not None and value != []}
    return plain({'format': FORMAT, 'package': __version__, 'network_g': opt['network_g'], **told})


def measured(iteration: int | str, rows: Sequence[Row]) -> dict[str, Any]:
    """A validation: its rows, each with dataset, task, images and the mean of each metric."""
    return {
        'iteration': iteration,
        'rows': [
            {
                'dataset': row.dataset,
                'task': row.task,
                'images': row.images,
                **{name: float(value) for name, value in row.values.items()},
                **{f'input_{name}': float(value) for name, value in row.inputs.items()},
            }
            for row in rows
        ],
    }


def last_measured(table: str) -> dict[str, Any] | None:
    """The same of the last validation in the text of a `metrics.csv`, or None where there is none."""
    rows = list(csv.DictReader(io.StringIO(table, newline='')))
    iterations = [row['iter'] for row in rows if row.get('iter', '').isdecimal()]
    if not iterations:
        return None
    last = max(iterations, key=int)
    told = []
    for row in rows:
        if row['iter'] == last:
            values = {name: float(text) for name, text in row.items() if name not in _TEXTS and text}
            told.append({'dataset': row['dataset'], 'task': row['task'], 'images': int(row['images']), **values})
    return {'iteration': int(last), 'rows': told}


_TEXTS = ('iter', 'dataset', 'task', 'images')


def plain(value: Any) -> Any:
    """Options as mappings, lists, numbers and texts; equal ones are saved as equal bytes."""
    return json.loads(json.dumps(value, default=str))


def _tasks(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Options of the tasks of the training set, those of a protocol included."""
    try:
        tasks = expand_protocol({**training, 'phase': 'train'}, 'datasets.train').get('tasks')
    except OptionError:  # a data set of another kind, whose options have another meaning
        return []
    listed = tasks if isinstance(tasks, Sequence) and not isinstance(tasks, str) else ()
    return [task for task in listed if isinstance(task, Mapping)]
