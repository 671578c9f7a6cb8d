"""What a file of weights or a training state holds, whoever wrote it; nothing that is in it is run.

Every verb reads through this module: it says what a file is that holds neither, and which of the things in a file are
the weights of a network. `unpickling` reads the files of PyTorch, the safetensors library its own.
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
_MOST_SETS = 100
_MOST_LETTERS = 10_000_000  # of all names in a network that was pickled whole
_LARGEST_METADATA = 1_000_000
_DEEPEST_METADATA = 100  # levels; Pythons differ in how deep they read JSON

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
        path: of the file, or what else `find_weights` knows.
        where: the option that names the file, for messages.

    Raises:
        OptionError: the file does not exist, holds no weights, is cut off or damaged; says which.
    """
    try:
        return _read(find_weights(os.path.expanduser(os.fspath(path))))
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
    head, size = _head(path), os.path.getsize(path)
    if _is_safetensors(head):
        return _read_safetensors(path, size)
    return _understood(path, *_load(path, head, 'weights'))


def read_state(path: str) -> dict[str, Any]:
    """A training state, as BasicSR or this package saves them; nothing in it is run.

    Raises:
        OptionError: the file does not exist, is not a training state, is cut off or damaged; says which.
    """
    path = os.path.expanduser(path)
    state, foreign = _load(path, _head(path), 'training state')
    if foreign:
        raise OptionError(f"'{path}' is not a training state of BasicSR: it holds {first_few(foreign)}.")
    is_state = isinstance(state, dict) and all(_whole(state.get(key)) is not None for key in ('epoch', 'iter'))
    if not is_state or not all(isinstance(state.get(key), list) for key in ('optimizers', 'schedulers')):
        raise OptionError(f"'{path}' is no training state. Take one of `training_states`.")
    return state


def _head(path: str) -> bytes:
    _check_there(path)
    try:
        with open(path, 'rb') as file:
            return file.read(_HEAD)
    except OSError as error:
        raise OptionError(f"'{path}' cannot be read: {error.strerror}.") from error


def _load(path: str, head: bytes, kind: str) -> tuple[Any, tuple[str, ...]]:
    """The content of a file of PyTorch, and the classes of others in it; `kind` is what it should hold."""
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
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        reason = type(error).__name__
    raise OptionError(f"'{path}' ({megabytes(size)}) cannot be read: cut off, damaged or no file of {kind} ({reason}).")


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


def _check_head(path: str, head: bytes, kind: str) -> None:
    """What is certainly no file of PyTorch, by its first bytes."""
    if not head:
        raise OptionError(f"'{path}' is empty. Copy or download it again.")
    for start, what in _WRONG_FILES:
        if head.startswith(start):
            raise OptionError(f"'{path}' holds no {kind}: it {what}")
    if head.lstrip()[:9].lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise OptionError(
            f"'{path}' holds no {kind}: it is a web page, as servers send where a file needs a click or a login. "
            'Download it with a browser.'
        )
    if not head.startswith((b'PK', b'\x80')):
        formats = ' (.pth, .pt, .ckpt) or safetensors' if kind == 'weights' else ''
        text = 'text, and ' * _is_text(head)
        raise OptionError(f"'{path}' holds no {kind}: it is {text}no file of PyTorch{formats}.")


def _is_text(head: bytes) -> bool:
    return head.decode('utf-8', 'ignore').replace('\n', ' ').replace('\r', ' ').replace('\t', ' ').isprintable()


def _check_archive(path: str, size: int, kind: str) -> None:
    """A file of PyTorch since 1.6 is a zip archive with its index at the end."""
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
        raise OptionError(f"'{path}' holds no {kind}: it is a zip archive with {first_few(names)}.")
    if 'constants.pkl' in inside:
        raise OptionError(
            f"'{path}' is a TorchScript program, which would have to be run. Take the file it was made from."
        )


def _understood(path: str, content: Any, foreign: tuple[str, ...]) -> WeightFile:
    """The sets of weights in the content of a file of PyTorch."""
    if isinstance(content, Foreign):
        weights = module_weights(content)
        if not weights:
            kind = content.full_name()
            raise OptionError(f"'{path}' holds no weights but an object of another program, {kind}.")
        return WeightFile(path, 'module', {'': weights}, foreign=foreign)
    if not isinstance(content, Mapping):
        raise OptionError(f"'{path}' holds no weights by name but a {type(content).__name__}.")
    if are_weights(content):
        return WeightFile(path, 'bare', {'': dict(content)}, foreign=foreign)
    if {'optimizers', 'schedulers', 'iter'} <= content.keys():
        raise OptionError(
            f"'{path}' is a training state, without the weights. They stand in "
            f'models/net_g_{_whole(content["iter"])}.pth of the same run.'
        )
    found = [(str(key), value) for key, value in content.items() if isinstance(value, Mapping | Foreign)][:_MOST_SETS]
    sets = {key: dict(value) for key, value in found if isinstance(value, Mapping) and are_weights(value)}
    modules = {key: module_weights(value) for key, value in found if isinstance(value, Foreign)}
    sets |= {key: weights for key, weights in modules.items() if weights}
    strange = [name for name in foreign if name.startswith('torch._utils._rebuild')]
    if not sets and strange:
        raise OptionError(
            f"'{path}' holds no plain tensors of a network: sparse, quantised and meta ones are not read here "
            f'({first_few(strange)}). Save them as dense tensors of floats.'
        )
    if not sets:
        keys = first_few(map(str, content), most=8)
        raise OptionError(f"'{path}' holds no weights of a network. It has: {keys or 'nothing'}.")
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
    """Metadata as mappings, lists, numbers and texts; empty where it is anything else, contains itself or is huge."""
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
    """Parameters and buffers of a network that was pickled whole, by name; none where it is no network, or its modules
    contain themselves."""
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
    """What is a mapping with names as keys; else an empty one."""
    return value if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) else {}


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
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise OptionError(
            f"'{path}' ({megabytes(size)}) is cut off or damaged ({error}). Copy or download it again."
        ) from error
    if not weights:
        raise OptionError(f"'{path}' holds no weights: it is safetensors without any tensor.")
    metadata = _parsed_metadata(header.get(HEADER_KEY, '{}'))
    if 'network_g' not in metadata and (network := network_beside(path)):
        metadata['network_g'] = network
    return WeightFile(path, 'safetensors', {'': weights}, metadata)


def plain(value: Any) -> Any:
    """Options as mappings, lists, numbers and texts; equal ones are saved as equal bytes."""
    return json.loads(json.dumps(value, default=str))
