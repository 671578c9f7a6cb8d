"""The training that runs: what BasicSR's trainer keeps in local variables."""

import logging
from typing import Any

from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.models.signals import StopSignals

logger = logging.getLogger('basicsr')


class Run:
    """A training.

    Attributes:
        state: the training state that it continues, or None.
        notes: what was found out about it before there was a log.
        sampler: of the training set.
        val_loaders: of the validation sets.
        tb_logger: TensorBoard's, or None.
        model: a model with `is_resumable` is told of the moments between iterations, see `Resumable`.
        signals: that stop it.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.sampler: EpochSampler | None = None
        self.val_loaders: list[Any] = []
        self.tb_logger: Any = None
        self.model: Any = None
        self.signals = StopSignals()

    @property
    def resumable(self) -> Any:
        """The model, if it can stop and go on exactly."""
        return self.model if getattr(self.model, 'is_resumable', False) else None

    def position(self) -> dict[str, Any] | None:
        """Where in the epoch the training is, as a training state keeps it."""
        if self.sampler is None:
            return None
        return {'seen': self.sampler.seen, **self._order()}

    def _order(self) -> dict[str, Any]:
        """What the order of an epoch depends on, apart from the training set itself."""
        assert self.sampler is not None
        seed = getattr(self.sampler.dataset, 'seed', None)
        return {'samples': self.sampler.total_size, 'seed': seed if isinstance(seed, int) else None}

    def take_position(self) -> None:
        """Go on behind the last sample that the state's training has seen."""
        if self.state is None or self.sampler is None:
            return
        position = self.state.get('position')
        if position is None:
            self.notes.append('The state does not tell how far its epoch was; the epoch begins again.')
            return
        for key, value in self._order().items():
            if position[key] != value:
                self.notes.append(
                    f'The {key} of an epoch are {value} now and were {position[key]}; the epoch begins again.'
                )
                return
        self.sampler.start_at(self.state['epoch'], position['seen'])

    def tell_notes(self) -> None:
        """Write what was noted to the log."""
        for note in self.notes:
            logger.warning(note)
        self.notes = []


_current = Run()


def current() -> Run:
    """The training of this process; one without sampler where a model is used apart from BasicSR's trainer."""
    return _current


def begin() -> Run:
    """A new training, which is the current one from now on."""
    global _current
    _current = Run()
    return _current
