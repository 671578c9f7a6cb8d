"""What is replaced in BasicSR's trainer: loaders, sampler, model, prefetchers, logger, workers, pipeline."""

import functools
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import basicsr.data
import basicsr.train
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.models import build_model as _host_build_model
from basicsr.utils import MessageLogger

from promptir_basicsr.core.messages import Printable
from promptir_basicsr.core.vocabulary import STOP_SIGNALS
from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.models.run import begin, current
from promptir_basicsr.models.signals import ALWAYS, ignore_once

_host_loaders: Callable[..., Any] = inspect.unwrap(basicsr.train.create_train_val_dataloader)
_host_pipeline: Callable[[str], None] = inspect.unwrap(basicsr.train.train_pipeline)
_printable = Printable()

_host_worker_init: Callable[..., None] = basicsr.data.worker_init_fn


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
    run = begin()
    try:
        _host_pipeline(root_path)
    finally:
        run.signals.restore()
        if run.tb_logger is not None:
            run.tb_logger.close()  # or what it has not written yet is lost
        begin()


def worker_init_fn(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """BasicSR's, in a process that outlives the first signal, unless its own parent sends it."""
    _host_worker_init(worker_id, num_workers, rank, seed)
    for name in (*ALWAYS, *STOP_SIGNALS):
        if name != 'SIGTERM' and hasattr(signal, name):
            signal.signal(getattr(signal, name), ignore_once)
    # The parent ends its workers by SIGTERM and waits for them. Only this call tells who has sent it; macOS lacks it.
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    others = 0
    while others < 2:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        others += 1 if sender != os.getppid() else 2
    os._exit(0)


def adapt() -> None:
    """BasicSR dies of a signal wherever it is, its workers before it, and loses what it did since the last state.
    `worker_init_fn` seeds numpy and random by worker only: noise and crops would repeat every epoch, and change with
    the number of workers. BasicSR's trainer begins an epoch anew where it resumes, and gives nobody a chance between
    two iterations. Its log passes control characters on to the terminal."""
    basicsr.data.worker_init_fn = worker_init_fn
    basicsr.train.EnlargedSampler = EpochSampler
    basicsr.train.create_train_val_dataloader = create_train_val_dataloader
    basicsr.train.build_model = build_model
    basicsr.train.CPUPrefetcher, basicsr.train.CUDAPrefetcher = CountingCPUPrefetcher, CountingCUDAPrefetcher
    basicsr.train.MessageLogger = KnownMessageLogger
    basicsr.train.train_pipeline = train_pipeline
    logging.getLogger('basicsr').addFilter(_printable)
