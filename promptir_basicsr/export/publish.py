"""Publish weights as a folder in Hugging Face Hub format: `model.safetensors`, `config.json` and a model card."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptir_basicsr.archs.elsewhere import without_folder
from promptir_basicsr.checkpoints.checkpoint import Checkpoint, digest, read_checkpoint, write_checkpoint
from promptir_basicsr.checkpoints.hub import CARD, CONFIG, WEIGHTS
from promptir_basicsr.checkpoints.matching import new_network
from promptir_basicsr.checkpoints.reading import plain
from promptir_basicsr.checkpoints.recognition import RECOGNIZED
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.files import atomic_write, target_problems
from promptir_basicsr.core.messages import printable
from promptir_basicsr.core.version import __version__
from promptir_basicsr.evaluation.record import NAME, Results, TaskResult, read_results
from promptir_basicsr.evaluation.results import Row, average, markdown_table

_LICENCE = re.compile(r'[A-Za-z0-9][\w.+-]*')
_SHEET = 'contact_sheet.png'
_INPUT = 'input_'


@dataclass(frozen=True)
class Source:
    """Weights to publish.

    Attributes:
        weights: the file.
        folder: of the run; None for a single file.
    """

    weights: str
    folder: Path | None


def find_source(run: str) -> Source:
    """Find the weights of a run: the best ones, else the newest.

    Args:
        run: a name below `experiments`, a folder of a run, or a weights file.

    Raises:
        OptionError: no weights found.
    """
    path = Path(os.path.expanduser(run))
    if path.is_file():
        folder = path.resolve().parents[1] if path.resolve().parent.name == 'models' else None
        return Source(str(path), folder)
    folder = next((each for each in (path, Path('experiments') / run) if each.is_dir()), None)
    if folder is None:
        raise OptionError(f"'{run}' is not a weights file, a folder, or a run in 'experiments'.")
    for name in ('net_g_best.pth', 'net_g_latest.pth'):
        if (folder / 'models' / name).is_file():
            return Source(str(folder / 'models' / name), folder)
    raise OptionError(f"'{folder}' is not a run with weights: models/net_g_best.pth and net_g_latest.pth are missing.")


def publish(
    source: Source,
    out: str,
    name: str | None = None,
    licence: str | None = None,
    results: str | None = None,
    image: str | None = None,
    network: str | None = None,
    key: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the folder; existing files of these names are replaced one by one, atomically.

    Args:
        name: of the model. Default: that of the run.
        licence: licence identifier of the Hub.
        results: folder of a test or `results.json`, for the table of the card. Default: results of these weights in
            the training.
        image: image of the card. Default: the run's contact sheet.
        network, key: as in `read_checkpoint`.

    Returns:
        The names of the files.

    Raises:
        OptionError: weights, results or image cannot be read, or a file exists already.
        SaveError: a file could not be written.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise OptionError(f"--license: '{licence}' is not an identifier such as cc-by-4.0, apache-2.0 or other.")
    sheet = source.folder / _SHEET if source.folder else None
    picture = Path(os.path.expanduser(image)) if image else sheet if sheet and sheet.is_file() else None
    if picture is not None and not picture.is_file():
        raise OptionError(f"--image: '{picture}' does not exist.")
    shown = f'image{picture.suffix.lower()}' if picture else None
    files = [WEIGHTS, CONFIG, CARD, *([shown] if shown else [])]
    if os.path.lexists(out) and not os.path.isdir(out):
        raise OptionError(f"--out: '{out}' is a file. Pass a folder.")
    raise_problems([each for file in files for each in target_problems(os.path.join(out, file), overwrite)])
    checkpoint = read_checkpoint(source.weights, network, key)
    measured = read_results(results) if results else _of_training(checkpoint, source.folder)
    title = name or str(checkpoint.metadata.get('name') or Path(source.weights).stem)
    card = model_card(title, checkpoint, measured, licence, shown)
    os.makedirs(out, exist_ok=True)
    write_checkpoint(checkpoint, os.path.join(out, WEIGHTS), 'safetensors')
    config = {'library_name': 'promptir_basicsr', 'network_g': plain(without_folder(checkpoint.network))}
    atomic_write(json.dumps(config, indent=2, ensure_ascii=False) + '\n', os.path.join(out, CONFIG))
    atomic_write(card, os.path.join(out, CARD))
    if picture is not None and shown is not None:
        atomic_write(picture.read_bytes(), os.path.join(out, shown))
    return files


def _of_training(checkpoint: Checkpoint, folder: Path | None) -> Results | None:
    """Results of these weights in a validation of the training, with the definitions of its metrics."""
    metrics = checkpoint.metadata.get('metrics')
    if not isinstance(metrics, Mapping) or metrics.get('iteration') != checkpoint.metadata.get('iteration'):
        return None
    run = read_results(folder) if folder and (folder / NAME).is_file() else None
    tasks = [_task(row) for row in metrics['rows'] if row['task'] != average([]).task]
    return Results('', {}, run.metrics if run else {}, [], tasks, run.remarks if run else ())


def _task(row: Mapping[str, Any]) -> TaskResult:
    """Convert a row of a checkpoint's metadata."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    inputs = {name.removeprefix(_INPUT): value for name, value in numbers.items() if name.startswith(_INPUT)}
    values = {name: value for name, value in numbers.items() if not name.startswith(_INPUT)}
    return TaskResult(str(row['dataset']), str(row['task']), int(row['images']), '', values, inputs)


