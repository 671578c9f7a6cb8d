"""Loading files of `torch.save` without running code in them.

A pickle is a program that names functions to call and attributes to set. This unpickler knows only the few names that
tensors and plain containers need, and has its own functions for them; every other name becomes a `Foreign` class, which
accepts any arguments and does nothing. It imports no module and sets no attribute. Memory use is bounded by the file
size, because tensors are views of existing bytes.
"""

import io
import math
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

LARGEST_PICKLE = 8_000_000
"""Bytes; a network of 1,000 tensors has 0.2 MB besides its values, and a byte may become an object of 100 bytes."""

_LEAST_CLAIM = 10**9  # bytes of tensors in any file; larger files may have twice their size, as tensors can be shared
_MOST_CLASSES = 1_000
_MOST_ARGUMENTS = 64  # of a call, and axes of a tensor
_OBJECT = 1_000  # bytes of a tensor in addition to its values
_AT_ONCE = 2**24
_LEGACY = 0x1950A86A20F9469CFC6C  # start of a file of PyTorch before 1.6, as a pickle

# Opcodes that torch.save does not write and that reach outside the pickle, or allocate memory by a number.
_REFUSED = (
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.INST,
    pickle.OBJ,
    pickle.PERSID,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)
_Standard: Any = pickle._Unpickler
_STORAGES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
    'UntypedStorage': torch.uint8,
}


class Foreign:
    """An object of an unknown class, which ignores all operations of a pickle.

    Attributes:
        state: attributes that the pickle sets, if any.
    """

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Foreign':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Do nothing."""

    extend = append

    @classmethod
    def full_name(cls) -> str:
        """`module.name` in the file."""
        return f'{cls.__module__}.{cls.__name__}'


class _Storage(NamedTuple):
    """The values that tensors are views of, as bytes."""

    raw: Tensor
    dtype: torch.dtype


def load_inert(path: str) -> tuple[Any, tuple[str, ...]]:
    """Load a file of `torch.save`, in the zip or the legacy format; tensors are on the CPU.

    Sets are read as lists; objects of unknown classes are `Foreign`.

    Returns:
        The content, and the full names of unknown classes and functions, sorted.

    Raises:
        Exception: any error that damaged bytes cause; UnpicklingError and BadZipFile have a message for users.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        zipped = file.read(2) == b'PK'
        file.seek(0)
        if not zipped:
            return _load_legacy(file, size)
    with open_archive(path) as archive:
        names = {name.partition('/')[2]: name for name in archive.namelist()}
        if 'byteorder' in names and archive.read(names['byteorder']) != b'little':
            raise pickle.UnpicklingError('it is from a big-endian machine')
        if archive.getinfo(names['data.pkl']).file_size > LARGEST_PICKLE:
            raise pickle.UnpicklingError(f'it has more than {LARGEST_PICKLE:,} bytes besides the values of tensors')

        def values(key: str, _: int) -> Tensor:
            entry = archive.getinfo(names[f'data/{key}'])
            raw = torch.empty(entry.file_size, dtype=torch.uint8)
            try:
                with archive.open(entry) as record:  # compares its checksum at the end
                    for start in range(0, len(raw), _AT_ONCE):
                        raw.numpy().data[start : start + _AT_ONCE] = record.read(_AT_ONCE)
            except (zipfile.BadZipFile, ValueError) as error:
                raise zipfile.BadZipFile(f'{entry.filename} in it has changed') from error
            return raw

        unpickler = _Unpickler(io.BytesIO(archive.read(names['data.pkl'])), values, size)
        return unpickler.load(), tuple(sorted(unpickler.found))


def open_archive(path: str) -> zipfile.ZipFile:
    """Open a zip archive of `torch.save`: entries are not compressed, and together not larger than the file.

    Raises:
        BadZipFile: the file is not such an archive; the message says why.
    """
    archive = zipfile.ZipFile(path)
    entries = archive.infolist()
    packed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    wrong = packed and f'{packed} in it is compressed, but PyTorch does not compress'
    if not wrong and sum(entry.file_size for entry in entries) > os.path.getsize(path):
        wrong = 'its content claims to be larger than the file'
    if wrong:
        archive.close()
        raise zipfile.BadZipFile(wrong)
    return archive


def _load_legacy(file: BinaryIO, size: int) -> tuple[Any, tuple[str, ...]]:
    """Load the legacy format: pickles of a number, version, system, content and keys, then the values."""
    pickles, storages, left = io.BytesIO(file.read(LARGEST_PICKLE)), dict[str, Tensor](), size

    def values(key: str, length: int) -> Tensor:
        nonlocal left
        left -= length
        if left < 0:
            raise pickle.UnpicklingError('its tensors have more values than the file')
        return storages.setdefault(key, torch.empty(length, dtype=torch.uint8))

    def load() -> Any:
        return _Unpickler(pickles, values, size).load()

    if load() != _LEGACY:
        raise pickle.UnpicklingError('it is a pickle, but not of torch.save')
    load(), load()
    unpickler = _Unpickler(pickles, values, size)
    content, keys = unpickler.load(), load()
    file.seek(pickles.tell())
    if not isinstance(keys, list) or set(map(str, keys)) != storages.keys():
        raise pickle.UnpicklingError('its tensors differ from its list of tensors')
    for key in keys:
        count, raw = int.from_bytes(file.read(8), 'little'), storages[str(key)]
        whole = file.readinto(raw.numpy().data) == len(raw)  # type: ignore[attr-defined]
        if not whole or len(raw) not in {count * width for width in (1, 2, 4, 8, 16)}:
            raise pickle.UnpicklingError('it is cut off, or has changed')
    return content, tuple(sorted(unpickler.found))


def _flat(key: Any) -> Any:
    """Check a key of a mapping. Hashing nested tuples may overflow Python's stack."""
    if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
        raise pickle.UnpicklingError('it has nested tuples as keys')
    return key


