"""Scale down the gradient of outlier batches."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import check_count, is_number
from promptir_basicsr.core.problems import Problem, problem


class LossScaler:
    """The loss scaler of PIP's released program (arXiv 2312.05038), with its numbers as defaults.

    A loss above `limit` times the smallest of the last `history` losses (itself included) is scaled to `factor` times
    the smallest.

    Args:
        history: number of losses that are remembered.
        limit: ratio to the smallest loss above which a loss is scaled, at least 1.
        factor: ratio that such a loss is scaled to, above 0 and at most `limit`.

    Raises:
        OptionError: an argument is invalid; the message names it and the allowed values.

    Examples:
        >>> from promptir_basicsr.losses import LossScaler
        >>> scaler = LossScaler(limit=5, factor=2.5)
        >>> [scaler(torch.tensor(loss)).item() for loss in (1.0, 4.0, 10.0)]
        [1.0, 1.0, 0.25]
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
        """Remember a loss and return the constant factor to multiply it by, usually 1.

        Does not synchronise with the device.
        """
        loss = loss.detach().float()
        # A non-finite loss must not become the smallest, and comparisons with it are meaningless.
        known = torch.where(loss.isfinite(), loss, torch.inf).reshape(1)
        self.losses = torch.cat([self.losses.to(loss.device), known])[-self.history :]
        smallest = self.losses.min()
        scale = self.factor * smallest / loss
        return torch.where(loss > self.limit * smallest, scale, torch.ones_like(scale))

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered losses."""
        return {'losses': self.losses.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the losses of a `state_dict`; of more than `history` losses the newest."""
        self.losses = torch.tensor(state['losses'], dtype=torch.float32)[-self.history :]
