"""Replacements in BasicSR's trainer: loaders, sampler, model, prefetchers, logger, workers, pipeline."""

import functools
import inspect
import logging
import multiprocessing
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import basicsr.data
import basicsr.test
import basicsr.train
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.utils import MessageLogger
from basicsr.utils.logger import initialized_logger
from torch import distributed

from promptir_basicsr.checks.run import averaged_tasks
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.locks import FolderLock, LockedError
from promptir_basicsr.core.messages import Printable
from promptir_basicsr.core.vocabulary import STOP_SIGNALS
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.data.sampler import EpochSampler
from promptir_basicsr.host.failures import KNOWN, explained
from promptir_basicsr.host.options import copy_option_file
from promptir_basicsr.host.resume import load_resume_state
from promptir_basicsr.models.prompt_model import PromptModel
from promptir_basicsr.models.run import Run
from promptir_basicsr.models.signals import ALWAYS, ignore_once

logger = logging.getLogger('basicsr')

_host_pipeline: Callable[[str], None] = inspect.unwrap(basicsr.train.train_pipeline)
_host_test_pipeline: Callable[[str], None] = inspect.unwrap(basicsr.test.test_pipeline)
_host_worker_init: Callable[..., None] = basicsr.data.worker_init_fn
_printable = Printable()


def _is_founded(record: logging.LogRecord) -> bool:
    """Drop BasicSR's warning in each validation that several datasets need an SRModel, which PromptModel is."""
    return not str(record.msg).startswith('Multiple validation datasets are')