def _data(data: Any = None, *_: Any) -> Any:
    """Return the first argument: the tensor of a parameter, the list of a set."""
    return data


def _of_type(function: Callable[..., Any], _: Any, arguments: Sequence[Any], *__: Any) -> Any:
    """Return the tensor of a tensor with attributes."""
    return function(*arguments)


class _Makers:
    """Functions that create tensors and containers, and limit their total size. It has no reference to the unpickler:
    a reference cycle would keep all tensors until it is collected.

    Args:
        size: of the file.
    """

    def __init__(self, size: int) -> None:
        self._left = max(_LEAST_CLAIM, 2 * size)

    def tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        """Create the tensor of `_rebuild_tensor` or `_rebuild_tensor_v2`; `rest`: gradient, hooks, conjugation."""
        if not isinstance(storage, _Storage) or any(rest[2:]):
            raise pickle.UnpicklingError('it has an unsupported kind of tensor')
        numbers = (offset, *size, *stride) if len(size) == len(stride) <= _MOST_ARGUMENTS else ()
        if not numbers or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise pickle.UnpicklingError('it has a tensor with an impossible shape')
        count, there = math.prod(size), len(storage.raw) // storage.dtype.itemsize
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (last >= there or count > there):
            raise pickle.UnpicklingError('its tensors claim more values than the file has')
        self.charge(count * storage.dtype.itemsize + _OBJECT)
        values = storage.raw[: there * storage.dtype.itemsize].view(storage.dtype)
        return values.as_strided(tuple(size), tuple(stride), offset)

    def typed_tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        _, _, dtype, *rest_of_it = rest
        return self.tensor(_Storage(storage.raw, dtype), offset, size, stride, None, None, *rest_of_it)

    def charge(self, size: int) -> None:
        """Count bytes that the file allocates."""
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError('its tensors claim more values than the file has')

    def encoded(self, text: str, *_: Any) -> bytes:
        self.charge(len(text))
        return text.encode('latin1')  # as protocol 2 writes bytes

    def ordered(self, items: Sequence[Any] = ()) -> Any:
        self.charge(len(items) * _OBJECT)
        return OrderedDict((_flat(key), value) for key, value in items)

    def counter(self, items: Any = ()) -> Any:
        self.charge(len(items) * _OBJECT)
        return Counter(items if isinstance(items, dict) else {})


