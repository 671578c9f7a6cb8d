"""Networks, data sets, metrics, losses and sizes, combined at random from a seed: what `train` accepts must train.

`python combined_training.py FOLDER SEED CASES` writes FOLDER/found.json: of each combination what was combined, the
status of `basicsr train` for two iterations and a validation, and what it said where it was neither 0 nor 2, nor 1 for
images that `basicsr check` finds. Each training is a fork of this process, which has everything imported.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import yaml

from tests.models.disturbed_training import run
from tests.models.test_resume import ENVIRONMENT

TINY = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 1, 1]}
ODD_CHANNELS = [(1, 1), (3, 3), (1, 3), (3, 1), (6, 3)]
WORDS = ('denoise', 'derain', 'dehaze', 'deblur', 'lowlight', 'moire')


def network(draw: random.Random, channels: int) -> dict[str, Any]:
    """A network that in most cases fits images of so many channels."""
    into, out = draw.choice(ODD_CHANNELS) if draw.random() < 0.1 else (channels, channels)
    kind = draw.choice(
        ['PromptIR'] * 3
        + ['PIPRestormer'] * 2
        + ['PIPNAFNet', 'SwinIR', 'RRDBNet', 'EDSR', 'RCAN', 'RIDNet', 'SRVGGNetCompact', 'PromptedNetwork'] * 2
        + (['MSRResNet', 'DegradationSensor', 'VGGStyleDiscriminator'] if draw.random() < 0.3 else [])
    )
    of_others = {'num_in_ch': into, 'num_out_ch': out}
    options: dict[str, dict[str, Any]] = {
        'PromptIR': {**TINY, 'inp_channels': into, 'out_channels': out, 'prompt_sizes': [4, 4, 4]},
        'PIPRestormer': {
            **TINY,
            'inp_channels': into,
            'out_channels': out,
            'prompt_dims': [12, 12, 12],
            'num_degradations': draw.choice([1, 5, 5, 5, 6]),
        },
        'PIPNAFNet': {
            'img_channel': into,
            'width': 8,
            'enc_blk_nums': [1, 1, 1, 1],
            'prompt_dims': [16, 16, 16, 16],
            'prompt_sizes': [8, 8, 8, 8],
        },
        'SwinIR': {
            'img_size': draw.choice([8, 16, 32]),
            'in_chans': into,
            'embed_dim': 12,
            'depths': [1],
            'num_heads': [2],
            'window_size': draw.choice([4, 7, 8]),
            'upscale': draw.choice([1, 1, 1, 2]),
            'ape': draw.random() < 0.2,
        },
        'RRDBNet': {**of_others, 'scale': draw.choice([1, 1, 2]), 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4},
        'EDSR': {**of_others, 'num_feat': 8, 'num_block': 1, 'upscale': draw.choice([1, 1, 1, 2])},
        'RCAN': {**of_others, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': draw.choice([1, 1, 1, 2])},
        'RIDNet': {'in_channels': into, 'mid_channels': 16, 'out_channels': out, 'num_block': 1},
        'MSRResNet': {**of_others, 'num_feat': 8, 'num_block': 1, 'upscale': draw.choice([2, 4])},
        'SRVGGNetCompact': {**of_others, 'num_feat': 8, 'num_conv': 1, 'upscale': draw.choice([1, 1, 1, 2])},
        'DegradationSensor': {'dim': 8, 'inp_channels': into},
        'VGGStyleDiscriminator': {'num_in_ch': into, 'num_feat': 4},
        'PromptedNetwork': {
            'network': {'type': 'EDSR', **of_others, 'num_feat': 8, 'num_block': 1, 'upscale': 1},
            'taps': ['conv_after_body'],
        },
    }
    return {'type': kind, **options[kind]}


def pictures(draw: random.Random, folder: Path) -> list[str]:
    """A few photographs of some size; their folder's name may be long."""
    sides = draw.choice([(64, 80), (64, 80), (40, 33), (20, 6), (16, 16), (100, 97)])
    folder.mkdir()
    names = []
    for number in range(draw.choice([1, 2, 3])):
        height, width = (max(1, side - draw.choice([0, 0, 3])) for side in sides)
        image = skimage.data.astronaut()[50 * number :, 60:][:height, :width, ::-1]
        image = image if draw.random() < 0.8 else image[..., :1]
        name = ('n' * draw.choice([1, 1, 1, 240])) + f'{number}.png'
        (folder / name).write_bytes(cv2.imencode('.png', np.ascontiguousarray(image))[1].tobytes())
        names.append(name)
    return names


