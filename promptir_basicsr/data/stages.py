"""Progressive training: crop sizes and batch sizes that change at given iterations."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from promptir_basicsr.core.problems import Keys, Problem, keys, problem


class Stage(NamedTuple):
    """A stage of a training.

    Attributes:
        begin: number of iterations before it.
        until: its last iteration; inf for the last stage.
        gt_size: side of the crops in pixels.
        batch: `batch_size_per_gpu`.
    """

    begin: int
    until: float
    gt_size: int
    batch: int


def stages_of(opt: Mapping[str, Any]) -> list[Stage]:
    """The stages of a training set; a single one without the option `stages`.

    Args:
        opt: the dataset's options, without invalid ones.
    """
    given = opt.get('stages') or [{}]
    found: list[Stage] = []
    begin = 0
    for number, stage in enumerate(given, 1):
        last = number == len(given)
        size, batch = (stage.get(key) or opt.get(key, 0) for key in ('gt_size', 'batch_size_per_gpu'))
        found.append(Stage(begin, math.inf if last else stage['until'], size, batch))
        begin = 0 if last else stage['until']
    return found


def by_stage(opt: Mapping[str, Any], key: str) -> dict[Keys, int]:
    """Values of `gt_size` or `batch_size_per_gpu` in the stages, by their places in the dataset's options."""
    stages = enumerate(opt.get('stages') or [{}])
    found = {('stages', n, key) if stage.get(key) else (key,): stage.get(key) or opt.get(key) for n, stage in stages}
    return {path: value for path, value in found.items() if value}


def check_stages(opt: Mapping[str, Any], where: str | Keys) -> list[Problem]:
    """Check that `sampling.fixed_shares` is possible in every stage; see `stages_of`."""
    sizes = dict.fromkeys(by_stage(opt, 'batch_size_per_gpu').values())
    if len(sizes) < 2 or not (opt.get('sampling') or {}).get('fixed_shares'):
        return []
    message = f'needs the same batch_size_per_gpu in all stages, not {", ".join(map(str, sizes))}. Only change gt_size.'
    return [problem((*keys(where), 'sampling', 'fixed_shares'), message)]
