"""Make little of the gradient of a batch that went wrong."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import check_count, is_number
from promptir_basicsr.core.problems import Problem, problem


class LossScaler:
    """The loss scaler of PIP's released program (arXiv 2312.05038), with its numbers as defaults.

    A loss of more than `limit` times the smallest of the last `history` ones, itself included, counts as much as one
    of `factor` times the smallest.

    Args:
        history: how many losses are remembered.
        limit: at least 1.
        factor: above 0 and at most `limit`.

    Raises:
        OptionError: an argument is not allowed; the message names it and says what is.
    """

    def __init__(self, history: int = 100, limit: float = 5.0, factor: float = 2.5) -> None:
        problems = check_count('history', history)
        if not is_number(limit) or limit < 1:
            problems.append(problem('limit', f'{limit!r} is not a number of at least 1.'))
        elif not is_number(factor) or not 0 < factor <= limit:
            message = f'{factor!r} is not a number above 0 and at most limit, {limit}.'
            problems.append(Problem(('factor',), message, others=(('limit',),)))
        raise_problems(problems)
        self.history, self.limit, self.factor = history, limit, factor
        self.losses = torch.zeros(0)  # the oldest first

    def __call__(self, loss: Tensor) -> Tensor:
        """Remember a loss, and say what to multiply it by: a constant, 1 as a rule.

        Nothing waits for the device.
        """
        loss = loss.detach().float()
        # One that is not finite is not to be the smallest, and nothing can be compared with it.
        known = torch.where(loss.isfinite(), loss, torch.inf).reshape(1)
        self.losses = torch.cat([self.losses.to(loss.device), known])[-self.history :]
        smallest = self.losses.min()
        scale = self.factor * smallest / loss
        return torch.where(loss > self.limit * smallest, scale, torch.ones_like(scale))

    def state_dict(self) -> dict[str, Any]:
        """The losses that are remembered."""
        return {'losses': self.losses.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the losses of a `state_dict`; of more than `history` from the newest."""
        self.losses = torch.tensor(state['losses'], dtype=torch.float32)[-self.history :]
