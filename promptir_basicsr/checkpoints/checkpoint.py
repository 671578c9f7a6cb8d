"""Checkpoints: read weights of any layout, recognise and build their network, and write them.

`docs/weights.md` describes the files and their content.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from promptir_basicsr.archs.elsewhere import without_folder
from promptir_basicsr.archs.layers.conditioning import SENSOR_PREFIX
from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.checkpoints.folder import atomic_save
from promptir_basicsr.checkpoints.matching import Fit, fit, network_problems, new_network, shapes_of
from promptir_basicsr.checkpoints.reading import (
    FORMAT,
    HEADER_KEY,
    LAYOUTS,
    METADATA,
    WeightFile,
    plain,
    read_weight_file,
    readings,
)
from promptir_basicsr.checkpoints.recognition import RECOGNIZED, recognize
from promptir_basicsr.core.errors import OptionError, SaveError, raise_problems
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import first_few, shown
from promptir_basicsr.core.problems import Problem
from promptir_basicsr.core.version import __version__
from promptir_basicsr.options.file import read_options

LIGHTNING = '2.0.0'
"""Lightning version of PromptIR's official checkpoints; Lightning requires one."""

_LARGEST_ARGUMENT = 65_536


@dataclass(frozen=True)
class Checkpoint:
    """Weights and their network.

    Attributes:
        path: the file.
        weights: by the names and in the order of the network's parameters, unchanged, on the CPU.
        network: `type` and arguments, as the option `network_g`.
        metadata: metadata of the training, see `docs/weights.md`. Third-party files only have `epoch` and `iteration`.
        notes: messages about the file.
        layout: one of `checkpoints.reading.LAYOUTS`.
        key: key of the weights in the file; '' without a key.
        dropped: names in the file that the network does not use, as in released checkpoints.
        outside: names in the file that are not the network's.
        others: further weights of the network in the file, by their key.

    Examples:
        >>> from promptir_basicsr.checkpoints import read_checkpoint
        >>> checkpoint = read_checkpoint('net_g_latest.pth')
        >>> checkpoint.weights['patch_embed.proj.weight'].shape
        torch.Size([8, 3, 3, 3])
    """

    path: str
    weights: dict[str, Tensor]
    network: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    layout: str = 'bare'
    key: str = ''
    dropped: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    others: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def read_checkpoint(
    path: str | os.PathLike[str],
    network: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    key: str | None = None,
) -> Checkpoint:
    """Read weights and their network from a file. No code in the file is run.

    Args:
        path: a file of this package, BasicSR, the released programs (Lightning), a bare state dict or safetensors.
        network: `type` and arguments, as the option `network_g`, or an option file that has it. Default: from the
            file's metadata, else recognised from names and shapes of the weights.
        key: key of the weights in the file. Default: `params_ema`, else `params`, else the only ones.

    Raises:
        OptionError: the file cannot be read, its network is unknown, or the weights do not fit the network.

    Examples:
        >>> from promptir_basicsr.checkpoints import read_checkpoint
        >>> checkpoint = read_checkpoint('net_g_latest.pth')
        >>> checkpoint.network['type'], checkpoint.network['dim'], checkpoint.key
        ('PromptIR', 8, 'params')
    """
    file = read_weight_file(path)
    key = file.choose(key)
    if network is not None:
        options = read_network(network) if isinstance(network, str | os.PathLike) else network
        found, how = _fitted(file, key, options), 'as given'
    else:
        found, how = _told(file, key)
    others = {}
    for other in file.sets:
        if other != key and len(file.sets[other]) >= len(found.weights):
            try:
                others[other] = fit(file.sets[other], found.network).weights
            except OptionError:  # weights of another network, such as a discriminator
                continue
    metadata = dict(file.metadata)
    for name, value in (('epoch', file.epoch), ('iteration', file.iteration)):
        if value is not None:
            metadata.setdefault(name, value)
    notes = _notes(file, key, found, how, others)
    return Checkpoint(
        file.path, found.weights, found.network, metadata, notes, file.layout, key, found.dropped, found.outside, others
    )


def build(checkpoint: Checkpoint, device: torch.device | str = 'cpu') -> nn.Module:
    """Build the network of a checkpoint with its weights, in evaluation mode and float32.

    The random state does not change.

    Examples:
        >>> from promptir_basicsr.checkpoints import build, read_checkpoint
        >>> net = build(read_checkpoint('net_g_latest.pth'))
        >>> type(net).__name__, net.training
        ('PromptIR', False)
    """
    net = new_network(checkpoint.network)
    net.load_state_dict(checkpoint.weights)
    return net.eval().to(device)


