"""Training state: everything besides the weights that is needed to resume a training exactly."""

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
    """Progress of a training, and the state file that it is resumed from.

    In addition to BasicSR's content, `ITER.state` has: the scalers of losses and gradients; the random state and the
    running means of the log of every process; the position in the epoch; the best average, the table of validations and
    the number of skipped steps. The weights are in `net_g_ITER.pth`, which is written first.

    Args:
        opt: the options of the run.
        step: the training step.
        report: report of the validations.
        optimizers, schedulers: the model's.
        recipe: the options that they were built from, see `recipe_of`.

    Attributes:
        iteration: the last complete iteration.
        epoch: in which the training was resumed; BasicSR passes it to the sampler later.
        saved: the last saved iteration.
        ended: whether BasicSR has completed the last iteration.

    Examples:
        >>> from promptir_basicsr.models import PromptModel
        >>> train = {'total_iter': 9, 'optim_g': {'type': 'Adam', 'lr': 1e-3}, 'pixel_opt': {'type': 'L1Loss'}}
        >>> opt = {'is_train': True, 'num_gpu': 0, 'dist': False, 'rank': 0, 'datasets': {'train': {}}, 'path': {}}
        >>> network = {'type': 'PIPNAFNet', 'width': 8, 'enc_blk_nums': [1, 1, 1, 1]}
        >>> model = PromptModel({**opt, 'network_g': network, 'train': {**train, 'scheduler': {'type': 'FixedLR'}}})
        >>> model.state.iteration, model.state.saved
        (0, 0)
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
        """Write `ITER.state` atomically. Collects data of all processes; rank 0 writes.

        Args:
            net: network whose weights belong to the state, without wrappers.

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
        """Metadata of the weights of an iteration, of the last one (-1) or of the best validation ('best')."""
        report, epoch = self.report, None if run.sampler is None else max(run.sampler.epoch, self.epoch)
        if isinstance(iteration, int):
            iteration = self.iteration if iteration == -1 else iteration
            metrics = last_measured(report.table())
        else:  # the table does not have the validation yet
            iteration = report.best['iter'] if report.best else self.iteration
            metrics = measured(iteration, [*report.rows, *report.totals()])
        return training_metadata(self.opt, net, iteration, epoch, metrics, report.best, report.facts)

    def problems(self, state: Mapping[str, Any], net: nn.Module) -> list[Problem]:
        """Reasons why these options cannot resume the training of a state."""
        total, before = self.opt['train']['total_iter'], (state.get('recipe') or {}).get('optim_g') or {}
        kind, kind_before = self.recipe['optim_g']['type'], before.get('type')
        if kind_before is None:  # a state of BasicSR, or of an older version
            groups = [each['param_groups'][0] for each in state['optimizers']]
            groups += [optimizer.param_groups[0] for optimizer in self.optimizers]
            same = len({frozenset(_DISTINCT & group.keys()) for group in groups}) == 1
            kind_before = kind if same else 'another optimizer'
        found = []
        if kind_before != kind:
            message = f'{kind} cannot resume from a state of {kind_before}. Set the optimizer of the state.'
            found.append(problem(('train', 'optim_g', 'type'), message))
        if total < state['iter']:
            message = f'{total:,} is less than {state["iter"]:,}, the iteration of the state. Set more iterations.'
            found.append(problem(('train', 'total_iter'), message))
        return found or state_problems(state['optimizers'], self.optimizers, net)

    def load(self, state: Mapping[str, Any], update_rate: Callable[[int], None]) -> None:
        """Resume from a state with the current options; log each changed option.

        Data that a state of an older version lacks is reported in the log.

        Args:
            update_rate: sets the learning rate of an iteration; called for all iterations in order.
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
        else:  # the rate depends on all iterations before
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
        """Remember random state and position before an iteration, to be saved if it fails."""
        self._moment = _moment(run)

    def complete(self, iteration: int) -> None:
        """Mark an iteration as complete."""
        self.iteration, self._moment = iteration, None

    def restore_random_numbers(self) -> None:
        """Restore the random state. Call it after the loaders are ready: starting workers draws random numbers."""
        if self._random is not None:
            changed = set_random_state(self._random)
            if changed:
                logger.warning(f'Not exact: random numbers of {first_few(changed)} restart, on other devices.')
            self._random = None

    def _take_layout(self) -> None:
        """Convert optimizer states to the weights' memory layout, which fused kernels require."""
        for optimizer in self.optimizers:
            for parameter, entries in optimizer.state.items():
                for key, value in entries.items():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _take_process(self, processes: list[Mapping[str, Any]]) -> None:
        """Load the state's data of this process."""
        number = self.opt['world_size'] if self.opt['dist'] else 1
        if len(processes) != number:
            found = f'of {len(processes)} processes, not of {number}' if processes else 'of an older version'
            logger.warning(f'Not exact: the state is {found}; random numbers and the means of the log restart.')
            return
        part = processes[self.opt['rank']]
        self._random, self.step.sums = part['random'], part['sums']

    def _take_validations(self, state: Mapping[str, Any]) -> None:
        """Restore the table of validations at this iteration; the best weights are those in the folder."""
        report = self.report
        found, best = read_table(report.table_path), state.get('best')
        report.known = table = up_to(found or state.get('validations') or '', self.iteration)
        if found is None:
            logger.warning(
                f"'{report.table_path}' was changed by another program. It is saved as metrics.csv.old, and the "
                'rows are restored from the state.'
            )
        if table != found and self.opt['rank'] == 0:
            if found is None or (found and not self.opt['auto_resume']):  # an earlier state was chosen on purpose
                atomic_write(Path(report.table_path).read_bytes(), f'{report.table_path}.old')
            atomic_write(table, report.table_path)
        file = os.path.join(self.opt['path']['models'], 'net_g_best')
        if report.best is None and os.path.exists(f'{file}.json'):
            logger.warning(f"'{file}.json' is damaged; using the best average of the state.")
            report.best = best if os.path.exists(f'{file}.pth') else None
        if best and report.best is None:
            logger.warning(
                f'The weights of the best average so far, {best["metric"]} {best["value"]:.4f} at iteration '
                f'{best["iter"]}, are missing (models/net_g_best.pth and .json); the next validation becomes the best.'
            )
        known = [has_iteration(table, self.iteration)]
        if self.opt['dist']:  # only the first process may have the folder
            torch.distributed.broadcast_object_list(known)
        if known[0]:
            report.validated = self.iteration


def recipe_of(train: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the section `train` that define optimizers and learning rates."""
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