def tasks(draw: random.Random, folder: Path, prefix: str, channels: int) -> list[dict[str, Any]]:
    """Synthesised and paired tasks."""
    found = []
    for number in range(draw.choice([1, 1, 2, 3])):
        name = f'{prefix}{number}'
        pictures(draw, folder / name)
        task: dict[str, Any] = {'name': name, 'type': draw.choice(WORDS[:5]), 'channels': channels}
        if draw.random() < 0.3:
            task |= {'lq': name, 'gt': name if draw.random() < 0.02 else f'{name}_gt'}
            (folder / f'{name}_gt').mkdir()
            for path in (folder / name).iterdir():
                image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                image = image[:-1] if draw.random() < 0.05 else image
                (folder / f'{name}_gt' / path.name).write_bytes(cv2.imencode('.png', 255 - image)[1].tobytes())
        else:
            kinds = [{'type': 'gaussian_noise', 'sigma': 25}, {'type': 'rain'}, {'type': 'haze'}, {'type': 'low_light'}]
            kinds += [{'type': 'defocus_blur', 'radius': 2}, {'type': 'jpeg', 'quality': 30}]
            task |= {'clean': name, 'degrade': draw.choice(kinds)}
        found.append(task)
    return found


def data_set(draw: random.Random, folder: Path, phase: str, channels: int) -> dict[str, Any]:
    kind = draw.choice(['AllInOneDataset'] * 14 + ['PairedImageDataset', 'SingleImageDataset'])
    options: dict[str, Any] = {'name': phase, 'type': kind}
    if phase == 'train':
        options |= {'batch_size_per_gpu': draw.choice([1, 2, 2, 3]), 'num_worker_per_gpu': 0}
        options['gt_size'] = draw.choice([8, 16, 16, 16, 20, 32, 32, 32, 48])
    if kind == 'AllInOneDataset':
        options['tasks'] = tasks(draw, folder, phase, channels)
        options['crop_multiple'] = draw.choice([1, 1, 8, 16])
        if phase == 'train':
            options['dataset_enlarge_ratio'] = 10
        return options
    pictures(draw, folder / phase)
    if draw.random() < 0.2:
        for path in (folder / phase).iterdir():
            path.unlink()
    options |= {'dataroot_lq': phase, 'io_backend': {'type': 'disk'}}
    if kind == 'PairedImageDataset':
        options |= {'dataroot_gt': phase, 'use_hflip': True, 'use_rot': False}
        options |= {'dataset_enlarge_ratio': 10} if phase == 'train' else {}
    return options


def validation(draw: random.Random) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = [
        {'type': 'calculate_paper_psnr'},
        {'type': 'calculate_paper_psnr', 'crop_border': draw.choice([1, 1, 4, 30]), 'test_y_channel': True},
        {'type': 'calculate_paper_ssim', 'window': draw.choice(['uniform', 'gaussian'])},
        {'type': 'calculate_psnr', 'crop_border': draw.choice([0, 4]), 'test_y_channel': draw.random() < 0.5},
        {'type': 'calculate_ssim', 'crop_border': 0, 'test_y_channel': draw.random() < 0.5},
        {'type': 'calculate_niqe', 'crop_border': 0, 'better': 'lower'},
    ]
    chosen = draw.sample(metrics[:5], draw.choice([1, 2])) if draw.random() < 0.9 else metrics[5:]
    val = {'val_freq': 2, 'save_img': draw.random() < 0.5, 'metrics': {f'm{n}': each for n, each in enumerate(chosen)}}
    choices = [{}, {}, {'tile': draw.choice([8, 40, 64])}, {'ensemble': True}, {'size_multiple': 16}]
    choices += [{'contact_sheet': True}, {'precision': 'bf16'}, {'comparisons': 1}]
    choices += [{'labels': {'denoise': 1.0}}] if draw.random() < 0.2 else []
    return val | draw.choice(choices)


