"""Any input size for networks that want multiples."""

import torch
from torch.nn import functional as F


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad right and bottom until both sides are multiples.

    Reflects as far as the image goes and repeats the border from there, so any size from 1x1 works; cut the result
    back with `[..., :H, :W]`.

    Args:
        x: (B, C, H, W).
        multiple: of pixels.

    Returns:
        (B, C, H', W') with H' and W' the next multiples; `x` itself where they are already.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    reflected = (0, min(right, width - 1), 0, min(bottom, height - 1))
    x = F.pad(x, reflected, mode='reflect')
    return F.pad(x, (0, right - reflected[1], 0, bottom - reflected[3]), mode='replicate')
