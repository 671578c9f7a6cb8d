"""Which of two equal formulations a network computes with, and what it keeps for the backward pass.

The plain formulation reads like the papers' figures and is what tests hold the fast one to. The fast one gives the same
outputs and gradients, up to rounding, from the same weights. Both live behind the same classes and parameter names.
"""

from typing import Any

from torch import nn

from promptir_basicsr.core.errors import argument_error
from promptir_basicsr.core.messages import unknown_name
from promptir_basicsr.core.vocabulary import CHECKPOINTING, FORMULATIONS


class Formulated:
    """A module with two formulations.

    Attributes:
        formulation: one of FORMULATIONS.
        checkpointing: one of CHECKPOINTING, for training in the fast formulation. 'none' keeps all that the backward
            pass reads; 'gate' keeps what convolutions give and works normalisations and gates out again, which costs
            next to no time; 'block' keeps a block's input and works the whole block out again.
        has_kernels: whether the fast formulation has Triton kernels.
    """

    formulation: str = 'fast'
    checkpointing: str = 'gate'
    has_kernels: bool = True

    @property
    def fast(self) -> bool:
        """Whether the fast formulation is to be used: it calls no module inside, so hooks in there would be silent."""
        return self.formulation == 'fast' and not _hooked(self)


def set_formulation(net: nn.Module, formulation: str) -> int:
    """Choose the formulation of all blocks of a network.

    Returns:
        How many blocks have the choice; 0 for a network that is none of ours.

    Raises:
        OptionError: it is none of FORMULATIONS.
    """
    return _set(net, 'formulation', formulation, FORMULATIONS)


def has_kernels(net: nn.Module) -> bool:
    """Whether any block of a network has Triton kernels for its fast formulation."""
    return any(module.has_kernels for module in net.modules() if isinstance(module, Formulated))


def set_checkpointing(net: nn.Module, checkpointing: str) -> int:
    """As `set_formulation`, of what all blocks of a network keep for the backward pass: one of CHECKPOINTING."""
    return _set(net, 'checkpointing', checkpointing, CHECKPOINTING)


def _hooked(module: Any) -> bool:
    """Whether something listens to a module inside."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for child in module.children()
        for part in child.modules()
    )


def _set(net: nn.Module, name: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise argument_error(type(net).__name__, name, unknown_name(name, value, allowed))
    modules = [module for module in net.modules() if isinstance(module, Formulated)]
    for module in modules:
        setattr(module, name, value)
    return len(modules)
