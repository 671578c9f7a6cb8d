"""How large an image can be for the memory there is.

A network's memory is measured with two small images, and taken to grow with the pixels. On a GPU PyTorch's allocator
counts. On a CPU nothing does, so the tensors that live at the same time are added up; what libraries work in comes on
top, and MARGINS are for that.
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
"""The part of the free memory that is used, by type of device."""

UNKNOWN = 2 * 2**30
"""The bytes that are taken to be free where the system does not tell."""

Run = Callable[[Tensor], object]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of a GPU or of the machine."""
    text = str(error)
    on_cpu = 'DefaultCPUAllocator' in text or 'Cannot allocate memory' in text
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


@dataclass(frozen=True)
class Need:
    """The memory that a network needs for a batch of images.

    Attributes:
        fixed: bytes, whatever the size of the images.
        each: bytes a pixel of the size.
    """

    fixed: float
    each: float

    @classmethod
    def measured(cls, run: Run, image: Tensor, side: int, device: torch.device) -> 'Need':
        """What is found with two small images.

        Args:
            run: what is done with a batch of images on the device.
            image: (B, C, any, any), for the batch, the colours and the type.
            side: H and W of the smaller images; the larger ones have twice as many.
            device: what it is run on.
        """
        sides = (side, 2 * side)
        few, many = (
            peak_bytes(run, torch.zeros(*image.shape[:2], each, each, dtype=image.dtype, device=device))
            for each in sides
        )
        each = max((many - few) / (sides[1] ** 2 - sides[0] ** 2), 1.0)
        return cls(max(many - each * sides[1] ** 2, 0.0), each)

    def pixels(self, device: torch.device, kept: int = 0) -> int:
        """How many pixels the images can have, with what is free on a device and `kept` bytes left alone."""
        spare = MARGINS.get(device.type, MARGINS['cpu']) * (free_bytes(device) - kept) - self.fixed
        return max(0, int(spare / self.each))


def peak_bytes(run: Run, image: Tensor) -> int:
    """The most bytes that a run on an image takes beyond what is there before."""
    if image.device.type == 'cuda':
        run(image)  # libraries choose their ways, and keep what they work in
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
    """The memory that can still be taken on a device, of the GPU or of the system; UNKNOWN where nothing tells."""
    if device.type == 'cuda':
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    told = [found for found in (_available(), _left_to_group()) if found is not None]
    return min(told, default=UNKNOWN)


def _available() -> int | None:
    """Bytes of memory that the system can give without swapping."""
    info = Path('/proc/meminfo')
    if info.exists():
        for line in info.read_text(encoding='ascii').splitlines():
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    names = getattr(os, 'sysconf_names', {})  # there is none on Windows
    for pages, part in (('SC_AVPHYS_PAGES', 1.0), ('SC_PHYS_PAGES', 0.25)):  # macOS tells only how many there are
        if pages in names:
            return int(part * os.sysconf(pages) * os.sysconf('SC_PAGE_SIZE'))
    return None


def _left_to_group(root: Path = Path('/sys/fs/cgroup')) -> int | None:
    """Bytes that a container may still take, where it has a limit."""
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
    """Counts the bytes of the tensors that are made while it is active and live at the same time: `most`."""

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
