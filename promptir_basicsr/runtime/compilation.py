"""torch.compile for training steps and inference."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from promptir_basicsr.archs.fast.kernels import prepare_to_compile
from promptir_basicsr.core.errors import OptionError


def compile_in_place(net: nn.Module, how: bool | str) -> None:
    """Compile a network in place, per image size; its class and parameter names do not change.

    Args:
        how: True or 'max-autotune'; False for no compilation.
    """
    if how:
        prepare_to_compile()
        # CUDA graphs would overwrite the output of a micro-batch with that of the next one.
        net.compile(dynamic=False, mode='max-autotune-no-cudagraphs' if how == 'max-autotune' else 'default')


def compiled_for_any_size(net: nn.Module) -> nn.Module:
    """Return a module that shares a network's weights and runs it compiled for images of any size."""
    prepare_to_compile()
    return torch.compile(net, dynamic=True)  # type: ignore[return-value]


@contextmanager
def eagerly(active: bool = True) -> Iterator[None]:
    """Context manager that runs networks without compilation, even compiled ones."""
    if not active:
        yield
        return
    with torch.compiler.set_stance('force_eager'):
        yield


@contextmanager
def compiling(option: str, how: bool | str) -> Iterator[None]:
    """Context manager for code that may compile a network; converts errors of the compiler.

    Args:
        option: name of the option, for the message.
        how: its value; with False nothing is compiled, and no error is converted.

    Raises:
        OptionError: compilation failed.
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
    # Imported late: these packages take seconds to import, and are needed only for compilation.
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _root(error: Any) -> str:
    """Return the compiler's own error, without torch's wrappers."""
    inner = getattr(error, 'inner_exception', None)
    return _root(inner) if inner is not None else str(error)
