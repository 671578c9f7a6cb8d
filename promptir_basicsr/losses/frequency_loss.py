"""Loss in the frequency domain."""

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.core.registry import register


@register(LOSS_REGISTRY)
class FrequencyLoss(nn.Module):
    """L1 distance of Fourier transforms, used in addition to a pixel loss.

    Source: Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021, where the weight is
    0.1 next to an L1 loss of weight 1, as in most later work.

    Each channel is transformed over height and width, with all frequencies, not divided by the number of pixels
    (`torch.fft.fft2`, norm 'backward'). The loss is the mean over all real and imaginary parts.

    Args:
        loss_weight: factor of the mean.

    Examples:
        >>> from promptir_basicsr.losses import FrequencyLoss
        >>> FrequencyLoss()(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)).item() > 0
        True
    """

    def __init__(self, loss_weight: float = 0.1) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of pred and target, (B, C, H, W) with any H and W, as a scalar.

        Computed in at least float32, also under autocast.
        """
        dtype = torch.promote_types(pred.dtype, torch.float32)
        # The transform is linear: that of the difference is the difference of the two.
        spectrum = torch.fft.fft2(pred.to(dtype) - target.to(dtype))
        return self.loss_weight * torch.view_as_real(spectrum).abs().mean()