class Trainer:
    """A training by BasicSR's `train_pipeline`: replaced functions, and events between iterations.

    BasicSR has no hooks between iterations, but requests every batch from its prefetcher. The events are, in order:

    | event | when |
    |:--|:--|
    | `on_start` | loaders and model are ready; workers are not started yet |
    | `before_batch` | an iteration is complete, including BasicSR's work at its end |
    | `on_batch` | the next batch has arrived |
    | `on_error` | an error has ended the training |
    | `on_end` | the pipeline has ended, with or without an error |

    Attributes:
        run: objects of the training for the model.
        model: a PromptModel; None for other models, which are trained without events.
    """

    def __init__(self) -> None:
        self.run = Run()
        self.model: PromptModel | None = None
        self._state: dict[str, Any] | None = None
        self._notes: list[str] = []
        self._begun = False
        self._folder: FolderLock | None = None
        self._force: list[str] | None = None
        self._seed: int | None = None
        names = ('parse_options', 'create_train_val_dataloader', 'build_model', 'init_tb_loggers')
        self._parse, self._loaders, self._build_model, self._tb_loggers = (
            getattr(basicsr.train, name) for name in names
        )
        self._replaced = {name: getattr(self, name) for name in ('load_resume_state', 'copy_opt_file', *names)}
        self._replaced['MessageLogger'] = ExactMessageLogger
        self._replaced |= {host.__name__: self._prefetcher(host) for host in (CPUPrefetcher, CUDAPrefetcher)}

    def train(self, root_path: str) -> None:
        """Run BasicSR's pipeline with the functions and classes of this object.

        Raises:
            RunError: explains any other error that ended the training; the state is saved if possible.
        """
        _forget_log()
        try:
            with replaced(basicsr.train, self._replaced):
                _host_pipeline(root_path)
        except Exception as error:
            raise self.on_error(error) from error
        finally:
            self.on_end()

    # the functions, in the order in which the pipeline calls them

    def parse_options(self, root_path: str, is_train: bool = True) -> Any:
        """Parse options as BasicSR does, and lock the folder of the run."""
        opt, args = self._parse(root_path, is_train)
        self._folder, self._force = lock_folder(opt['path']['experiments_root'], opt), args.force_yml
        self._seed = opt['manual_seed']
        return opt, args

    def copy_opt_file(self, opt_file: str, experiments_root: str) -> None:
        """Copy the option file of the run, with overrides of the command line, to its folder."""
        copy_option_file(opt_file, self._force, experiments_root, self._seed)

    def load_resume_state(self, opt: dict[str, Any]) -> dict[str, Any] | None:
        """Load the state to resume from; notes are kept until there is a log."""
        self._state, self._notes = load_resume_state(opt)
        return self._state

    def init_tb_loggers(self, opt: dict[str, Any]) -> Any:
        """Create BasicSR's TensorBoard logger, which the model uses as well."""
        for handler in logger.handlers:  # on a full disk, logging would write a traceback for every line
            handler.handleError = partial(_warn_of_log, handler)  # type: ignore[method-assign]
        if (opt['logger'].get('wandb') or {}).get('project'):
            import wandb

            if not hasattr(wandb.util, 'generate_id'):  # which BasicSR calls
                wandb.util.generate_id = partial(secrets.token_hex, 4)
        tb_logger = self._tb_loggers(opt)
        self.run.tb_logger = tb_logger and QuietLogger(tb_logger)
        return self.run.tb_logger

    def create_train_val_dataloader(self, opt: dict[str, Any], host_logger: logging.Logger) -> Any:
        """Create loaders as BasicSR does; the sampler starts at the state's position and handles stages."""
        train_loader, sampler, self.run.val_loaders, epochs, total = self._loaders(opt, host_logger)
        self.run.sampler = sampler if isinstance(sampler, EpochSampler) else None
        restarts = self.run.take_position(self._state) if self._state else None
        for note in (*self._notes, *filter(None, [restarts])):
            logger.warning(note)
        if self.run.sampler is not None:
            self.run.sampler.drive(train_loader.batch_sampler)
            if self.run.sampler.stages:
                epochs = self.run.sampler.last_epoch(self._state['epoch'] if self._state else 0, total)
                logger.info(f'In {len(self.run.sampler.stages)} stages training ends in epoch {epochs}.')
        return train_loader, sampler, self.run.val_loaders, epochs, total

    def build_model(self, opt: dict[str, Any]) -> Any:
        """Build the model as BasicSR does; a PromptModel gets the objects of the run."""
        _warn_of_averages(opt)
        model = self._build_model(opt)
        if isinstance(model, PromptModel):
            self.model, model.run = model, self.run
        return model

    def _prefetcher(self, host: type) -> type:
        trainer = self

        class Prefetcher(host):
            """BasicSR's prefetcher with the events of the trainer."""

            def __init__(self, *arguments: Any) -> None:
                trainer.on_start()
                super().__init__(*arguments)

            def next(self) -> Any:
                trainer.before_batch()
                batch = super().next()
                if batch is not None:
                    trainer.on_batch()
                return batch

        return Prefetcher

    # the events

    def on_start(self) -> None:
        """Install signal handlers, and run the validation of a state's iteration if it is missing.

        BasicSR saves before it validates.
        """
        model = self.model
        if model is None:
            return
        # Before workers are forked, so they have the handlers too.
        self.run.signals.install(
            (*ALWAYS, *(model.opt['logger'].get('stop_signals') or ())), together=model.opt['dist']
        )
        iteration, val = model.state.iteration, model.opt.get('val')
        if not iteration or not val or iteration % val['val_freq'] or model.report.validated == iteration:
            return
        logger.info(f'The table has no validation of iteration {iteration}. Validating now.')
        for loader in self.run.val_loaders:
            model.validation(loader, iteration, self.run.tb_logger, val['save_img'])

    def before_batch(self) -> None:
        """Restore the random state of a resumed training, or end if a signal requests it.

        torch's handler raises an error about a killed worker anywhere, even in the middle of a step. Without it, the
        loader notices the worker when it waits for the next batch.
        """
        if threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGCHLD'):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.model is None:
            return
        if self._begun:
            self.model.stop_if_asked()
        else:
            self._begun = True
            self.model.state.restore_random_numbers()
        self.model.state.keep_moment(self.run)

    def on_batch(self) -> None:
        """Count the samples of the epoch."""
        if self.run.sampler is not None:
            self.run.sampler.count()

    def on_error(self, error: Exception) -> Exception:
        """Save the last complete iteration if possible, and return the error that explains the failure.

        Several processes do not save: a state needs all of them, and only this one knows about the error.
        """
        model = self.model
        doing = 'validation' if model is not None and model.is_measuring else 'training'
        told = explained(error, doing)
        if model is None or not self._begun or model.opt['dist'] or model.state.ended or isinstance(error, KNOWN[2:]):
            return told
        try:
            model.save_progress()
        except Exception as second:
            logger.warning(f'Iteration {model.state.iteration} could not be saved: {second}')
        return told

    def on_end(self) -> None:
        """Restore signal handlers, flush the TensorBoard logger, and unlock the folder."""
        self.run.signals.restore()
        if self.run.tb_logger is not None:
            self.run.tb_logger.close()
        if self._folder is not None:
            self._folder.release()


@functools.wraps(_host_pipeline)
def train_pipeline(root_path: str) -> None:
    """Run BasicSR's training pipeline with the functions and events of `Trainer`."""
    Trainer().train(root_path)


@functools.wraps(_host_test_pipeline)
def test_pipeline(root_path: str) -> None:
    """Run BasicSR's test pipeline with a locked results folder.

    Raises:
        RunError: explains any other error that ended the test.
    """
    parse, build, locks = basicsr.test.parse_options, basicsr.test.build_model, []

    def parse_options(root_path: str, is_train: bool = True) -> Any:
        opt, args = parse(root_path, is_train)
        locks.append(lock_folder(opt['path']['results_root'], opt))
        return opt, args

    def build_model(opt: dict[str, Any]) -> Any:
        _warn_of_averages(opt)
        return build(opt)

    _forget_log()
    try:
        with replaced(basicsr.test, {'parse_options': parse_options, 'build_model': build_model}):
            _host_test_pipeline(root_path)
    except Exception as error:
        raise explained(error, 'validation') from error
    finally:
        for lock in filter(None, locks):
            lock.release()


