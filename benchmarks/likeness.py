"""Whether `basicsr check` tells pairs of one scene from pairs of two, as a Markdown table.

python -m benchmarks.likeness options.yml

Of every paired task of an option file: its pairs, and each degraded image with the clear ones of other scenes of the
task. Of every task of clean images the same with the synthetic degradations, alone and together. A pair that is less
alike than the threshold is noted: a false note, or a find.
"""

import sys
from collections import defaultdict

import numpy as np

from promptir_basicsr.checks.images import LEAST_LIKENESS, find_duplicates, fingerprint, likeness
from promptir_basicsr.core.arrays import to_float
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data.allinone_dataset import check_dataset
from promptir_basicsr.data.sources import BorderCut
from promptir_basicsr.data.tasks import Task
from promptir_basicsr.degradations.physics import quantise
from promptir_basicsr.degradations.spec import DEGRADATIONS, Degrade

OTHERS = 8  # clear images that each degraded one is compared with
SPECS = [
    *([{'type': name}] for name in DEGRADATIONS if name != 'gaussian_noise'),
    *([{'type': 'gaussian_noise', 'sigma': sigma}] for sigma in (50, 100)),
    *([{'type': 'low_light'}, {'type': 'haze'}, {'type': weather}] for weather in ('rain', 'snow')),
]
Prints = tuple[str, bytes, bytes]


def pairs_of(task: Task) -> dict[str, list[Prints]]:
    """(clear name, fingerprints of degraded and clear image) by the row of the table."""
    found: defaultdict[str, list[Prints]] = defaultdict(list)
    for position, (lq_name, gt_name) in enumerate(task.names):
        stored = task.gt.open(gt_name)
        clear = BorderCut(stored, task.crop_border_gt).pixels()
        if task.paired:
            found[task.type].append((gt_name, fingerprint(task.lq.open(lq_name).pixels()), fingerprint(clear)))
            continue
        for spec in SPECS:
            degraded = Degrade(spec)(to_float(clear), np.random.default_rng(position))
            image = np.rint(quantise(degraded) * 255).astype(np.uint8)
            found[Degrade(spec).describe()].append((gt_name, fingerprint(image), fingerprint(clear)))
    return found


def mismatched(pairs: list[Prints]) -> list[float]:
    """Likeness of degraded images to clear ones of other scenes, copies of their own left out."""
    rng, found = np.random.default_rng(0), []
    for name, degraded, clear in pairs:
        others = [pairs[place] for place in rng.permutation(len(pairs))]
        scenes = {other: print_ for other, _, print_ in others if other != name}
        chosen = [print_ for print_ in scenes.values() if not find_duplicates([clear], [print_])]
        found += [likeness(degraded, print_) for print_ in chosen[:OTHERS]]
    return found


def main(path: str) -> None:
    rows: defaultdict[str, list[Prints]] = defaultdict(list)
    for key, dataset in load_yaml(path)['datasets'].items():
        for task in check_dataset({**dataset, 'phase': key.split('_')[0]}, ('datasets', key)):
            for row, pairs in pairs_of(task).items():
                rows[row] += pairs
    lines = [
        '| degradation | pairs | least alike | noted | mismatched | most alike | noted |',
        '|:--' + '|--:' * 6 + '|',
    ]
    all_right: list[float] = []
    all_wrong: list[float] = []
    for row, pairs in rows.items():
        right, wrong = [likeness(*prints) for _, *prints in pairs], mismatched(pairs)
        all_right, all_wrong = all_right + right, all_wrong + wrong
        lines.append(line(f'`{row}`', right, wrong))
    sys.stdout.write('\n'.join([*lines, line('all', all_right, all_wrong)]) + '\n')


def line(name: str, right: list[float], wrong: list[float]) -> str:
    noted = [sum(value < LEAST_LIKENESS for value in values) for values in (right, wrong)]
    found = f'{noted[1]:,} ({noted[1] / max(1, len(wrong)):.2%})'
    cells = (f'{len(right):,}', f'{min(right):.2f}', noted[0], f'{len(wrong):,}', f'{max(wrong, default=0):.2f}', found)
    return f'| {name} | {" | ".join(map(str, cells))} |'


if __name__ == '__main__':
    main(sys.argv[1])
