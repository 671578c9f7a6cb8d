"""Reading weights files and training states of any program, without running code in them.

Every verb reads through this module. It finds the weights in a file, and explains what other files are. `unpickling`
reads files of PyTorch, the safetensors library reads its own.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from promptir_basicsr.checkpoints.hub import find_weights, network_beside
from promptir_basicsr.checkpoints.unpickling import Foreign, load_inert
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
"""Name -> description."""

HEADER_KEY = 'promptir_basicsr'
"""Key of the metadata, as JSON, in the header of safetensors."""

USUAL_KEYS = ('params_ema', 'params', 'state_dict', 'model_state_dict')
"""Keys of weights in a file, in the order of preference."""

PREFIXES = ('module.', 'net.', 'model.', 'net_g.', '_orig_mod.')
"""Prefixes that wrappers add to parameter names, in any combination."""

_WRONG_FILES = (
    (b'version https://git-lfs', 'is a git LFS pointer, not the file itself. Run `git lfs pull` in its repository.'),
    (b'\x89PNG', 'is an image (PNG).'),
    (b'\xff\xd8\xff', 'is an image (JPEG).'),
    (b'GIF8', 'is an image (GIF).'),
    (b'II*\x00', 'is an image (TIFF).'),
    (b'MM\x00*', 'is an image (TIFF).'),
    (b'BM', 'is an image (BMP).'),
    (b'RIFF', 'is an image or sound (RIFF).'),
    (b'\x89HDF', 'is an HDF5 file, as Keras writes them.'),
    (b'\x1f\x8b', 'is compressed with gzip. Decompress it first.'),
    (b'%PDF', 'is a PDF document.'),
)
_HEAD = 1024
_MOST_WRAPPERS, _MOST_READINGS = 8, 32  # names in a file may be anything, in any number
_LONGEST_HEADER = 100_000_000  # of safetensors
_MOST_SETS = 100
_MOST_LETTERS = 10_000_000  # characters of all names in a pickled network
_LARGEST_METADATA = 1_000_000
_DEEPEST_METADATA = 100  # levels; Python versions differ in the depth of JSON that they read

METADATA = 'metadata'
"""Key of the metadata, next to `params`."""

FORMAT = 1
"""Format of the metadata; increased if the meaning of a key changes."""


@dataclass(frozen=True)
class WeightFile:
    """Content of a weights file.

    Attributes:
        path: the file.
        layout: one of LAYOUTS.
        sets: key -> weights by name, as they are in the file, on the CPU; the key of a bare state dict is ''.
        metadata: metadata written by this package; empty in third-party files.
        foreign: third-party classes whose objects were not loaded.
        epoch, iteration: of the training, if the file contains them.
    """

    path: str
    layout: str
    sets: Mapping[str, dict[str, Tensor]]
    metadata: dict[str, Any] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    epoch: int | None = None
    iteration: int | None = None

    def choose(self, key: str | None = None) -> str:
        """Choose the key of the weights: the given one, else the first of USUAL_KEYS, else the only one.

        Raises:
            OptionError: the given key is missing, or there are several keys but no usual one.
        """
        if key is not None:
            if key in self.sets:
                return key
            raise OptionError(f"'{self.path}': no weights under '{key}'. Available: {self._keys()}.")
        for usual in ('', *USUAL_KEYS):
            if usual in self.sets:
                return usual
        if len(self.sets) == 1:
            return next(iter(self.sets))
        raise OptionError(f"'{self.path}' contains several sets of weights: {self._keys()}. Set one: `--key NAME`.")

    def _keys(self) -> str:
        return ', '.join(key or 'no name (a bare state dict)' for key in self.sets)


def read_weight_file(path: str | os.PathLike[str], where: str | Keys = '') -> WeightFile:
    """Read a weights file of any layout, without running code in it.

    Args:
        path: path of the file, or anything that `find_weights` accepts.
        where: the option that names the file, for messages.

    Raises:
        OptionError: the file does not exist, contains no weights, is cut off or damaged.
    """
    try:
        return _read(find_weights(os.path.expanduser(os.fspath(path))))
    except OptionError as error:
        raise OptionError(problem.below(where) for problem in error.problems) from error


def readings(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor], list[str]]]:
    """Possible prefixes of weights: the prefix, the weights that have it by names without it, and other names.

    First the longest prefix that all names have, then shorter ones, then none; then prefixes of some names.
    """
    counts: dict[str, int] = {}
    for name in weights:
        for prefix in _prefixes(name):
            counts[prefix] = counts.get(prefix, 0) + 1
    for prefix in sorted(counts, key=lambda prefix: (-counts[prefix], -len(prefix), prefix))[:_MOST_READINGS]:
        named = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        yield prefix, named, [name for name in weights if not name.startswith(prefix)]


def _prefixes(name: str) -> Iterator[str]:
    """Prefixes of a name: '', `module.` and `module.net.` of `module.net.output.weight`."""
    prefix = ''
    for _ in range(_MOST_WRAPPERS):
        yield prefix
        wrapped = next((prefix + each for each in PREFIXES if name.startswith(prefix + each)), None)
        if wrapped is None:
            return
        prefix = wrapped


def named_as(weights: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Weights without the prefix of wrappers, chosen to match most of the known names.

    Names without this prefix, of losses and other objects saved with the network, are skipped.
    """
    return max((named for _, named, _ in readings(weights)), key=lambda named: sum(name in known for name in named))


