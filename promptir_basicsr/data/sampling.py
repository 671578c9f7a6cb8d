"""Sampling of tasks: their shares of an epoch and of every batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from promptir_basicsr.core.messages import check_count, first_few
from promptir_basicsr.core.problems import Keys, Problem, keys, place, problem
from promptir_basicsr.data.tasks import Task


@dataclass(frozen=True)
class TaskShare:
    """A task's share of an epoch.

    Attributes:
        name: of the task.
        images: number of its images.
        samples: number of its samples per epoch.
        asked: the share of the epoch that the options request, 0 to 1.
        share: the actual share, after rounding to whole samples of a batch (`fixed_shares`) or of an epoch.
        in_batch: samples of the task in every batch of `batch_size_per_gpu`; 0 if batches are mixed at random.

    Examples:
        >>> from promptir_basicsr.data import TaskShare
        >>> TaskShare(name='derain', images=200, samples=24_000, asked=0.25, share=0.25).samples
        24000
    """

    name: str
    images: int
    samples: int
    asked: float
    share: float
    in_batch: int = 0

    @property
    def draws(self) -> float:
        """Average number of draws of an image per epoch."""
        return self.samples / self.images


def epoch_shares(tasks: Sequence[Task], opt: Mapping[str, Any]) -> list[TaskShare]:
    """The tasks' shares of an epoch, before `dataset_enlarge_ratio`.

    Every image is drawn `copies` times, unless the tasks have weights or `sampling` is set; in validation once.

    Args:
        opt: the dataset's options, valid according to `check_sampling`.

    Examples:
        >>> from promptir_basicsr.data import build_tasks, epoch_shares
        >>> rain = {'type': 'derain', 'lq': 'rainy', 'gt': 'clear', 'copies': 3}
        >>> options = {'phase': 'train', 'tasks': [rain, {**rain, 'name': 'more', 'copies': 1}]}
        >>> [(share.name, share.samples, share.share) for share in epoch_shares(build_tasks(options, 'train'), options)]
        [('derain', 6, 0.75), ('more', 2, 0.25)]
    """
    if not tasks:
        return []
    if not _training(opt):
        whole = sum(map(len, tasks))
        return [TaskShare(task.name, len(task), len(task), len(task) / whole, len(task) / whole) for task in tasks]
    options = _sampling(opt)
    sizes = [len(task) * task.copies for task in tasks]
    asked = _asked(tasks, sizes, options)
    in_batch = apportion(opt['batch_size_per_gpu'], asked) if options.get('fixed_shares') else [0] * len(sizes)
    # The epoch consists of full batches, so it has their rounded shares.
    samples = apportion(options.get('epoch_size') or sum(sizes), in_batch if any(in_batch) else asked)
    got = in_batch if any(in_batch) else samples
    return [
        TaskShare(task.name, len(task), samples[n], float(asked[n] / sum(asked)), got[n] / sum(got), in_batch[n])
        for n, task in enumerate(tasks)
    ]


def _sampling(opt: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options that are set."""
    return {key: value for key, value in (opt.get('sampling') or {}).items() if value is not None}


def _training(opt: Mapping[str, Any]) -> bool:
    return opt.get('phase', 'train') == 'train'


def _asked(tasks: Sequence[Task], sizes: Sequence[int], options: Mapping[str, Any]) -> list[Fraction]:
    """Requested proportions of the tasks, exact if the options are exact."""
    if all(task.weight is not None for task in tasks):
        return [Fraction(str(task.weight)) for task in tasks]
    temperature = options.get('temperature', 1)
    if temperature == 1:
        return [Fraction(size) for size in sizes]
    return [Fraction((size / max(sizes)) ** (1 / temperature)) for size in sizes]


def apportion(total: int, shares: Sequence[Fraction | int]) -> list[int]:
    """Split `total` into whole numbers in proportion to `shares`.

    Uses the largest remainder method: every number is rounded down or up; of equal remainders the first is rounded up.
    """
    whole = sum(shares)
    exact = [Fraction(total * share) / whole for share in shares]
    counts = [math.floor(number) for number in exact]
    largest_first = sorted(range(len(exact)), key=lambda n: counts[n] - exact[n])
    for n in largest_first[: total - sum(counts)]:
        counts[n] += 1
    return counts


def check_sampling(opt: Mapping[str, Any], where: str | Keys) -> list[Problem]:
    """Check that the sampling options fit each other; `check_shares` checks them against the tasks.

    Args:
        opt: the dataset's options, without invalid ones.
    """
    where = keys(where)
    sampling, training = opt.get('sampling'), _training(opt)
    if not training:
        found: list[Keys] = [(*task, 'weight') for task in _weighted(opt)]
        found += [('sampling',)] * (sampling is not None)
        once = 'only for training; a validation uses every image once. Remove it.'
        return [problem((*where, *path), once) for path in found]
    problems = _check_weights(opt, where)
    if sampling is None:
        return problems
    options = _sampling(opt)
    if 'temperature' in options and _weighted(opt):
        problems.append(
            problem(
                (*where, 'sampling', 'temperature'),
                'computes shares from the numbers of images, but a `weight` already sets a share '
                f'({first_few(map(place, _weighted(opt)))}). Set only one of them.',
            )
        )
    if options.get('fixed_shares') and check_count('', opt.get('batch_size_per_gpu')):
        found_size = opt.get('batch_size_per_gpu')
        message = f'needs `batch_size_per_gpu`, a whole number of at least 1, not {found_size!r}.'
        problems.append(problem((*where, 'sampling', 'fixed_shares'), message))
    return problems


