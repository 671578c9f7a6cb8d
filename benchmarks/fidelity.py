"""How close the network and the metrics are to what they reproduce, as a Markdown table.

    python -m benchmarks.fidelity

The network is filled with the weights of tests/golden and held to the released network's outputs, loss and gradients.
The metrics are held to scikit-image on its own photographs with noise.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.hardware import hardware
from promptir_basicsr.archs import PromptIR
from promptir_basicsr.metrics.paper_metric import psnr, ssim
from tests.golden.seeded import seeded_fill, seeded_image

GOLDEN = Path(__file__).parents[1] / 'tests' / 'golden'
INPUTS = {'y_1x64x64_s0': ((1, 3, 64, 64), 0), 'y_2x32x48_s1': ((2, 3, 32, 48), 1)}


def network_rows() -> Iterator[str]:
    net = seeded_fill(PromptIR())
    with np.load(GOLDEN / 'promptir_dev.npz') as golden, torch.no_grad():
        for name, (shape, seed) in INPUTS.items():
            difference = np.abs(net(seeded_image(shape, seed)).numpy() - golden[name]).max()
            size = np.abs(golden[name]).max()
            yield f'| output, {"x".join(map(str, shape))} | {difference:.1e} absolute, of values up to {size:.0f} |'
    expected = json.loads((GOLDEN / 'promptir_dev_grads.json').read_text())
    loss = (net(seeded_image((1, 3, 32, 32), 2)) - seeded_image((1, 3, 32, 32), 3)).abs().mean()
    loss.backward()
    yield f'| L1 loss, 1x3x32x32 | {abs(loss.item() - expected["loss"]):.1e} absolute |'
    worst = max(abs(p.grad.norm().item() / expected['grad_norms'][name] - 1) for name, p in net.named_parameters())
    yield f'| gradient norm of the worst of {len(list(net.parameters()))} parameters | {worst:.1e} relative |'


def metric_rows() -> Iterator[str]:
    rng = np.random.default_rng(0)
    worst = {'PSNR': 0.0, 'SSIM': 0.0}
    seconds = [0.0, 0.0]
    for photograph in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()):
        target = photograph / 255
        for sigma in (5, 15, 50):
            restored = np.clip(target + sigma / 255 * rng.standard_normal(target.shape), 0, 1)
            difference = abs(psnr(restored, target) - peak_signal_noise_ratio(target, restored, data_range=1))
            worst['PSNR'] = max(worst['PSNR'], difference)
            start = time.perf_counter()
            ours = ssim(restored, target)
            middle = time.perf_counter()
            theirs = structural_similarity(target, restored, data_range=1, channel_axis=-1)
            seconds[0] += middle - start
            seconds[1] += time.perf_counter() - middle
            worst['SSIM'] = max(worst['SSIM'], abs(ours - theirs))
    for name, difference in worst.items():
        yield f'| {name} against scikit-image, 12 images | {difference:.1e} |'
    yield f'| time of SSIM, scikit-image / here | {seconds[1] / seconds[0]:.1f} |'


if __name__ == '__main__':
    lines = ['| | difference |', '|:--|--:|', *network_rows(), *metric_rows(), '']
    sys.stdout.write('\n'.join([*lines, f'{hardware(("torch", "scikit-image"))} Network in float32.']) + '\n')