def _read(path: str) -> WeightFile:
    head, size = _head(path), os.path.getsize(path)
    if _is_safetensors(head):
        return _read_safetensors(path, size)
    return _understood(path, *_load(path, head, 'weights'))


def read_state(path: str) -> dict[str, Any]:
    """Read a training state of BasicSR or this package, without running code in it.

    Raises:
        OptionError: the file does not exist, is not a training state, is cut off or damaged.
    """
    path = os.path.expanduser(path)
    state, foreign = _load(path, _head(path), 'training state')
    if foreign:
        raise OptionError(f"'{path}' is not a training state of BasicSR: it contains {first_few(foreign)}.")
    is_state = isinstance(state, dict) and all(_whole(state.get(key)) is not None for key in ('epoch', 'iter'))
    if not is_state or not all(isinstance(state.get(key), list) for key in ('optimizers', 'schedulers')):
        raise OptionError(f"'{path}' is not a training state. Use a file of `training_states`.")
    return state


def _head(path: str) -> bytes:
    _check_there(path)
    try:
        with open(path, 'rb') as file:
            return file.read(_HEAD)
    except OSError as error:
        raise OptionError(f"'{path}' cannot be read: {error.strerror}.") from error


def _load(path: str, head: bytes, kind: str) -> tuple[Any, tuple[str, ...]]:
    """Load a file of PyTorch; return its content and third-party classes. `kind` is the expected content."""
    size = os.path.getsize(path)
    _check_head(path, head, kind)
    if head.startswith(b'PK'):
        _check_archive(path, size, kind)
    try:
        return load_inert(path)
    except zipfile.BadZipFile as error:
        raise OptionError(f"'{path}' is damaged: {error}. Copy or download it again.") from error
    except pickle.UnpicklingError as error:
        reason = str(error)
    except Exception as error:  # a damaged pickle may raise anything
        reason = type(error).__name__
    raise OptionError(
        f"'{path}' ({megabytes(size)}) cannot be read: cut off, damaged or not a file of {kind} ({reason})."
    )


def are_weights(value: object) -> bool:
    """Whether a value is a state dict, with only names and tensors."""
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
        hint = f'Pass a file in it: {first_few(there)}.' if there else 'It contains no weights.'
        raise OptionError(f"'{path}' is a folder. {hint}")
    raise OptionError(f"'{path}' does not exist.{did_you_mean(os.path.basename(path), there)}")


def _check_head(path: str, head: bytes, kind: str) -> None:
    """Refuse files that are not of PyTorch by their first bytes."""
    if not head:
        raise OptionError(f"'{path}' is empty. Copy or download it again.")
    for start, what in _WRONG_FILES:
        if head.startswith(start):
            raise OptionError(f"'{path}' contains no {kind}: it {what}")
    if head.lstrip()[:9].lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise OptionError(
            f"'{path}' contains no {kind}: it is a web page, as servers send if a download needs a click or a login. "
            'Download it with a browser.'
        )
    if not head.startswith((b'PK', b'\x80')):
        formats = ' (.pth, .pt, .ckpt) or safetensors' if kind == 'weights' else ''
        text = 'text, ' * _is_text(head)
        raise OptionError(f"'{path}' contains no {kind}: it is {text}not a file of PyTorch{formats}.")


def _is_text(head: bytes) -> bool:
    return head.decode('utf-8', 'ignore').replace('\n', ' ').replace('\r', ' ').replace('\t', ' ').isprintable()


def _check_archive(path: str, size: int, kind: str) -> None:
    """Check the zip archive of a file of PyTorch 1.6 or later, whose index is at the end."""
    try:
        names = []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except Exception as error:
        raise OptionError(f"'{path}' is damaged: {error}. Copy or download it again.") from error
    if not names:
        raise OptionError(f"'{path}' is cut off: {megabytes(size)} without the end. Copy or download it again.")
    inside = {name.partition('/')[2] or name for name in names}
    if 'data.pkl' not in inside:
        raise OptionError(f"'{path}' contains no {kind}: it is a zip archive with {first_few(names)}.")
    if 'constants.pkl' in inside:
        raise OptionError(
            f"'{path}' is a TorchScript program, which would have to be run. Use the file that it was made from."
        )


