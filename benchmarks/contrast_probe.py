"""Does a contrastive encoder tell degradations apart, or photographs? Linear probes on photographs it has not seen.

    basicsr train -opt airnet_demo.yml
    python -m benchmarks.contrast_probe experiments/airnet_demo/models/net_g_latest.pth

The tasks are those of options/airnet_demo.yml, on crops of photographs that are not in its training. A probe of the
task is fitted without any crop of the photograph that it is asked about, a probe of the photograph without any of the
task. Beside the trained encoder are encoders with random weights, and statistics of the image that nothing has learned.
Writes the Markdown table of docs/airnet.md.
"""

import sys
from collections.abc import Callable

import numpy as np
import skimage.data
import torch
from torch import Tensor, nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.archs import build_network

from benchmarks.hardware import hardware
from promptir_basicsr.archs.sensor_arch import image_statistics, mean_and_deviation
from promptir_basicsr.checkpoints.checkpoint import build, read_checkpoint
from promptir_basicsr.core.arrays import to_tensor
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.degradations import Degrade
from promptir_basicsr.explain.scores import standardized
from tests.test_extending import ROOT

PHOTOGRAPHS = ('astronaut', 'coffee', 'microaneurysms', 'moon', 'hubble_deep_field', 'grass', 'colorwheel', 'cell')
SIDE, CROPS, UNTRAINED = 96, 3, 9

Images = tuple[Tensor, np.ndarray, np.ndarray]


def images() -> Images:
    """(N, 3, SIDE, SIDE), and of each its task and its photograph by number."""
    rng, found, ids = np.random.default_rng(0), [], []
    tasks = load_yaml(str(ROOT / 'options' / 'airnet_demo.yml'))['datasets']['val']['tasks']
    for number, name in enumerate(PHOTOGRAPHS):
        whole = getattr(skimage.data, name)()
        whole = np.dstack([whole] * 3) if whole.ndim == 2 else whole[..., :3]
        for task, options in enumerate(tasks):
            for _ in range(CROPS):
                top, left = (int(rng.integers(side - SIDE + 1)) for side in whole.shape[:2])
                crop = whole[top : top + SIDE, left : left + SIDE].astype(np.float32) / 255
                found.append(to_tensor(Degrade(options['degrade'])(crop, rng)))
                ids.append((task, number))
    task, photograph = np.array(ids).T
    return torch.stack(found), task, photograph


def of_encoder(net: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """The vector of an AirNet's encoder, and mean and deviation of its map."""
    encoder = net.eval().encoder.encoder_q  # type: ignore[union-attr]
    return {
        'vector': lambda x: encoder(x).feature,
        'map, mean and deviation': lambda x: mean_and_deviation(encoder(x).map),
    }


def probed(x: np.ndarray, target: np.ndarray, group: np.ndarray) -> float:
    """How often a ridge regression on the target that has seen nothing of a group is right in it."""
    wanted, right = np.eye(target.max() + 1)[target], 0
    for held in np.unique(group):
        seen, asked = group != held, group == held
        mean = x[seen].mean(axis=0)
        gram = (x[seen] - mean) @ (x[seen] - mean).T
        weights = np.linalg.solve(gram + np.trace(gram) / len(gram) * np.eye(len(gram)), wanted[seen])
        found = (x[asked] - mean) @ (x[seen] - mean).T @ weights + wanted[seen].mean(axis=0)
        right += int((found.argmax(axis=1) == target[asked]).sum())
    return right / len(target)


@torch.no_grad()
def scores(embed: Callable[[Tensor], Tensor], data: Images) -> tuple[float, float]:
    """Accuracies of the probes of the task and of the photograph."""
    x, task, photograph = data
    found = standardized(embed(x).numpy())
    return probed(found, task, photograph), probed(found, photograph, task)


def main() -> None:
    checkpoint, data = read_checkpoint(sys.argv[1]), images()
    untrained: dict[str, list[tuple[float, float]]] = {}
    for seed in range(UNTRAINED):
        torch.manual_seed(seed)
        net = build_network(dict(checkpoint.network))
        with torch.no_grad():  # so that running statistics are those of features
            for _ in range(20):
                net.encoder.encoder_q.train()(data[0][torch.randperm(len(data[0]))[:16]])
        for name, embed in of_encoder(net).items():
            untrained.setdefault(name, []).append(scores(embed, data))
    lines = ['| | task | untrained, largest | photograph | untrained, largest |', '|:--|--:|--:|--:|--:|']
    for name, embed in of_encoder(build(checkpoint)).items():
        task, photograph = scores(embed, data)
        most = [max(each) for each in zip(*untrained[name], strict=True)]
        lines.append(f'| {name} | {task:.1%} | {most[0]:.1%} | {photograph:.1%} | {most[1]:.1%} |')
    task, photograph = scores(image_statistics, data)
    lines.append(f'| statistics of the image | {task:.1%} | | {photograph:.1%} | |')
    tasks, photographs = (1 / len(np.unique(each)) for each in data[1:])
    lines += [f'| chance | {tasks:.1%} | | {photographs:.1%} | |', '', f'{len(data[0])} crops of {SIDE}x{SIDE}.']
    sys.stdout.write('\n'.join([*lines, hardware(('torch',))]) + '\n')


if __name__ == '__main__':
    main()
