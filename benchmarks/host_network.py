"""A network of BasicSR with and without prompts, trained alike; PSNR in dB on the demo's photographs.

    python -m benchmarks.host_network [SEED ...]

Trains a small SwinIR, one with more blocks, and the small one with prompts behind two of its modules, each for the same
iterations on the data of options/pip_demo.yml; one to four minutes each on one core. Runs are kept in experiments/
below the current folder, and a finished one is not repeated.
"""

import sys
from pathlib import Path
from typing import Any

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from benchmarks.finetune import run
from benchmarks.hardware import hardware
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.test_extending import ROOT, merged

ITERATIONS = 1000
SWINIR = {
    'type': 'SwinIR',
    'upscale': 1,
    'img_size': 48,
    'window_size': 8,
    'depths': [2, 2],
    'embed_dim': 24,
    'num_heads': [2, 2],
    'mlp_ratio': 2,
    'upsampler': '',
}
PROMPTED = {
    'type': 'PromptedNetwork',
    'network': SWINIR,
    'taps': [{'module': name, 'prompt_size': 24} for name in ('layers.0', 'conv_after_body')],
}
NETWORKS = {
    'SwinIR': SWINIR,
    'SwinIR, more blocks': {**SWINIR, 'depths': [6, 6], 'embed_dim': 32},
    "with PromptIR's prompts, blind": {**PROMPTED, 'prompts': 'promptir'},
    "with PIP's prompts, told": {**PROMPTED, 'prompts': 'pip'},
}


def options(name: str, network: dict[str, Any], seed: int) -> dict[str, Any]:
    """Those of options/pip_demo.yml, with another network and budget."""
    changes = {
        'name': name,
        'manual_seed': seed,
        'num_gpu': 0,
        'train': {'total_iter': ITERATIONS, 'optim_g': {'lr': 1e-3}},
        'val': {'val_freq': ITERATIONS, 'save_img': False, 'contact_sheet': False},
    }
    return {**merged(load_yaml(str(ROOT / 'options' / 'pip_demo.yml')), changes), 'network_g': network}


def parameters(network: dict[str, Any]) -> int:
    arguments = {key: value for key, value in network.items() if key != 'type'}
    return sum(parameter.numel() for parameter in ARCH_REGISTRY.get(network['type'])(**arguments).parameters())


def main() -> None:
    Path('experiments').mkdir(exist_ok=True)
    seeds = [int(word) for word in sys.argv[1:]] or [0]
    lines: list[str] = []
    for number, (name, network) in enumerate(NETWORKS.items()):
        for seed in seeds:
            found = run('train', options(f'host_network_{number}_{seed}', network, seed))
            if not lines:
                lines = [f'| | parameters | seed | {" | ".join(found)} |', '|:--|--:|--:|' + '--:|' * len(found)]
            cells = [name, f'{parameters(network):,}', str(seed), *(f'{value:.2f}' for value in found.values())]
            lines.append(f'| {" | ".join(cells)} |')
    sys.stdout.write('\n'.join([*lines, '', hardware(('torch',))]) + '\n')


if __name__ == '__main__':
    main()
