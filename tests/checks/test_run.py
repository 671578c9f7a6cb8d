"""Wrong option files are told in plain words that name the key, before anything is created."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.optim.schedules import HOST_SCHEDULERS
from promptir_basicsr.options.file import read_options

# isort: split
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.models import lr_scheduler

OPTION_FILES = sorted((Path(__file__).parents[2] / 'options').glob('*.yml'))
MISSING = object()
TASK = {
    'name': 'denoise',
    'type': 'denoise',
    'clean': 'skimage://',
    'files': ['astronaut.png', 'coffee.png'],
    'degrade': {'type': 'gaussian_noise', 'sigma': 25},
}


def training() -> dict[str, Any]:
    """A training with every section; 16 samples an epoch in batches of 2."""
    return copy.deepcopy(
        {
            'name': 'tiny',
            'model_type': 'PromptModel',
            'scale': 1,
            'num_gpu': 0,
            'manual_seed': 0,
            'datasets': {
                'train': {
                    'name': 'tiny_train',
                    'type': 'AllInOneDataset',
                    'gt_size': 16,
                    'use_hflip': True,
                    'tasks': [{**copy.deepcopy(TASK), 'copies': 8}],
                    'batch_size_per_gpu': 2,
                    'num_worker_per_gpu': 0,
                    'dataset_enlarge_ratio': 1,
                },
                'val': {'name': 'tiny_val', 'type': 'AllInOneDataset', 'crop_multiple': 16, 'tasks': [TASK]},
            },
            'network_g': {
                'type': 'PromptIR',
                'dim': 8,
                'num_blocks': [1, 1, 1, 1],
                'num_refinement_blocks': 1,
                'heads': [1, 1, 1, 1],
                'prompt_sizes': [4, 4, 4],
            },
            'path': {'pretrain_network_g': None, 'strict_load_g': True},
            'train': {
                'total_iter': 8,
                'warmup_iter': -1,
                'optim_g': {'type': 'AdamW', 'lr': 1e-3, 'betas': [0.9, 0.99]},
                'scheduler': {'type': 'LinearWarmupCosineLR', 'warmup_iter': 2, 'eta_min': 1e-6},
                'ema_decay': 0.9,
                'grad_clip_norm': 1.0,
                'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
                'frequency_opt': {'type': 'FrequencyLoss', 'loss_weight': 0.1},
                'prompt_opt': {'type': 'PromptDecorrelationLoss', 'kind': 'cosine', 'loss_weight': 0.01},
                'loss_scaler': {'history': 100, 'limit': 5, 'factor': 2.5},
            },
            'val': {
                'val_freq': 4,
                'save_img': False,
                'pbar': False,
                'comparisons': 1,
                'best_metric': 'psnr',
                'metrics': {
                    'psnr': {'type': 'calculate_paper_psnr', 'better': 'higher'},
                    'psnr_basicsr': {'type': 'calculate_psnr', 'crop_border': 0},
                },
            },
            'logger': {'print_freq': 1, 'save_checkpoint_freq': 4, 'use_tb_logger': False},
        }
    )


def measuring() -> dict[str, Any]:
    """The same network in `basicsr test`."""
    options = training()
    options = {key: value for key, value in options.items() if key not in ('train', 'logger')}
    options['datasets'] = {'test': options['datasets']['val']}
    del options['val']['val_freq']
    return options


def put(options: Any, place: str, value: object) -> None:
    """Set the value at a place such as `datasets.train.tasks.0.copies`; MISSING takes the key out."""
    *parents, last = (int(key) if key.isdigit() else key for key in place.split('.'))
    for key in parents:
        options = options[key]
    if value is MISSING:
        del options[last]
    else:
        options[last] = value


def problems_of(changes: dict[str, Any], options: dict[str, Any] | None = None, processes: int = 1) -> list[str]:
    options = training() if options is None else options
    for place, value in changes.items():
        put(options, place, value)
    return [str(problem) for problem in check_options(options, is_train='train' in options, processes=processes)]


def places(value: Any, parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every place in nested options, the sections before what is in them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*parents, str(key))
        yield from places(item, (*parents, str(key)))


def test_right_options_pass() -> None:
    assert check_options(training(), is_train=True) == []
    assert check_options(measuring(), is_train=False) == []


# One mistake each: where it is made, what is written there, and what the only line of the report says.
MISTAKES: list[tuple[str, Any, str]] = [
    # misspelt keys at every level
    ('netwrok_h', {}, "unknown option 'netwrok_h'. Did you mean 'network_g'?"),
    ('datasets.train.gt_sise', 16, "datasets.train: unknown option 'gt_sise'. Did you mean 'gt_size'?"),
    ('datasets.val.crop_multipel', 16, "datasets.val: unknown option 'crop_multipel'. Did you mean 'crop_multiple'?"),
    ('datasets.train.tasks.0.copis', 2, "unknown option 'copis'. Did you mean 'copies'?"),
    ('datasets.train.tasks.0.degrade.sigmma', 2, "Did you mean 'sigma'?"),
    ('network_g.num_block', [1, 1, 1, 1], "network_g: unknown option 'num_block'. Did you mean 'num_blocks'?"),
    ('path.pretrained_network_g', 'x', "path: unknown option 'pretrained_network_g'. Did you mean 'pretrain_"),
    ('train.total_iters', 8, "train: unknown option 'total_iters'. Did you mean 'total_iter'?"),
    ('train.optim_g.weight_decy', 0, "train.optim_g: unknown option 'weight_decy'. Did you mean 'weight_decay'?"),
    ('train.scheduler.warmup_iters', 2, "train.scheduler: unknown option 'warmup_iters'. Did you mean 'warmup_iter'?"),
    ('train.pixel_opt.loss_wieght', 2, "train.pixel_opt: unknown option 'loss_wieght'. Did you mean 'loss_weight'?"),
    ('train.prompt_opt.knid', 'angle', "train.prompt_opt: unknown option 'knid'. Did you mean 'kind'?"),
    ('train.frequency_opt.loss_wieght', 1, "train.frequency_opt: unknown option 'loss_wieght'. Did you mean 'loss_w"),
    ('train.frequncy_opt', {}, "train: unknown option 'frequncy_opt'. Did you mean 'frequency_opt'?"),
    ('train.loss_scalar', {}, "train: unknown option 'loss_scalar'. Did you mean 'loss_scaler'?"),
    ('train.loss_scaler.histroy', 10, "train.loss_scaler: unknown option 'histroy'. Did you mean 'history'?"),
    ('val.metrcs', {}, "val: unknown option 'metrcs'. Did you mean 'metrics'?"),
    ('val.metrics.psnr_basicsr.crop_boarder', 4, "val.metrics.psnr_basicsr: unknown option 'crop_boarder'. Did you"),
    ('val.metrics.psnr_basicsr.test_y', True, "unknown option 'test_y'. Did you mean 'test_y_channel'?"),
    ('logger.print_frq', 4, "logger: unknown option 'print_frq'. Did you mean 'print_freq'?"),
    # missing
    ('name', MISSING, 'name: is missing.'),
    ('num_gpu', MISSING, 'num_gpu: is missing.'),
    ('model_type', MISSING, 'model_type: is missing.'),
    ('datasets', MISSING, 'datasets: is missing.'),
    ('datasets.train', MISSING, 'datasets.train: is missing.'),
    ('datasets.train.name', MISSING, 'datasets.train.name: is missing.'),
    ('datasets.val.type', MISSING, 'datasets.val.type: is missing.'),
    ('datasets.train.batch_size_per_gpu', MISSING, 'datasets.train.batch_size_per_gpu: is missing.'),
    ('datasets.train.num_worker_per_gpu', MISSING, 'datasets.train.num_worker_per_gpu: is missing.'),
    ('datasets.train.gt_size', MISSING, 'datasets.train.gt_size: '),
    ('datasets.train.tasks', MISSING, 'datasets.train.tasks: '),
    ('datasets.train.tasks.0.type', MISSING, '`type` is missing'),
    ('network_g', MISSING, 'network_g: is missing.'),
    ('network_g.type', MISSING, 'network_g.type: is missing.'),
    ('path', MISSING, 'path: is missing.'),
    ('logger', MISSING, 'logger: is missing.'),
    ('logger.use_tb_logger', MISSING, 'logger.use_tb_logger: is missing.'),
    ('train.total_iter', MISSING, 'train.total_iter: is missing.'),
    ('train.optim_g', MISSING, 'train.optim_g: is missing.'),
    ('train.optim_g.lr', MISSING, 'train.optim_g.lr: is missing.'),
    ('train.optim_g.type', MISSING, 'train.optim_g.type: is missing.'),
    ('train.scheduler', MISSING, 'train.scheduler: is missing.'),
    ('val.val_freq', MISSING, 'val.val_freq: is missing.'),
    ('val.save_img', MISSING, 'val.save_img: is missing.'),
    ('val.metrics.psnr_basicsr.crop_border', MISSING, 'val.metrics.psnr_basicsr.crop_border: is missing.'),
    # wrong types
    ('name', 2024, 'name: 2024 is not text.'),
    ('name', 'a/b', "name: 'a/b' is not a name without slashes."),
    ('name', ' ', "name: ' ' is not a name"),
    ('datasets', ['train'], "datasets: must be options `key: value`, not ['train']."),
    ('datasets.train', 'DIV2K', "datasets.train: must be options `key: value`, not 'DIV2K'."),
    ('datasets.train.tasks', 'denoise', 'datasets.train.tasks: must be a list'),
    ('datasets.train.tasks.0', 'denoise', 'datasets.train.tasks[0]: set options'),
    ('datasets.train.tasks.0.copies', '8', 'copies: '),
    ('datasets.train.gt_size', '16', "datasets.train.gt_size: '16' is not a whole number"),
    ('datasets.train.use_hflip', 'yes', "datasets.train.use_hflip: 'yes' is neither true nor false."),
    ('datasets.train.batch_size_per_gpu', 1.5, 'datasets.train.batch_size_per_gpu: 1.5 is not a whole number'),
    ('datasets.train.num_worker_per_gpu', -1, 'datasets.train.num_worker_per_gpu: -1 is not a whole number'),
    ('datasets.train.dataset_enlarge_ratio', 0, 'datasets.train.dataset_enlarge_ratio: 0 is not a number above 0.'),
    ('network_g', 'PromptIR', "network_g: must be options `key: value`, not 'PromptIR'."),
    ('network_g.dim', '8', 'dim'),
    ('network_g.num_blocks', 4, 'num_blocks'),
    ('path', None, 'path: must be options `key: value`, not None.'),
    ('path.strict_load_g', 'false', "path.strict_load_g: 'false' is neither true nor false."),
    ('path.pretrain_network_g', 5, 'path.pretrain_network_g: 5 is not text.'),
    ('path.experiments_root', ['x'], "path.experiments_root: ['x'] is not text."),
    ('path.ignore_resume_networks', 'network_g', 'path.ignore_resume_networks: must be a list'),
    ('train', 5, 'train: must be options `key: value`, not 5.'),
    ('train.total_iter', 8.5, 'train.total_iter: 8.5 is not a whole number'),
    ('train.warmup_iter', None, 'train.warmup_iter: None is not a whole number'),
    ('train.optim_g', 'AdamW', "train.optim_g: must be options with a type, e.g. {type: ...}, not 'AdamW'."),
    ('train.optim_g.lr', '0.001x', "train.optim_g.lr: '0.001x' is not a number or a list of numbers."),
    ('train.optim_g.lr', '1e-4', "'1e-4' is not a number or a list of numbers. Remove the quotes."),
    ('train.optim_g.lr', -1, 'train.optim_g.lr: -1 is not a number above 0.'),
    ('train.optim_g.betas', [0.9, '0.99'], "train.optim_g.betas: [0.9, '0.99'] is not a number or"),
    ('train.optim_g.betas', [0.9, 1.5], 'train.optim_g.betas: Invalid beta parameter'),
    ('train.scheduler', 'LinearWarmupCosineLR', 'train.scheduler: must be options with a type'),
    ('train.pixel_opt', 'L1Loss', 'train.pixel_opt: must be options with a type'),
    ('train.pixel_opt.reduction', 'men', 'train.pixel_opt: Unsupported reduction mode: men'),
    ('train.pixel_opt.loss_weight', '1', "train.pixel_opt.loss_weight: '1' is not a number."),
    ('train.prompt_opt', 'angle', "train.prompt_opt: must be options with a type, e.g. {type: ...}, not 'angle'."),
    ('train.prompt_opt.loss_weight', None, 'train.prompt_opt.loss_weight: None is not a number.'),
    ('train.prompt_opt.kind', 'angel', "PromptDecorrelationLoss: unknown kind 'angel'. Did you mean 'angle'?"),
    ('train.prompt_opt.kind', ['angle'], "train.prompt_opt.kind: ['angle'] is not text."),
    ('train.pixel_opt', {'type': 'SmoothL1Loss', 'beta': -1}, 'train.pixel_opt: SmoothL1Loss: beta is -1; it must be'),
    (
        'train.loss_scaler',
        True,
        'train.loss_scaler: must be options such as {history: 100, limit: 5, factor: 2.5}, not',
    ),
    ('train.loss_scaler.history', 1.5, 'train.loss_scaler.history: 1.5 is not a whole number of at least 1.'),
    ('train.loss_scaler.limit', '5', "train.loss_scaler.limit: '5' is not a number of at least 1."),
    ('train.loss_scaler.factor', 6, 'train.loss_scaler.factor: 6 is not a number above 0 and at most limit, 5.'),
    ('train.ema_decay', 1, 'train.ema_decay: 1 is not a number from 0'),
    ('train.ema_decay', None, 'train.ema_decay: None is not a number from 0'),
    ('train.grad_clip_norm', 0, 'train.grad_clip_norm: 0 is not a number above 0.'),
    ('val.val_freq', 0, 'val.val_freq: 0 is not a whole number of at least 1.'),
    ('val.save_img', 'no', "val.save_img: 'no' is neither true nor false."),
    ('val.metrics.psnr', 'calculate_psnr', 'val.metrics.psnr: must be options with a type'),
    ('val.metrics.psnr_basicsr.crop_border', '4', "val.metrics.psnr_basicsr.crop_border: '4' is not a whole number"),
    ('val.metrics.psnr.better', 'more', "val.metrics.psnr.better: 'more' is not 'higher' or 'lower'."),
    ('logger.print_freq', '100', "logger.print_freq: '100' is not a whole number"),
    ('logger.use_tb_logger', 'yes', "logger.use_tb_logger: 'yes' is neither true nor false."),
    ('logger.wandb', 'project', 'logger.wandb: must be options'),
    ('manual_seed', 'random', "manual_seed: 'random' is not a whole number"),
    ('find_unused_parameters', 1, 'find_unused_parameters: 1 is neither true nor false.'),
    ('manual_seed', 2**32, 'manual_seed: 4294967296 is not a whole number of at least 0 and below 2,147,483,648.'),
    ('network_g.prompts', 'yes', "network_g.prompts: 'yes' is neither true nor false."),
    ('network_g.layer_norm_type', ['WithBias'], "network_g.layer_norm_type: ['WithBias'] is not text."),
    ('val.metrics.psnr.test_y_channel', 'Y', "val.metrics.psnr.test_y_channel: 'Y' is neither true nor false."),
    ('dist_params', 'nccl', "dist_params: must be options `key: value`, not 'nccl'."),
    ('val.labels', 1, 'val.labels: 1; allowed: true (labels of the data), sensor, or a mixture {name: weight}.'),
    ('val.suffix', 5, 'val.suffix: 5 is not text.'),
    # keys that are needed and misspelt, where unknown ones pass
    ('train.optim_g', {'tpye': 'Adam', 'lr': 1}, "train.optim_g.type: is missing. Did you write it as 'tpye'?"),
    ('train.scheduler', {'typ': 'FixedLR'}, "train.scheduler.type: is missing. Did you write it as 'typ'?"),
    ('train.pixel_opt', {'typ': 'L1Loss'}, "train.pixel_opt.type: is missing. Did you write it as 'typ'?"),
    # paths of what is written stay in the folder of the run
    ('name', '../../x', "name: '../../x' is not a name without slashes."),
    ('name', '..', "name: '..' is not a name without slashes."),
    ('name', 'a\\b', 'is not a name without slashes.'),
    ('name', 'a\nb', "name: 'a\\nb' is not a file name: at most 200 bytes, printable characters only."),
    ('name', 'x' * 201, 'is not a file name: at most 200 bytes'),
    ('datasets.val.name', '../x', "datasets.val.name: '../x' is not a name without slashes."),
    ('datasets.val.name', '..', "datasets.val.name: '..' is not a name without slashes."),
    ('datasets.val.tasks.0.name', '..', "name: '..' is not a name without spaces and slashes."),
    ('datasets.val.tasks.0.name', '../x', "name: '../x' is not a name without spaces and slashes."),
    ('val.suffix', '/../../x', "val.suffix: '/../../x' is not a name without slashes."),
    # networks of millions of layers are not built
    ('network_g.num_blocks', [1, 1, 1, 10**9], 'network_g: more than 20,000 layers. Lower the numbers of blocks.'),
    # names that are in no registry
    ('datasets.train.type', 'AllinOneDataset', "datasets.train.type: unknown dataset 'AllinOneDataset'. Did you mean"),
    ('network_g.type', 'PromtIR', "network_g.type: unknown network 'PromtIR'. Did you mean 'PromptIR'?"),
    ('network_g.type', ['PromptIR'], "network_g.type: ['PromptIR'] is not the name of a network."),
    ('train.pixel_opt.type', 'L1los', "train.pixel_opt.type: unknown loss 'L1los'. Did you mean 'L1Loss'?"),
    ('train.frequency_opt.type', 'FrequncyLoss', "unknown loss 'FrequncyLoss'. Did you mean 'FrequencyLoss'?"),
    ('train.prompt_opt.type', 'PromptDecorelationLoss', "Did you mean 'PromptDecorrelationLoss'?"),
    ('train.optim_g.type', 'AdmaW', "train.optim_g.type: unknown optimizer 'AdmaW'. Did you mean 'AdamW'?"),
    ('train.scheduler.type', 'CosineLR', "unknown schedule 'CosineLR'. Did you mean 'LinearWarmupCosineLR'?"),
    (
        'val.metrics.psnr.type',
        'calculate_paper_pnsr',
        "val.metrics.psnr.type: unknown metric 'calculate_paper_pnsr'. D",
    ),
    ('val.best_metric', 'pnsr', "val.best_metric: unknown metric 'pnsr'. Did you mean 'psnr'?"),
    ('datasets.train.tasks.0.type', 'denoize', "unknown task type 'denoize'. Did you mean 'denoise'?"),
    ('datasets.train.prefetch_mode', 'gpu', "datasets.train.prefetch_mode: unknown mode 'gpu'."),
    # schedules
    ('train.scheduler.warmup_iter', 8, 'scheduler.warmup_iter: 8 is not below total_iter 8. Shorten the warmup.'),
    ('train.scheduler.eta_min', 1, 'eta_min 1 is above the lr 0.001'),
    ('train.scheduler', {'type': 'MultiStepLR'}, 'train.scheduler.milestones: is missing.'),
    ('train.scheduler', {'type': 'MultiStepLR', 'milestones': 4}, 'train.scheduler.milestones: 4 is not a list of'),
    ('train.scheduler', {'type': 'MultiStepLR', 'milestones': [4], 'gama': 0.5}, "Did you mean 'gamma'?"),
    (
        'train.scheduler',
        {'type': 'CosineAnnealingRestartLR', 'periods': [4, 3], 'restart_weights': [1, 1]},
        'train.scheduler.periods: sum to 7, less than total_iter 8',
    ),
    (
        'train.scheduler',
        {'type': 'CosineAnnealingRestartLR', 'periods': [4, 4]},
        'periods and restart_weights should have the same length',
    ),
    ('train.warmup_iter', 8, 'train.warmup_iter: 8 is not below total_iter 8. Shorten the warmup.'),
    (
        'train.scheduler',
        {'type': 'MultiStepLR', 'milestones': [4, 8, 9, 5000]},
        'train.scheduler.milestones: 9, 5,000 exceed total_iter 8. Remove them, or train longer.',
    ),
    # values that do not go together
    ('datasets.train.gt_size', 20, 'datasets.train.gt_size: 20 is not a multiple of 8, which PromptIR needs. Set 16.'),
    ('datasets.train.gt_size', 3, 'datasets.train.gt_size: 3 is not a multiple of 8, which PromptIR needs. Set 8.'),
    ('datasets.val.persistent_workers', True, 'datasets.val.persistent_workers: only for the training set.'),
    ('datasets.train.prefetch_mode', 'cuda', "datasets.train.prefetch_mode: 'cuda' needs a GPU and `pin_memory"),
    (
        'train.prompt_opt',
        {'type': 'L1Loss'},
        "train.prompt_opt.type: 'L1Loss' is a loss of images, not of prompts. Allowed: PromptDecorrelationLoss.",
    ),
    (
        'train.frequency_opt',
        {'type': 'PromptDecorrelationLoss'},
        "train.frequency_opt.type: 'PromptDecorrelationLoss' is a loss of the network's prompts, not of images. Move",
    ),
    ('network_g.prompts', False, 'train.prompt_opt: PromptIR: built with prompts=False, so it has no prompts.'),
    ('network_g.num_prompts', 1, 'train.prompt_opt: PromptIR: a single prompt at level3, level2, level1.'),
    (
        'network_g',
        {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 1},
        'train.prompt_opt: EDSR: has no prompts. Use a network with prompts (PIPNAFNet, PIPRestormer, PromptIR',
    ),
    ('network_g.heads', [3, 1, 1, 1], 'heads'),
    ('network_g.dim', 7, 'dim'),
    ('scale', 2, 'scale: 2; the model does not change the image size, so scale must be 1.'),
    ('num_gpu', 'all', "num_gpu: 'all' is not a whole number"),
    # data sets
    ('datasets.valid', {'name': 'x', 'type': 'AllInOneDataset'}, "datasets.valid: unknown phase 'valid'. Did you mean"),
    ('datasets.train_2', {'name': 'x', 'type': 'AllInOneDataset'}, "datasets.train_2: unknown phase 'train_2'. Did"),
    ('datasets.test', {'name': 'x', 'type': 'AllInOneDataset'}, "datasets.test: unknown phase 'test'."),
    # files
    ('path.pretrain_network_g', 'no/such.pth', "path.pretrain_network_g: the file 'no/such.pth' does not exist."),
    ('path.resume_state', '~/no.state', 'path.resume_state: the file '),
    ('datasets.train.tasks.0.clean', 'no/folder', "the folder 'no/folder' does not exist"),
    ('datasets.train.tasks.0.files', ['no.png'], "1 of 1 entries are not in '"),
]


@pytest.mark.parametrize(('place', 'value', 'said'), MISTAKES, ids=[f'{m[0]}-{i}' for i, m in enumerate(MISTAKES)])
def test_a_mistake_is_reported_in_one_line(place: str, value: Any, said: str) -> None:
    problems = problems_of({place: copy.deepcopy(value) if value is not MISSING else MISSING})
    assert len(problems) == 1, problems
    assert said in problems[0]
    assert '\n' not in problems[0]


def test_a_mistake_is_reported_with_its_index_in_the_list() -> None:
    assert problems_of({'datasets.train.tasks.0.copies': 0}) == [
        'datasets.train.tasks[0] (denoise).copies: 0 is not a whole number of at least 1.'
    ]


def test_mistakes_of_all_sections_are_in_one_report() -> None:
    changes = {
        'nmae': 'x',
        'model_type': 'PromptModel',
        'datasets.train.tasks.0.copies': 'many',
        'datasets.train.gt_sise': 3,
        'datasets.val.type': 'AllInOneDatset',
        'network_g.dmi': 3,
        'path.models': 'x',
        'train.optim_g.type': 'Adma',
        'train.scheduler.warmup_iter': 99,
        'train.pixel_opt.type': 'L3Loss',
        'val.metrics.psnr_basicsr.crop_border': MISSING,
        'val.best_metric': 'ssim',
        'logger.print_freq': 0,
    }
    report = '\n'.join(problems_of(changes))
    said = (
        "'nmae' copies 'gt_sise' 'AllInOneDatset' 'dmi' 'models' 'Adma' warmup_iter 'L3Loss' crop_border 'ssim' "
        'print_freq'
    ).split()
    assert [word for word in said if word not in report] == []


def test_a_missing_section_does_not_hide_the_mistakes_of_others() -> None:
    problems = problems_of({'datasets': MISSING, 'netwrok_g': {}, 'train.total_iter': 'all', 'network_g.dmi': 1})
    said = ['datasets: is missing', "'netwrok_g'", 'train.total_iter', "'dmi'"]
    assert all(any(word in problem for problem in problems) for word in said)


@pytest.mark.parametrize(
    ('wrong', 'fits'),
    [
        pytest.param({'nonsense': 1}, '', marks=pytest.mark.slow),
        pytest.param(['nonsense'], '', marks=pytest.mark.slow),
        (
            -1,
            'train.warmup_iter train.pixel_opt.loss_weight train.frequency_opt.loss_weight '
            'train.prompt_opt.loss_weight',
        ),
        (
            'nonsense',
            'name datasets.train.name datasets.val.name datasets.train.tasks.0.name datasets.val.tasks.0.name',
        ),
    ],
    ids=['mapping', 'list', '-1', 'text'],
)
def test_every_place_refuses_what_is_nonsense_there_and_names_it(wrong: Any, fits: str) -> None:
    """Whatever stands wherever in the file, the check itself does not fail."""
    silent = set()
    for keys in places(training()):
        place = '.'.join(keys)
        problems = problems_of({place: copy.deepcopy(wrong)})
        name = next(key for key in reversed(keys) if not key.isdigit())
        if not any(name in problem for problem in problems):
            silent.add(place)
    assert silent == set(fits.split())


def test_test_options() -> None:
    def report(**changes: Any) -> list[str]:
        return problems_of({place.replace('__', '.'): value for place, value in changes.items()}, measuring())

    assert report(val=MISSING) == ['val: is missing.']
    assert report(network_g=MISSING) == ['network_g: is missing.']
    assert report(datasets__val=training()['datasets']['val'])[0].startswith('datasets.test and datasets.val: have')
    (problem,) = report(datasets__train=training()['datasets']['train'])
    assert problem.startswith("datasets.train: unknown phase 'train'.")


@pytest.mark.parametrize('left', ['pixel_opt', 'frequency_opt', None])
def test_one_loss_of_the_images_is_needed(left: str | None) -> None:
    changes = {f'train.{key}': MISSING for key in ('pixel_opt', 'frequency_opt') if key != left}
    assert problems_of(changes) == ([] if left else ['train.pixel_opt: is missing.'])


def test_prompts_of_an_invalid_network_are_not_checked() -> None:
    (problem,) = problems_of({'network_g.num_prompt': 1})
    assert problem.startswith("network_g: unknown option 'num_prompt'.")


def test_data_sets_of_the_same_name() -> None:
    second = training()['datasets']['val']
    assert problems_of({'datasets.val_2': second}) == [
        "datasets.val and datasets.val_2: have the same name 'tiny_val'. Set a unique `name` for each."
    ]
    second['name'] = 'tiny_train'  # training writes no results under its name
    assert problems_of({'datasets.val_2': second}) == []


def test_more_gpus_than_the_machine_has() -> None:
    there = torch.cuda.device_count()
    (problem, *_) = problems_of({'num_gpu': there + 1})
    assert problem.startswith(f'num_gpu: {there + 1} requested, but this machine has {there}.')
    assert '`num_gpu: 0`' in problem
    assert problems_of({'num_gpu': True})[0].startswith('num_gpu: True')


def iterations(total: int, samples: int, ratio: float, batch: int, gpus: int = 1, processes: int = 1) -> int:
    """How far BasicSR's training loop comes, counted as its code does."""
    dataset = list(range(samples))
    sampler = EnlargedSampler(dataset, processes, 0, ratio)
    whole = len(list(iter(sampler))) // (batch * gpus)  # drop_last
    announced = -(-samples * ratio // (batch * processes))
    epochs = -(-total // announced)
    return min(total, int(epochs + 1) * whole)


@pytest.mark.parametrize('total', [1, 3, 8, 50])
@pytest.mark.parametrize('ratio', [1, 2.5])
@pytest.mark.parametrize(
    ('batch', 'gpus', 'processes'),
    [(1, 1, 1), (2, 1, 1), (3, 1, 1), (6, 1, 1), (9, 1, 1), (2, 1, 3), (3, 1, 2), (2, 2, 1)],
)
def test_an_epoch_too_short_for_total_iter(
    total: int, ratio: float, batch: int, gpus: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    changes = {
        'num_gpu': gpus,
        'datasets.train.tasks.0.copies': 4,
        'datasets.train.dataset_enlarge_ratio': ratio,
        'datasets.train.batch_size_per_gpu': batch,
        'train.total_iter': total,
        'train.scheduler': {'type': 'FixedLR'},
    }
    problems = problems_of(changes, processes=processes)
    reached = iterations(total, 2 * 4, ratio, batch, gpus, processes)
    if reached == total:
        assert problems == []
        return
    (problem,) = problems
    assert f'training would end after {reached} of {total} iterations.' in problem
    assert ('torchrun' in problem) == (gpus > 1)
    assert ('`copies`' in problem) == (gpus == 1)


def test_batch_larger_than_the_epoch() -> None:
    (problem,) = problems_of({'datasets.train.batch_size_per_gpu': 17})
    assert 'an epoch has 16 samples, 0 full batches of 17; training would end after 0 of 8 iterations' in problem


STAGED = 'datasets.train.stages'


@pytest.mark.parametrize(
    ('stages', 'changes', 'said'),
    [
        ([{'until': 4}, {'gt_size': 24, 'batch_size_per_gpu': 16}], {}, None),
        ([{'until': 4}, {'until': 8, 'gt_size': 24}], {}, None),
        ([{'until': 4, 'gt_size': 24}, {'gt_size': 24}], {'datasets.train.gt_size': 17}, None),
        (
            [{'until': 4}, {'gt_size': 20}],
            {},
            f'{STAGED}[1].gt_size: 20 is not a multiple of 8, which PromptIR needs. Set 16.',
        ),
        (
            [{'until': 4}, {'batch_size_per_gpu': 17}],
            {},
            'datasets.train: an epoch has 16 samples, 0 full batches of 17; training could not continue in this stage.',
        ),
        (
            [{'until': 8}, {'until': 9}, {}],
            {},
            f'{STAGED}[1]: would start after iteration 8, but total_iter is 8. Remove it, or train longer.',
        ),
        (
            [{'until': 4}, {'until': 7}],
            {},
            f'{STAGED}[1].until: 7 is less than total_iter 8. Remove `until` of the last stage.',
        ),
        (
            [{'until': 4}, {'until': 3}],
            {},
            f'{STAGED}: `until` must increase from stage to stage; only the last stage may',
        ),
        (
            [{'until': 4}, {'batch_size_per_gpu': 3}],
            {'train.accumulate': 2},
            f'train.accumulate: 2 does not divide {STAGED}[1].batch_size_per_gpu, 3, into equal parts. Allowed: 1.',
        ),
        (
            [{'until': 4}, {'batch_size_per_gpu': 3}],
            {'datasets.train.sampling': {'fixed_shares': True}},
            'datasets.train.sampling.fixed_shares: needs the same batch_size_per_gpu in all stages, not 2, 3.',
        ),
        (
            [{'until': 4}, {}],
            {'datasets.train.type': 'PairedImageDataset'},
            f'{STAGED}: only for AllInOneDataset, not for PairedImageDataset. Remove the key.',
        ),
        ('late', {}, f'{STAGED}: '),
    ],
)
def test_stages_fit_the_training(stages: Any, changes: dict[str, Any], said: str | None) -> None:
    problems = problems_of({STAGED: stages, **changes})
    assert len(problems) == (said is not None), problems
    assert not said or problems[0].startswith(said)


def test_host_schedules_that_are_right() -> None:
    right = [
        {'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.5},
        {'type': 'MultiStepRestartLR', 'milestones': [], 'restarts': [0, 4], 'restart_weights': [1, 0.5]},
        {'type': 'CosineAnnealingRestartLR', 'periods': [4, 4], 'restart_weights': [1, 1], 'eta_min': 1e-7},
    ]
    assert {options['type'] for options in right} == set(HOST_SCHEDULERS)
    for options in right:
        assert problems_of({'train.scheduler': options}) == []


def test_periods_that_pass_do_not_stop_the_training() -> None:
    """The schedule dies where the check says, and not before."""

    def run(periods: list[int], total: int) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        schedule = lr_scheduler.CosineAnnealingRestartLR(optimizer, periods)
        for _ in range(total):
            optimizer.step()
            schedule.step()

    options = {'type': 'CosineAnnealingRestartLR', 'periods': [8]}
    assert problems_of({'train.scheduler': options, 'train.total_iter': 8}) == []
    run([8], total=8)
    assert problems_of({'train.scheduler': options, 'train.total_iter': 9}) != []
    with pytest.raises(TypeError):
        run([8], total=9)


def test_options_of_other_models_are_held_to_what_basicsr_reads() -> None:
    """An SRModel with BasicSR's own dataset: only what BasicSR would stumble over is told."""
    options = {
        'name': 'srresnet',
        'model_type': 'SRModel',
        'scale': 4,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'DIV2K',
                'type': 'PairedImageDataset',
                'dataroot_gt': 'datasets/gt',
                'dataroot_lq': 'datasets/lq',
                'io_backend': {'type': 'disk'},
                'gt_size': 128,
                'num_worker_per_gpu': 6,
                'batch_size_per_gpu': 16,
            }
        },
        'network_g': {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4},
        'path': {'pretrain_network_g': None, 'resume_state': None},
        'train': {
            'total_iter': 100,
            'optim_g': {'type': 'Adam', 'lr': 1e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [50], 'gamma': 0.5},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
            'my_own_option': 5,
        },
        'logger': {'print_freq': 100, 'save_checkpoint_freq': 50, 'use_tb_logger': True, 'wandb': {'project': None}},
    }
    assert check_options(options, is_train=True) == []
    options['network_g'] = {'type': 'MSRResNet', 'num_in': 3}
    options['model_type'] = 'SrModel'
    problems = [str(problem) for problem in check_options(options, is_train=True)]
    assert [problem.partition(' Allowed')[0] for problem in problems] == [
        "model_type: unknown model 'SrModel'. Did you mean 'SRModel'?",
        "network_g: unknown option 'num_in'. Did you mean 'num_in_ch'?",
    ]


@pytest.mark.parametrize('path', OPTION_FILES, ids=lambda path: path.name)
def test_option_files_of_the_package(path: Path) -> None:
    """Nothing is wrong with them but data that is not on this machine."""
    options = read_options(str(path))
    options['num_gpu'] = 0
    problems = [str(problem) for problem in check_options(options, is_train='train' in options['datasets'])]
    assert [problem for problem in problems if not re.search('does not exist|No such file', problem)] == []


def test_the_demo_needs_nothing() -> None:
    options = load_yaml(str(next(path for path in OPTION_FILES if path.name == 'demo.yml')))
    options['num_gpu'] = 0
    assert check_options(options, is_train=True) == []


# Channels of the tasks and of the network


def grey(options: dict[str, Any]) -> dict[str, Any]:
    """The same with grey images."""
    for dataset in options['datasets'].values():
        for task in dataset['tasks']:
            task['channels'] = 1
    return options


BOTH = 'datasets.train.tasks and datasets.val.tasks: '
NAFNET = {'type': 'PIPNAFNet', 'width': 8, 'enc_blk_nums': [1] * 4, 'dec_blk_nums': [1] * 4}
COMPACT = {'type': 'SRVGGNetCompact', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_conv': 1, 'upscale': 1}
CHANNELS: list[tuple[bool, dict[str, Any], str]] = [
    (
        False,
        {'network_g.inp_channels': 1, 'network_g.out_channels': 1},
        BOTH + 'images with 3 channels; PromptIR expects 1. Set `channels: 1` in all tasks, or set '
        '`inp_channels: 3` and `out_channels: 3` in network_g.',
    ),
    (
        True,
        {},
        BOTH + 'images with 1 channel; PromptIR expects 3. Set `channels: 3` in all tasks, or set '
        '`inp_channels: 1` and `out_channels: 1` in network_g.',
    ),
    (
        True,
        {'network_g.inp_channels': 6, 'network_g.out_channels': 6},
        'network_g: PromptIR has 6 input channels; tasks have 3 (RGB) or 1 (grey). Set `inp_channels: 3` and '
        '`out_channels: 3` in network_g.',
    ),
    (
        True,
        {'network_g.inp_channels': 1, 'network_g.out_channels': 1, 'datasets.val.tasks.0.channels': 3},
        'datasets.val.tasks: images with 3 channels; PromptIR expects 1. ',
    ),
    (
        True,
        {'network_g': NAFNET},
        BOTH + 'images with 1 channel; PIPNAFNet expects 3. Set `channels: 3` in all tasks, or set `img_channel: 1` in',
    ),
    (
        True,
        {'network_g': {'type': 'PromptedNetwork', 'network': COMPACT | {'num_in_ch': 3, 'num_out_ch': 3},
                       'taps': ['body.0']}},
        BOTH + 'images with 1 channel; PromptedNetwork expects 3. Set `channels: 3` in all tasks.',
    ),
    (
        True,
        {'network_g': COMPACT | {'num_out_ch': 3}},
        BOTH + 'images with 1 channel; SRVGGNetCompact returns 3. Set `num_in_ch: 1` and `num_out_ch: 1` in netw',
    ),
]  # fmt: skip


@pytest.mark.parametrize(('is_grey', 'changes', 'said'), CHANNELS)
def test_a_network_of_other_channels_than_the_tasks(is_grey: bool, changes: dict[str, Any], said: str) -> None:
    options = training()
    del options['train']['prompt_opt']
    (told,) = problems_of(changes, grey(options) if is_grey else options)
    assert told.startswith(said)


@pytest.mark.parametrize('network', [{'inp_channels': 1, 'out_channels': 1}, NAFNET | {'img_channel': 1}, COMPACT])
def test_a_network_of_one_channel_goes_with_grey_tasks(network: dict[str, Any]) -> None:
    options = grey(training())
    del options['train']['prompt_opt']
    options['network_g'] = network if 'type' in network else options['network_g'] | network
    assert problems_of({}, options) == []


def test_channels_of_a_sensor() -> None:
    options = grey(training())
    options['model_type'], options['network_g'] = 'SensorModel', {'type': 'DegradationSensor', 'dim': 4}
    for key in ('pixel_opt', 'frequency_opt', 'prompt_opt', 'loss_scaler'):
        del options['train'][key]
    options['val'] = {'val_freq': 4, 'save_img': False}
    (told,) = problems_of({}, copy.deepcopy(options))
    assert told.endswith(
        'DegradationSensor expects 3. Set `channels: 3` in all tasks, or set `inp_channels: 1` in network_g.'
    )
    assert problems_of({'network_g.inp_channels': 1}, options) == []
