"""The training that runs: what BasicSR's trainer keeps in local variables, and the moments between two iterations."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import basicsr.train
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.models import build_model as _host_build_model
from basicsr.utils import MessageLogger

from promptir_basicsr.host.sampler import EpochSampler
from promptir_basicsr.host.signals import ALWAYS, StopSignals

logger = logging.getLogger('basicsr')

_host_loaders: Callable[..., Any] = inspect.unwrap(basicsr.train.create_train_val_dataloader)
_host_pipeline: Callable[[str], None] = inspect.unwrap(basicsr.train.train_pipeline)


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


class _Between:
    """What happens between iterations, in both of BasicSR's prefetchers: these are asked for every batch."""

    def __init__(self, loader: Any, *arguments: Any) -> None:
        self._run, self._begun = current(), False
        model = self._run.resumable
        if model is not None:
            further = model.opt['logger'].get('stop_signals') or ()
            # Before workers are forked, so that they have the handlers, too.
            self._run.signals.install((*ALWAYS, *further), together=model.opt['dist'])
            model.begin()
        self._size = loader.batch_size
        super().__init__(loader, *arguments)  # type: ignore[call-arg]

    def next(self) -> Any:
        model = self._run.resumable
        if model is not None and not self._begun:
            model.go_on()
            self._begun = True
        elif model is not None:
            model.stop_if_asked()
        try:
            batch = super().next()  # type: ignore[misc]
        except Exception:
            if model is not None:
                model.data_failed()
            raise
        sampler = self._run.sampler
        if batch is not None and sampler is not None:
            sampler.seen += self._size * sampler.num_replicas
        return batch


class CountingCPUPrefetcher(_Between, CPUPrefetcher):
    """BasicSR's, and what happens between iterations."""


class CountingCUDAPrefetcher(_Between, CUDAPrefetcher):
    """BasicSR's, and what happens between iterations."""


class KnownMessageLogger(MessageLogger):
    """BasicSR's; the run knows the TensorBoard logger by it, which is made before the model."""

    def __init__(self, opt: dict[str, Any], start_iter: int = 1, tb_logger: Any = None) -> None:
        super().__init__(opt, start_iter, tb_logger)
        current().tb_logger = tb_logger


@functools.wraps(_host_loaders)
def create_train_val_dataloader(opt: dict[str, Any], host_logger: logging.Logger) -> Any:
    """BasicSR's; the sampler of a resumed training starts where its state says."""
    run = current()
    result = _host_loaders(opt, host_logger)
    sampler, run.val_loaders = result[1], result[2]
    run.sampler = sampler if isinstance(sampler, EpochSampler) else None
    run.take_position()
    run.tell_notes()
    return result


def build_model(opt: dict[str, Any]) -> Any:
    """BasicSR's."""
    current().model = model = _host_build_model(opt)
    return model


@functools.wraps(_host_pipeline)
def train_pipeline(root_path: str) -> None:
    """BasicSR's, as the current run; at its end the signals are what they were."""
    global _current
    _current = run = Run()
    try:
        _host_pipeline(root_path)
    finally:
        run.signals.restore()
        if run.tb_logger is not None:
            run.tb_logger.close()  # or what it has not written yet is lost
        _current = Run()


def adapt() -> None:
    """BasicSR's trainer begins an epoch anew where it resumes, and gives nobody a chance between two iterations."""
    basicsr.train.create_train_val_dataloader = create_train_val_dataloader
    basicsr.train.build_model = build_model
    basicsr.train.CPUPrefetcher, basicsr.train.CUDAPrefetcher = CountingCPUPrefetcher, CountingCUDAPrefetcher
    basicsr.train.MessageLogger = KnownMessageLogger
    basicsr.train.train_pipeline = train_pipeline
