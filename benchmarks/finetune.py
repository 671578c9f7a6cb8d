"""The example of docs/extending.md that grows a prompt, in full; PSNR in dB on the demo's photographs.

    python -m benchmarks.finetune

Trains the demo, then the example from its weights, then the example on the new degradation alone; ten minutes on one
core. Runs are kept in experiments/ below the current folder, and a finished one is not repeated.
"""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hardware import hardware
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.test_extending import ROOT, blocks, merged

DEMO = ROOT / 'options' / 'demo.yml'


def example() -> dict[str, Any]:
    """The options that the page shows, on the demo's."""
    (text,) = blocks('More prompts or labels from a checkpoint', 'yaml')
    part = Path('experiments', 'part.yml')
    part.write_text(text, encoding='utf-8')
    return merged(load_yaml(str(DEMO)), load_yaml(str(part)))


def run(verb: str, options: dict[str, Any]) -> dict[str, float]:
    """PSNR of each task at the end of a run."""
    root = Path('experiments' if verb == 'train' else 'results', options['name'])
    if not (root / 'metrics.csv').exists():
        file = Path('experiments', f'{options["name"]}.yml')
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        subprocess.run(
            [sys.executable, '-m', 'promptir_basicsr', verb, '-opt', str(file)], check=True, stdout=sys.stderr
        )
    with open(root / 'metrics.csv', encoding='utf-8', newline='') as table:
        rows = list(csv.DictReader(table))
    return {row['task']: float(row['psnr']) for row in rows if row['iter'] == rows[-1]['iter']}


def main() -> None:
    Path('experiments').mkdir(exist_ok=True)
    run('train', load_yaml(str(DEMO)))
    grown = example()
    alone = merged(
        grown, {'name': 'snow_alone', 'datasets': {'train': {'tasks': grown['datasets']['train']['tasks'][:1]}}}
    )
    before = {key: grown[key] for key in ('model_type', 'num_gpu', 'network_g', 'val', 'path') if key in grown} | {
        'name': 'demo_on_snow',
        'datasets': {'test': grown['datasets']['val']},
    }
    before['network_g'] = load_yaml(str(DEMO))['network_g']
    before['path'] = {key: value for key, value in grown['path'].items() if key != 'grow_g'}
    before['val'] = {key: value for key, value in grown['val'].items() if key != 'val_freq'}
    rows = {
        'the demo: 5 prompts, no snow': run('test', before),
        'then these 500 iterations': run('train', grown),
        'the same with snow alone': run('train', alone),
    }
    tasks = list(rows['then these 500 iterations'])
    lines = [f'| | {" | ".join(tasks)} |', '|:--|' + '--:|' * len(tasks)]
    lines += [f'| {name} | {" | ".join(f"{found[task]:.2f}" for task in tasks)} |' for name, found in rows.items()]
    sys.stdout.write('\n'.join([*lines, '', hardware(('torch',))]) + '\n')


if __name__ == '__main__':
    main()
