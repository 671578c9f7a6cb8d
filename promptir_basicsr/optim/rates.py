"""The learning rate of a run at the iterations that matter, without running it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from promptir_basicsr.core.registry import arguments_of
from promptir_basicsr.optim.schedules import HOST_SCHEDULERS, SCHEDULERS, scheduler_arguments


class RatePoint(NamedTuple):
    """Rate at an iteration, counted from 1, and what happens there."""

    iteration: int
    rate: float
    event: str = ''


def rate_curve(train: Mapping[str, Any]) -> list[RatePoint]:
    """Rates at the start, the quarters and the end, and wherever the schedule turns.

    The cost does not depend on total_iter.

    Args:
        train: the section `train` of the options, with a sound total_iter, optim_g and scheduler. BasicSR's own
            warm-up, `warmup_iter`, counts.
    """
    total, rate = train['total_iter'], float(train['optim_g']['lr'])
    warmup = train.get('warmup_iter') or -1
    rate_at, events = _schedule(train['scheduler'], rate, total, warmup)
    if warmup > 1:
        events[warmup] = _joined('end of warm-up', events.get(warmup))
    points = {max(total * quarter // 4, 1): '' for quarter in range(4)}
    points |= {iteration: event for iteration, event in events.items() if 1 <= iteration <= total}
    points[total] = _joined(points.get(total), 'last')
    return [
        # As BasicSR does it: below warmup_iter the schedule's own rate is overwritten.
        RatePoint(iteration, rate / warmup * iteration if iteration < warmup else rate_at(iteration), event)
        for iteration, event in sorted(points.items())
    ]


def _joined(*events: str | None) -> str:
    return ', '.join(event for event in events if event)


def _schedule(
    options: Mapping[str, Any], rate: float, total: int, warmup: int
) -> tuple[Callable[[int], float], dict[int, str]]:
    """The rate as a function of the iteration, and the schedule's events."""
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
    # After a warm-up it finds, and keeps, the rate of the warm-up's last iteration.
    first = rate / warmup * (warmup - 1) if warmup > 1 else optimizer.param_groups[0]['lr']
    later = sorted(turn for turn in turns if turn >= max(warmup, 2))

    def steps(iteration: int) -> float:
        group = optimizer.param_groups[0]
        group['lr'] = first
        for turn in later:  # it changes the rate it finds, so it is led from turn to turn
            if turn <= iteration:
                host.last_epoch = turn - 1
                group['lr'] = host.get_lr()[0]
        return float(group['lr'])

    return steps, turns
