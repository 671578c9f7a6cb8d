"""The training that drives a model: objects that BasicSR's trainer keeps in local variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.models.signals import StopSignals


@dataclass
class Run:
    """Objects of a training; empty if a model is used without BasicSR's trainer.

    Attributes:
        sampler: of the training set, if it can resume within an epoch.
        val_loaders: of the validation sets.
        tb_logger: the TensorBoard logger, or None.
        signals: signals that stop the training.
    """

    sampler: EpochSampler | None = None
    val_loaders: list[Any] = field(default_factory=list)
    tb_logger: Any = None
    signals: StopSignals = field(default_factory=StopSignals)

    def position(self) -> dict[str, Any] | None:
        """The position in the epoch, for a training state."""
        if self.sampler is None:
            return None
        return {'seen': self.sampler.seen, **self._order(self.sampler)}

    @staticmethod
    def _order(sampler: EpochSampler) -> dict[str, Any]:
        """What the order of an epoch depends on, in addition to the training set."""
        seed = getattr(sampler.dataset, 'seed', None)
        return {'samples': sampler.total_size, 'seed': seed if isinstance(seed, int) else None}

    def take_position(self, state: Mapping[str, Any]) -> str | None:
        """Resume after the last sample of a state's training; return why the epoch restarts instead, or None."""
        if self.sampler is None:
            return None
        self.sampler.iteration = state['iter']
        position = state.get('position')
        if position is None:
            return 'The state has no position in its epoch; the epoch restarts.'
        for key, value in self._order(self.sampler).items():
            if position[key] != value:
                return f'The {key} of an epoch changed from {position[key]} to {value}; the epoch restarts.'
        self.sampler.start_at(state['epoch'], position['seen'])
        return None