class _Unpickler(_Standard):
    """The standard library's unpickler in Python. The one in C allocates a table by the largest index in the file.

    Args:
        values: (key, claimed number of bytes) -> values of a storage.
        size: of the file.

    Attributes:
        found: full names of unknown classes and functions.
    """

    dispatch = {code: load for code, load in _Standard.dispatch.items() if code not in {c[0] for c in _REFUSED}}

    def __init__(self, file: BinaryIO, values: Callable[[str, int], Tensor], size: int) -> None:
        super().__init__(file, encoding='utf-8')
        self.found: dict[str, type[Foreign]] = {}
        self._values, make = values, _Makers(size)
        self._storages: dict[Any, Tensor] = {}
        self._known: Mapping[tuple[str, str], Any] = {
            ('builtins', 'set'): _data,
            ('builtins', 'bytearray'): _data,
            ('_codecs', 'encode'): make.encoded,
            ('collections', 'OrderedDict'): make.ordered,
            ('collections', 'Counter'): make.counter,
            ('torch', 'Size'): _data,
            ('torch', 'device'): _data,
            ('torch', 'Tensor'): _data,
            ('torch.nn.parameter', 'Parameter'): _data,
            ('torch._utils', '_rebuild_parameter'): _data,
            ('torch._utils', '_rebuild_parameter_with_state'): _data,
            ('torch._utils', '_rebuild_tensor'): make.tensor,
            ('torch._utils', '_rebuild_tensor_v2'): make.tensor,
            ('torch._utils', '_rebuild_tensor_v3'): make.typed_tensor,
            ('torch._tensor', '_rebuild_from_type_v2'): _of_type,
        }

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module.replace('__builtin__', 'builtins'), name))
        if known is None and module.partition('.')[0] == 'torch':
            known = _STORAGES.get(name, vars(torch).get(name) if module == 'torch' else None)
            known = known if isinstance(known, torch.dtype) else None
        if known is not None:
            return known
        full = f'{module}.{name}'
        if len(self.found) == _MOST_CLASSES:
            raise pickle.UnpicklingError(f'it names more than {_MOST_CLASSES:,} classes')
        if full not in self.found:
            self.found[full] = type(name.rpartition('.')[2], (Foreign,), {'__module__': module})
        return self.found[full]

    def persistent_load(self, pid: Any) -> Any:
        """Load a storage; older files also have classes of modules here."""
        kind, *parts = pid
        if kind == 'module':
            return parts[0]
        dtype, key, _, count, *view = parts
        wrong = kind != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(key, str | int) or any(view)
        if wrong or not 0 <= count < 2**48:
            raise pickle.UnpicklingError('it has an unsupported kind of storage')
        if key not in self._storages:
            self._storages[key] = self._values(str(key), count * dtype.itemsize)
        return _Storage(self._storages[key], dtype)

    def load_reduce(self) -> None:
        """Call a function or class of `find_class`; other objects of a pickle are not callable."""
        arguments = self.stack.pop()
        if len(arguments) > _MOST_ARGUMENTS:
            raise pickle.UnpicklingError('it calls with too many arguments')
        self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj_ex(self) -> None:
        """Like `load_reduce`, without the keyword arguments."""
        self.stack.pop()
        self.load_reduce()

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def load_build(self) -> None:
        """Set the state of a Foreign object; ignored for others."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Foreign):
            self.stack[-1].state = state

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(map(_flat, items[::2]), items[1::2], strict=True))
        elif not isinstance(self.stack[-1], Foreign):
            raise pickle.UnpicklingError('it sets items of an object without items')

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.DICT[0]: load_dict,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        # Sets hash their items, and an empty one takes 200 bytes.
        pickle.EMPTY_SET[0]: _Standard.load_empty_list,
        pickle.ADDITEMS[0]: _Standard.load_appends,
        pickle.FROZENSET[0]: _Standard.load_list,
    }
