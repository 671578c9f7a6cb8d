"""Precisions that a network computes with.

| name | matrix products and convolutions | everything else |
|:--|:--|:--|
| fp32 | float32, never TF32 | float32 |
| tf32 | float32 with factors rounded to 10 bits of mantissa, on NVIDIA GPUs from Ampere on | float32 |
| bf16, fp16 | bfloat16 or float16 (torch.autocast); weights stay in float32 | as autocast defines |
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.problems import Keys, Problem, problem

HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def device_problems(where: str | Keys, precision: str, device: torch.device) -> list[Problem]:
    """Return why a device does not support one of PRECISIONS."""
    if device.type != 'cuda':
        message = 'tf32 is a format of GPUs, and this run is on the CPU. Use fp32 or bf16.'
        return [problem(where, message)] if precision == 'tf32' else []
    name, generation = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)[0]
    if precision == 'tf32' and generation < 8:
        return [problem(where, f'{name} does not support tf32. Use fp32 or fp16.')]
    if precision == 'bf16' and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [problem(where, f'{name} does not support bf16. Use fp16.')]
    return []


def set_float32(precision: str) -> None:
    """Allow TF32 in float32 products of the whole process only for 'tf32'."""
    torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
    torch.backends.cudnn.allow_tf32 = precision == 'tf32'  # torch's own default is to allow it here


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Context manager that applies `set_float32` and restores the previous setting."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_float32(precision)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass with one of PRECISIONS; compute losses outside it."""
    return torch.autocast(device.type, dtype=HALF.get(precision, torch.bfloat16), enabled=precision in HALF)


def widened(output: torch.Tensor, precision: str) -> torch.Tensor:
    """Convert a network's output under autocast to float32; others are unchanged."""
    return output.float() if precision in HALF else output


def find_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, 'auto' for a GPU if available.

    Raises:
        OptionError: there is no such device.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device: unknown device '{device}'. Allowed: auto, cpu, cuda, cuda:N.") from error
    count = torch.cuda.device_count()
    if found.type == 'cuda' and (not torch.cuda.is_available() or (found.index or 0) >= count):
        raise OptionError(f"device: '{device}' does not exist; GPUs that PyTorch can use: {count}. Use auto or cpu.")
    return found
