"""Options of a run that takes a second: a tiny network on crops of scikit-image's photographs."""

from pathlib import Path
from typing import Any

TASKS = [
    {
        'name': 'denoise',
        'type': 'denoise',
        'clean': 'skimage://',
        'files': ['chelsea.png', 'coffee.png'],
        'degrade': {'type': 'gaussian_noise', 'sigma': 25},
        'copies': 4,
    },
    {
        'name': 'lowlight',
        'type': 'lowlight',
        'clean': 'skimage://',
        'files': ['chelsea.png'],
        'degrade': {'type': 'low_light', 'exposure': 0.1},
        'copies': 8,
    },
]
NETWORK = {
    'type': 'PromptIR',
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4],
}


def run_options(root: Path, is_train: bool = True, **changes: Any) -> dict[str, Any]:
    """What BasicSR hands to a model, with its folders made."""
    options: dict[str, Any] = {
        'name': 'run',
        'model_type': 'PromptModel',
        'scale': 1,
        'num_gpu': 0,
        'dist': False,
        'rank': 0,
        'world_size': 1,
        'manual_seed': 0,
        'is_train': is_train,
        'auto_resume': False,
        'datasets': {
            'train': {'name': 'train', 'type': 'AllInOneDataset', 'phase': 'train', 'gt_size': 16, 'tasks': TASKS},
            'val': {'name': 'val', 'type': 'AllInOneDataset', 'phase': 'val', 'tasks': TASKS},
        },
        'network_g': dict(NETWORK),
        'path': {
            'experiments_root': str(root),
            'results_root': str(root),
            'models': str(root / 'models'),
            'training_states': str(root / 'training_states'),
            'visualization': str(root / 'visualization'),
        },
        'train': {
            'total_iter': 4,
            'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'scheduler': {'type': 'FixedLR'},
            'pixel_opt': {'type': 'L1Loss'},
        },
        'val': {
            'val_freq': 2,
            'save_img': True,
            'metrics': {
                'psnr': {'type': 'calculate_paper_psnr'},
                'ssim': {'type': 'calculate_paper_ssim'},
                'psnr_basicsr': {'type': 'calculate_psnr', 'crop_border': 0},
            },
        },
    }
    for place, value in changes.items():
        *sections, key = place.split('__')
        section = options
        for name in sections:
            section = section[name]
        section[key] = value
    for folder in ('models', 'training_states', 'visualization'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return options
