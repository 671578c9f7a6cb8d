"""Adaptations of BasicSR's internals.

Each function is one small adaptation with its reason and a test. They apply to the index release 1.4.2 and to the git
master, which have the same version number, and change nothing that already behaves as needed.
"""

from promptir_basicsr.host import distributed, optim, options, trainer

__all__ = ['adapt']

_ADAPTATIONS = (optim, distributed, trainer, options)


def adapt() -> None:
    """Adapt BasicSR, which must be imported already. Calling it again has no effect."""
    for part in _ADAPTATIONS:
        part.adapt()
