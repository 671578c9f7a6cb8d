"""Compile a Triton kernel for a GPU that is not here, to look at what became of it."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from promptir_basicsr.archs.fast import triton_kernels

TYPES = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16', torch.float64: 'fp64'}
TILES = {'convolve': triton_kernels.CONVOLVE, 'convolve_backward': triton_kernels.BACKWARD}
CUOBJDUMP = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'


class Built(NamedTuple):
    """loads, stores: how many instructions, by bytes at a time. rows: of its tile. cubin: what a GPU runs."""

    loads: Counter[int]
    stores: Counter[int]
    rows: int
    cubin: bytes


def build(name: str, width: int, dtype: torch.dtype, capability: int, **choices: bool) -> Built:
    """Compile `name`_kernel for features of `width` channels (a gate: hidden channels), as a launch there would."""
    wide = torch.promote_types(dtype, torch.float32)
    constants: dict[str, Any] = {'WIDE': tl.float64 if wide == torch.float64 else tl.float32, **choices}
    rows, warps = 1, 4
    if name.startswith('normalize'):
        kernel = getattr(triton_kernels, f'{name}_kernel')
        channels = triton.next_power_of_2(width)
        constants |= {'EPS': 1e-5, 'PIXELS': max(triton_kernels.ELEMENTS // channels, 1), 'CHANNELS': channels}
    else:
        kernel = getattr(triton_kernels, f'{name}_kernel')
        tile = TILES.get(name, triton_kernels.GATE)
        rows, warps = tile.rows, tile.warps
        constants |= {'ROWS': rows, 'COLUMNS': tile.columns, 'CHANNELS': tile.channels}
    signature: dict[str, str] = {}
    attributes = {}
    for place, argument in enumerate(kernel.arg_names):
        is_width = argument in ('channels', 'hidden')
        if is_width and width == 1:  # Triton makes a constant of an argument that is 1
            constants[argument] = 1
        if argument in constants:
            signature[argument] = 'constexpr'
        elif is_width or argument in ('height', 'width', 'pixels', 'tiles', 'share'):
            signature[argument] = 'i32'
        else:
            signature[argument] = '*' + TYPES[wide if argument in ('taps', 'bias', 'sums') else dtype]
        if signature[argument][0] == '*' or (is_width and width % 16 == 0):
            attributes[(place,)] = [['tt.divisibility', 16]]
    built = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget('cuda', capability, 32),
        options={'num_warps': warps, 'enable_fp_fusion': True},
    )
    ptx = built.asm['ptx']
    return Built(_widths('ld', ptx), _widths('st', ptx), rows, built.asm['cubin'])


def _widths(instruction: str, ptx: str) -> Counter[int]:
    found = re.findall(rf'{instruction}\.global(?:\.v(\d))?\.b(\d+)', ptx)
    return Counter(int(count or 1) * int(bits) // 8 for count, bits in found)


def registers(cubin: bytes, directory: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of the stack that it spills to."""
    (directory / 'kernel.cubin').write_bytes(cubin)
    command = [str(CUOBJDUMP), '-res-usage', str(directory / 'kernel.cubin')]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r'REG:(\d+) STACK:(\d+)', said)
    assert found, said
    return int(found[1]), int(found[2])
