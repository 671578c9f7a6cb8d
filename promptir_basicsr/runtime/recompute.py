"""Activation checkpointing: recompute in the backward pass what the forward pass did not save.

Built-in networks have blocks with their own setting, see `archs.layers.formulation`. In other networks, repeated blocks
are detected.
"""

import contextvars
from collections import Counter
from collections.abc import Iterator, Set
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from promptir_basicsr.archs.layers.formulation import Formulated, has_kernels, set_checkpointing, set_formulation
from promptir_basicsr.core.problems import Problem, problem

LISTS = (nn.Sequential, nn.ModuleList)


def set_blocks(
    net: nn.Module, formulation: str | None, checkpointing: str | None, kernels: str | None = None
) -> list[Problem]:
    """Apply the options `formulation` and `activation_checkpointing` to the blocks of a network.

    Args:
        net: any network; changed in place.
        formulation: one of FORMULATIONS; None for 'fast', if there is a choice.
        checkpointing: one of CHECKPOINTING; None for the network's own.
        kernels: the option `kernels`, which needs blocks in the fast formulation.

    Returns:
        The problems.
    """
    problems: list[Problem] = []
    name = type(net).__name__
    blocks = set_formulation(net, formulation or 'fast')
    if kernels and (not has_kernels(net) or formulation == 'plain'):
        found = 'the plain formulation' if has_kernels(net) else name
        message = f'{kernels} is for the fast formulation of PromptIR and PIP, not {found}. Omit the key.'
        problems.append(problem('kernels', message))
    if not blocks and formulation:
        message = f'{name} has no blocks with two formulations, as PromptIR and PIP have. Omit the key.'
        problems.append(problem('formulation', message))
    elif formulation == 'plain' and checkpointing in ('gate', 'block'):
        message = f"'{checkpointing}' requires `formulation: fast`; the plain one saves everything."
        problems.append(problem('activation_checkpointing', message))
    elif checkpointing:
        try:
            set_activation_checkpointing(net, checkpointing)
        except ValueError as error:
            problems.append(problem('activation_checkpointing', str(error)))
    return problems


def set_activation_checkpointing(net: nn.Module, checkpointing: str) -> int:
    """Choose what a network saves for the backward pass. Names, outputs and gradients do not change.

    Args:
        net: any network; changed in place, copies of it behave the same.
        checkpointing: 'none'; 'gate', for networks with `Formulated` blocks; 'block' saves only the input of a block.

    Returns:
        The number of blocks that recompute something.

    Raises:
        ValueError: the network has no such blocks, or blocks that cannot be called twice.
    """
    own = set_checkpointing(net, checkpointing)
    for module in net.modules():
        if isinstance(module, _Recomputed):  # from an earlier call
            module.__class__ = type(module).__mro__[1]
    if checkpointing == 'none':
        return 0
    if checkpointing == 'gate':
        if not own:
            raise ValueError(
                f"{type(net).__name__}: 'gate' needs the Transformer blocks of PromptIR and PIP, which it does not "
                "have. Use 'block' or 'none'."
            )
        return own
    blocks = list(dict.fromkeys(repeated_blocks(net)))
    if not own and not blocks:
        raise ValueError(
            f"{type(net).__name__}: 'block' needs repeated blocks in an nn.Sequential or nn.ModuleList, "
            "which it does not have. Use 'none'."
        )
    for block in blocks:
        if any(isinstance(module, _BatchNorm) for module in block.modules()):
            raise ValueError(
                f"{type(net).__name__}: 'block' would make the batch normalisation in {type(block).__name__} count "
                "every batch twice. Use 'none'."
            )
    for block in blocks:
        # Inner hooks, such as those of PromptedNetwork, may need context set around the forward pass.
        hooked = any(module._forward_hooks for module in block.modules() if module is not block)
        block.__class__ = _recomputed(type(block), hooked)  # type: ignore[arg-type]
    return own + len(blocks)


def repeated_blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Yield members of nn.Sequential and nn.ModuleList with submodules and weights whose class occurs at least twice.

    Blocks inside blocks are skipped, as are blocks that contain `Formulated` ones, which have their own setting.
    """
    kinds = Counter(type(part) for lists in net.modules() if isinstance(lists, LISTS) for part in lists.children())
    yield from _outermost(net, {kind for kind, count in kinds.items() if count > 1})


def _outermost(net: nn.Module, kinds: Set[type]) -> Iterator[nn.Module]:
    for part in net.children():
        if isinstance(net, LISTS) and type(part) in kinds and _is_block(part):
            yield part
        elif not isinstance(part, Formulated):
            yield from _outermost(part, kinds)


def _is_block(module: nn.Module) -> bool:
    # A list of lists has its blocks further inside; a single layer saves its input anyway.
    if isinstance(module, LISTS) or not any(True for _ in module.children()):
        return False
    weighs = any(True for _ in module.parameters())
    return weighs and not any(isinstance(each, Formulated) for each in module.modules())


class _Recomputed:
    """A block whose forward pass saves only its input."""

    __slots__ = ()  # the class of a block can only be replaced by one with the same layout


@cache
def _recomputed(kind: type[nn.Module], in_context: bool) -> type[nn.Module]:
    """Return a class of blocks that save only their input.

    A class, unlike a function set on the block, also applies to copies and replicas on other devices.

    Args:
        kind: of the blocks.
        in_context: the second pass needs the context variables of the first.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return kind.forward(self, *args, **kwargs)
        call = partial(contextvars.copy_context().run, kind.forward) if in_context else kind.forward
        return checkpoint(call, self, *args, use_reentrant=False, **kwargs)

    content = {'forward': forward, '__module__': kind.__module__, '__doc__': kind.__doc__}
    return type(kind.__name__, (kind, _Recomputed), content)