def _understood(path: str, content: Any, foreign: tuple[str, ...]) -> WeightFile:
    """Find the sets of weights in the content of a file of PyTorch."""
    if isinstance(content, Foreign):
        weights = module_weights(content)
        if not weights:
            kind = content.full_name()
            raise OptionError(f"'{path}' contains no weights, but an object of another program, {kind}.")
        return WeightFile(path, 'module', {'': weights}, foreign=foreign)
    if not isinstance(content, Mapping):
        raise OptionError(f"'{path}' contains no weights by name, but a {type(content).__name__}.")
    if are_weights(content):
        return WeightFile(path, 'bare', {'': dict(content)}, foreign=foreign)
    if {'optimizers', 'schedulers', 'iter'} <= content.keys():
        raise OptionError(
            f"'{path}' is a training state without weights. Use "
            f'models/net_g_{_whole(content["iter"])}.pth of the same run.'
        )
    found = [(str(key), value) for key, value in content.items() if isinstance(value, Mapping | Foreign)][:_MOST_SETS]
    sets = {key: dict(value) for key, value in found if isinstance(value, Mapping) and are_weights(value)}
    modules = {key: module_weights(value) for key, value in found if isinstance(value, Foreign)}
    sets |= {key: weights for key, weights in modules.items() if weights}
    strange = [name for name in foreign if name.startswith('torch._utils._rebuild')]
    if not sets and strange:
        raise OptionError(
            f"'{path}' contains no plain tensors of a network: sparse, quantised and meta tensors are not supported "
            f'({first_few(strange)}). Save them as dense float tensors.'
        )
    if not sets:
        keys = first_few(map(str, content), most=8)
        raise OptionError(f"'{path}' contains no weights of a network. It has: {keys or 'nothing'}.")
    lightning = 'state_dict' in sets and not {'params', 'params_ema'} & sets.keys()
    metadata = _plain_metadata(content.get(METADATA))
    return WeightFile(
        path,
        'official' if lightning else 'basicsr',
        sets,
        metadata if 'format' in metadata else {},
        foreign,
        _whole(content.get('epoch')),
        _whole(content.get('global_step', content.get('iter'))),
    )


def _plain_metadata(value: Any) -> dict[str, Any]:
    """Metadata as mappings, lists, numbers and strings; empty if it is something else, recursive or huge."""
    text, room = [], _LARGEST_METADATA
    try:
        for part in json.JSONEncoder().iterencode(value):
            room -= len(part)
            if room < 0:
                return {}
            text.append(part)
        return _parsed_metadata(''.join(text))
    except (TypeError, ValueError, RecursionError):
        return {}


def _parsed_metadata(text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text) if len(text) <= _LARGEST_METADATA else {}
    except (ValueError, RecursionError):
        metadata = {}
    level = [metadata]
    for _ in range(_DEEPEST_METADATA):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
    return metadata if isinstance(metadata, dict) and not level else {}


def module_weights(module: Foreign) -> dict[str, Tensor]:
    """Parameters and buffers of a pickled network by name; empty if it is not a network, or is recursive."""
    weights: dict[str, Tensor] = {}
    parts, room = [('', module)], _MOST_LETTERS
    while parts:
        prefix, part = parts.pop()
        kept = _mapping(part.state)
        left_out = kept.get('_non_persistent_buffers_set')
        for kind in ('_parameters', '_buffers'):
            for name, value in _mapping(kept.get(kind)).items():
                room -= len(prefix) + len(name)
                if isinstance(value, Tensor) and not (isinstance(left_out, list) and name in left_out):
                    weights[f'{prefix}{name}'] = value
        inner = [(name, each) for name, each in _mapping(kept.get('_modules')).items() if isinstance(each, Foreign)]
        room -= sum(len(prefix) + len(name) + 1 for name, _ in inner)
        if room < 0:
            return {}
        parts += [(f'{prefix}{name}.', each) for name, each in reversed(inner)]
    return weights


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping with names as keys, else an empty mapping."""
    return value if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_safetensors(head: bytes) -> bool:
    """Whether a file starts like safetensors: eight bytes with the length of a JSON object, then the object."""
    return len(head) > 8 and head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= _LONGEST_HEADER


def _read_safetensors(path: str, size: int) -> WeightFile:
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
            header = file.metadata() or {}
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise OptionError(
            f"'{path}' ({megabytes(size)}) is cut off or damaged ({error}). Copy or download it again."
        ) from error
    if not weights:
        raise OptionError(f"'{path}' contains no weights: it is safetensors without tensors.")
    metadata = _parsed_metadata(header.get(HEADER_KEY, '{}'))
    if 'network_g' not in metadata and (network := network_beside(path)):
        metadata['network_g'] = network
    return WeightFile(path, 'safetensors', {'': weights}, metadata)


def plain(value: Any) -> Any:
    """Options as mappings, lists, numbers and strings; equal options are saved as equal bytes."""
    return json.loads(json.dumps(value, default=str))
