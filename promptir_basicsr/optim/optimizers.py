"""Optimizers by name: those of `torch.optim`, and `pytorch_optimizer:NAME` of that package."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import unknown
from promptir_basicsr.core.problems import problem

PREFIX = 'pytorch_optimizer:'

FEWEST_CHANNELS = 8
"""Convolutions with fewer input or output channels (of images, gates, heads) get no orthogonal updates."""


def find_optimizer(name: object) -> type[Optimizer]:
    """Return the class of an optimizer.

    Args:
        name: class name in `torch.optim`, or `pytorch_optimizer:NAME`.

    Raises:
        OptionError: the optimizer is unknown; the place of the problem is `type`.
    """
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return _chosen('optimizer', name, torch.optim)
    import pytorch_optimizer

    optimizer = _chosen('optimizer of pytorch_optimizer', name.removeprefix(PREFIX), pytorch_optimizer)
    if hasattr(optimizer, 'eval'):
        message = (
            f"'{name}' uses different weights for validation and training, which the models of this package do not "
            'swap. Use an optimizer that is not schedule-free, with FixedLR and ema_decay.'
        )
        raise OptionError(problem('type', message))
    return optimizer


def build_optimizer(name: str, weights: Iterable[Any], **arguments: Any) -> Optimizer:
    """Build an optimizer of weights or of parameter groups.

    Optimizers that orthogonalise the updates of matrices (Muon and similar ones, with `use_muon` in their groups) use
    this for the weights that `is_hidden_matrix` selects, and their AdamW for the others, with `adamw_lr`,
    `adamw_betas`, `adamw_wd`.

    Args:
        arguments: of its constructor; lists become tuples, as in `betas: [0.9, 0.99]`.

    Raises:
        OptionError: the optimizer is unknown.
        Exception: its constructor rejects the arguments.
    """
    kind, weights = find_optimizer(name), list(weights)
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    if _splits(kind) and not any(isinstance(each, Mapping) for each in weights):
        hidden = [weight for weight in weights if is_hidden_matrix(weight)]
        others = [weight for weight in weights if not is_hidden_matrix(weight)]
        parts = ((hidden, True), (others, False))
        weights = [{'params': part, 'use_muon': orthogonal} for part, orthogonal in parts if part]
    return kind(weights, **arguments)


def is_hidden_matrix(weight: Tensor) -> bool:
    """Return whether a weight belongs to a convolution between features: neither depthwise nor of images, see Muon.

    Args:
        weight: (out, in / groups, height, width) for a convolution.
    """
    return weight.ndim == 4 and min(weight.shape[:2]) >= FEWEST_CHANNELS


def option_names(kind: type[Optimizer]) -> set[str]:
    """Return the keys of an optimizer's groups that come from options; those of its AdamW without their prefix."""
    names = inspect.signature(kind).parameters.keys() - {'params'}
    aliases = {'adamw_wd': 'weight_decay'}
    return names | {aliases.get(name, name.removeprefix('adamw_')) for name in names}


def _splits(kind: type[Optimizer]) -> bool:
    return 'adamw_lr' in inspect.signature(kind).parameters


def _chosen(what: str, name: object, module: Any) -> type[Optimizer]:
    known = {
        key: each
        for key, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, Optimizer) and each is not Optimizer and key[0] != '_'
    }
    if not isinstance(name, str) or name not in known:
        raise OptionError(unknown('type', what, name, known))
    return known[name]
