"""`results.json`: machine-readable results, with network, images, metrics and versions."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import first_line, printable
from promptir_basicsr.core.version import __version__
from promptir_basicsr.evaluation.results import Row

NAME = 'results.json'
SCHEMA = 1
_MOST_BYTES = 10_000_000


@dataclass(frozen=True)
class TaskResult:
    """Results of a task.

    Attributes:
        dataset: name of its dataset, or ''.
        task: its name.
        images: number of images.
        made_by: how the degraded images were made, 'pairs' for existing ones.
        values: metric -> mean over the images.
        inputs: the same for the degraded images; empty if they were not measured.
    """

    dataset: str
    task: str
    images: int
    made_by: str
    values: Mapping[str, float]
    inputs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """The content of a `results.json`.

    Attributes:
        name: of the run, or of the measured folder.
        facts: origin of the results: network, parameters, protocol, iteration, seed, versions, ...
        metrics: name -> definition.
        lower_is_better: names of metrics for which lower is better.
        tasks: results of each task.
        remarks: remarks on the results.
    """

    name: str
    facts: Mapping[str, Any]
    metrics: Mapping[str, str]
    lower_is_better: Sequence[str]
    tasks: Sequence[TaskResult]
    remarks: Sequence[str] = ()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically.

        Raises:
            SaveError: the file could not be written.
        """
        content = {'schema': SCHEMA, **vars(self), 'tasks': [vars(task) for task in self.tasks]}
        atomic_write(json.dumps(_finite(content), indent=1, ensure_ascii=False) + '\n', path)


def _finite(value: Any) -> Any:
    """Replace non-finite numbers by text, because JSON has no infinity, such as the PSNR of equal images."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read the results of a run.

    Args:
        path: a `results.json`, or the folder of a run that contains one.

    Raises:
        OptionError: the file does not exist or cannot be read.
    """
    file = Path(path) / NAME if os.path.isdir(path) else Path(path)
    where = printable(file)
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise OptionError(f"'{where}' is too large for a results file: {file.stat().st_size:,} bytes.")
        content = json.loads(file.read_bytes())
        return _parsed(content)
    except OSError as error:
        reason = 'the run has no validation yet' if os.path.isdir(path) else error.strerror
        raise OptionError(f"'{where}' cannot be read: {reason}. Pass the folder of a run, or its {NAME}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"'{where}' has no results of this package ({type(error).__name__}: {first_line(error)}). Validate the "
            'run again.'
        ) from error


def _parsed(content: Any) -> Results:
    if content['schema'] > SCHEMA:
        raise OptionError(f'results of format {content["schema"]}; this release supports up to {SCHEMA}. Update it.')
    tasks = [
        TaskResult(
            str(task['dataset']),
            str(task['task']),
            int(task['images']),
            str(task['made_by']),
            _numbers(task['values']),
            _numbers(task['inputs']),
        )
        for task in content['tasks']
    ]
    if not tasks:
        raise ValueError('no tasks')
    return Results(
        str(content['name']),
        dict(content['facts']),
        {str(name): str(text) for name, text in content['metrics'].items()},
        [str(name) for name in content['lower_is_better']],
        tasks,
        [str(line) for line in content['remarks']],
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


def tasks_of(rows: Sequence[Row], made_by: Mapping[tuple[str, str], str]) -> list[TaskResult]:
    """Results of the rows of a validation, with how their images were made, by dataset and task."""
    return [
        TaskResult(row.dataset, row.task, row.images, made_by.get((row.dataset, row.task), ''), row.values, row.inputs)
        for row in rows
    ]


def circumstances() -> dict[str, Any]:
    """Date, versions, and commit of the repository of the current folder."""
    return {
        'date': time.strftime('%Y-%m-%d %H:%M'),
        'promptir_basicsr': __version__,
        'torch': torch.__version__,
        'python': platform.python_version(),
        **({'commit': commit} if (commit := _commit(os.getcwd())) else {}),
    }


@cache
def _commit(folder: str) -> str | None:
    """Commit of the repository that a folder is in, with `-dirty` if files have changed; None outside of one."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a very large repository
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