def _weighted(opt: Mapping[str, Any], given: bool = True) -> list[Keys]:
    """Places of the tasks of the dataset that have a weight, or that do not."""
    tasks = [(('tasks', n), task) for n, task in enumerate(opt.get('tasks', ())) if isinstance(task, Mapping)]
    return [path for path, task in tasks if (task.get('weight') is not None) == given]


def _check_weights(opt: Mapping[str, Any], where: Keys) -> list[Problem]:
    given, absent = (first_few(map(place, _weighted(opt, which))) for which in (True, False))
    if not given or not absent:
        return []
    message = f'`weight` is set in {given}, but is missing in {absent}. Set it for every task or for none.'
    return [problem((*where, 'tasks'), message)]


def check_shares(tasks: Sequence[Task], opt: Mapping[str, Any], where: str | Keys) -> list[Problem]:
    """Check that every task has a sample in a batch or an epoch, with advice if not.

    Args:
        opt: the dataset's options, valid according to `check_sampling`.
    """
    shares = epoch_shares(tasks, opt)
    kind, left_out = _left_out(shares)
    if not left_out:
        return []
    path = (*keys(where), 'sampling', *(['fixed_shares'] if kind == 'a batch' else []))
    total = sum(share.in_batch if kind == 'a batch' else share.samples for share in shares)
    asked = first_few(f"'{shares[n].name}' ({100 * shares[n].asked:.3g} % requested)" for n in left_out)
    mends = [*_least_total(tasks, opt, kind, total), *_least_share(tasks, opt, left_out, total)]
    mend = f' Raise {", or ".join(mends)}.' if mends else ' Make the shares less different.'
    return [problem(path, f'{kind} of {total:,} would have no sample of {asked}.{mend}')]


def _left_out(shares: Sequence[TaskShare]) -> tuple[str, list[int]]:
    """`a batch` or `an epoch`, and the tasks without a sample in it."""
    if any(share.in_batch for share in shares) and not all(share.in_batch for share in shares):
        return 'a batch', [n for n, share in enumerate(shares) if not share.in_batch]
    return 'an epoch', [n for n, share in enumerate(shares) if not share.samples]


def _least_total(tasks: Sequence[Task], opt: Mapping[str, Any], kind: str, total: int) -> list[str]:
    """The smallest batch or epoch in which every task has a sample, as advice."""
    smallest = min(share.asked for share in epoch_shares(tasks, opt))
    enough = math.ceil(1 / smallest) + 1 if smallest else math.inf
    if enough > (1000 if kind == 'a batch' else 1e9):
        return []
    for number in [*range(total + 1, min(int(enough), total + 500)), int(enough)]:
        if kind == 'a batch':
            key, changed = 'batch_size_per_gpu', {**opt, 'batch_size_per_gpu': number}
        else:
            key, changed = 'sampling.epoch_size', {**opt, 'sampling': {**_sampling(opt), 'epoch_size': number}}
        still, left_out = _left_out(epoch_shares(tasks, changed))
        if not left_out or still != kind:
            return [f'`{key}` to {number:,}']
    return []


def _least_share(tasks: Sequence[Task], opt: Mapping[str, Any], left_out: Sequence[int], total: int) -> list[str]:
    """Options that would make the shares of the tasks large enough, as advice."""
    options = _sampling(opt)
    if 'temperature' in options:
        for temperature in (1, 1.5, 2, 3, 5, 10, 20, 50, 100):
            changed = {**opt, 'sampling': {**options, 'temperature': temperature}}
            if temperature > options['temperature'] and not _left_out(epoch_shares(tasks, changed))[1]:
                return [f'`sampling.temperature` to {temperature}']
        return []
    room = total - len(left_out)
    if room <= 0:
        return []
    key = 'copies' if tasks[0].weight is None else 'weight'
    others = [task for n, task in enumerate(tasks) if n not in left_out]
    if key == 'weight':
        needed = _round_up(sum(task.weight or 0 for task in others) / room)
        changes: dict[int, Any] = dict.fromkeys(left_out, needed)
    else:
        samples = sum(len(task) * task.copies for task in others)
        changes = {n: math.ceil(samples / room / len(tasks[n])) for n in left_out}
    raised = [replace(task, **{key: changes[n]}) if n in changes else task for n, task in enumerate(tasks)]
    if _left_out(epoch_shares(raised, opt))[1]:
        return []
    return [' and '.join(f"the `{key}` of '{tasks[n].name}' to {changes[n]:,}" for n in left_out)]


def _round_up(number: float) -> float:
    """Round up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f'{math.ceil(number / unit) * unit:g}')