def write_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str], layout: str) -> Checkpoint:
    """Write weights and metadata in another layout, atomically; replaces an existing file.

    Args:
        layout: 'basicsr' (`params`, and `params_ema` if the checkpoint has both), 'official' (for the released program
            of PromptIR, PIP or AirNet, without a sensor) or 'safetensors'.

    Returns:
        The checkpoint read back. Its `dropped` are names of the official layout that the network lacks, with zeros.

    Raises:
        OptionError: the network has no official layout.
        SaveError: the file could not be written, or reading it back gives other weights.

    Examples:
        >>> from promptir_basicsr.checkpoints import read_checkpoint, write_checkpoint
        >>> checkpoint = read_checkpoint('net_g_latest.pth')
        >>> write_checkpoint(checkpoint, 'net.safetensors', 'safetensors').layout
        'safetensors'
    """
    path = os.path.expanduser(os.fspath(path))
    released = _released(checkpoint) if layout == 'official' else {}
    if layout == 'official':
        checkpoint = _without_sensor(checkpoint)
    weights = {name: value.contiguous().clone() for name, value in checkpoint.weights.items()}
    known = {'format': FORMAT, 'package': __version__, **checkpoint.metadata}
    known['network_g'] = without_folder(checkpoint.network)
    metadata = plain(known)
    content: dict[str, Any] = {}
    if layout == 'safetensors':
        header = {'format': 'pt', HEADER_KEY: json.dumps(metadata)}
        atomic_write(safetensors.torch.save(weights, header), path)
    else:
        content = _official(checkpoint, {**released, **weights}) if released else _sets(checkpoint, weights)
        # The released AirNet program reads only weights and refuses other names.
        bare = bool(released) and checkpoint.network['type'] == 'AirNet'
        atomic_save(content if bare else {**content, METADATA: metadata}, path)
    written = read_checkpoint(path, checkpoint.network, checkpoint.key if checkpoint.key in content else None)
    if digest(written.weights) != digest(weights):
        raise SaveError(f"'{path}' was written, but reading it back gives other weights. Check the disk.")
    return written


