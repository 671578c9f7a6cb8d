"""Training recipes against each other: the quality that each reaches with the same number of patches.

    python -m benchmarks.recipes STUDY --data DIR --recipes released muon --budgets 1000 4000 --dims 16 --seeds 0 1 2
    python -m benchmarks.recipes STUDY --data DIR --recipes adamw --networks promptir backbone pip airnet --rate 1e-3
    python -m benchmarks.recipes STUDY --table --figure docs/images/recipes.png

Trains small networks, by default PromptIR with one block a level, on noise of sigma 25, rain and haze of the folder
DIR, which is laid out as in docs/protocols.md, in crops of 48 and batches of 4. Three sets of images are disjoint:
`train`; `choose`, some of the training folders' that are held out; `report`, the test folders. Of each recipe all rates
are tried first, at the first budget and width, with a separate seed; that with the best PSNR on `choose` is used. Only
trainings with the chosen rate measure `report`, once, at their end.

STUDY gets one folder a training and `recipes.csv`, a row per training, set and task. Each training is a process with
one thread, `--jobs` at a time; what is in recipes.csv is not repeated, and a training that was stopped is resumed. The
rows behind docs/recipes.md are in benchmarks/recipes.csv: copied into STUDY, they are continued.
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from benchmarks.hardware import hardware

SEARCH_SEED = 100
BATCH = 4
HELD_OUT = {'denoise': 4, 'derain': 3, 'dehaze': 3}
"""Photographs of `choose`: the last ones by name; of haze scenes, one image of each."""

ADAMW: dict[str, Any] = {'type': 'AdamW', 'betas': [0.9, 0.99], 'weight_decay': 0.01}
MUON: dict[str, Any] = {'type': 'pytorch_optimizer:Muon', 'adamw_lr': 1e-3, 'weight_decay': 0.01, 'adamw_wd': 0.01}
SOAP: dict[str, Any] = {'type': 'pytorch_optimizer:SOAP', 'weight_decay': 0.01}
COSINE, SUDDEN, WSD, RELEASED = 'cosine', 'cosine without warm-up', 'wsd', 'released'
BASELINE, FULL = 'released', 'muon'
STEADY = {'ema_decay': 0.99, 'grad_clip_norm': 1.0}
FREQUENCY = {'frequency_opt': {'type': 'FrequencyLoss', 'loss_weight': 0.1}}
DECORRELATION = {'prompt_opt': {'type': 'PromptDecorrelationLoss'}}


@dataclass(frozen=True)
class Recipe:
    """Options of `train`, rates that are tried, options of `datasets.train` and `network_g`, weights of the tasks."""

    optim_g: dict[str, Any]
    schedule: str
    others: dict[str, Any]
    rates: tuple[float, ...]
    data: Callable[[int], dict[str, Any]] = lambda total: {}
    network: dict[str, Any] = field(default_factory=dict)
    weights: tuple[int, int, int] = (1, 1, 1)


def progressive(total: int) -> dict[str, Any]:
    """The first half in crops of 32, with as many pixels in a batch."""
    return {'stages': [{'until': total // 2, 'gt_size': 32, 'batch_size_per_gpu': 9}, {}]}


def fixed_shares(total: int) -> dict[str, Any]:
    """The same number of images of a task in each batch."""
    return {'sampling': {'fixed_shares': True}}


ADAM_RATES, MUON_RATES = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3), (0.0025, 0.005, 0.01, 0.02)
RECIPES = {
    'released': Recipe({'type': 'AdamW', 'weight_decay': 0.01}, RELEASED, {}, ADAM_RATES),
    'adamw': Recipe(ADAMW, COSINE, STEADY, ADAM_RATES),
    'adamw_frequency': Recipe(ADAMW, COSINE, {**STEADY, **FREQUENCY}, ADAM_RATES),
    'soap': Recipe(SOAP, COSINE, STEADY, (1e-3, 3e-3)),
    'muon': Recipe(MUON, COSINE, STEADY, MUON_RATES),
    'muon_adamw_2e-3': Recipe({**MUON, 'adamw_lr': 2e-3}, COSINE, STEADY, (0.005,)),
    'muon_wsd': Recipe(MUON, WSD, STEADY, MUON_RATES),
    'muon_frequency': Recipe(MUON, COSINE, {**STEADY, **FREQUENCY}, MUON_RATES),
    'muon_without_ema': Recipe(MUON, COSINE, {'grad_clip_norm': 1.0}, MUON_RATES),
    'muon_without_warmup': Recipe(MUON, SUDDEN, STEADY, MUON_RATES),
    'muon_without_clipping': Recipe(MUON, COSINE, {'ema_decay': 0.99}, MUON_RATES),
    'muon_charbonnier': Recipe(MUON, COSINE, {**STEADY, 'pixel_opt': {'type': 'CharbonnierLoss'}}, MUON_RATES),
    'muon_progressive': Recipe(MUON, COSINE, STEADY, MUON_RATES, progressive),
    'muon_shares': Recipe(MUON, COSINE, STEADY, MUON_RATES, fixed_shares, weights=(1, 2, 1)),
    'muon_decorrelation': Recipe(MUON, COSINE, {**STEADY, **DECORRELATION}, MUON_RATES),
    'muon_one_prompt': Recipe(MUON, COSINE, STEADY, MUON_RATES, network={'num_prompts': 1}),
}


NETWORKS: dict[str, dict[str, Any]] = {
    'promptir': {'type': 'PromptIR', 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1},
    'backbone': {'type': 'PromptIR', 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'prompts': False},
    'pip': {
        'type': 'PIPRestormer',
        'num_blocks': [1, 1, 1, 1],
        'num_refinement_blocks': 1,
        'num_degradations': 3,
        'degradations': ['denoise', 'derain', 'dehaze'],
    },
    'airnet': {'type': 'AirNet', 'num_groups': 1, 'num_blocks': 3, 'queue_length': 256},
}
"""PIP is given the label of each image; AirNet spends a tenth of its iterations on the encoder alone."""


@dataclass(frozen=True)
class Training:
    """One training of a study."""

    network: str
    recipe: str
    dim: int
    budget: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f'{self.network}_{self.recipe}_d{self.dim}_n{self.budget}_r{self.rate:g}_s{self.seed}'

    @property
    def architecture(self) -> dict[str, Any]:
        return {**NETWORKS[self.network], **RECIPES[self.recipe].network, 'dim': self.dim}

    def options(self, data: Path) -> dict[str, Any]:
        """Its option file."""
        recipe, total = RECIPES[self.recipe], self.budget
        warmup, ending = max(total // 40, 1), {'type': 'LinearWarmupCosineLR', 'eta_min': 1e-6}
        schedules: dict[str, dict[str, Any]] = {
            COSINE: {**ending, 'warmup_iter': warmup},
            SUDDEN: ending,
            RELEASED: {**ending, 'warmup_iter': max(total // 10, 1)},
            WSD: {'type': 'WarmupStableDecayLR', 'warmup_iter': warmup, 'decay_iter': max(total // 5, 1)},
        }
        return {
            'name': self.name,
            'model_type': 'ContrastiveModel' if self.network == 'airnet' else 'PromptModel',
            'num_gpu': 0,
            'manual_seed': self.seed,
            'datasets': {
                'train': {
                    'name': 'train',
                    'type': 'AllInOneDataset',
                    **({'second_crop': True} if self.network == 'airnet' else {}),
                    'gt_size': 48,
                    'use_hflip': True,
                    'use_rot': True,
                    'tasks': [
                        {**task, 'weight': weight}
                        for task, weight in zip(tasks(data, 'train'), recipe.weights, strict=True)
                    ],
                    'batch_size_per_gpu': BATCH,
                    'num_worker_per_gpu': 0,
                    **recipe.data(total),
                },
                'val': {
                    'name': 'choose',
                    'type': 'AllInOneDataset',
                    'crop_multiple': 16,
                    'tasks': tasks(data, 'choose'),
                },
            },
            'network_g': self.architecture,
            'path': {},
            'train': {
                'total_iter': total,
                'optim_g': {**recipe.optim_g, 'lr': self.rate},
                'scheduler': schedules[recipe.schedule],
                'pixel_opt': {'type': 'L1Loss'},
                **recipe.others,
                **({'encoder_iter': max(total // 10, 1)} if self.network == 'airnet' else {}),
            },
            'val': {'val_freq': total, 'save_img': False, 'pbar': False, 'metrics': METRICS},
            'logger': {'print_freq': 100, 'save_checkpoint_freq': max(total // 4, 1), 'use_tb_logger': False},
        }

    def report(self, data: Path) -> dict[str, Any]:
        """The option file that measures its weights on `report`."""
        averaged = 'ema_decay' in RECIPES[self.recipe].others
        return {
            'name': self.name,
            'model_type': 'PromptModel',
            'num_gpu': 0,
            'manual_seed': 0,
            'datasets': {
                'test': {
                    'name': 'report',
                    'type': 'AllInOneDataset',
                    'crop_multiple': 16,
                    'tasks': tasks(data, 'report'),
                }
            },
            'network_g': self.architecture,
            'path': {
                'pretrain_network_g': f'experiments/{self.name}/models/net_g_latest.pth',
                'param_key_g': 'params_ema' if averaged else 'params',
            },
            'val': {'save_img': False, 'pbar': False, 'metrics': METRICS},
        }


METRICS = {'psnr': {'type': 'calculate_paper_psnr'}, 'ssim': {'type': 'calculate_paper_ssim'}}
HEAD = [
    'network',
    'recipe',
    'dim',
    'budget',
    'rate',
    'seed',
    'iteration',
    'set',
    'task',
    'images',
    'psnr',
    'ssim',
    'input_psnr',
]
PLACE = ('network', 'dim', 'budget', 'seed', 'task')


def tasks(data: Path, part: str) -> list[dict[str, Any]]:
    """The three tasks of `train`, `choose` or `report`."""
    noise = {'name': 'noise', 'type': 'denoise', 'degrade': {'type': 'gaussian_noise', 'sigma': 25}}
    rain, haze = {'name': 'rain', 'type': 'derain'}, {'name': 'haze', 'type': 'dehaze'}
    if part == 'report':
        return [
            {**noise, 'clean': str(data / 'test/denoise/bsd68')},
            {**rain, 'root': str(data / 'test/derain/Rain100L'), 'pairing': 'rain100l_test'},
            {**haze, 'root': str(data / 'test/dehaze'), 'pairing': 'reside_sots'},
        ]
    photographs = sorted(os.listdir(data / 'Train/Denoise'))
    rainy = sorted(f'rainy/{name}' for name in os.listdir(data / 'Train/Derain/rainy'))
    hazy = sorted(path.relative_to(data / 'Train/Dehaze').as_posix() for path in data.glob('Train/Dehaze/*/*/*'))
    scenes: dict[str, list[str]] = {}
    for name in hazy:
        scenes.setdefault(os.path.basename(name).partition('_')[0], []).append(name)
    held = sorted(scenes)[-HELD_OUT['dehaze'] :]
    if part == 'train':
        chosen = photographs[: -HELD_OUT['denoise']], rainy[: -HELD_OUT['derain']]
        foggy = [name for scene, names in scenes.items() if scene not in held for name in names]
    else:
        chosen = photographs[-HELD_OUT['denoise'] :], rainy[-HELD_OUT['derain'] :]
        foggy = [scenes[scene][0] for scene in held]
    return [
        {**noise, 'clean': str(data / 'Train/Denoise'), 'files': chosen[0]},
        {**rain, 'root': str(data / 'Train/Derain'), 'pairing': 'rain100l_train', 'files': chosen[1]},
        {**haze, 'root': str(data / 'Train/Dehaze'), 'pairing': 'reside_ots', 'files': foggy},
    ]


class Study:
    """The trainings of a folder, and what they have measured."""

    def __init__(self, folder: Path, data: Path | None, jobs: int) -> None:
        self.folder, self.data, self.jobs = folder, data, jobs
        folder.mkdir(parents=True, exist_ok=True)
        self.table = folder / 'recipes.csv'
        self.rows: list[dict[str, str]] = []
        if self.table.exists():
            with open(self.table, encoding='utf-8', newline='') as file:
                self.rows = list(csv.DictReader(file))

    def rows_of(self, training: Training, part: str) -> list[dict[str, str]]:
        key = [str(value) for value in astuple(training)]
        return [row for row in self.rows if [row[name] for name in HEAD[:6]] == key and row['set'] == part]

    def train(self, trainings: list[Training], report: bool) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            for training, rows in pool.map(lambda each: (each, list(self._rows(each, report))), trainings):
                self.rows += rows
                with open(self.table, 'w', encoding='utf-8', newline='') as file:
                    writer = csv.DictWriter(file, HEAD)
                    writer.writeheader()
                    writer.writerows(self.rows)
                if rows:
                    last = self.average(training, 'report' if report else 'choose')
                    sys.stderr.write(f'{training.name}: {last:.2f} dB\n')

    def _rows(self, training: Training, report: bool) -> Iterator[dict[str, str]]:
        for part, wanted in (('choose', True), ('report', report)):
            if wanted and not self.rows_of(training, part):
                yield from self._measured(training, part)

    def _measured(self, training: Training, part: str) -> Iterator[dict[str, str]]:
        assert self.data is not None
        verb, folder = ('train', 'experiments') if part == 'choose' else ('test', 'results')
        options = training.options(self.data) if part == 'choose' else training.report(self.data)
        file = self.folder / f'{training.name}_{verb}.yml'
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        command = [sys.executable, '-m', 'promptir_basicsr', verb, '-opt', file.name]
        command += ['--auto_resume'] if part == 'choose' else []
        with open(file.with_suffix('.log'), 'ab') as log:
            environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
            subprocess.run(command, cwd=self.folder, env=environment, check=True, stdout=log, stderr=log)
        with open(self.folder / folder / training.name / 'metrics.csv', encoding='utf-8', newline='') as text:
            for row in csv.DictReader(text):
                values = [*astuple(training), row['iter'] if part == 'choose' else training.budget, part]
                measured = [row[name] for name in ('task', 'images', 'psnr', 'ssim', 'input_psnr')]
                yield dict(zip(HEAD, [*map(str, values), *measured], strict=True))

    def average(self, training: Training, part: str, task: str = 'average') -> float:
        """PSNR at the end of a training."""
        found = [row for row in self.rows_of(training, part) if row['task'] == task]
        return float(max(found, key=lambda row: int(row['iteration']))['psnr'])

    def best_rate(self, network: str, recipe: str, dim: int, budget: int) -> float:
        """The rate that is best on `choose`."""
        return max(
            RECIPES[recipe].rates,
            key=lambda rate: self.average(Training(network, recipe, dim, budget, rate, SEARCH_SEED), 'choose'),
        )

    def tables(self) -> Iterator[str]:
        """Markdown: PSNR of `report`, mean and range over seeds, also less that of `muon` with the same seed; patches
        relative to `released`; PSNR of the search.
        """
        reported = [row for row in self.rows if row['set'] == 'report']
        names = list(dict.fromkeys(row['task'] for row in reported))
        yield f'| network | recipe | dim | iterations | rate | seeds | {" | ".join(names)} | range |'
        yield '|:--|:--|--:|--:|--:|--:|' + '--:|' * (len(names) + 1)
        groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
        for row in reported:
            key = tuple(row[name] for name in HEAD[:5])
            groups.setdefault(key, {}).setdefault(row['task'], []).append(float(row['psnr']))
        for key, values in sorted(
            groups.items(),
            key=lambda item: (item[0][0], int(item[0][2]), int(item[0][3]), mean(item[1]['average'])),
        ):
            averages = values['average']
            cells = ' | '.join(f'{mean(values[name]):.2f}' for name in names)
            yield f'| {" | ".join(key)} | {len(averages)} | {cells} | {spread(averages)} |'
        full = {tuple(row[name] for name in PLACE): float(row['psnr']) for row in reported if row['recipe'] == FULL}
        changes: dict[tuple[str, ...], dict[str, list[float]]] = {}
        for row in reported:
            place = tuple(row[name] for name in PLACE)
            if place in full and row['recipe'] not in (BASELINE, FULL):
                key = row['network'], row['recipe'], row['dim'], row['budget']
                changes.setdefault(key, {}).setdefault(row['task'], []).append(float(row['psnr']) - full[place])
        inputs = {row['task']: float(row['input_psnr']) for row in reported}
        yield f'| input | | | | | | {" | ".join(f"{inputs[name]:.2f}" for name in names)} | |'
        yield from ('', f'| network | recipe | dim | iterations | {" | ".join(names)}, less {FULL} | range |')
        yield '|:--|:--|--:|--:|' + '--:|' * (len(names) + 1)
        for key, values in changes.items():
            cells = ' | '.join(f'{mean(values[name]):+.2f}' for name in names)
            yield f'| {" | ".join(key)} | {cells} | {spread(values["average"])} |'
        yield from ('', f'| network | recipe | dim | iterations of {BASELINE} | patches relative to it | range |')
        yield '|:--|:--|--:|--:|--:|--:|'
        for (network, recipe, dim, budget), found in self.ratios(reported).items():
            yield f'| {network} | {recipe} | {dim} | {budget} | {mean(found):.2f} | {spread(found)} |'
        yield from (
            '',
            '| network | recipe | dim | iterations | rate | PSNR of `choose` |',
            '|:--|:--|--:|--:|--:|--:|',
        )
        for row in self.rows:
            if (row['set'], row['task'], row['seed']) == ('choose', 'average', str(SEARCH_SEED)):
                yield f'| {" | ".join(row[name] for name in HEAD[:5])} | {float(row["psnr"]):.2f} |'

    @staticmethod
    def ratios(rows: list[dict[str, str]]) -> dict[tuple[str, str, int, int], list[float]]:
        """Of recipes with several budgets and each seed, iterations for the PSNR of the released recipe's end, relative
        to the released recipe's.

        Between two budgets of a recipe, PSNR is taken as linear in the logarithm of the iterations. Where the recipe's
        smallest budget is better already, it counts: the ratio is at most that. Where its largest is worse, the seed is
        left out.
        """
        ends: dict[tuple[str, str, int, str], dict[int, float]] = {}
        for row in rows:
            if row['task'] == 'average':
                key = row['network'], row['recipe'], int(row['dim']), row['seed']
                ends.setdefault(key, {})[int(row['budget'])] = float(row['psnr'])
        found: dict[tuple[str, str, int, int], list[float]] = {}
        for (network, recipe, dim, seed), curve in ends.items():
            known = sorted(curve.items())
            compared = recipe != BASELINE and len(known) > 1
            released = ends.get((network, BASELINE, dim, seed), {}) if compared else {}
            for budget, wanted in sorted(released.items()):
                needed: float | None = known[0][0] if wanted <= known[0][1] else None
                for (low, before), (high, after) in pairwise(known):
                    if needed is None and before < wanted <= after:
                        needed = low * (high / low) ** ((wanted - before) / (after - before))
                if needed is not None:
                    found.setdefault((network, recipe, dim, budget), []).append(needed / budget)
        return found


def draw(rows: list[dict[str, str]], network: str, dim: int, path: Path) -> None:
    """PSNR on `report` by patches of a training, a panel a task, of recipes with several budgets.

    Means, and bars from the least to the most seed.
    """
    from matplotlib.figure import Figure

    mine = [row for row in rows if (row['set'], row['network'], row['dim']) == ('report', network, str(dim))]
    names = list(dict.fromkeys(row['task'] for row in mine))
    budgets = {row['recipe']: {other['budget'] for other in mine if other['recipe'] == row['recipe']} for row in mine}
    recipes = [recipe for recipe, known in budgets.items() if len(known) > 1]
    figure = Figure((2.6 * len(names), 2.8), layout='constrained')
    for axes, task in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        here = [row for row in mine if row['task'] == task]
        for recipe in recipes:
            points: dict[int, list[float]] = {}
            for row in here:
                if row['recipe'] == recipe:
                    points.setdefault(BATCH * int(row['budget']), []).append(float(row['psnr']))
            middle = {patches: mean(each) for patches, each in sorted(points.items())}
            below = [mean(points[patches]) - min(points[patches]) for patches in middle]
            above = [max(points[patches]) - mean(points[patches]) for patches in middle]
            axes.errorbar(list(middle), list(middle.values()), [below, above], marker='o', capsize=3, label=recipe)
        axes.axhline(float(here[0]['input_psnr']), color='0.6', linestyle='--', label='input')
        axes.set(xscale='log', xlabel='patches', title=task)
        axes.set_xticks(patches := sorted({BATCH * int(row['budget']) for row in here}), [f'{n:,}' for n in patches])
        axes.tick_params(axis='x', which='minor', bottom=False, labelbottom=False)
    axes = figure.axes[0]
    axes.set_ylabel('PSNR, dB')
    figure.legend(*axes.get_legend_handles_labels(), loc='outside upper center', ncols=len(recipes) + 1)
    figure.savefig(path, dpi=150, metadata={'Software': None} if path.suffix == '.png' else None)


def spread(values: list[float]) -> str:
    return f'{min(values):.2f} to {max(values):.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, metavar='STUDY')
    parser.add_argument('--data', type=Path)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=['promptir'])
    parser.add_argument('--rate', type=float, help='of all trainings, in place of those that are tried')
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=list(RECIPES))
    parser.add_argument('--budgets', nargs='+', type=int, default=[1000])
    parser.add_argument('--dims', nargs='+', type=int, default=[16])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--search', action='store_true', help='measure `choose` only')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--table', action='store_true', help='write the tables of what is known, and train nothing')
    parser.add_argument('--figure', type=Path, help='draw the first of --networks at the first of --dims as this file')
    args = parser.parse_args()
    if not args.table and args.data is None:
        parser.error('give --data, or --table')
    study = Study(args.study, None if args.data is None else args.data.resolve(), args.jobs)
    if not args.table:
        dim, budget = args.dims[0], args.budgets[0]
        pairs = [(network, recipe) for network in args.networks for recipe in args.recipes]
        if args.rate is None or args.search:
            study.train(
                [
                    Training(network, recipe, dim, budget, rate, SEARCH_SEED)
                    for network, recipe in pairs
                    for rate in ([args.rate] if args.rate else RECIPES[recipe].rates)
                ],
                report=False,
            )
        rates = {pair: args.rate or study.best_rate(*pair, dim, budget) for pair in pairs}
        study.train(
            [
                Training(network, recipe, width, length, rates[network, recipe], seed)
                for length in args.budgets
                for width in args.dims
                for seed in args.seeds
                for network, recipe in pairs
                if not args.search
            ],
            report=True,
        )
    if args.figure:
        draw(study.rows, args.networks[0], args.dims[0], args.figure)
    sys.stdout.write('\n'.join(study.tables()) + f'\n\n{hardware(["torch", "pytorch_optimizer"])}\n')


if __name__ == '__main__':
    main()
