"""Networks of other repositories, which an option file names as `MODULE:CLASS` instead of registering them.

Their code is run, so only what reads option files that a person has written calls `import_network`; the metadata of
weights never leads here.
"""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import did_you_mean, printable, shown
from promptir_basicsr.core.problems import problem

FOLDER = 'path'
"""The key of the folder that a module is looked for in; no argument of the network."""

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


def is_elsewhere(name: object) -> bool:
    """Whether a `type` is a `MODULE:CLASS`."""
    return isinstance(name, str) and ':' in name


def import_network(name: str, folder: object = None) -> None:
    """Make a class known to BasicSR under `MODULE:CLASS`.

    A network that does not say what its sides must be multiples of is tried on small images when it is built.

    Args:
        name: `MODULE:CLASS`.
        folder: where the module is. Default: among the installed ones, or in the current folder.

    Raises:
        OptionError: there is no such folder, module or class, or it is no network; in the options that have `type`.
    """
    module_name, _, class_name = name.partition(':')
    if not (module_name and class_name.isidentifier()):
        raise _wrong(f"'{name}' is not of the form MODULE:CLASS, such as 'net.model:AdaIR'.")
    if folder is not None and not (isinstance(folder, str) and os.path.isdir(os.path.expanduser(folder))):
        raise OptionError(problem(FOLDER, f'{shown(folder)} is not a folder. Paths start at the current folder.'))
    place = os.path.realpath(os.path.expanduser(folder) if isinstance(folder, str) else os.getcwd())
    module = _imported(module_name, place, named=folder is not None)
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        known = [
            each for each, found in vars(module).items() if isinstance(found, type) and issubclass(found, nn.Module)
        ]
        what = 'is no network, a class of torch.nn.Module' if kind is not None else 'is not there'
        raise _wrong(f"'{class_name}' {what}, in '{module.__file__}'.{did_you_mean(class_name, known)}")
    if FOLDER in inspect.signature(kind).parameters:
        raise _wrong(
            f"'{class_name}' takes an argument `{FOLDER}`, which is the folder of the module here. Write a subclass "
            'that gives it.'
        )
    if getattr(ARCH_REGISTRY._obj_map.get(name), '__base__', None) is not kind:
        ARCH_REGISTRY._obj_map[name] = _adapted(kind)


def without_folder(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a network without the folder that it comes from, which is nobody else's matter."""
    drop = (FOLDER,) if is_elsewhere(options.get('type')) else ()
    return {key: value for key, value in options.items() if key not in drop}


def _imported(name: str, place: str, named: bool) -> Any:
    """The module, with the modules beside it found while it is imported and, after all others, later."""
    loaded = sys.modules.get(name)
    if loaded is None:
        sys.path.insert(0, place)
        try:
            loaded = importlib.import_module(name)
        except Exception as error:  # whatever somebody's module raises
            what = f'{type(error).__name__}: {printable(error)}'
            raise _wrong(f"the module '{name}' cannot be imported from '{place}': {what}") from error
        finally:
            sys.path.remove(place)
            sys.path.append(place)
    found = os.path.realpath(getattr(loaded, '__file__', None) or '')
    if named and not Path(found).is_relative_to(place):
        raise _wrong(
            f"the module '{name}' is that of '{found}' already, not of '{place}'. Python knows one module of a name: "
            'rename one of them, or its folder.'
        )
    return loaded


def _wrong(message: str) -> OptionError:
    return OptionError(problem('type', message))


def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """A network as its author wrote it, which also takes, and ignores, the folder that it comes from."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.pop(FOLDER, None)
        kind.__init__(self, *args, **kwargs)
        traits = traits_of(self)
        if traits.declared_multiple or traits.window_size or any(each.is_meta for each in self.parameters()):
            return
        multiple = _found_multiple(kind, repr((args, sorted(kwargs.items()))), self)
        if multiple is not None:
            self.size_multiple = multiple

    own = inspect.signature(kind)
    parameters = list(own.parameters.values())
    at = next((n for n, each in enumerate(parameters) if each.kind is each.VAR_KEYWORD), len(parameters))
    parameters.insert(at, inspect.Parameter(FOLDER, inspect.Parameter.KEYWORD_ONLY, default=None))
    attributes: Mapping[str, Any] = {
        '__init__': functools.wraps(kind.__init__)(build),
        '__signature__': own.replace(parameters=parameters),
        '__module__': kind.__module__,
        '__qualname__': kind.__qualname__,
        '__doc__': kind.__doc__,
    }
    return type(kind.__name__, (kind,), dict(attributes))


_found: dict[tuple[type, str], int | None] = {}


def _found_multiple(kind: type, arguments: str, net: nn.Module) -> int | None:
    """What height and width must be multiples of, by trial; None where no size is left as it is."""
    key = kind, arguments
    if key not in _found:
        _found[key] = next((multiple for multiple in _MULTIPLES if _keeps_size(net, 64 + multiple)), None)
    return _found[key]


def _keeps_size(net: nn.Module, side: int) -> bool:
    """Whether an image of these sides comes out as large as it went in."""
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            made: Any = net(torch.zeros(1, traits_of(net).image_channels, side, side))
    except Exception:  # this is how networks say that a size does not suit them
        return False
    finally:
        for module, mode in training.items():
            module.training = mode
    return isinstance(made, torch.Tensor) and made.shape[-2:] == (side, side)
