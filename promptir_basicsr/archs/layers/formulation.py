"""Choice of two equivalent formulations of a network, and of what it saves for the backward pass.

The plain formulation follows the papers' figures and is the reference in tests of the fast one. The fast one computes
the same outputs and gradients, up to rounding, from the same weights. Both share classes and parameter names.
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
        checkpointing: one of CHECKPOINTING, for training in the fast formulation. 'none' saves all activations; 'gate'
            saves outputs of convolutions and recomputes normalisations and gates, at almost no cost; 'block' saves the
            input of a block and recomputes the whole block.
        has_kernels: whether the fast formulation has Triton kernels.
    """

    formulation: str = 'fast'
    checkpointing: str = 'gate'
    has_kernels: bool = True

    @property
    def fast(self) -> bool:
        """Whether to use the fast formulation; it calls no inner modules, so it is off if these have hooks."""
        return self.formulation == 'fast' and not _hooked(self)


def set_formulation(net: nn.Module, formulation: str) -> int:
    """Choose the formulation of all blocks of a network.

    Returns:
        The number of blocks with this choice; 0 for third-party networks.

    Raises:
        OptionError: it is not one of FORMULATIONS.

    Examples:
        >>> from promptir_basicsr.archs import TransformerBlock, set_formulation
        >>> block = TransformerBlock(dim=8, num_heads=2, ffn_expansion_factor=2, bias=False, layer_norm_type='WithBias')
        >>> set_formulation(block, 'plain')
        1
    """
    return _set(net, 'formulation', formulation, FORMULATIONS)


def has_kernels(net: nn.Module) -> bool:
    """Return whether any block of a network has Triton kernels in its fast formulation."""
    return any(module.has_kernels for module in net.modules() if isinstance(module, Formulated))


def set_checkpointing(net: nn.Module, checkpointing: str) -> int:
    """Choose what all blocks of a network save for the backward pass: one of CHECKPOINTING; see `set_formulation`.

    Examples:
        >>> from promptir_basicsr.archs import PromptIR, set_checkpointing
        >>> net = PromptIR(dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1], prompt_sizes=[4, 4, 4])
        >>> set_checkpointing(net, 'block') > 0
        True
    """
    return _set(net, 'checkpointing', checkpointing, CHECKPOINTING)


def _hooked(module: Any) -> bool:
    """Return whether an inner module has hooks."""
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