def _sets(checkpoint: Checkpoint, weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights in BasicSR's layout: as `params`, or as `params` and `params_ema`."""
    pair = ('params', 'params_ema')
    other = next((key for key in pair if key in checkpoint.others and checkpoint.key in pair), None)
    if other is None:
        return {'params': weights}
    sets = {checkpoint.key: weights, other: checkpoint.others[other]}
    return {key: sets[key] for key in pair}


def _without_sensor(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without a sensor, as released."""
    network = {name: value for name, value in checkpoint.network.items() if name not in ('sensor', 'hard_sensor')}
    own = {name: value for name, value in checkpoint.weights.items() if not name.startswith(SENSOR_PREFIX)}
    return replace(checkpoint, network=network, weights=own)


def _released(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Zeros with the names of the authors' checkpoints.

    Raises:
        OptionError: the network has no released layout.
    """
    net: Any = new_network(checkpoint.network, 'meta')
    if not traits_of(net).released:
        kind = checkpoint.network['type']
        raise OptionError(f"{kind} was never released and has no official layout. Use 'basicsr' or 'safetensors'.")
    try:
        shapes = shapes_of(net.released_state_dict())
    except ValueError as error:
        raise OptionError(f"{error} Use 'basicsr' or 'safetensors'.") from error
    like = next(value for value in checkpoint.weights.values() if value.is_floating_point())
    return {name: like.new_zeros(shape) for name, shape in shapes.items()}


def _official(checkpoint: Checkpoint, released: dict[str, Tensor]) -> dict[str, Any]:
    """Weights in the layout of the released programs: PIP's as `params`, PromptIR's as Lightning's `net`, AirNet's as
    a bare state dict."""
    known = {
        name: checkpoint.metadata[told]
        for name, told in (('epoch', 'epoch'), ('global_step', 'iteration'))
        if told in checkpoint.metadata
    }
    if checkpoint.network['type'] == 'PIPRestormer':
        return {'params': released, **known}
    if checkpoint.network['type'] == 'AirNet':
        return dict(released)
    named = {f'net.{name}': value for name, value in released.items()}
    return {**known, 'pytorch-lightning_version': LIGHTNING, 'state_dict': named}


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bits of weights, independent of their order and file."""
    told = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu()
        told.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        told.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()


def read_network(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `network_g` of an option file.

    Raises:
        OptionError: the file cannot be read, or has no `network_g`.
    """
    options = read_options(os.path.expanduser(os.fspath(path)))
    network = options.get('network_g') if isinstance(options, Mapping) else None
    if not isinstance(network, Mapping):
        raise OptionError(f"'{os.fspath(path)}': network_g, the network of the weights, is missing.")
    return dict(network)


def halved(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with weights in float16.

    Raises:
        OptionError: a weight is too large for float16.
    """

    def half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        small = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        lost = [name for name, value in small.items() if not value.isfinite().all() and weights[name].isfinite().all()]
        if lost:
            raise OptionError(f'--half: values of {first_few(lost)} are too large for float16. Omit --half.')
        return small

    others = {key: half(weights) for key, weights in checkpoint.others.items()}
    return replace(checkpoint, weights=half(checkpoint.weights), others=others)


def _fitted(file: WeightFile, key: str, options: Mapping[str, Any]) -> Fit:
    """Fit the weights to a network.

    Raises:
        OptionError: the network is unknown, or the weights do not fit it.
    """
    raise_problems(network_problems(options))
    try:
        return fit(file.sets[key], options)
    except OptionError as error:
        raise OptionError(problem.said_by(f"'{file.path}'") for problem in error.problems) from error


def _told(file: WeightFile, key: str) -> tuple[Fit, str]:
    """Fit the weights to the network in the file's metadata, or to a recognised one; also return how it was found.

    Raises:
        OptionError: the network is unknown.
    """
    problems: list[Problem] = []
    weights = file.sets[key]
    candidates = [(file.metadata.get('network_g'), len(weights), 'as the file says')]
    for _, own, _ in readings(weights):
        candidates.append((recognize(shapes_of(own)), len(own), 'recognised from names and shapes'))
    for options, tensors, how in candidates:
        if isinstance(options, Mapping):
            try:
                _check_told(options)
                return fit(weights, options, tensors), how
            except OptionError as error:
                problems += error.problems
    reason = f'they do not match {_ours("or")}.'
    if problems:
        reason = f'{problems[0]}'
    elif any('taps.' in name for name in file.sets[key]):
        reason = 'they seem to be of a PromptedNetwork, whose backbone is unknown.'
    raise OptionError(
        f"'{file.path}': cannot recognise the network from its weights: {reason} Pass `-opt FILE` with its network_g."
    )


def _check_told(options: Mapping[str, Any]) -> None:
    """Check that the options in a file only name networks of this package, with reasonable sizes.

    Raises:
        OptionError: a network in the options, or inside that network, is a third-party one, or a number is too large.
    """
    parts: list[Any] = [options]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            if part.get('type', RECOGNIZED[0]) not in RECOGNIZED:
                raise OptionError(f'the file names {part["type"]}; without options only {_ours("and")} are built.')
            parts += part.values()
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, int | float) and not -_LARGEST_ARGUMENT <= part <= _LARGEST_ARGUMENT:
            raise OptionError(f'the file has the network argument {shown(part)}, which is too large.')


def _ours(last: str) -> str:
    return f'{", ".join(RECOGNIZED[:-1])} {last} {RECOGNIZED[-1]}'


def _notes(file: WeightFile, key: str, found: Fit, how: str, others: Mapping[str, Any]) -> list[str]:
    """Messages about a file."""
    place = f', weights under {key}' if key else ''
    besides = f', others under {", ".join(others)}' if others else ''
    notes = [f'Layout: {LAYOUTS[file.layout]}{place}{besides}.', f'Network: {found.network["type"]}, {how}.']
    if found.prefix:
        notes.append(f"The names start with '{found.prefix}', which is removed.")
    if found.dropped:
        notes.append(f'Skipped because they are unused: {", ".join(found.dropped)}.')
    if found.fresh:
        notes.append(f'Newly initialised because the file has none of this length: {", ".join(found.fresh)}.')
    if found.outside:
        notes.append(f'Skipped because they are not part of the network: {first_few(found.outside)}.')
    if file.foreign:
        notes.append(f'Third-party objects were not loaded: {first_few(file.foreign)}.')
    types = {str(value.dtype).removeprefix('torch.') for value in found.weights.values() if value.is_floating_point()}
    if types != {'float32'}:
        notes.append(f'Stored as {", ".join(sorted(types))}; the network computes in float32.')
    return notes
