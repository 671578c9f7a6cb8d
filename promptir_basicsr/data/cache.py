"""Decoded images in memory, shared by the workers of a process."""

import dataclasses
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

from promptir_basicsr.core.messages import is_number
from promptir_basicsr.data.images import PixelImage
from promptir_basicsr.data.sources import Source, StoredImage
from promptir_basicsr.data.tasks import Task

_ABSENT, _RESERVED = 0, -1  # in the table of offsets; other values are where an image begins
_ALIGNMENT = 64


class PixelCache:
    """A bounded piece of memory that holds images by number, for all processes that inherit or unpickle it.

    Images are added until it is full and stay: the order of training is random, so there is nothing to gain from
    making room. Memory is taken as it fills. A process that dies leaves it usable.

    Args:
        images: how many numbers there are.
        capacity: bytes for pixels.
    """

    def __init__(self, images: int, capacity: int) -> None:
        self._images, self._capacity = images, capacity
        descriptor = os.memfd_create('promptir_basicsr') if hasattr(os, 'memfd_create') else _unnamed_file()
        os.ftruncate(descriptor, self._start + capacity)
        self._map(descriptor)
        self._head[0] = self._start

    @property
    def _start(self) -> int:
        """Where pixels begin: the place of the next free byte and a table (offset, height, width, bits) come first."""
        return -(-8 * (1 + 4 * self._images) // _ALIGNMENT) * _ALIGNMENT

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, self._start + self._capacity)
        self._head = np.frombuffer(self._memory, np.int64, 1)
        self._table = np.frombuffer(self._memory, np.int64, 4 * self._images, offset=8).reshape(-1, 4)

    def __getstate__(self) -> dict[str, Any]:
        # The descriptor goes to a process that is being spawned.
        return {
            '_images': self._images,
            '_capacity': self._capacity,
            'descriptor': reduction.DupFd(self._descriptor),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        descriptor = state.pop('descriptor').detach()
        self.__dict__.update(state)
        self._map(descriptor)

    @property
    def used(self) -> int:
        """Bytes taken by images."""
        return int(self._head[0]) - self._start

    def has_room(self, size: int) -> bool:
        """Whether an image of so many bytes would fit now."""
        return self.used + size <= self._capacity

    def get(self, number: int) -> np.ndarray | None:
        """The image, (H, W, 3) uint8 or uint16, not to be written to; None where it is not there."""
        offset, height, width, bits = self._table[number].tolist()
        if offset in (_ABSENT, _RESERVED):
            return None
        pixels = np.frombuffer(self._memory, f'uint{bits}', height * width * 3, offset=offset)
        pixels.flags.writeable = False
        return pixels.reshape(height, width, 3)

    def put(self, number: int, pixels: np.ndarray) -> None:
        """Keep an image, if there is room and nobody else keeps it."""
        with self._locked():
            offset = int(self._head[0])
            if self._table[number, 0] != _ABSENT or not self.has_room(pixels.nbytes):
                return
            self._table[number, 0] = _RESERVED
            self._head[0] = offset + -(-pixels.nbytes // _ALIGNMENT) * _ALIGNMENT
        kept = np.frombuffer(self._memory, pixels.dtype, pixels.size, offset=offset)
        kept[:] = pixels.reshape(-1)
        self._table[number, 1:] = (*pixels.shape[:2], 8 * pixels.itemsize)
        with self._locked():  # readers do not lock: the offset is written when all else is there
            self._table[number, 0] = offset

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)  # of this process; the system ends it with the process
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class CachedSource:
    """A source whose images are kept decoded in a `PixelCache`.

    Args:
        source: a folder or an LMDB.
        names: the images to keep.
        cache: the memory.
        first: number of the first name in the cache.
    """

    def __init__(self, source: Source, names: Iterable[str], cache: PixelCache, first: int) -> None:
        self.root: Path = source.root
        self._source, self._cache = source, cache
        self._numbers = {name: number for number, name in enumerate(names, first)}

    def names(self) -> list[str]:
        return self._source.names()

    def where(self, name: str) -> str:
        return self._source.where(name)

    def parts(self, name: str) -> Sequence[str]:
        return self._source.parts(name)

    def open(self, name: str) -> StoredImage:
        """The image, decoded as a whole while there is room for it."""
        number = self._numbers[name]
        kept = self._cache.get(number)
        if kept is not None:
            return PixelImage(kept)
        stored = self._source.open(name)
        if not isinstance(stored, PixelImage):  # those are mapped into memory already
            height, width = stored.size
            if self._cache.has_room(3 * height * width):
                self._cache.put(number, stored.pixels())
        return stored


def with_cache(tasks: Sequence[Task], capacity: int) -> list[Task]:
    """The same tasks, reading through one cache of so many bytes."""
    used: dict[int, tuple[Source, set[str]]] = {}
    for task in tasks:
        for column, source in enumerate((task.lq, task.gt)):
            used.setdefault(id(source), (source, set()))[1].update(names[column] for names in task.names)
    cache = PixelCache(sum(len(names) for _, names in used.values()), capacity)
    readers, first = {}, 0
    for key, (source, names) in used.items():
        readers[key] = CachedSource(source, sorted(names), cache, first)
        first += len(names)
    return [dataclasses.replace(task, lq=readers[id(task.lq)], gt=readers[id(task.gt)]) for task in tasks]


def check_cache(where: str, size: object, training: bool) -> list[str]:
    """What is wrong with `cache_gb`, in each of the processes that train on this machine."""
    if not is_number(size) or size <= 0:
        return [f'{where}: {size!r} is not a number of GB above 0. Leave the key out for no cache.']
    if not training:
        return [f'{where}: only training keeps images; a validation reads each of them once.']
    processes, memory = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), memory_of_machine()
    if size * processes * 1e9 > memory:
        each = f' in each of {processes} processes' if processes > 1 else ''
        return [
            f'{where}: {size:g} GB{each} is more than the {memory / 1e9:.0f} GB of memory there are. '
            'Take less; what does not fit is read as without a cache.'
        ]
    return []


def memory_of_machine() -> int:
    """Bytes of memory that this process may use: the machine's, or what its control group leaves it."""
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    for limit in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
        if os.path.isfile(limit):
            text = Path(limit).read_text(encoding='ascii').strip()
            total = min(total, int(text)) if text.isdecimal() else total
    return total
