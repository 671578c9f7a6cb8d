"""Pixel losses that BasicSR does not have."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import is_number, unknown
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.core.registry import register

REDUCTIONS = ('mean', 'sum')


@register(LOSS_REGISTRY)
class SmoothL1Loss(nn.Module):
    """Smooth L1 loss: e^2 / (2 beta) for errors below beta, |e| - beta / 2 above.

    PIP (arXiv 2312.05038) was trained with it. Errors of images in [0, 1] rarely reach the default beta; below it the
    loss is half the mean squared error.

    Args:
        loss_weight: factor of the loss.
        reduction: 'mean' or 'sum' over all elements.
        beta: error at which the square turns into the absolute value, at least 0; 0 is the L1 loss.

    Raises:
        OptionError: an argument is invalid; the message names it and the allowed values.

    Examples:
        >>> from promptir_basicsr.losses import SmoothL1Loss
        >>> SmoothL1Loss(beta=0.5)(torch.tensor([1.0, 0.25]), torch.zeros(2))  # 0.75 and 0.0625
        tensor(0.4062)
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', beta: float = 1.0) -> None:
        super().__init__()
        problems: list[Problem] = []
        if reduction not in REDUCTIONS:
            problems.append(unknown('', 'reduction', reduction, REDUCTIONS, ('reduction',)))
        if not is_number(beta) or beta < 0:
            problems.append(problem('', f'beta is {beta!r}; it must be a number of at least 0.', ('beta',)))
        raise_problems(problems, 'SmoothL1Loss')
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.beta = float(beta)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of pred and target, (B, C, H, W), as a scalar, computed in at least float32."""
        dtype = torch.promote_types(pred.dtype, torch.float32)
        loss = F.smooth_l1_loss(pred.to(dtype), target.to(dtype), reduction=self.reduction, beta=self.beta)
        return self.loss_weight * loss
