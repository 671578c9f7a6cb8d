"""Networks of other repositories, named in an option file as `MODULE:CLASS` without registration.

Their code is executed, so only code that reads option files calls `import_network`, never code that reads the metadata
of weights.
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
"""The key of the folder that contains the module; not an argument of the network."""

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


def is_elsewhere(name: object) -> bool:
    """Return whether a `type` has the form `MODULE:CLASS`."""
    return isinstance(name, str) and ':' in name


def import_network(name: str, folder: object = None) -> None:
    """Register a class with BasicSR under `MODULE:CLASS`.

    A network that does not declare its size multiple is run on small images when it is built, to find it.

    Args:
        name: `MODULE:CLASS`.
        folder: folder of the module. Default: installed modules or the current folder.

    Raises:
        OptionError: the folder, module or class does not exist, or the class is not a network; its place is that of
            `type`.
    """
    module_name, _, class_name = name.partition(':')
    if not (module_name and class_name.isidentifier()):
        raise _wrong(f"'{name}' is not of the form MODULE:CLASS, such as 'net.model:AdaIR'.")
    if folder is not None and not (isinstance(folder, str) and os.path.isdir(os.path.expanduser(folder))):
        raise OptionError(
            problem(FOLDER, f'{shown(folder)} is not a folder. Paths are relative to the current folder.')
        )
    place = os.path.realpath(os.path.expanduser(folder) if isinstance(folder, str) else os.getcwd())
    module = _imported(module_name, place, named=folder is not None)
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        known = [
            each for each, found in vars(module).items() if isinstance(found, type) and issubclass(found, nn.Module)
        ]
        what = 'is not a network, a subclass of torch.nn.Module' if kind is not None else 'does not exist'
        raise _wrong(f"'{class_name}' {what}, in '{module.__file__}'.{did_you_mean(class_name, known)}")
    if FOLDER in inspect.signature(kind).parameters:
        raise _wrong(
            f"'{class_name}' has an argument `{FOLDER}`, which here is the folder of the module. Write a subclass "
            'that sets it.'
        )
    if getattr(ARCH_REGISTRY._obj_map.get(name), '__base__', None) is not kind:
        ARCH_REGISTRY._obj_map[name] = _adapted(kind)


def without_folder(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network without the folder of its module."""
    drop = (FOLDER,) if is_elsewhere(options.get('type')) else ()
    return {key: value for key, value in options.items() if key not in drop}


def _imported(name: str, place: str, named: bool) -> Any:
    """Import the module; modules next to it can be imported during this and later, after all others."""
    loaded = sys.modules.get(name)
    if loaded is None:
        sys.path.insert(0, place)
        try:
            loaded = importlib.import_module(name)
        except Exception as error:  # a third-party module may raise anything
            what = f'{type(error).__name__}: {printable(error)}'
            raise _wrong(f"the module '{name}' cannot be imported from '{place}': {what}") from error
        finally:
            sys.path.remove(place)
            sys.path.append(place)
    found = os.path.realpath(getattr(loaded, '__file__', None) or '')
    if named and not Path(found).is_relative_to(place):
        raise _wrong(
            f"the module '{name}' is already imported from '{found}', not '{place}'. Python has one module per name: "
            'rename one of them, or its folder.'
        )
    return loaded


def _wrong(message: str) -> OptionError:
    return OptionError(problem('type', message))


def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """Wrap a third-party network so that it also accepts, and ignores, the folder of its module."""

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
    """Find the size multiple of height and width by trial; None if the network preserves no size."""
    key = kind, arguments
    if key not in _found:
        _found[key] = next((multiple for multiple in _MULTIPLES if _keeps_size(net, 64 + multiple)), None)
    return _found[key]


def _keeps_size(net: nn.Module, side: int) -> bool:
    """Return whether the output for an image of these sides has the same size."""
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            made: Any = net(torch.zeros(1, traits_of(net).image_channels, side, side))
    except Exception:  # networks raise these for unsupported sizes
        return False
    finally:
        for module, mode in training.items():
            module.training = mode
    return isinstance(made, torch.Tensor) and made.shape[-2:] == (side, side)
