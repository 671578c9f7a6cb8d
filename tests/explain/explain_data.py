"""Options, networks and images for the tests of `basicsr explain`."""

from pathlib import Path
from typing import Any

import yaml

from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.explain.prompted import Sample, choose_samples

DEMO = Path(__file__).parents[2] / 'options' / 'demo.yml'
BODY = {'dim': 8, 'num_blocks': [1] * 4, 'num_refinement_blocks': 0, 'heads': [1] * 4, 'prompt_sizes': [4] * 3}
PROMPTIR = {'type': 'PromptIR', **BODY, 'num_prompts': 3}
PIP = {'type': 'PIPRestormer', **BODY, 'sensor': {'type': 'DegradationSensor', 'dim': 4, 'num_blocks': 0}}
TASKS = ['denoise', 'dehaze', 'lowlight']
PROMPTED = {'type': 'PIPNAFNet', 'prompts': False, 'width': 8, 'enc_blk_nums': [1] * 4, 'dec_blk_nums': [1] * 4}


def options_of(network: dict[str, Any], tasks: list[str] = TASKS) -> dict[str, Any]:
    """options/demo.yml with three tasks and another network, and without its training set."""
    options = yaml.safe_load(DEMO.read_text())
    del options['datasets']['train']
    val = options['datasets']['val']
    val['tasks'] = [task for task in val['tasks'] if task['name'] in tasks]
    return {**options, 'network_g': network}


def samples_of(options: dict[str, Any], images: int = 2, size: int = 16) -> list[Sample]:
    dataset = AllInOneDataset({**options['datasets']['val'], 'phase': 'val'})
    return choose_samples(dataset, images, 0, size, 8)
