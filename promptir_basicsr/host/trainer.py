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

from promptir_basicsr.core.messages import Printable
from promptir_basicsr.core.vocabulary import STOP_SIGNALS
from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.host.resume import load_resume_state
from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.run import Run
from promptir_basicsr.models.signals import ALWAYS, ignore_once

logger = logging.getLogger('basicsr')

_host_pipeline: Callable[[str], None] = inspect.unwrap(basicsr.train.train_pipeline)
_host_worker_init: Callable[..., None] = basicsr.data.worker_init_fn
_printable = Printable()


class Trainer:
    """One training by BasicSR's `train_pipeline`: the functions that it calls, and what happens between iterations.

    BasicSR gives nobody a chance there, but asks its prefetcher for every batch. So the events are, in this order:

    | event | when |
    |:--|:--|
    | `on_start` | loaders and model are ready; workers are not started yet |
    | `before_batch` | an iteration is complete, and what BasicSR does at its end is done |
    | `on_batch` | the next batch is there |
    | `on_data_error` | it cannot be had |
    | `on_end` | the pipeline has ended, well or not |

    Attributes:
        run: what the model knows of the training.
        model: a PromptModel; None for other models, which are trained without events.
    """

    def __init__(self) -> None:
        self.run = Run()
        self.model: PromptModel | None = None
        self._state: dict[str, Any] | None = None
        self._notes: list[str] = []
        self._begun = False
        self._samples = 0  # of a batch, all processes together
        names = ('create_train_val_dataloader', 'build_model', 'init_tb_loggers')
        self._loaders, self._build_model, self._tb_loggers = (getattr(basicsr.train, name) for name in names)
        self._replaced = {name: getattr(self, name) for name in ('load_resume_state', *names)}
        self._replaced |= {host.__name__: self._prefetcher(host) for host in (CPUPrefetcher, CUDAPrefetcher)}

    def train(self, root_path: str) -> None:
        """Call BasicSR's pipeline with the functions and classes of this object."""
        module = vars(basicsr.train)
        before = {name: module[name] for name in self._replaced}
        module.update(self._replaced)
        try:
            _host_pipeline(root_path)
        finally:
            module.update(before)
            self.on_end()

    # the functions, in the order in which the pipeline calls them

    def load_resume_state(self, opt: dict[str, Any]) -> dict[str, Any] | None:
        """The state to continue from; what was found is kept until there is a log."""
        self._state, self._notes = load_resume_state(opt)
        return self._state

    def init_tb_loggers(self, opt: dict[str, Any]) -> Any:
        """BasicSR's; the model writes to it as well."""
        self.run.tb_logger = self._tb_loggers(opt)
        return self.run.tb_logger

    def create_train_val_dataloader(self, opt: dict[str, Any], host_logger: logging.Logger) -> Any:
        """BasicSR's; the sampler of a resumed training starts where its state says."""
        result = self._loaders(opt, host_logger)
        train_loader, sampler, self.run.val_loaders = result[:3]
        self.run.sampler = sampler if isinstance(sampler, EpochSampler) else None
        self._samples = train_loader.batch_size * opt['world_size']
        restarts = self.run.take_position(self._state) if self._state else None
        for note in (*self._notes, *filter(None, [restarts])):
            logger.warning(note)
        return result

    def build_model(self, opt: dict[str, Any]) -> Any:
        """BasicSR's; a PromptModel gets to know the run."""
        model = self._build_model(opt)
        if isinstance(model, PromptModel):
            self.model, model.run = model, self.run
        return model

    def _prefetcher(self, host: type) -> type:
        trainer = self

        class Prefetcher(host):
            """BasicSR's, and the events."""

            def __init__(self, *arguments: Any) -> None:
                trainer.on_start()
                super().__init__(*arguments)

            def next(self) -> Any:
                trainer.before_batch()
                try:
                    batch = super().next()
                except Exception:
                    trainer.on_data_error()
                    raise
                if batch is not None:
                    trainer.on_batch()
                return batch

        return Prefetcher

    # the events

    def on_start(self) -> None:
        """Notice signals, and make up for the validation of a state's iteration: BasicSR saves before it validates."""
        model = self.model
        if model is None:
            return
        # Before workers are forked, so that they have the handlers, too.
        self.run.signals.install(
            (*ALWAYS, *(model.opt['logger'].get('stop_signals') or ())), together=model.opt['dist']
        )
        iteration, val = model.state.iteration, model.opt.get('val')
        if not iteration or not val or iteration % val['val_freq'] or model.report.validated == iteration:
            return
        logger.info(f'The validation of iteration {iteration} is not in the table yet.')
        for loader in self.run.val_loaders:
            model.validation(loader, iteration, self.run.tb_logger, val['save_img'])

    def before_batch(self) -> None:
        """Draw random numbers from where the state was, or end if a signal asks for it."""
        if self.model is None:
            return
        if self._begun:
            self.model.stop_if_asked()
        else:
            self._begun = True
            self.model.state.restore_random_numbers()

    def on_batch(self) -> None:
        """Count the samples of the epoch."""
        if self.run.sampler is not None:
            self.run.sampler.seen += self._samples

    def on_data_error(self) -> None:
        """Save what was trained so far. Of several processes only this one knows."""
        model = self.model
        if model is not None and not model.opt['dist'] and not model.state.ended:
            model.save_progress()

    def on_end(self) -> None:
        """Let signals be what they were, and write what TensorBoard's logger still holds."""
        self.run.signals.restore()
        if self.run.tb_logger is not None:
            self.run.tb_logger.close()


@functools.wraps(_host_pipeline)
def train_pipeline(root_path: str) -> None:
    """BasicSR's, with the functions and the events of `Trainer`."""
    Trainer().train(root_path)


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
    the number of workers. BasicSR's trainer begins an epoch anew where it resumes, asks for the current CUDA device
    before it loads a state, looks for states below ./experiments wherever the run writes, and takes the newest one,
    whole or not. Its log passes control characters on to the terminal."""
    basicsr.data.worker_init_fn = worker_init_fn
    basicsr.train.EnlargedSampler = EpochSampler
    basicsr.train.train_pipeline = train_pipeline
    logging.getLogger('basicsr').addFilter(_printable)
