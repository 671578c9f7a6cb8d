"""What a model knows of the training that drives it: BasicSR's trainer keeps it in local variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.models.signals import StopSignals


@dataclass
class Run:
    """A training; an empty one where a model is used apart from BasicSR's trainer.

    Attributes:
        sampler: of the training set, if it is one that can go on within an epoch.
        val_loaders: of the validation sets.
        tb_logger: TensorBoard's, or None.
        signals: that stop the training.
    """

    sampler: EpochSampler | None = None
    val_loaders: list[Any] = field(default_factory=list)
    tb_logger: Any = None
    signals: StopSignals = field(default_factory=StopSignals)

    def position(self) -> dict[str, Any] | None:
        """Where in the epoch the training is, as a training state keeps it."""
        if self.sampler is None:
            return None
        return {'seen': self.sampler.seen, **self._order(self.sampler)}

    @staticmethod
    def _order(sampler: EpochSampler) -> dict[str, Any]:
        """What the order of an epoch depends on, apart from the training set itself."""
        seed = getattr(sampler.dataset, 'seed', None)
        return {'samples': sampler.total_size, 'seed': seed if isinstance(seed, int) else None}

    def take_position(self, state: Mapping[str, Any]) -> str | None:
        """Go on after the last sample that the training of a state has seen; why the epoch begins again instead."""
        if self.sampler is None:
            return None
        self.sampler.iteration = state['iter']
        position = state.get('position')
        if position is None:
            return 'The state does not tell how far its epoch was; the epoch begins again.'
        for key, value in self._order(self.sampler).items():
            if position[key] != value:
                return f'The {key} of an epoch are {value} now and were {position[key]}; the epoch begins again.'
        self.sampler.start_at(state['epoch'], position['seen'])
        return None