def model_card(
    title: str, checkpoint: Checkpoint, measured: Results | None, licence: str | None, image: str | None
) -> str:
    """The README.md of a published folder: Markdown with the front matter of the Hub."""
    kind, told = str(checkpoint.network['type']).rpartition(':')[2], checkpoint.metadata
    count = sum(parameter.numel() for parameter in new_network(checkpoint.network, 'meta').parameters())
    words = told.get('degradations')
    degradations = f' with {len(words)} degradations ({", ".join(words)})' if isinstance(words, list) else ''
    parts = [
        _FRONT.format(licence=f'license: {licence}\n' if licence else '', kind=kind.lower()),
        f'# {printable(title)}',
        f'{kind}, {count / 1e6:.3g} million parameters, restores images{degradations}. {_training(told)}',
    ]
    parts += [f'![degraded, restored and clear images]({image})'] if image else []
    parts.append(_USE)
    if checkpoint.network['type'] not in RECOGNIZED:
        parts.append('Add `-opt FILE` (in Python `network=...`), because this network is not part of the package.')
    parts += ['## Results', *_results(measured), '## Files']
    parts.append(
        f'`{WEIGHTS}` has {len(checkpoint.weights):,} tensors; the SHA-256 of their names, types, shapes and bits, '
        f'which `basicsr convert {WEIGHTS}` prints, is `{digest(checkpoint.weights)}`. `{CONFIG}` has the network and '
        'its arguments, as the option `network_g`.'
    )
    return '\n\n'.join(parts) + '\n'


def _training(told: Mapping[str, Any]) -> str:
    words = [f'protocol {told["protocol"]}'] if told.get('protocol') else []
    words += [f'{told["iteration"]:,} iterations'] if isinstance(told.get('iteration'), int) else []
    package = f'promptir_basicsr {told.get("package", __version__)}'
    return f'Trained with {package}' + (f': {", ".join(words)}.' if words else '.')


def _results(measured: Results | None) -> list[str]:
    if measured is None:
        return ['There are no results of these weights.']
    rows = [Row(task.dataset, task.task, task.images, dict(task.values), dict(task.inputs)) for task in measured.tasks]
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    definitions = [f'- {name}: {measured.metrics[name]}' for name in names if name in measured.metrics]
    parts = ['\n'.join(markdown_table(rows, names)), 'In brackets: the degraded inputs.']
    return [*parts, *(['\n'.join(definitions)] if definitions else []), *measured.remarks]


_FRONT = """---
library_name: promptir_basicsr
pipeline_tag: image-to-image
{licence}tags:
- image-restoration
- all-in-one-image-restoration
- {kind}
---"""
_USE = """## Use

```
pip install 'promptir_basicsr[hub]'
python -m promptir_basicsr.install_basicsr
basicsr restore photo.png -o restored --weights FOLDER
```

```python
from promptir_basicsr.inference import Restorer

restorer = Restorer.from_pretrained('FOLDER')  # or OWNER/NAME on the Hugging Face Hub
restored = restorer.restore(image)  # (H, W, 3) RGB, uint8, uint16 or float in [0, 1]
```"""
