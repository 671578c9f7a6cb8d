"""What a file of weights holds, whoever wrote it; nothing that is in it is run.

`.pth` and `.ckpt` files are pickles, and a pickle can name any function to be called. PyTorch's own safe reader allows
tensors and plain containers and refuses a file with anything else. Checkpoints of Lightning have other things beside
the weights (options, callbacks), so what it refuses is read a second time here, by an unpickler that knows a handful of
names, those that tensors are made of; every other name becomes a `Foreign` class, which takes whatever it is given and
does nothing. Modules of other packages are neither imported nor looked up.
"""

import json
import os
import pickle
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from promptir_basicsr.checkpoints.folder import damage
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.files import megabytes
from promptir_basicsr.core.messages import did_you_mean, first_few
from promptir_basicsr.core.problems import Keys

LAYOUTS = {
    'basicsr': "BasicSR's, {'params': ...}",
    'official': "the released programs' (Lightning), {'state_dict': ...}",
    'safetensors': 'safetensors',
    'bare': 'a bare state dict',
    'module': 'a whole network, pickled',
}
"""Name -> what it is, in words."""

HEADER_KEY = 'promptir_basicsr'
"""Of the metadata, as JSON, in the header of safetensors."""

USUAL_KEYS = ('params_ema', 'params', 'state_dict', 'model_state_dict')
"""Where weights are looked for in a file, in this order."""

PREFIXES = ('module.', 'net.', 'model.', 'net_g.', '_orig_mod.')
"""What wrappers put before the names of a network's parameters, in any combination."""

_WRONG_FILES = (
    (b'version https://git-lfs', 'is a pointer of git LFS, not the file itself. Run `git lfs pull` where it is from.'),
    (b'\x89PNG', 'is a picture (PNG).'),
    (b'\xff\xd8\xff', 'is a picture (JPEG).'),
    (b'GIF8', 'is a picture (GIF).'),
    (b'II*\x00', 'is a picture (TIFF).'),
    (b'MM\x00*', 'is a picture (TIFF).'),
    (b'BM', 'is a picture (BMP).'),
    (b'RIFF', 'is a picture or sound (RIFF).'),
    (b'\x89HDF', 'is an HDF5 file, as Keras writes them.'),
    (b'\x1f\x8b', 'is packed with gzip. Unpack it first.'),
    (b'%PDF', 'is a PDF document.'),
)
_HEAD = 1024
_MOST_WRAPPERS, _MOST_READINGS = 8, 32  # names in a file may be anything, in any number
_LONGEST_HEADER = 100_000_000  # of safetensors

METADATA = 'metadata'
"""The key under which it stands beside `params`."""

FORMAT = 1
"""Of the metadata; another number where the meaning of a key changes."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: the file.
        layout: one of LAYOUTS.
        sets: key -> weights by name, as they are in the file, on the CPU; the key of bare ones is ''.
        metadata: what this package has told about them; empty in files of others.
        foreign: classes of other programs whose objects were not loaded.
        epoch, iteration: of the training, where the file tells.
    """

    path: str
    layout: str
    sets: Mapping[str, dict[str, Tensor]]
    metadata: dict[str, Any] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    epoch: int | None = None
    iteration: int | None = None

    def choose(self, key: str | None = None) -> str:
        """The key of the weights: the given one, else the first of USUAL_KEYS, else the only one.

        Raises:
            OptionError: there are none of that name, or several without a usual one.
        """
        if key is not None:
            if key in self.sets:
                return key
            raise OptionError(f"'{self.path}': no weights under '{key}'. There are: {self._keys()}.")
        for usual in ('', *USUAL_KEYS):
            if usual in self.sets:
                return usual
        if len(self.sets) == 1:
            return next(iter(self.sets))
        raise OptionError(f"'{self.path}' holds several sets of weights: {self._keys()}. Name one: `--key NAME`.")

    def _keys(self) -> str:
        return ', '.join(key or 'no name (a bare state dict)' for key in self.sets)


def read_weight_file(path: str | os.PathLike[str], where: str | Keys = '') -> WeightFile:
    """Read a file of weights of any layout; nothing in it is run.

    Args:
        where: the option that names the file, for messages.

    Raises:
        OptionError: the file does not exist, holds no weights, is cut off or damaged; says which.
    """
    try:
        return _read(os.path.expanduser(os.fspath(path)))
    except OptionError as error:
        raise OptionError(problem.below(where) for problem in error.problems) from error


