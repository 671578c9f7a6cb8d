"""Everything that knows BasicSR's insides.

One small adaptation a function, each with its reason and a test, so that the index release 1.4.2 and the git master
(which carry the same version number) are both left as they are wherever they already comply.
"""

import importlib

from promptir_basicsr.host.compat import HostError, import_host
from promptir_basicsr.host.registry import register

__all__ = ['HostError', 'prepare', 'register']

_ADAPTATIONS = ('optim', 'dist', 'signals', 'resume', 'sampler', 'run', 'options')


def prepare() -> None:
    """Import BasicSR and adapt it. Harmless when called again.

    Raises:
        HostError: BasicSR cannot be imported; the message says what to type.
    """
    import_host()
    for name in _ADAPTATIONS:
        importlib.import_module(f'promptir_basicsr.host.{name}').adapt()
