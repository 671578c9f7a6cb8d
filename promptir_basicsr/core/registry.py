"""Registration that may run twice."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar('T', bound=Callable[..., Any])


def register(registry: Any) -> Callable[[T], T]:
    """Class or function decorator: add to a BasicSR registry under its own name.

    BasicSR's registry refuses a name it has. A module that is loaded again (reload, a notebook) replaces its own entry
    here; a name that somebody else holds is still refused by BasicSR.
    """

    def add(obj: T) -> T:
        known = registry._obj_map.get(obj.__name__)
        if known is not None and known.__module__ == obj.__module__:
            registry._obj_map[obj.__name__] = obj
        else:
            registry.register(obj)
        return obj

    return add
