"""How close tiles come to the whole image, as a Markdown table; with --picture also differences to look at.

    python -m benchmarks.tiling [--weights promptir.pth pip.pth] [--tasks denoise dehaze] [--tiles 128 256 512]
        [--picture FILE.jpg]

Weights are checkpoints of trainings such as options/demo.yml and options/pip_demo.yml. Networks `seeded` have the
random weights that they start with. Photographs are scikit-image's, degraded by this package; PIP is told the
degradation.

Of the difference between an image restored in tiles and restored whole, in grey levels of 255, the table has the
largest, and the largest and mean step from pixel to pixel: where one tile goes over into the next (`seams`), and
elsewhere. `time` is the processor's, over that for the whole image.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor, nn

from benchmarks.hardware import hardware
from promptir_basicsr.archs import PIPRestormer, PromptIR
from promptir_basicsr.checkpoints.checkpoint import build, read_checkpoint
from promptir_basicsr.degradations.spec import Degrade
from promptir_basicsr.inference import restoring
from promptir_basicsr.inference.restoring import Settings, restore_images
from promptir_basicsr.inference.tiles import Grid, Line

CASES = {
    'denoise': ('coffee', {'type': 'gaussian_noise', 'sigma': 25}),
    'dehaze': ('motorcycle', {'type': 'haze', 'beta': 0.09}),
    'lowlight': ('astronaut', {'type': 'low_light', 'exposure': 0.15, 'cast': 0}),
}
WAYS = {
    'tile': Settings(statistics='tile'),
    'reduced': Settings(statistics='reduced'),
    'tiles': Settings(statistics='tiles'),
    'tiles, 2 passes': Settings(statistics='tiles', passes=2),
    'whole': Settings(statistics='reduced'),
}
"""Of `whole` the quantities are those of the image, not reduced: nobody restores tiles so, as it takes its memory."""

SEEDED: dict[str, Any] = {'dim': 16, 'num_blocks': (1, 1, 1, 1), 'num_refinement_blocks': 1, 'heads': (1, 2, 4, 8)}
COLUMNS = 'network, image, tile, statistics, PSNR (dB), max, seams: max, elsewhere, seams: mean, elsewhere, time'.split(
    ', '
)
MULTIPLE = 8  # of sides, for both networks
ENHANCED = 20
SHOWN_SIDE = 384


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's, (H, W, 3), float32, RGB, [0, 1]."""
    pixels = skimage.data.stereo_motorcycle()[0] if name == 'motorcycle' else getattr(skimage.data, name)()
    return pixels.astype(np.float32) / 255


def degraded(task: str, small: bool) -> Tensor:
    """The image of a task: (1, 3, H, W), [0, 1]."""
    name, options = CASES[task]
    pixels = photograph(name)[:200, :232] if small else photograph(name)
    pixels = Degrade(options)(pixels, np.random.default_rng(0))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].float()


