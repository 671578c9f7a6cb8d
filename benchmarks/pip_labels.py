"""The demo of PIP told the truth, told by its sensor, and told something wrong; PSNR in dB on unseen photographs.

    python -m benchmarks.pip_labels

Trains options/pip_demo.yml and options/sensor_demo.yml, then tests the same weights with all labels; ten minutes on one
core. Runs are kept in experiments/ and results/ below the current folder, and a finished one is not repeated.
"""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hardware import hardware
from promptir_basicsr.core.vocabulary import DEGRADATION_TYPES
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.test_extending import ROOT, merged

PIP = load_yaml(str(ROOT / 'options' / 'pip_demo.yml'))
SENSOR = load_yaml(str(ROOT / 'options' / 'sensor_demo.yml'))


def run(verb: str, options: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv; it is run where there are none."""
    table = Path('experiments' if verb == 'train' else 'results', options['name'], 'metrics.csv')
    if not table.exists():
        file = Path('experiments', f'{options["name"]}.yml')
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        subprocess.run(
            [sys.executable, '-m', 'promptir_basicsr', verb, '-opt', str(file)], check=True, stdout=sys.stderr
        )
    with open(table, encoding='utf-8', newline='') as rows:
        return list(csv.DictReader(rows))


def weights(options: dict[str, Any]) -> str:
    return str(Path('experiments', options['name'], 'models', 'net_g_latest.pth'))


def asked(name: str, shift: int = 0) -> dict[str, Any]:
    """The validation of the demo as a test of its weights, every label moved on by `shift`."""
    data = PIP['datasets']['val']
    labels = [(DEGRADATION_TYPES.index(task['type']) + shift) % len(DEGRADATION_TYPES) for task in data['tasks']]
    tasks = [{**task, 'label': label} for task, label in zip(data['tasks'], labels, strict=True)]
    return {key: PIP[key] for key in ('model_type', 'scale', 'num_gpu', 'manual_seed', 'network_g')} | {
        'name': f'{PIP["name"]}_{name}',
        'datasets': {'test': {**data, 'tasks': tasks}},
        'path': {'pretrain_network_g': weights(PIP), 'param_key_g': 'params_ema'},
        'val': {'save_img': False, 'metrics': {'psnr': {'type': 'calculate_paper_psnr'}}},
    }


def sensed(name: str, hard: bool = False) -> dict[str, Any]:
    """The same, with the labels that the sensor finds: its probabilities, or the likeliest degradation alone."""
    return merged(
        asked(name),
        {
            'network_g': {'sensor': {key: SENSOR['network_g'][key] for key in ('type', 'dim')}, 'hard_sensor': hard},
            'path': {'pretrain_network_sensor': weights(SENSOR)},
            'val': {'labels': 'sensor'},
        },
    )


def psnr(rows: list[dict[str, str]], column: str = 'psnr') -> dict[str, float]:
    return {row['task']: float(row[column]) for row in rows if row['task'] != 'average'}


def table(head: list[str], rows: dict[str, list[float]]) -> list[str]:
    lines = [f'| {" | ".join(head)} |', '|:--|' + '--:|' * (len(head) - 1)]
    return lines + [f'| {name} | {" | ".join(f"{value:.2f}" for value in values)} |' for name, values in rows.items()]


def main() -> None:
    Path('experiments').mkdir(exist_ok=True)
    for options in (PIP, SENSOR):
        run('train', options)
    first = run('test', asked('true'))
    given, true = psnr(first, 'input_psnr'), psnr(first)
    sensor = psnr(run('test', sensed('sensor')))
    hard = psnr(run('test', sensed('sensor_hard', hard=True)))
    number = len(DEGRADATION_TYPES)
    others = [psnr(run('test', asked(f'wrong_{shift}', shift))) for shift in range(1, number)]

    wrong = {task: [found[task] for found in others] for task in true}
    sums = {
        task: [given[task], true[task], sensor[task], hard[task], sum(values) / len(values)]
        for task, values in wrong.items()
    }
    told = {}
    for task in PIP['datasets']['val']['tasks']:
        label = DEGRADATION_TYPES.index(task['type'])
        shifted = [true[task['name']], *wrong[task['name']]]
        told[task['name']] = [shifted[(column - label) % number] for column in range(number)]
    pairs = [(task, value) for task, values in wrong.items() for value in values]
    beaten = ', '.join(
        f'{name} {sum(found[task] > value for task, value in pairs)}'
        for name, found in (('true ones', true), ('the sensor', sensor), ('the hard sensor', hard))
    )
    lines = table(['task', 'input', 'true labels', 'sensor', 'hard sensor', 'wrong labels, mean of four'], sums)
    lines += ['', *table(['task', *(f'told {word}' for word in DEGRADATION_TYPES)], told), '']
    lines += [f'Wrong labels that are beaten, of {len(pairs)}: by {beaten}.', '', hardware(('torch',))]
    sys.stdout.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
