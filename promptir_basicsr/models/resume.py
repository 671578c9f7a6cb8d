"""What a training needs besides its weights to go on as if it had not been stopped."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from promptir_basicsr.checkpoints.folder import atomic_save
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.evaluation.results import has_iteration, last_measured, measured, up_to
from promptir_basicsr.evaluation.validation import Report
from promptir_basicsr.models.metadata import training_metadata
from promptir_basicsr.models.run import Run
from promptir_basicsr.models.step import TrainingStep
from promptir_basicsr.runtime.random_state import random_state, set_random_state

logger = logging.getLogger('basicsr')


class TrainingState:
    """Where a training is, and what is to be saved of it.

    `ITER.state` holds, beside what BasicSR writes: the scalers of losses and gradients; the random numbers and the
    running means of the log of every process; how far the epoch was; the best average, the table of validations and
    the number of steps that were left out. The weights stand in `net_g_ITER.pth`, which is written first.

    Args:
        opt: the options of the run.
        step: the training step.
        report: of the validations.
        optimizers, schedulers: the model's.

    Attributes:
        iteration: the last one that is complete.
        epoch: in which the training was continued; BasicSR tells the sampler later.
        saved: the last iteration that was saved.
        ended: BasicSR is behind the last iteration.
    """

    def __init__(
        self,
        opt: Mapping[str, Any],
        step: TrainingStep,
        report: Report,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
    ) -> None:
        self.opt, self.step, self.report = opt, step, report
        self.optimizers, self.schedulers = optimizers, schedulers
        self.iteration = self.epoch = self.saved = 0
        self.ended = False
        self._random: Mapping[str, Any] | None = None

    def write(self, epoch: int, iteration: int, run: Run) -> None:
        """Write `ITER.state` whole or not at all. All processes have a part in it, the first one writes.

        Raises:
            SaveError: the file could not be written.
        """
        part = {'random': random_state(), 'sums': self.step.sums}
        processes = [part]
        if self.opt['dist']:
            processes *= self.opt['world_size']
            torch.distributed.all_gather_object(processes, part)
        if self.opt['rank'] != 0:
            return
        state = {
            'epoch': epoch,
            'iter': iteration,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            **self.step.state_dict(),
            'processes': processes,
            'position': run.position(),
            'best': self.report.best,
            'validations': self.report.table(),
        }
        atomic_save(state, os.path.join(self.opt['path']['training_states'], f'{iteration}.state'))

    def metadata(self, net: nn.Module, iteration: int | str, run: Run) -> dict[str, Any]:
        """What is known of the weights of an iteration, of the last one (-1) or of the best validation ('best')."""
        report, epoch = self.report, None if run.sampler is None else max(run.sampler.epoch, self.epoch)
        if isinstance(iteration, int):
            iteration = self.iteration if iteration == -1 else iteration
            metrics = last_measured(report.table())
        else:  # the validation is not in the table yet
            iteration = report.best['iter'] if report.best else self.iteration
            metrics = measured(iteration, [*report.rows, *report.totals()])
        return training_metadata(self.opt, net, iteration, epoch, metrics, report.best)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, whose optimizers and schedulers BasicSR has taken.

        What an older or other state does not have is told in the log.
        """
        self.iteration = self.saved = state['iter']
        self.epoch = state['epoch']
        self.step.load_state_dict(state)
        self._take_layout()
        self._take_process(state.get('processes') or [])
        self._take_validations(state)

    def restore_random_numbers(self) -> None:
        """Draw on where the state was. Once loaders are ready: what starts their workers draws as well."""
        if self._random is not None:
            changed = set_random_state(self._random)
            if changed:
                logger.warning(f'Not exact: random numbers of {first_few(changed)} begin anew, on other devices.')
            self._random = None

    def _take_layout(self) -> None:
        """A run may have begun in another memory layout, and fused kernels take the weights' for granted."""
        for optimizer in self.optimizers:
            for parameter, entries in optimizer.state.items():
                for key, value in entries.items():
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
        self._random, self.step.sums = part['random'], part['sums']

    def _take_validations(self, state: Mapping[str, Any]) -> None:
        """The table as it was at this iteration; of the best weights, those that are there are the best ones."""
        report = self.report
        found, best = report.table(), state.get('best')
        table = up_to(found or state.get('validations') or '', self.iteration)
        if table != found and self.opt['rank'] == 0:
            if found and not self.opt['auto_resume']:  # somebody went back on purpose
                atomic_write(found, f'{report.table_path}.old')
            atomic_write(table, report.table_path)
        if best and report.best is None:
            logger.warning(
                f'The best average so far, {best["metric"]} {best["value"]:.4f} at iteration {best["iter"]}, has no '
                'weights here (models/net_g_best.pth and .json); the next validation counts as the best.'
            )
        known = [has_iteration(table, self.iteration)]
        if self.opt['dist']:  # the folder may be that of the first process alone
            torch.distributed.broadcast_object_list(known)
        if known[0]:
            report.validated = self.iteration