def readings(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor], list[str]]]:
    """Ways to read the names of weights: a prefix of wrappers, the weights that have it by their names without it, and
    the names that do not have it.

    First the longest prefix that all names have, then shorter ones, last none; then prefixes that some names have.
    """
    counts: dict[str, int] = {}
    for name in weights:
        for prefix in _prefixes(name):
            counts[prefix] = counts.get(prefix, 0) + 1
    for prefix in sorted(counts, key=lambda prefix: (-counts[prefix], -len(prefix), prefix))[:_MOST_READINGS]:
        named = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        yield prefix, named, [name for name in weights if not name.startswith(prefix)]


def _prefixes(name: str) -> Iterator[str]:
    """No prefix, `module.` and `module.net.` of `module.net.output.weight`."""
    prefix = ''
    for _ in range(_MOST_WRAPPERS):
        yield prefix
        wrapped = next((prefix + each for each in PREFIXES if name.startswith(prefix + each)), None)
        if wrapped is None:
            return
        prefix = wrapped


def named_as(weights: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Weights by the names of a network, without the prefix of wrappers: the reading with most of the known names.

    Names that do not have that prefix are of losses and other things saved beside the network, and are left out.
    """
    return max((named for _, named, _ in readings(weights)), key=lambda named: sum(name in known for name in named))


def _read(path: str) -> WeightFile:
    _check_there(path)
    try:
        with open(path, 'rb') as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise OptionError(f"'{path}' cannot be read: {error.strerror}.") from error
    size = os.path.getsize(path)
    if _is_safetensors(head):
        return _read_safetensors(path, size)
    _check_head(path, head)
    if head.startswith(b'PK'):
        _check_archive(path, size)
    content, foreign = _load(path, size)
    return _understood(path, content, foreign)


def are_weights(value: object) -> bool:
    """Whether it is a state dict: names and tensors, nothing else."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )


def _check_there(path: str) -> None:
    if os.path.isfile(path):
        return
    folder = path if os.path.isdir(path) else os.path.dirname(path) or '.'
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    there = [name for name in names if name.endswith(('.pth', '.pt', '.ckpt', '.safetensors'))]
    if os.path.isdir(path):
        hint = f'Give a file in it: {first_few(there)}.' if there else 'No weights are in it.'
        raise OptionError(f"'{path}' is a folder. {hint}")
    raise OptionError(f"'{path}' does not exist.{did_you_mean(os.path.basename(path), there)}")


def _check_head(path: str, head: bytes) -> None:
    """What is certainly no file of weights, by its first bytes."""
    if not head:
        raise OptionError(f"'{path}' is empty. Copy or download it again.")
    for start, what in _WRONG_FILES:
        if head.startswith(start):
            raise OptionError(f"'{path}' holds no weights: it {what}")
    if head.lstrip()[:9].lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise OptionError(
            f"'{path}' holds no weights: it is a web page, as servers send where a file needs a click or a login. "
            'Download it with a browser.'
        )
    if not head.startswith((b'PK', b'\x80')):
        raise OptionError(f"'{path}' holds no weights: it is no file of PyTorch (.pth, .pt, .ckpt) or safetensors.")


def _check_archive(path: str, size: int) -> None:
    """A file of PyTorch since 1.6 is a zip archive with its index at the end."""
    try:
        names = []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (zipfile.BadZipFile, RuntimeError, ValueError) as error:
        raise OptionError(f"'{path}' is damaged: {error}. Copy or download it again.") from error
    if not names:
        raise OptionError(f"'{path}' is cut off: {megabytes(size)} without the end. Copy or download it again.")
    inside = {name.partition('/')[2] or name for name in names}
    if 'data.pkl' not in inside:
        raise OptionError(f"'{path}' holds no weights: it is a zip archive with {first_few(names)}.")
    if 'constants.pkl' in inside:
        raise OptionError(
            f"'{path}' is a TorchScript program, which would have to be run. Take the file it was made from."
        )
    wrong = damage(path)
    if wrong:
        raise OptionError(f"'{path}' is damaged: {wrong}. Copy or download it again.")


def _load(path: str, size: int) -> tuple[Any, tuple[str, ...]]:
    """The content of a file of PyTorch, and the classes of others in it."""
    try:
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                return torch.load(file, map_location='cpu', weights_only=True), ()
            except pickle.UnpicklingError:
                if not zipfile.is_zipfile(path):  # older files can make torch look for sources of their classes
                    raise
                file.seek(0)
                return load_inert(file)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        reason = (str(error) or type(error).__name__).partition('\n')[0]
        raise OptionError(
            f"'{path}' ({megabytes(size)}) cannot be read: cut off, damaged or no file of weights ({reason})."
        ) from error


def load_inert(file: BinaryIO) -> tuple[Any, tuple[str, ...]]:
    """The content of a zip archive of `torch.save`; objects of unknown classes are `Foreign`.

    Returns:
        The content, and the full names of unknown classes and functions, sorted.
    """
    found: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = _KNOWN.get((module, name))
            if isinstance(known, types.FunctionType):
                return lambda *args: known(*args)  # a pickle can set attributes of what it is given
            if known is not None:
                return known
            dtype = getattr(torch, name, None) if module == 'torch' else None
            if isinstance(dtype, torch.dtype):
                return dtype
            found.add(f'{module}.{name}')
            return type(name.rpartition('.')[2], (Foreign,), {'__module__': module})

    module = types.ModuleType('inert_pickle')
    vars(module).update(Unpickler=Unpickler, load=lambda file, **_: Unpickler(file).load())
    content = torch.load(file, map_location='cpu', pickle_module=module, weights_only=False)
    return content, tuple(sorted(found))


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

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, 'state', state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Nothing."""

    extend = add = update = append


_KNOWN: dict[tuple[str, str], Any] = {
    ('builtins', 'set'): set,
    ('__builtin__', 'set'): set,  # as torch.save writes it
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('torch', 'device'): torch.device,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
    ('torch._utils', '_rebuild_tensor'): torch._utils._rebuild_tensor,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch.storage', 'UntypedStorage'): torch.UntypedStorage,
}


def _understood(path: str, content: Any, foreign: tuple[str, ...]) -> WeightFile:
    """The sets of weights in the content of a file of PyTorch."""
    if isinstance(content, Foreign):
        weights = module_weights(content)
        if not weights:
            kind = f'{type(content).__module__}.{type(content).__name__}'
            raise OptionError(f"'{path}' holds no weights but an object of another program, {kind}.")
        return WeightFile(path, 'module', {'': weights}, foreign=foreign)
    if not isinstance(content, Mapping):
        raise OptionError(f"'{path}' holds no weights by name but a {type(content).__name__}.")
    if are_weights(content):
        return WeightFile(path, 'bare', {'': dict(content)}, foreign=foreign)
    if {'optimizers', 'schedulers', 'iter'} <= content.keys():
        raise OptionError(
            f"'{path}' is a training state, without the weights. They stand in models/net_g_{content['iter']}.pth "
            'of the same run.'
        )
    sets = {str(key): dict(value) for key, value in content.items() if are_weights(value)}
    sets |= {
        str(key): module_weights(value)
        for key, value in content.items()
        if isinstance(value, Foreign) and module_weights(value)
    }
    if not sets:
        keys = first_few(map(str, content), most=8)
        raise OptionError(f"'{path}' holds no weights of a network. It has: {keys or 'nothing'}.")
    lightning = 'state_dict' in sets and not {'params', 'params_ema'} & sets.keys()
    metadata = content.get(METADATA)
    return WeightFile(
        path,
        'official' if lightning else 'basicsr',
        sets,
        dict(metadata) if isinstance(metadata, Mapping) and 'format' in metadata else {},
        foreign,
        _whole(content.get('epoch')),
        _whole(content.get('global_step', content.get('iter'))),
    )


def module_weights(module: Foreign) -> dict[str, Tensor]:
    """Parameters and buffers of a network that was pickled whole, by name; none where it is no network."""
    weights: dict[str, Tensor] = {}

    def collect(part: Any, prefix: str) -> None:
        state = part.state if isinstance(part, Foreign) and isinstance(part.state, Mapping) else {}
        left_out = state.get('_non_persistent_buffers_set')
        for kind in ('_parameters', '_buffers'):
            for name, value in (state.get(kind) or {}).items():
                if isinstance(value, Tensor) and not (isinstance(left_out, set) and name in left_out):
                    weights[f'{prefix}{name}'] = value.detach()
        for name, inner in (state.get('_modules') or {}).items():
            collect(inner, f'{prefix}{name}.')

    collect(module, '')
    return weights


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of the length of a JSON object, then the object."""
    return len(head) > 8 and head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= _LONGEST_HEADER


def _read_safetensors(path: str, size: int) -> WeightFile:
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            header = file.metadata() or {}
    except SafetensorError as error:
        raise OptionError(
            f"'{path}' ({megabytes(size)}) is cut off or damaged ({error}). Copy or download it again."
        ) from error
    if not weights:
        raise OptionError(f"'{path}' holds no weights: it is safetensors without any tensor.")
    try:
        metadata = json.loads(header.get(HEADER_KEY, '{}'))
    except ValueError:
        metadata = {}
    return WeightFile(path, 'safetensors', {'': weights}, metadata if isinstance(metadata, dict) else {})


def plain(value: Any) -> Any:
    """Options as mappings, lists, numbers and texts; equal ones are saved as equal bytes."""
    return json.loads(json.dumps(value, default=str))
