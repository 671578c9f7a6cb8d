"""Make `import basicsr` work, or report the commands that fix it."""

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from promptir_basicsr.install_basicsr import COMMAND

# Modules that the released BasicSR imports from, and where the same functions are now.
_MOVED = {
    'torchvision.transforms.functional_tensor': 'torchvision.transforms.functional',  # gone since 0.17 (BasicSR#533)
    'scipy.ndimage.filters': 'scipy.ndimage',  # deprecated, to be gone in SciPy 2
}
# Modules that BasicSR and torchvision import for a function that few runs call: nearly half of the time of
# `import promptir_basicsr` (benchmarks/start_time.py).
_LATE = ('torch._dynamo.utils', 'scipy.stats')
PACKAGES = {'cv2': 'opencv-python', 'skimage': 'scikit-image', 'yaml': 'pyyaml', 'PIL': 'Pillow'}


class HostError(ImportError):
    """BasicSR is missing or cannot be imported; the message contains the commands that fix it."""


def import_host() -> None:
    """Import BasicSR.

    Raises:
        HostError: BasicSR is not installed or not set up, a dependency is missing, or torchvision does not match
            torch.
    """
    try:
        if importlib.util.find_spec('basicsr') is None:  # checked before the slow import of torch
            raise ModuleNotFoundError(name='basicsr')
        with _deferred(*_LATE):
            for name, successor in _MOVED.items():
                _alias(name, successor)
            importlib.import_module('basicsr')
    except ModuleNotFoundError as error:
        raise HostError(_advice(error.name or str(error))) from error
    except RuntimeError as error:
        if 'torchvision' not in str(error):  # its compiled part does not match torch
            raise
        raise HostError(_torchvision_advice(error)) from error


def _alias(name: str, successor: str) -> None:
    """Make the successor of a removed module importable under the old name."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = importlib.import_module(successor)


class _Late:
    """An object whose module is imported when the object is first used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)

    def __getattr__(self, key: str) -> Any:
        return getattr(self._found(), key)

    def _found(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)


@contextlib.contextmanager
def _deferred(*names: str) -> Iterator[None]:
    """Defer imports from these modules, `from module import name`, until the name is used."""
    placeholders = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    for name, placeholder in placeholders.items():
        placeholder.__getattr__ = functools.partial(_late, name)  # type: ignore[method-assign]
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name, placeholder in placeholders.items():
            if sys.modules.get(name) is placeholder:
                del sys.modules[name]


def _late(module: str, name: str) -> _Late:
    if name.startswith('__'):  # attributes that the import system looks up
        raise AttributeError(name)
    return _Late(module, name)


def _advice(module: str) -> str:
    if module == 'basicsr':
        return (
            f'BasicSR is not installed. Run:\n  {COMMAND}\n'
            'It installs BasicSR 1.4.2 without running its setup.py, which fails on Python 3.13 and later.'
        )
    if module == 'basicsr.version':
        return (
            'This BasicSR is a source tree without its version file, so it was not installed. In that folder, run:\n'
            '  python -m pip install --no-deps --no-build-isolation -e .'
        )
    return (
        f"The module '{module}', which BasicSR needs, is not installed. Run:\n"
        f'  python -m pip install {PACKAGES.get(module, module)}'
    )


def _torchvision_advice(error: Exception) -> str:
    return (
        f'torchvision does not match the installed torch ({str(error).splitlines()[0]}). Install both together:\n'
        '  python -m pip install --force-reinstall torch torchvision'
    )
