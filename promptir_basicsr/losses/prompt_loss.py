"""Losses of the prompts, independent of the images.

A network exposes its prompts by a method `prompt_vectors()` that returns one tensor (T, D) per level: T prompts as
vectors of D numbers. A loss of prompts is called with these tensors and declares this by the class attribute
`takes_prompts`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.core.errors import argument_error
from promptir_basicsr.core.messages import unknown_name
from promptir_basicsr.core.registry import register

KINDS = ('angle', 'cosine', 'gram')
INNER_WEIGHT = 0.01  # the released program has one weight inside and another outside


@register(LOSS_REGISTRY)
class PromptDecorrelationLoss(nn.Module):
    """Decorrelate the prompts of each level, as the released program of PIP (arXiv 2312.05038) does.

    | kind | loss of a level with the prompts D_1 to D_T |
    |:--|:--|
    | angle | 0.01 times the sum of max(0, cos(D_i, D_j)) over the pairs i < j; 90 degrees and more cost nothing |
    | cosine | 0.01 times the sum of abs(cos(D_i, D_j)) over all i != j, so that a pair counts twice |
    | gram | 0.01 times the mean of the squares of D D^T - I, which also pulls the lengths towards 1 |

    Args:
        kind: 'angle' (positive cosines), 'cosine' (all cosines) or 'gram' (Gram matrix).
        loss_weight: factor of the sum over the levels; the default is the released value.

    Raises:
        OptionError: the kind is unknown.

    Examples:
        >>> from promptir_basicsr.losses import PromptDecorrelationLoss
        >>> loss = PromptDecorrelationLoss()
        >>> loss([torch.eye(5), torch.eye(5)]).item()  # two levels with prompts at right angles
        0.0
    """

    takes_prompts = True

    def __init__(self, kind: str = 'angle', loss_weight: float = 0.002) -> None:
        super().__init__()
        if kind not in KINDS:
            raise argument_error('PromptDecorrelationLoss', 'kind', unknown_name('kind', kind, KINDS))
        self.kind = kind
        self.loss_weight = loss_weight

    def forward(self, prompts: Iterable[Tensor]) -> Tensor:
        """Return the loss of the prompts of all levels, (T, D) each, as a scalar; T and D may differ."""
        return self.loss_weight * torch.stack([decorrelation(level, self.kind) for level in prompts]).sum()


def decorrelation(prompts: Tensor, kind: str) -> Tensor:
    """Return how similar the prompts of a level, (T, D), are; see `PromptDecorrelationLoss`.

    Computed in at least float32, also under autocast. A prompt of zeros has similarity 0 to all others.

    Examples:
        >>> from promptir_basicsr.losses import decorrelation
        >>> decorrelation(torch.eye(3), 'angle').item()
        0.0
    """
    with torch.autocast(prompts.device.type, enabled=False):
        prompts = prompts.to(torch.promote_types(prompts.dtype, torch.float32))
        if kind == 'gram':
            target = torch.eye(len(prompts), dtype=prompts.dtype, device=prompts.device)
            return INNER_WEIGHT * F.mse_loss(prompts @ prompts.T, target)
        directions = F.normalize(prompts, dim=1)
        pairs = (directions @ directions.T).triu(diagonal=1)  # each pair once
        return INNER_WEIGHT * (pairs.relu().sum() if kind == 'angle' else 2 * pairs.abs().sum())