def combination(draw: random.Random, folder: Path) -> dict[str, Any]:
    """The options of a training."""
    losses: list[dict[str, Any]] = [{'pixel_opt': {'type': kind}} for kind in ('L1Loss', 'MSELoss', 'CharbonnierLoss')]
    losses += [{'frequency_opt': {'type': 'FrequencyLoss'}}]
    channels = draw.choice([3, 3, 3, 1])
    net = network(draw, channels)
    if draw.random() < (0.2 if 'P' in net['type'] else 0.05):
        losses = [{'pixel_opt': {'type': 'L1Loss'}, 'prompt_opt': {'type': 'PromptDecorrelationLoss'}}]
    options = {
        'name': 'run',
        'model_type': 'PromptModel' if draw.random() < 0.95 else 'SensorModel',
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {phase: data_set(draw, folder, phase, channels) for phase in ('train', 'val')},
        'network_g': net,
        'path': {},
        'train': {
            'total_iter': 2,
            'optim_g': {'type': draw.choice(['AdamW', 'Adam', 'SGD']), 'lr': 1e-4},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [1]},
            **draw.choice(losses),
        },
        'val': validation(draw),
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
    }
    options |= {'scale': 1} if draw.random() < 0.8 else {}
    options |= draw.choice([{}, {}, {}, {'precision': 'bf16'}, {'channels_last': True}])
    options['train'] |= draw.choice([{}, {}, {}, {'ema_decay': 0.9}, {'ema_decay': 0.9}, {'ema_decay': 0.9}])
    if draw.random() < 0.1:
        options['train']['accumulate'] = 2
    return options


CHECK = [sys.executable, '-m', 'promptir_basicsr', 'check']


def train(folder: Path) -> tuple[int, str]:
    """Status of `basicsr train` in a folder, and what it said."""
    log = folder / 'said.txt'
    child = os.fork()
    if not child:
        run(folder, os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text(errors='replace')


def main(folder: Path, seed: int, cases: int) -> None:
    found = []
    for number in range(cases):
        here = folder / f'{seed}_{number}'
        here.mkdir()
        options = combination(random.Random(f'{seed}.{number}'), here)
        (here / 'run.yml').write_text(yaml.safe_dump(options, sort_keys=False))
        status, said = train(here)
        left = [path.name for path in here.glob('experiments')]
        wrong = ''
        if status == 1 and 'differ in size' in said and 'Traceback' not in said:  # the start reads some images alone
            if (
                subprocess.run([*CHECK, '-opt', 'run.yml'], cwd=here, env=ENVIRONMENT, capture_output=True).returncode
                != 1
            ):
                wrong = f'not found by check: {said[-500:]}'
        elif status not in (0, 2) or 'Traceback' in said:
            wrong = said[-1500:]
        elif status == 2 and left:
            wrong = f'refused, after folders were made: {said[-500:]}'
        elif status == 0 and not (here / 'experiments/run/models/net_g_2.pth').exists():
            wrong = 'no weights'
        summary = (options['network_g']['type'], options['datasets']['train']['type'], options['model_type'])
        found.append({'case': here.name, 'what': summary, 'status': status, 'wrong': wrong, 'said': said[-300:]})
    (folder / 'found.json').write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
