"""torch.compile for the training step, and for restoring."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from promptir_basicsr.archs.fast.kernels import prepare_to_compile
from promptir_basicsr.core.errors import OptionError


def compile_in_place(net: nn.Module, how: bool | str) -> None:
    """Let calls of a network run compiled, one size of image at a time; its class and parameter names stay.

    Args:
        how: True or 'max-autotune'; False for no compilation.
    """
    if how:
        prepare_to_compile()
        # CUDA graphs would overwrite the output of one micro-batch with that of the next.
        net.compile(dynamic=False, mode='max-autotune-no-cudagraphs' if how == 'max-autotune' else 'default')


def compiled_for_any_size(net: nn.Module) -> nn.Module:
    """A module that runs a network compiled for images of any size, with its weights."""
    prepare_to_compile()
    return torch.compile(net, dynamic=True)  # type: ignore[return-value]


@contextmanager
def eagerly(active: bool = True) -> Iterator[None]:
    """Run networks as they are written, compiled or not."""
    if not active:
        yield
        return
    with torch.compiler.set_stance('force_eager'):
        yield


@contextmanager
def compiling(option: str, how: bool | str) -> Iterator[None]:
    """Where a network may be compiled.

    Args:
        option: that asks for it, for the message.
        how: its value; with False nothing is compiled, and nothing caught.

    Raises:
        OptionError: it cannot be compiled.
    """
    if not how:
        yield
        return
    try:
        yield
    except _compile_errors() as error:
        found = next((line.strip() for line in _root(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(
            f'{option}: the network cannot be compiled here ({found}). Set `{option.rpartition(".")[2]}: false`'
            f'{" in val" if "." in option else ""}; compiling needs a C++ compiler for the CPU, Triton for a GPU.'
        ) from error


def _compile_errors() -> tuple[type[Exception], ...]:
    # Imported late: these packages take seconds, and who does not compile does not need them.
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _root(error: Any) -> str:
    """What the compiler itself said, without the frames that torch wraps it into."""
    inner = getattr(error, 'inner_exception', None)
    return _root(inner) if inner is not None else str(error)
