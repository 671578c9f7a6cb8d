"""Registration may run twice, and takes nobody else's name."""

from types import FunctionType
from typing import Any

import pytest

from promptir_basicsr.core.registry import register

# isort: split
from basicsr.utils.registry import Registry


def network(module: str, name: str = 'Network') -> type:
    """A new class of that name and module, as a reload makes one."""
    return type(name, (), {'__module__': module})


def test_classes_and_functions_are_found_by_their_names() -> None:
    registry = Registry('things')

    @register(registry)
    class Thing:
        pass

    @register(registry)
    def measure() -> float:
        return 1.0

    assert isinstance(Thing, type)
    assert isinstance(measure, FunctionType)
    assert registry.get('Thing') is Thing
    assert registry.get('measure') is measure


def test_a_module_that_is_loaded_again_replaces_its_own_entry() -> None:
    registry = Registry('networks')
    first, second = network('ours'), network('ours')
    assert register(registry)(first) is first
    assert register(registry)(second) is second
    assert registry.get('Network') is second
    assert list(registry.keys()) == ['Network']


def test_a_name_that_somebody_else_holds_is_refused() -> None:
    registry = Registry('networks')
    theirs: Any = network('theirs')
    registry.register(theirs)
    with pytest.raises(ImportError, match="'Network' is registered with BasicSR by two packages: "):
        register(registry)(network('ours'))
    assert registry.get('Network') is theirs
