"""How strong the synthetic degradations are by default, as a Markdown table: PSNR of the degraded photograph.

python -m benchmarks.degradations
"""

import sys

import numpy as np
import skimage.data

from promptir_basicsr.degradations.spec import DEGRADATIONS, Degrade
from promptir_basicsr.metrics.paper_metric import psnr

PHOTOGRAPHS = ('astronaut', 'chelsea', 'coffee', 'rocket')
DRAWS = 10
UNCLIPPED = {'type': 'gaussian_noise', 'sigma': 50, 'quantize': 'float', 'clip': False}
SPECS = [
    *({'type': name} for name in DEGRADATIONS if name != 'gaussian_noise'),
    *({'type': 'gaussian_noise', 'sigma': sigma} for sigma in (15, 25, 50)),
    UNCLIPPED,
]


def values(spec: dict) -> list[float]:
    """PSNR in dB of each photograph in each draw."""
    degrade = Degrade(spec)
    images = [getattr(skimage.data, name)().astype(np.float32) / 255 for name in PHOTOGRAPHS]
    return [psnr(degrade(image, np.random.default_rng(draw)), image) for image in images for draw in range(DRAWS)]


if __name__ == '__main__':
    lines = ['| degradation | lowest | mean | highest |', '|:--|--:|--:|--:|']
    for spec in SPECS:
        found = values(spec)
        name = 'gaussian_noise(sigma=50, float, clip=false)' if spec is UNCLIPPED else Degrade(spec).describe()
        lines.append(f'| `{name}` | {min(found):.1f} | {np.mean(found):.1f} | {max(found):.1f} |')
    lines += ['', f'PSNR in dB, {DRAWS} draws on each of {", ".join(PHOTOGRAPHS)} of scikit-image.']
    sys.stdout.write('\n'.join(lines) + '\n')
