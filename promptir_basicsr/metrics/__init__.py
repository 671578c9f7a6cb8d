"""Image quality metrics, registered with BasicSR on import."""

from promptir_basicsr.metrics.paper_metric import (
    calculate_paper_psnr,
    calculate_paper_ssim,
    definition,
    psnr,
    ssim,
    to_y,
)

__all__ = ['calculate_paper_psnr', 'calculate_paper_ssim', 'definition', 'psnr', 'ssim', 'to_y']
