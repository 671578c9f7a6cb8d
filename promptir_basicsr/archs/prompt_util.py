"""The prompt generation module of PromptIR (arXiv 2306.13090, section 3.1, figure 2).

Shapes: B batch, C feature channels, H W feature size, N prompts in the bank, D prompt channels, S prompt size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptir_basicsr.archs.formulation_util import Formulated
from promptir_basicsr.archs.whole_util import SeesWhole


class PromptBankModule(nn.Module):
    """A module that holds a 5-D bank (1, N, D, S, S) and can be moved like any other.

    `Module.to(memory_format=torch.channels_last)` refuses whatever has five dimensions. Here it is shown the bank
    without the leading 1, and the bank stays contiguous: it is no image, so it gains nothing from another layout.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def apply(tensor: Tensor) -> Tensor:
            return fn(tensor[0]).contiguous()[None] if tensor.ndim == 5 else fn(tensor)

        return super()._apply(apply, recurse)


class PromptGenBlock(Formulated, SeesWhole, PromptBankModule):
    """A bank of N learned prompts, mixed by what the feature looks like (equation 2).

    With a single prompt the softmax has nothing to choose, and `linear_layer` gets gradients of zero.

    Args:
        prompt_dim: D.
        num_prompts: N.
        prompt_size: S, the height and width at which the prompts are kept.
        feature_dim: C of the features that choose among the prompts.
    """

    # A network with more prompts can start from the weights of one with fewer.
    growable_axes = {'prompts': {'prompt_param': 1, 'linear_layer.weight': 0, 'linear_layer.bias': 0}}

    def __init__(self, prompt_dim: int, num_prompts: int, prompt_size: int, feature_dim: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, num_prompts, prompt_dim, prompt_size, prompt_size))
        self.linear_layer = nn.Linear(feature_dim, num_prompts)
        self.conv3x3 = nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The prompt for the features x: (B, C, H, W). Returns (B, D, H, W)."""
        weights, size = self.weights(x), x.shape[-2:]
        if self.whole is not None:
            prompt = torch.einsum('bn,ndhw->bdhw', weights, self.prompt_param[0])
            return self.whole.resized(prompt, size, self.conv3x3)
        if self.fast and len(x) > self.prompt_param.shape[1]:  # fewer prompts than images to resize and convolve
            bank = F.interpolate(self.prompt_param[0], size=size, mode='bilinear', align_corners=False)
            return torch.einsum('bn,ndhw->bdhw', weights, self.conv3x3(bank))
        prompt = torch.einsum('bn,ndhw->bdhw', weights, self.prompt_param[0])
        prompt = F.interpolate(prompt, size=size, mode='bilinear', align_corners=False)
        return self.conv3x3(prompt)

    def weights(self, x: Tensor) -> Tensor:
        """The share of each prompt for the features x: (B, C, H, W). Returns (B, N), >= 0, each row of sum 1."""
        mean = x.mean(dim=(-2, -1)) if self.whole is None else self.whole.mean(x)
        return self.linear_layer(mean).softmax(dim=-1)
