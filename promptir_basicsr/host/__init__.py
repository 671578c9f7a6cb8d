"""Everything that knows BasicSR's insides.

One small adaptation a function, each with its reason and a test, so that the index release 1.4.2 and the git master
(which carry the same version number) are both left as they are wherever they already comply.
"""

from promptir_basicsr.host import distributed, optim, options, trainer

__all__ = ['adapt']

_ADAPTATIONS = (optim, distributed, trainer, options)


def adapt() -> None:
    """Adapt BasicSR, which has been imported. Harmless when called again."""
    for part in _ADAPTATIONS:
        part.adapt()
