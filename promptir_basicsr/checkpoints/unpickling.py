"""The content of a file of `torch.save`; nothing that is in it is run.

A pickle is a program: it names functions to be called and attributes to be set. The unpickler here knows a handful of
names, those that tensors and plain containers are made of, and has its own functions for them; every other name becomes
a `Foreign` class, which takes whatever it is given and does nothing. No module is imported or looked up, and no
attribute is set on anything. What a file may cost is bounded by its size: tensors are views of bytes that are there.
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
"""Bytes; a network of 1,000 tensors has 0.2 MB beside its values, and a byte can become an object of a hundred."""

_LEAST_CLAIM = 10**9  # bytes of tensors in any file; a larger one may have twice its size, since tensors can be shared
_MOST_CLASSES = 1_000
_MOST_ARGUMENTS = 64  # of a call, and axes of a tensor
_OBJECT = 1_000  # bytes that a tensor takes beside its values
_AT_ONCE = 2**24
_LEGACY = 0x1950A86A20F9469CFC6C  # what a file of PyTorch before 1.6 begins with, as a pickle

# Codes that torch.save does not write and that reach beyond the pickle, or make memory out of a number.
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
    """An object of a class that is not known here: takes everything a pickle can do to it, and does nothing.

    Attributes:
        state: what the pickle set its attributes to, if it did.
    """

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Foreign':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Nothing."""

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
    """The content of a file of `torch.save`, of today's archives or older; tensors are on the CPU.

    Sets are read as lists; objects of unknown classes are `Foreign`.

    Returns:
        The content, and the full names of unknown classes and functions, sorted.

    Raises:
        Exception: whatever the bytes of a damaged file lead to; UnpicklingError and BadZipFile have a reason for users.
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
            raise pickle.UnpicklingError('it is from a machine with the other order of bytes')
        if archive.getinfo(names['data.pkl']).file_size > LARGEST_PICKLE:
            raise pickle.UnpicklingError(f'it has more than {LARGEST_PICKLE:,} bytes beside the values of tensors')

        def values(key: str, _: int) -> Tensor:
            entry = archive.getinfo(names[f'data/{key}'])
            raw = torch.empty(entry.file_size, dtype=torch.uint8)
            try:
                with archive.open(entry) as record:  # which compares its checksum at the end
                    for start in range(0, len(raw), _AT_ONCE):
                        raw.numpy().data[start : start + _AT_ONCE] = record.read(_AT_ONCE)
            except (zipfile.BadZipFile, ValueError) as error:
                raise zipfile.BadZipFile(f'{entry.filename} in it has changed') from error
            return raw

        unpickler = _Unpickler(io.BytesIO(archive.read(names['data.pkl'])), values, size)
        return unpickler.load(), tuple(sorted(unpickler.found))


def open_archive(path: str) -> zipfile.ZipFile:
    """The zip archive that `torch.save` writes: its entries are as they are, and together no larger than the file.

    Raises:
        BadZipFile: it is none; says why.
    """
    archive = zipfile.ZipFile(path)
    entries = archive.infolist()
    packed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    wrong = packed and f'{packed} in it is compressed, and PyTorch compresses nothing'
    if not wrong and sum(entry.file_size for entry in entries) > os.path.getsize(path):
        wrong = 'what is in it claims to be larger than the file'
    if wrong:
        archive.close()
        raise zipfile.BadZipFile(wrong)
    return archive


def _load_legacy(file: BinaryIO, size: int) -> tuple[Any, tuple[str, ...]]:
    """Five pickles and the values: a number, the version, the system, the content, the keys of the values."""
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
        raise pickle.UnpicklingError('its tensors are not those that it lists')
    for key in keys:
        count, raw = int.from_bytes(file.read(8), 'little'), storages[str(key)]
        whole = file.readinto(raw.numpy().data) == len(raw)  # type: ignore[attr-defined]
        if not whole or len(raw) not in {count * width for width in (1, 2, 4, 8, 16)}:
            raise pickle.UnpicklingError('it is cut off, or has changed')
    return content, tuple(sorted(unpickler.found))


def _flat(key: Any) -> Any:
    """A key of a mapping. To hash nested tuples, Python uses the stack without a limit."""
    if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
        raise pickle.UnpicklingError('it has nested tuples as keys')
    return key


def _data(data: Any = None, *_: Any) -> Any:
    """The first argument: of a parameter its tensor, of a set the list."""
    return data


def _of_type(function: Callable[..., Any], _: Any, arguments: Sequence[Any], *__: Any) -> Any:
    """Of a tensor with attributes, the tensor."""
    return function(*arguments)


class _Makers:
    """What is made of bytes, and how much of it a file may have made. It knows no unpickler: as long as a circle of
    references is not collected, all tensors in it are kept.

    Args:
        size: of the file.
    """

    def __init__(self, size: int) -> None:
        self._left = max(_LEAST_CLAIM, 2 * size)

    def tensor(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        """What `_rebuild_tensor` and `_rebuild_tensor_v2` make: whether it has a gradient, hooks, conjugation."""
        if not isinstance(storage, _Storage) or any(rest[2:]):
            raise pickle.UnpicklingError('a tensor in it is of a kind that is not read here')
        numbers = (offset, *size, *stride) if len(size) == len(stride) <= _MOST_ARGUMENTS else ()
        if not numbers or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise pickle.UnpicklingError('a tensor in it has no possible shape')
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
        """Count bytes that the file makes of its own."""
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
    """The standard library's in Python. That in C makes a table as long as the largest index in the file says.

    Args:
        values: (key, bytes that a tensor says they are) -> values of a storage.
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
        """A storage; older files have classes of modules here, too."""
        kind, *parts = pid
        if kind == 'module':
            return parts[0]
        dtype, key, _, count, *view = parts
        wrong = kind != 'storage' or not isinstance(dtype, torch.dtype) or not isinstance(key, str | int) or any(view)
        if wrong or not 0 <= count < 2**48:
            raise pickle.UnpicklingError('a storage in it is of a kind that is not read here')
        if key not in self._storages:
            self._storages[key] = self._values(str(key), count * dtype.itemsize)
        return _Storage(self._storages[key], dtype)

    def load_reduce(self) -> None:
        """A call, of functions and classes of `find_class` alone: nothing else that a pickle makes can be called."""
        arguments = self.stack.pop()
        if len(arguments) > _MOST_ARGUMENTS:
            raise pickle.UnpicklingError('it calls with too many arguments')
        self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj_ex(self) -> None:
        """As `load_reduce`, without the named arguments."""
        self.stack.pop()
        self.load_reduce()

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def load_build(self) -> None:
        """State of an object: kept where it is foreign, of no interest otherwise."""
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
            raise pickle.UnpicklingError('it sets items of what has none')

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.DICT[0]: load_dict,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        # Sets hash what is in them, and an empty one takes 200 bytes.
        pickle.EMPTY_SET[0]: _Standard.load_empty_list,
        pickle.ADDITEMS[0]: _Standard.load_appends,
        pickle.FROZENSET[0]: _Standard.load_list,
    }
