"""What a training needs besides its weights to go on as if it had not been stopped."""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from promptir_basicsr.checkpoints.checkpoint import digest
from promptir_basicsr.checkpoints.folder import atomic_save
from promptir_basicsr.checkpoints.pretrained import state_problems
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import first_few
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.evaluation.results import has_iteration, last_measured, measured, read_table, up_to
from promptir_basicsr.evaluation.validation import Report
from promptir_basicsr.models.metadata import training_metadata
from promptir_basicsr.models.run import Run
from promptir_basicsr.models.step import TrainingStep
from promptir_basicsr.optim.optimizers import option_names
from promptir_basicsr.runtime.random_state import random_state, set_random_state

logger = logging.getLogger('basicsr')

# Options by which torch's optimizers differ.
_DISTINCT = {'betas', 'momentum', 'alpha', 'rho', 'lr_decay', 'etas', 'lambd'}


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
        recipe: the options that they were made of, see `recipe_of`.

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
        recipe: Mapping[str, Any],
    ) -> None:
        self.opt, self.step, self.report = opt, step, report
        self.optimizers, self.schedulers, self.recipe = optimizers, schedulers, recipe
        self.iteration = self.epoch = self.saved = 0
        self.ended = False
        self._random: Mapping[str, Any] | None = None
        self._moment: dict[str, Any] | None = None

    def write(self, epoch: int, iteration: int, run: Run, net: nn.Module) -> None:
        """Write `ITER.state` whole or not at all. All processes have a part in it, the first one writes.

        Args:
            net: whose weights go with the state, without wrappers.

        Raises:
            SaveError: the file could not be written.
        """
        moment = self._moment or _moment(run)
        part = {'random': moment['random'], 'sums': self.step.sums}
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
            'position': moment['position'],
            'best': self.report.best,
            'validations': self.report.table(),
            'recipe': self.recipe,
            'weights': digest(net.state_dict()),
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

    def problems(self, state: Mapping[str, Any], net: nn.Module) -> list[Problem]:
        """Why the training of a state cannot go on by these options."""
        total, before = self.opt['train']['total_iter'], (state.get('recipe') or {}).get('optim_g') or {}
        kind, kind_before = self.recipe['optim_g']['type'], before.get('type')
        if kind_before is None:  # a state of BasicSR, or of an older version
            groups = [each['param_groups'][0] for each in state['optimizers']]
            groups += [optimizer.param_groups[0] for optimizer in self.optimizers]
            same = len({frozenset(_DISTINCT & group.keys()) for group in groups}) == 1
            kind_before = kind if same else 'another optimizer'
        found = []
        if kind_before != kind:
            message = f'{kind} cannot continue the state of {kind_before}. Set the optimizer of the state.'
            found.append(problem(('train', 'optim_g', 'type'), message))
        if total < state['iter']:
            message = f'{total:,} iterations are over: the state is of iteration {state["iter"]:,}. Set more.'
            found.append(problem(('train', 'total_iter'), message))
        return found or state_problems(state['optimizers'], self.optimizers, net)

    def load(self, state: Mapping[str, Any], update_rate: Callable[[int], None]) -> None:
        """Continue from a state, by the options as they are now; each change of them is reported.

        What an older or other state does not have is told in the log.

        Args:
            update_rate: sets the learning rate of an iteration; they are called in their order.
        """
        self.iteration = self.saved = state['iter']
        self.epoch = state['epoch']
        fresh = [[dict(group) for group in optimizer.param_groups] for optimizer in self.optimizers]
        for optimizer, saved, groups in zip(self.optimizers, state['optimizers'], fresh, strict=True):
            optimizer.load_state_dict(saved)
            given = option_names(type(optimizer)) - {'lr'} | {'initial_lr'}
            for group, options in zip(optimizer.param_groups, groups, strict=True):
                group.update({key: value for key, value in options.items() if key in given})
        before = state.get('recipe')
        for change in () if before is None else changes(before, self.recipe):
            logger.info(f'Changed from iteration {self.iteration + 1} on: {change}.')
        if before == self.recipe:
            for scheduler, saved in zip(self.schedulers, state['schedulers'], strict=True):
                scheduler.load_state_dict(saved)
        else:  # the rate is a function of all iterations before
            for optimizer, groups in zip(self.optimizers, fresh, strict=True):
                for group, options in zip(optimizer.param_groups, groups, strict=True):
                    group['lr'] = options['lr']
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', 'Detected call of `lr_scheduler.step()` before')
                for iteration in range(1, self.iteration + 1):
                    update_rate(iteration)
        self.step.load_state_dict(state)
        self._take_layout()
        self._take_process(state.get('processes') or [])
        self._take_validations(state)

    def keep_moment(self, run: Run) -> None:
        """Remember random numbers and position from before an iteration: what is saved if it does not end well."""
        self._moment = _moment(run)

    def complete(self, iteration: int) -> None:
        """An iteration has ended well."""
        self.iteration, self._moment = iteration, None

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
        found, best = read_table(report.table_path), state.get('best')
        report.known = table = up_to(found or state.get('validations') or '', self.iteration)
        if found is None:
            logger.warning(
                f"'{report.table_path}' has been changed by another program. It is kept as metrics.csv.old, and the "
                'rows are those of the state.'
            )
        if table != found and self.opt['rank'] == 0:
            if found is None or (found and not self.opt['auto_resume']):  # somebody went back on purpose
                atomic_write(Path(report.table_path).read_bytes(), f'{report.table_path}.old')
            atomic_write(table, report.table_path)
        file = os.path.join(self.opt['path']['models'], 'net_g_best')
        if report.best is None and os.path.exists(f'{file}.json'):
            logger.warning(f"'{file}.json' is damaged; the best average is that of the state.")
            report.best = best if os.path.exists(f'{file}.pth') else None
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


def recipe_of(train: Mapping[str, Any]) -> dict[str, Any]:
    """Of the section `train`, what optimizers and learning rates are made of."""
    keys = ('optim_g', 'scheduler', 'warmup_iter', 'total_iter')
    return {key: copy.deepcopy(train[key]) for key in keys if train.get(key) is not None}


def changes(before: Mapping[str, Any], after: Mapping[str, Any], place: str = '') -> Iterator[str]:
    """Lines such as `optim_g.lr 0.001 -> 0.0001`."""
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f'{place}{key}.')
        elif old != new:
            yield f'{place}{key} {"unset" if old is None else old} -> {"unset" if new is None else new}'


def _moment(run: Run) -> dict[str, Any]:
    return {'random': random_state(), 'position': run.position()}
