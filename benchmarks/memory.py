"""Memory of one workload above its weights, measured in a process of its own.

    python -m benchmarks.memory '{"workload": {...}, "variant": {...}}'

`benchmarks.speed` starts this on a CPU, where nothing else tells how much the process took from the system: writes the
bytes of `peak_resident`. What is measured is resident memory: tensors, and what the libraries' kernels work in. The
allocator is told to give back what is freed, so that the figure is what the computation holds, the same to half a
percent in every run; left to itself, glibc holds up to twice as much for a small image, and never the same. Memory of a
GPU is counted by PyTorch's allocator, exactly.
"""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.variants import Run, Variant, Workload, as_json, from_json

STATUS = Path('/proc/self/status')
WARM_UP_SIDE = 64
GIVE_BACK = {'MALLOC_MMAP_THRESHOLD_': str(2**16)}
"""What tells glibc to return every block of at least so many bytes to the system when it is freed."""


def peak_memory(run: Run) -> int | None:
    """Bytes that a step takes at most above what is there before, gradients included.

    None where it cannot be told: on a CPU for compiled networks, whose compiler would be measured, and without /proc.
    """
    if run.device.type == 'cuda':
        run.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run.step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        run.clear()
        return peak
    if run.variant.compiled or not STATUS.exists():
        return None
    command = [sys.executable, '-m', 'benchmarks.memory', as_json(run.workload, run.variant)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, **GIVE_BACK}
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment).stdout
    return int(told.split()[-1])


def peak_resident(workload: Workload, variant: Variant) -> int:
    """Bytes of resident memory that the first step at this size takes above the network, this process's alone."""
    device = torch.device('cpu')
    run = Run(workload, variant, device, weights=None)
    small = replace(workload, height=min(workload.height, WARM_UP_SIDE), width=min(workload.width, WARM_UP_SIDE))
    whole = run.input, run.target
    run.input, run.target = small.input(device), small.target(device)
    run.step()  # libraries allocate what they keep
    run.input, run.target = whole
    run.clear()
    gc.collect()
    _return_free_memory()
    before = resident('VmRSS')
    run.step()
    return resident('VmHWM') - before


def saved_bytes(run: Run) -> int | None:
    """Bytes of the tensors that a training step keeps for its backward pass; weights and the input are not counted.

    Under autocast copies of weights in half precision are among them. None for inference and for compiled networks.
    """
    if not run.workload.training or run.variant.compiled:
        return None
    return bytes_kept(run.forward, [*run.net.parameters(), *run.input])


def bytes_kept(forward: Callable[[], Tensor], known: Iterable[Tensor]) -> int:
    """Bytes that autograd saves while `forward` runs, without what is `known`; a storage counts once."""
    apart = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(kept.values())
    del output  # until here it kept the graph, so that no storage could take the place of another
    return total


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (at most so far) of this process, in bytes."""
    line = next(line for line in STATUS.read_text(encoding='ascii').splitlines() if line.startswith(f'{key}:'))
    return int(line.split()[1]) * 1024


def _return_free_memory() -> None:
    """Give freed memory back to the system and start the peak anew, where the system can."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    except OSError:  # then the peak is that of the whole process, which is this step's for all but tiny sizes
        return


if __name__ == '__main__':
    sys.stdout.write(f'{peak_resident(*from_json(sys.argv[1]))}\n')
