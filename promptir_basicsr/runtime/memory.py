"""Largest image size for the available memory.

A network's memory is measured with two small images and extrapolated linearly in the pixels. On a GPU PyTorch's
allocator counts the memory. On a CPU the tensors that exist at the same time are counted; MARGINS allow for additional
memory of libraries.
"""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MARGINS = {'cpu': 0.5, 'cuda': 0.8}
"""The fraction of the free memory that is used, by type of device."""

UNKNOWN = 2 * 2**30
"""Assumed free bytes if the system does not report them."""

Run = Callable[[Tensor], object]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a GPU or the machine is out of memory."""
    text = str(error)
    on_cpu = 'DefaultCPUAllocator' in text or 'Cannot allocate memory' in text
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


@dataclass(frozen=True)
class Need:
    """The memory that a network needs for a batch of images.

    Attributes:
        fixed: bytes, independent of the image size.
        each: bytes per pixel of the image size.
    """

    fixed: float
    each: float

    @classmethod
    def measured(cls, run: Run, image: Tensor, side: int, device: torch.device) -> 'Need':
        """Measure the memory with two small images.

        Args:
            run: function of a batch of images on the device.
            image: (B, C, any, any); sets batch size, channels and dtype.
            side: H and W of the smaller images; the larger ones have twice the sides.
            device: to run on.
        """
        sides = (side, 2 * side)
        few, many = (
            peak_bytes(run, torch.zeros(*image.shape[:2], each, each, dtype=image.dtype, device=device))
            for each in sides
        )
        each = max((many - few) / (sides[1] ** 2 - sides[0] ** 2), 1.0)
        return cls(max(many - each * sides[1] ** 2, 0.0), each)

    def pixels(self, device: torch.device, kept: int = 0) -> int:
        """Return how many pixels fit into the free memory of a device, except for `kept` bytes."""
        spare = MARGINS.get(device.type, MARGINS['cpu']) * (free_bytes(device) - kept) - self.fixed
        return max(0, int(spare / self.each))


def peak_bytes(run: Run, image: Tensor) -> int:
    """Return the peak memory of a run on an image in bytes, minus that before the run."""
    if image.device.type == 'cuda':
        run(image)  # libraries choose algorithms and allocate workspaces
        torch.cuda.synchronize(image.device)
        torch.cuda.reset_peak_memory_stats(image.device)
        before = torch.cuda.memory_allocated(image.device)
        run(image)
        torch.cuda.synchronize(image.device)
        return torch.cuda.max_memory_allocated(image.device) - before
    with _Living() as living:
        run(image)
    return living.most


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, GPU or system; UNKNOWN if it is not reported."""
    if device.type == 'cuda':
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    told = [found for found in (_available(), _left_to_group()) if found is not None]
    return min(told, default=UNKNOWN)


def _available() -> int | None:
    """Return the bytes of memory that the system can provide without swapping."""
    info = Path('/proc/meminfo')
    if info.exists():
        for line in info.read_text(encoding='ascii').splitlines():
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    names = getattr(os, 'sysconf_names', {})  # does not exist on Windows
    for pages, part in (('SC_AVPHYS_PAGES', 1.0), ('SC_PHYS_PAGES', 0.25)):  # macOS reports only the total
        if pages in names:
            return int(part * os.sysconf(pages) * os.sysconf('SC_PAGE_SIZE'))
    return None


def _left_to_group(root: Path = Path('/sys/fs/cgroup')) -> int | None:
    """Return the free bytes of a container that has a limit."""
    names = (('memory.max', 'memory.current'), ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes'))
    for limit, used in names:
        try:
            numbers = [(root / name).read_text(encoding='ascii').strip() for name in (limit, used)]
        except OSError:
            continue
        if all(number.isdigit() for number in numbers):
            return max(0, int(numbers[0]) - int(numbers[1]))
    return None


class _Living(TorchDispatchMode):
    """Count the peak of the bytes of simultaneously existing tensors that are created while it is active: `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before:
                self._add(leaf.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.now += size
        self.most = max(self.most, self.now)

        def gone(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
