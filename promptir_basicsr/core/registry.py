"""Register names with BasicSR, look them up, and check their arguments."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from promptir_basicsr.core.messages import missing, unknown, unknown_keys
from promptir_basicsr.core.problems import Keys, Problem, keys, problem

T = TypeVar('T', bound=Callable[..., Any])


def register(registry: Any) -> Callable[[T], T]:
    """Class or function decorator that adds to a BasicSR registry under the object's own name.

    BasicSR's registry rejects known names. Here a module that is loaded again (reload, notebook) replaces its own
    entry.

    Raises:
        ImportError: another package has registered the name.
    """

    def add(obj: T) -> T:
        known = registry._obj_map.get(obj.__name__)
        if known is not None and known.__module__ == obj.__module__:
            registry._obj_map[obj.__name__] = obj
        elif known is not None:
            raise ImportError(
                f"'{obj.__name__}' is registered with BasicSR by two packages: {known.__module__} and "
                f'{obj.__module__}. Option files would be ambiguous. Uninstall one of them, or remove it from the '
                'entry points `basicsr.plugins`.'
            )
        else:
            registry.register(obj)
        return obj

    return add


def check_registered(where: str | Keys, kind: str, name: object, registry: Any) -> list[Problem]:
    """Check that a name is registered with BasicSR."""
    # BasicSR's registry also tries the name with its own suffix.
    if not isinstance(name, str):
        return [problem(where, f'{name!r} is not the name of a {kind}.')]
    if name in registry or f'{name}_basicsr' in registry:
        return []
    return [unknown(where, kind, name, registry.keys())]


def find_registered(registry: Any, name: str) -> Callable[..., Any]:
    """Return the class or function of a name that `check_registered` accepts."""
    return registry.get(name if name in registry else f'{name}_basicsr')


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without their `type`: the arguments."""
    return {name: value for name, value in options.items() if name != 'type'}


def build(registry: Any, options: Mapping[str, Any], device: str | None = None) -> Any:
    """Build the object that the `type` of options names, with the other options as arguments.

    Args:
        options: valid according to `check_call`.
        device: where tensors are created, such as `meta` (without memory). Default: torch's own default.
    """
    with torch.device(device) if device else nullcontext():
        return find_registered(registry, options['type'])(**arguments_of(options))


def check_call(
    where: str | Keys, kind: str, options: Mapping[str, Any], registry: Any, given: Iterable[str] = ()
) -> list[Problem]:
    """Return problems with the `type` of options or, if it is registered, with the names of the other options.

    Args:
        given: see `check_arguments`.
    """
    problems = check_registered((*keys(where), 'type'), kind, options.get('type'), registry)
    if problems:
        return problems
    return check_arguments(where, find_registered(registry, options['type']), arguments_of(options), given)


def check_arguments(
    where: str | Keys, function: Callable[..., Any], arguments: Mapping[str, Any], given: Iterable[str] = ()
) -> list[Problem]:
    """Return problems for unknown and missing arguments of a function.

    Args:
        given: names that the caller supplies in addition to `arguments`.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    allowed = [p.name for p in named if p.name not in given]
    problems = unknown_keys(where, arguments, allowed) if not _open_ended(function) else []
    needed = [p.name for p in named if p.default is p.empty and p.name not in arguments and p.name not in given]
    return problems + missing(where, {}, needed)


def _open_ended(function: Callable[..., Any]) -> bool:
    """Return whether a function accepts **kwargs other than to ignore unknown arguments."""
    swallows = getattr(function, '__module__', '').startswith(_SWALLOWING)
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters) and not swallows


_SWALLOWING = ('basicsr.metrics', 'basicsr.losses', 'pytorch_optimizer.')
