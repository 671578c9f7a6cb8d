"""Trainings that can be stopped at any moment and go on as if they had not been."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from promptir_basicsr.checkpoints.folder import atomic_save, remove_older
from promptir_basicsr.checkpoints.pretrained import state_problems
from promptir_basicsr.checkpoints.reading import METADATA
from promptir_basicsr.core.errors import SickTraining, Stopped, raise_problems
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.evaluation.results import has_iteration, last_measured, measured, up_to
from promptir_basicsr.evaluation.validation import Report
from promptir_basicsr.models.metadata import training_metadata
from promptir_basicsr.models.nonfinite import MOST_IN_A_ROW
from promptir_basicsr.models.run import current
from promptir_basicsr.models.step import TrainingStep
from promptir_basicsr.runtime.random_state import kept_random_state, random_state, set_random_state

logger = logging.getLogger('basicsr')


class Resumable(TrainingStep):
    """How PromptModel is saved, stopped and continued.

    `ITER.state` holds, beside what BasicSR writes: the scalers of losses and gradients; the random numbers and the
    running means of the log of every process; how far the epoch was; the best average, the table of validations and
    the number of steps that were left out. The weights stand in `net_g_ITER.pth`, which is written first.

    Options:
        logger.keep_last: how many checkpoints are kept, beside `net_g_best.pth`. Default: all.
        logger.stop_signals: signals that stop a training beside SIGTERM and SIGINT.
        train.max_sick_steps: after how many steps in a row that are not finite the training ends. Default: 10.
    """

    is_resumable = True
    report: Report

    def __init__(self, opt: dict[str, Any]) -> None:
        self._ended = False
        self._iteration = 0  # the last one that is complete
        self._epoch = 0  # in which it was continued; BasicSR tells the sampler later
        self._saved = 0
        self._random: Mapping[str, Any] | None = None
        super().__init__(opt)

    # an iteration, and between two of them

    def optimize_parameters(self, current_iter: int) -> None:
        """One step, behind which the training may end.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            SickTraining: too many steps in a row were not finite; the state is saved, with the weights before them.
        """
        super().optimize_parameters(current_iter)
        self._iteration = current_iter
        most = self.opt['train'].get('max_sick_steps') or MOST_IN_A_ROW
        if self.sick.row >= most:
            self._save_once(keep_all=True)
            raise SickTraining(
                f'Training has ended at iteration {current_iter}: loss or gradient of {self.sick.row} steps in a row '
                'was not finite (train.max_sick_steps). The weights before them are saved as the state of this '
                'iteration. Look at the images that the log names, and for a learning rate that is too high; a state '
                'further back is continued by `path: {resume_state: FILE}`.'
            )
        if self.told_to_stop or (self.asked_to_stop() and not self.opt['dist']):
            self._stop()

    def asked_to_stop(self) -> bool:
        return current().signals.asked is not None

    def stop_if_asked(self) -> None:
        """End the training between two iterations, or two images of a validation.

        Several processes end after an iteration only, where they agree on it anyway.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        if self.is_train and self.asked_to_stop() and not self.opt['dist']:
            self._stop()

    def _stop(self) -> None:
        name = current().signals.asked or 'Another process'
        if self._ended:
            logger.warning(f'{name}: stopped in the validation behind the training, whose weights are saved.')
        else:
            self._save_once()
            logger.warning(f'{name}: stopped behind iteration {self._iteration}, whose state is saved.')
        logger.warning('--auto_resume goes on from there.')
        raise Stopped

    def begin(self) -> None:
        """Do what was left undone at the iteration of the state: BasicSR saves before it validates."""
        iteration, val = self._iteration, self.opt.get('val')
        if not iteration or not val or iteration % val['val_freq'] or self.report.validated == iteration:
            return
        logger.info(f'The validation of iteration {iteration} is not in the table yet.')
        run = current()
        for loader in run.val_loaders:
            self.validation(loader, iteration, run.tb_logger, val['save_img'])

    def go_on(self) -> None:
        """The loader is ready; what it draws to start its workers must not change what follows."""
        if self._random is not None:
            changed = set_random_state(self._random)
            if changed:
                logger.warning(f'Not exact: random numbers of {first_few(changed)} begin anew, on other devices.')
            self._random = None

    def data_failed(self) -> None:
        """The next batch cannot be had; what was trained so far is saved."""
        if self._iteration and not self.opt['dist'] and not self._ended:
            self._save_once()

    def validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """BasicSR's; training goes on as if there had been none."""
        with kept_random_state():
            super().validation(dataloader, current_iter, tb_logger, save_img)

    # files

    def save(self, epoch: int, current_iter: int) -> None:
        """BasicSR's save, and the older checkpoints that are not kept; `current_iter` -1 is the end of the training.

        Raises:
            SaveError: a file could not be written; those before it are whole.
        """
        self._save(epoch, current_iter)
        keep = (self.opt.get('logger') or {}).get('keep_last')
        if keep and current_iter != -1 and self.opt['rank'] == 0:
            paths = self.opt['path']
            removed = remove_older(paths['models'], paths['training_states'], current_iter, keep)
            if removed:
                logger.info(f'Removed the checkpoints of {first_few(map(str, removed))}; the last {keep} are kept.')

    def _save(self, epoch: int, current_iter: int) -> None:
        self.settle()
        self._ended = self._ended or current_iter == -1
        super().save(epoch, current_iter)
        if current_iter != -1:
            self._iteration = self._saved = current_iter

    def _save_once(self, keep_all: bool = False) -> None:
        """Save the last iteration, unless that has been done."""
        sampler = current().sampler
        if self._saved == self._iteration or sampler is None:
            return
        logger.info('Saving models and training states.')
        (self._save if keep_all else self.save)(sampler.epoch, self._iteration)

    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = 'params') -> None:
        """Write `NET_ITER.pth` whole or not at all; BasicSR writes in place and goes on after a failure.

        Beside the weights stands what is known of them, see `metadata`.

        Raises:
            SaveError: the file could not be written; an older one of the same name is untouched.
        """
        if self.opt['rank'] != 0:
            return
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {
            key: {name: value.cpu() for name, value in self.get_bare_model(part).state_dict().items()}
            for part, key in zip(nets, keys, strict=True)
        }
        if net_label == 'net_g':
            content[METADATA] = self._metadata(current_iter)
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        atomic_save(content, os.path.join(self.opt['path']['models'], name))

    def _metadata(self, current_iter: int | str) -> dict[str, Any]:
        """What is known of the weights of an iteration, of the last one (-1) or of the best validation."""
        report, sampler = self.report, current().sampler
        epoch = max(sampler.epoch, self._epoch) if sampler is not None else None
        if isinstance(current_iter, int):
            iteration = self._iteration if current_iter == -1 else current_iter
            metrics = last_measured(self._table())
        else:  # the validation is not in the table yet
            iteration = report.best['iter'] if report.best else self._iteration
            metrics = measured(iteration, [*report.rows, *report.totals()])
        return training_metadata(self.opt, self.get_bare_model(self.net_g), iteration, epoch, metrics, report.best)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write `ITER.state` whole or not at all. All processes have a part in it, the first one writes.

        Raises:
            SaveError: the file could not be written.
        """
        if current_iter == -1:
            return
        processes = self._of_processes({'random': random_state(), 'sums': self._kept_sums()})
        if self.opt['rank'] != 0:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            **self._scalers(),
            'sick_steps': self.sick.total,
            'processes': processes,
            'position': current().position(),
            'best': self.report.best,
            'validations': self._table(),
        }
        atomic_save(state, os.path.join(self.opt['path']['training_states'], f'{current_iter}.state'))

    def _of_processes(self, part: Any) -> list[Any]:
        if not self.opt['dist']:
            return [part]
        parts = [part] * self.opt['world_size']
        torch.distributed.all_gather_object(parts, part)
        return parts

    def _kept_sums(self) -> dict[str, list[Any]]:
        """Of the log's means."""
        return {
            name: [value.detach().cpu() if torch.is_tensor(value) else value for value in entry]
            for name, entry in self._sums.items()
        }

    def _scalers(self) -> dict[str, Any]:
        scalers: dict[str, Any] = {}
        if self.loss_scaler is not None:
            scalers['loss_scaler'] = self.loss_scaler.state_dict()
        if self.grad_scaler.is_enabled():
            scalers['grad_scaler'] = self.grad_scaler.state_dict()
        return scalers

    # going on

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """BasicSR's, which notices a state of other sizes in the first step only, and the rest of the state.

        What an older or other state does not have is told in the log.

        Raises:
            OptionError: the state belongs to a network of other sizes.
        """
        raise_problems(state_problems(resume_state['optimizers'], self.optimizers, self.get_bare_model(self.net_g)))
        super().resume_training(resume_state)
        self._iteration = self._saved = resume_state['iter']
        self._epoch = resume_state['epoch']
        self._load_scalers(resume_state)
        self.sick.total = resume_state.get('sick_steps', 0)
        self._take_process(resume_state.get('processes') or [])
        self._take_validations(resume_state)

    def _load_scalers(self, state: Mapping[str, Any]) -> None:
        if self.loss_scaler is not None and 'loss_scaler' in state:
            self.loss_scaler.load_state_dict(state['loss_scaler'])
        if self.grad_scaler.is_enabled() and 'grad_scaler' in state:
            self.grad_scaler.load_state_dict(state['grad_scaler'])
        for optimizer in self.optimizers:
            for parameter, entries in optimizer.state.items():
                for key, value in entries.items():
                    # A run may have begun in another memory layout, and fused kernels take it for granted.
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _take_process(self, processes: list[Mapping[str, Any]]) -> None:
        """What the state has of this process."""
        number = self.opt['world_size'] if self.opt['dist'] else 1
        if len(processes) != number:
            found = f'of {len(processes)} processes, not of {number}' if processes else 'of an older version'
            logger.warning(f'Not exact: the state is {found}; random numbers and the means of the log begin anew.')
            return
        part = processes[self.opt['rank']]
        self._random = part['random']
        self._sums = {
            name: [value.to(self.device) if torch.is_tensor(value) else value for value in entry]
            for name, entry in part['sums'].items()
        }

    def _take_validations(self, state: Mapping[str, Any]) -> None:
        """The table as it was at this iteration; of the best weights, those that are there are the best ones."""
        found, best = self._table(), state.get('best')
        table = up_to(found or state.get('validations') or '', self._iteration)
        if table != found and self.opt['rank'] == 0:
            if found and not self.opt['auto_resume']:  # somebody went back on purpose
                atomic_write(found, f'{self._table_path}.old')
            atomic_write(table, self._table_path)
        if best and self.report.best is None:
            logger.warning(
                f'The best average so far, {best["metric"]} {best["value"]:.4f} at iteration {best["iter"]}, has no '
                'weights here (models/net_g_best.pth and .json); the next validation counts as the best.'
            )
        known = [has_iteration(table, self._iteration)]
        if self.opt['dist']:  # the folder may be that of the first process alone
            torch.distributed.broadcast_object_list(known)
        if known[0]:
            self.report.validated = self._iteration

    @property
    def _table_path(self) -> str:
        return os.path.join(self.report.root, 'metrics.csv')

    def _table(self) -> str:
        """The rows of all validations so far."""
        if not os.path.exists(self._table_path):
            return ''
        with open(self._table_path, newline='', encoding='utf-8') as file:
            return file.read()
