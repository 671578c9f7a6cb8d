"""Learning rate of a run at its key iterations, computed without running it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from promptir_basicsr.core.registry import arguments_of
from promptir_basicsr.optim.schedules import HOST_SCHEDULERS, SCHEDULERS, IterationLR, scheduler_arguments


class RatePoint(NamedTuple):
    """Learning rate at an iteration, counted from 1, and the event there."""

    iteration: int
    rate: float
    event: str = ''


def rate_curve(train: Mapping[str, Any]) -> list[RatePoint]:
    """Return the rates at the start, the quarters, the end, and the events of the schedule.

    The cost does not depend on total_iter.

    Args:
        train: the section `train` of the options, with valid total_iter, optim_g and scheduler. BasicSR's own
            warm-up, `warmup_iter`, is included.
    """
    total, rate = train['total_iter'], float(train['optim_g']['lr'])
    warmup = train.get('warmup_iter') or -1
    rate_at, events = _schedule(train['scheduler'], rate, total, warmup)
    if warmup > 1:
        events[warmup] = _joined('end of warm-up', events.get(warmup))
    # As BasicSR does it: below warmup_iter the schedule's own rate is overwritten.
    return _points(lambda step: rate / warmup * step if step < warmup else rate_at(step), events, total)


def describe(scheduler: IterationLR, total: int) -> str:
    """Return a log line that describes a schedule and the rate of the first parameter group, see `rate_curve`.

    Args:
        total: last iteration of the run.

    Returns:
        For example 'FixedLR: fixed rate; lr by iteration: 0.0002 at 1, 0.0002 at 25, ..., 0.0002 at 100 (last)'.
    """
    rates = [
        f'{point.rate:.3g} at {point.iteration:,}' + (f' ({point.event})' if point.event else '')
        for point in _points(lambda step: scheduler.lr_at(step)[0], scheduler.landmarks(), total)
    ]
    return f'{type(scheduler).__name__}: {scheduler.summary()}; lr by iteration: {", ".join(rates)}'


def _points(rate_at: Callable[[int], float], events: Mapping[int, str], total: int) -> list[RatePoint]:
    points = {max(total * quarter // 4, 1): '' for quarter in range(4)}
    points |= {iteration: event for iteration, event in events.items() if 1 <= iteration <= total}
    points[total] = _joined(points.get(total), 'last')
    return [RatePoint(iteration, rate_at(iteration), event) for iteration, event in sorted(points.items())]


def _joined(*events: str | None) -> str:
    return ', '.join(event for event in events if event)


def _schedule(
    options: Mapping[str, Any], rate: float, total: int, warmup: int
) -> tuple[Callable[[int], float], dict[int, str]]:
    """Return the rate as a function of the iteration, and the schedule's events."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    if options['type'] in SCHEDULERS:
        kind, arguments = scheduler_arguments(options, total)
        ours = kind(optimizer, **arguments)
        return lambda iteration: ours.lr_at(iteration)[0], ours.landmarks()
    arguments = arguments_of(options)
    host = HOST_SCHEDULERS[options['type']](optimizer, **arguments)
    if 'periods' in arguments:
        ends = [sum(arguments['periods'][: number + 1]) for number in range(len(arguments['periods']))]
        events = {end + 1: 'end of a period' for end in ends} | {end + 2: 'restart' for end in ends[:-1]}

        def cosine(iteration: int) -> float:
            host.last_epoch = iteration - 1  # the rate depends on nothing else
            return float(host.get_lr()[0])

        return cosine, events
    turns = {milestone + 1: 'milestone' for milestone in host.milestones}
    turns |= {restart + 1: 'restart' for restart in host.restarts if restart}
    # After a warm-up, the schedule continues from the rate of the warm-up's last iteration.
    first = rate / warmup * (warmup - 1) if warmup > 1 else optimizer.param_groups[0]['lr']
    later = sorted(turn for turn in turns if turn >= max(warmup, 2))

    def steps(iteration: int) -> float:
        group = optimizer.param_groups[0]
        group['lr'] = first
        for turn in later:  # it modifies the current rate, so it is stepped from turn to turn
            if turn <= iteration:
                host.last_epoch = turn - 1
                group['lr'] = host.get_lr()[0]
        return float(group['lr'])

    return steps, turns