def _warn_of_averages(opt: Mapping[str, Any]) -> None:
    """Log that a BasicSR model reports one average over all tasks."""
    tested = {}
    for key, dataset in opt['datasets'].items():
        if key != 'train' and dataset['type'] == 'AllInOneDataset':
            tasks = expand_protocol(dataset, ('datasets', key))['tasks']
            tested[f'datasets.{key}'] = [task.get('name', task['type']) for task in tasks]
    for where, warning in averaged_tasks(opt['model_type'], tested).items():
        logger.warning(f'{where}: {warning}')


@contextmanager
def replaced(module: ModuleType, names: Mapping[str, Any]) -> Iterator[None]:
    """Temporarily replace names of a module."""
    before = {name: vars(module)[name] for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


def lock_folder(folder: str, opt: Mapping[str, Any]) -> FolderLock | None:
    """Lock the folder of a run by its first process; None if locks are not available.

    Raises:
        OptionError: another run writes there; nothing has been renamed or created.
    """
    lock: FolderLock | None = None
    found: list[str | None] = [None, None]
    if opt['rank'] == 0:
        try:
            lock = FolderLock(folder)
        except LockedError as error:
            found[0] = str(error)
        except OSError as error:
            found[1] = error.strerror or str(error)
    if opt['dist']:
        distributed.broadcast_object_list(found)
    if found[0]:
        raise OptionError(
            f"name: another run writes to '{folder}' ({found[0]}). Wait until it ends, or set another name."
        )
    if found[1]:
        logger.warning(f"'{folder}' cannot be locked ({found[1]}); a second run of this name will not be detected.")
    return lock


class ExactMessageLogger(MessageLogger):
    """BasicSR's message logger with a correct `eta`, which counts one iteration too few in BasicSR."""

    def __init__(self, opt: dict[str, Any], start_iter: int = 1, tb_logger: Any = None) -> None:
        super().__init__(opt, start_iter, tb_logger)
        self.max_iters += 1


class QuietLogger:
    """A TensorBoard logger whose failures do not end a training; only the first one is logged.

    Args:
        logger: with methods such as `add_scalar`.
    """

    def __init__(self, logger: Any) -> None:
        self._logger, self._failed = logger, False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._logger, name)

        @functools.wraps(method)
        def quiet(*arguments: Any, **named: Any) -> Any:
            if self._failed and name != 'close':
                return None
            try:
                return method(*arguments, **named)
            except Exception as error:
                if not self._failed:
                    logger.warning(f'TensorBoard logging stopped: {error}')
                self._failed = True
                return None

        return quiet if callable(method) else method


def _warn_of_log(handler: logging.Handler, _: logging.LogRecord) -> None:
    """Report once that the log cannot be written, and continue without it."""
    logger.removeHandler(handler)
    logger.warning(f'Writing the log file stopped: {sys.exc_info()[1]}')


def _forget_log() -> None:
    """Reset BasicSR's logger; otherwise a second run in this process would log to the first run's file."""
    if initialized_logger.pop('basicsr', None):
        for handler in [each for each in logger.handlers if type(each) in (logging.StreamHandler, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()


def worker_init_fn(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """Initialise a worker as BasicSR does; it survives the first stop signal, unless its parent sends it."""
    _host_worker_init(worker_id, num_workers, rank, seed)
    for name in (*ALWAYS, *STOP_SIGNALS):
        if name != 'SIGTERM' and hasattr(signal, name):
            signal.signal(getattr(signal, name), ignore_once)
    # The parent ends its workers by SIGTERM and waits. Only sigwaitinfo reports the sender; macOS lacks it.
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process()  # to the system, workers of a forkserver are the server's
        threading.Thread(target=_wait_for_end, args=(parent.pid if parent else os.getppid(),), daemon=True).start()


def _wait_for_end(parent: int) -> None:
    others = 0
    while others < 2:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        others += 1 if sender != parent else 2
    os._exit(0)


def adapt() -> None:
    """Replace parts of BasicSR's trainer.

    A signal kills BasicSR and its workers at once, and progress since the last state is lost. Its `worker_init_fn`
    seeds numpy and random by worker only: noise and crops would repeat every epoch and depend on the number of workers.
    Its trainer restarts the epoch when it resumes, queries the current CUDA device before it loads a state, searches
    for states only below ./experiments, and uses the newest one even if it is incomplete. Its log passes control
    characters to the terminal.
    """
    basicsr.data.worker_init_fn = worker_init_fn
    basicsr.train.EnlargedSampler = EpochSampler
    basicsr.train.train_pipeline, basicsr.test.test_pipeline = train_pipeline, test_pipeline
    logger.addFilter(_printable)
    logger.addFilter(_is_founded)