def networks(paths: list[str], tasks: list[str]) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Name, network and tasks; of random weights the first alone."""
    for path in paths:
        checkpoint = read_checkpoint(path)
        yield checkpoint.network['type'], build(checkpoint), tasks
    for kind in (PromptIR, PIPRestormer):
        torch.manual_seed(0)
        yield f'{kind.__name__}, seeded', kind(**SEEDED).eval(), tasks[:1]


def difference_row(difference: Tensor, grid: Grid) -> list[str]:
    """PSNR, largest value, and steps at seams and elsewhere, of a difference (1, 3, H, W)."""
    error = difference.square().mean().item()
    seams, elsewhere = [], []
    for line, axis in ((grid.rows, -2), (grid.columns, -1)):
        steps = (difference.diff(dim=axis).abs() * 255).movedim(axis, 0).flatten(1)
        at_seam = seam_mask(line)[: len(steps)]
        seams.append(steps[at_seam].flatten())
        elsewhere.append(steps[~at_seam].flatten())
    cells = [f'{-10 * math.log10(error):.1f}' if error else 'inf', f'{difference.abs().max().item() * 255:.2f}']
    for measure in (torch.max, torch.mean):
        for part in (torch.cat(seams), torch.cat(elsewhere)):
            cells.append(f'{measure(part).item():.{2 if measure is torch.max else 4}f}' if len(part) else '')
    return cells


def seam_mask(line: Line) -> Tensor:
    """Whether one tile goes over into another between each pixel of a side and the next: (length - 1,)."""
    if not line.middles:
        return torch.zeros(line.length - 1, dtype=torch.bool)
    places = torch.arange(1, line.length)
    return (places[:, None] - torch.tensor(line.middles)).abs().le(line.blend / 2).any(dim=1)


@contextmanager
def not_reduced() -> Iterator[None]:
    """Let tiles be restored with the quantities of the whole image where those of the reduced one are asked for."""
    with mock.patch.object(restoring._Restoration, '_reduced', lambda self, x, grid: x):
        yield


def timed(net: nn.Module, x: Tensor, way: str, settings: Settings, task: str) -> tuple[Tensor, float]:
    """A restored image, and the seconds of the processor that it took."""
    start = time.process_time()
    with not_reduced() if way == 'whole' else nullcontext():
        output = restore_images(net, x, settings, task)
    return output, time.process_time() - start


def write_picture(path: str, whole: Tensor, results: dict[str, Tensor]) -> None:
    """The image restored whole, and the differences of tiles to it, side by side as a JPEG."""
    panels = [whole.clamp(0, 1)]
    panels += [(0.5 + ENHANCED * (result - whole)).clamp(0, 1) for result in results.values()]
    row = torch.cat([panel[0, :, :SHOWN_SIDE, :SHOWN_SIDE] for panel in panels], dim=-1)
    pixels = (row * 255).round().byte().permute(1, 2, 0).numpy()
    cv2.imwrite(path, np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--weights', nargs='*', default=[], help='checkpoints of PromptIR and PIPRestormer')
    parser.add_argument('--tiles', nargs='+', type=int, default=[128, 256, 512])
    parser.add_argument('--tasks', nargs='+', choices=list(CASES), default=list(CASES))
    parser.add_argument('--picture', help='a JPEG of the first network: differences of the smallest tiles')
    parser.add_argument('--tiny', action='store_true', help='small images, to try this script')
    arguments = parser.parse_args(argv)
    sys.stdout.write(f'| {" | ".join(COLUMNS)} |\n|:--|:--|--:|:--|{"--:|" * (len(COLUMNS) - 4)}\n')
    for name, net, tasks in networks(arguments.weights, arguments.tasks):
        for task in tasks:
            x = degraded(task, arguments.tiny)
            whole, seconds = timed(net, x, '', Settings(), task)
            for tile in arguments.tiles:
                results = {}
                for way, settings in WAYS.items():
                    settings = replace(settings, tile=tile)
                    padded = (-(-side // MULTIPLE) * MULTIPLE for side in x.shape[-2:])
                    grid = Grid.over(*padded, tile, settings.overlap, MULTIPLE)
                    if len(grid) == 1:
                        continue
                    results[way], taken = timed(net, x, way, settings, task)
                    sizes = '{1}x{0}'.format(*x.shape[-2:])
                    cells = [name, f'{task}, {sizes}', f'{tile}', way, *difference_row(results[way] - whole, grid)]
                    sys.stdout.write(f'| {" | ".join([*cells, f"{taken / seconds:.1f}"])} |\n')
                    sys.stdout.flush()
                if arguments.picture and tile == min(arguments.tiles):
                    write_picture(arguments.picture, whole, {way: results[way] for way in ('tile', 'tiles')})
                    arguments.picture = None
    device = torch.device('cpu')
    sys.stdout.write(f'\n{hardware(("torch", "numpy", "scikit-image"), device)}\n')


if __name__ == '__main__':
    main()
