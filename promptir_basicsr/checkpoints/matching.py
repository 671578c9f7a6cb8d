"""Matching of weights and networks by names and shapes, with or without prefixes of wrappers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.checkpoints.reading import readings
from promptir_basicsr.core.errors import OptionError, problems_of, raise_problems
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.core.problems import Problem
from promptir_basicsr.core.registry import arguments_of, build, check_call, find_registered

_MOST_SHOWN = 4  # names in a message
_MOST_PARAMETERS = 10_000  # of a network that only a file describes; the largest here have 1,000


@dataclass(frozen=True)
class Fit:
    """Weights of a file, fitted to a network.

    Attributes:
        network: `type` and arguments.
        weights: by the names and in the order of the network's parameters.
        prefix: prefix of the names in the file.
        dropped: names of a released checkpoint that the network does not use.
        outside: names without the prefix, of losses and other objects that were saved with the network.
        fresh: names of a queue of keys that the file lacks, or has with another length.
    """

    network: dict[str, Any]
    weights: dict[str, Tensor]
    prefix: str = ''
    dropped: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def fit(weights: Mapping[str, Tensor], options: Mapping[str, Any], most: int | None = None) -> Fit:
    """Fit weights to a network: all of its parameters and no others.

    Unused tensors of released checkpoints are dropped, but no other tensors.

    Args:
        weights: as they are in a file.
        options: `type` and arguments of the network.
        most: see `new_network`.

    Raises:
        OptionError: the network cannot be built, or the weights do not fit it; the message lists the differences.
    """
    net = new_network(options, 'meta', most)
    wanted = shapes_of(net.state_dict())
    unused = unused_shapes(net)
    misfits = []
    for prefix, found, outside in readings(weights):
        named = with_queue(found, net)
        shapes = shapes_of(named)
        dropped = [name for name, shape in unused.items() if shapes.get(name) == shape]
        own = {name: shape for name, shape in shapes.items() if name not in dropped}
        if own == wanted:
            _check_kinds(named, net, options)
            fresh = [name for name in wanted if named[name] is not found.get(name)]
            return Fit(dict(options), {name: named[name] for name in wanted}, prefix, dropped, outside, fresh)
        misfits.append(own)
    nearest = max(misfits, key=lambda own: len(own.keys() & wanted.keys()))
    raise OptionError(f'the weights do not fit {shown_network(options)}: {_difference(nearest, wanted)}.')


def with_queue(weights: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Weights of a file for `net`; a contrastive network starts a new queue if the file's has another length."""
    return net.with_queue(weights) if traits_of(net).contrastive else dict(weights)


def _check_kinds(weights: Mapping[str, Tensor], net: nn.Module, options: Mapping[str, Any]) -> None:
    """Check the kinds of dtypes: integers, booleans or complex numbers are not weights."""
    for name, value in net.state_dict().items():
        if value.is_floating_point() != weights[name].is_floating_point():
            found = str(weights[name].dtype).removeprefix('torch.')
            raise OptionError(f'the weights do not fit {shown_network(options)}: {name} is of type {found}.')


def new_network(options: Mapping[str, Any], device: str = 'cpu', most: int | None = None) -> nn.Module:
    """Build a network from `type` and arguments; on the `meta` device if its constructor supports it.

    Args:
        most: approximate limit of the number of parameters. Default: no limit.

    Raises:
        OptionError: the network is unknown, or an argument is not allowed.
    """
    raise_problems(network_problems(options))
    try:
        with torch.random.fork_rng(devices=[]), _at_most(most):
            return build(ARCH_REGISTRY, options, device)
    except Exception as error:  # constructors may raise anything
        declared = traits_of(find_registered(ARCH_REGISTRY, options['type'])).declared
        if device == 'meta' and isinstance(error, RuntimeError) and not declared:  # it may not support meta
            return new_network(options)
        raise OptionError(problems_of('network_g', error)) from error


@contextmanager
def _at_most(parameters: int | None) -> Iterator[None]:
    """Let the constructor of a network raise OptionError if it creates more than twice as many parameters."""
    if parameters is None:
        yield
        return
    left, thread = min(2 * parameters, _MOST_PARAMETERS), get_ident()

    def count(*_: Any) -> None:
        nonlocal left
        left -= get_ident() == thread
        if left < 0:
            raise OptionError(f'the network has many more parameters than the {parameters:,} tensors of the file.')

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def network_problems(options: Mapping[str, Any]) -> list[Problem]:
    """Problems of a network's type and the names of its arguments."""
    return check_call('network_g', 'network', options, ARCH_REGISTRY)


def unused_shapes(net: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of unused tensors in released checkpoints of the network."""
    if not traits_of(net).released:
        return {}
    try:
        released = net.released_state_dict()
    except ValueError:  # these options have no released layout
        return {}
    own = net.state_dict()
    return {name: shape for name, shape in shapes_of(released).items() if name not in own}


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def shown_network(options: Mapping[str, Any]) -> str:
    """A network for messages: `PromptIR(dim=8, ...)`."""
    arguments = ', '.join(f'{name}={value!r}' for name, value in arguments_of(options).items())
    return f'{options["type"]}({arguments})'


def _difference(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    shared = [name for name in wanted if name in found]
    parts = [
        ('other shapes', [f'{name} {found[name]} -> {wanted[name]}' for name in shared if found[name] != wanted[name]]),
        ('missing', [name for name in wanted if name not in found]),
        ('unknown', [name for name in found if name not in wanted]),
    ]
    return '; '.join(f'{len(names)} {what}, {first_few(names, _MOST_SHOWN)}' for what, names in parts if names)
