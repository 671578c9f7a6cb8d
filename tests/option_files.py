"""What lets the files in options/ run in seconds: corpora of a few small images, and changes of options."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import skimage.data

from promptir_basicsr.core.yaml_loader import load_yaml

OPTIONS = Path(__file__).parents[1] / 'options'
DEMOS = {'demo.yml': ['val'], 'pip_demo.yml': ['val'], 'airnet_demo.yml': ['val'], 'sensor_demo.yml': ['val', 'val_2']}
KINDS = 'low haze rain snow low_haze low_rain low_snow haze_rain haze_snow low_haze_rain low_haze_snow'.split()
SHORT = [
    'datasets:train:gt_size=32',
    'datasets:train:batch_size_per_gpu=1',
    'datasets:train:num_worker_per_gpu=0',
    'train:total_iter=2',
    'val:val_freq=2',
    'val:pbar=false',
    'logger:print_freq=1',
]

# Networks as published train in one file; the others differ from it in their data.
SMALL = ['network_g:dim=8', 'network_g:heads=[1,1,1,1]', 'network_g:num_blocks=[1,1,1,1]']
SMALL_PIP = [*SMALL, 'network_g:prompt_dims=~', 'network_g:prompt_sizes=[8,8,8]']
SMALL_AIRNET = ['network_g:dim=4', 'network_g:num_groups=1', 'network_g:num_blocks=1']
SMALL_OF = {
    'pip_allinone.yml': SMALL_PIP,
    'pip_5d.yml': SMALL_PIP,
    'pip_5d_stages.yml': [
        *SMALL_PIP,
        'datasets:train:stages:0:until=1',
        'datasets:train:stages:1:gt_size=40',
        'datasets:train:stages:1:batch_size_per_gpu=2',
    ],
    'pip_swinir.yml': [
        'network_g:network:depths=[1,1]',
        'network_g:network:num_heads=[2,2]',
        'network_g:network:embed_dim=12',
        'network_g:taps:0:prompt_dim=12',
        'network_g:taps:1:prompt_dim=12',
    ],
    'pip_nafnet.yml': ['network_g:width=4', 'network_g:enc_blk_nums=[1,1,1,1]', 'network_g:prompt_dims=~'],
    'airnet_allinone.yml': [*SMALL_AIRNET, 'train:encoder_iter=1'],
    'airnet_allinone_released.yml': [
        *SMALL_AIRNET,
        'train:encoder_iter=1',
        'datasets:train:batch_size_per_gpu=5',
        'datasets:train:sampling:epoch_size=15',
    ],
    'airnet_demo.yml': ['train:encoder_iter=1'],
}
FULL_SIZE = ('promptir_allinone.yml', 'sensor.yml', *(name for name in DEMOS if name not in SMALL_OF))
WARMED_UP = (
    'promptir_allinone_fast.yml',
    'promptir_5d_fast.yml',
    'promptir_5d.yml',
    'promptir_cdd11.yml',
    'promptir_allweather.yml',
    'sensor.yml',
    'pip_allinone.yml',
    'pip_5d.yml',
    'pip_5d_stages.yml',
    'pip_swinir.yml',
    *DEMOS,
)


def write_released_tree(folder: Path) -> None:
    """Write `data/` as the released programs have it."""
    photographs = [skimage.data.chelsea(), skimage.data.coffee()]

    def write(name: str, number: int) -> None:
        path = folder / 'data' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photographs[number % 2][100:148, 150:206, ::-1])

    def write_list(name: str, entries: Iterable[str]) -> None:
        path = folder / 'data' / 'data_dir' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(entries) + '\n')

    clean = ['12074.jpg', 'a247012.jpg']
    for number, name in enumerate(clean):
        write(f'Train/Denoise/{name}', number)
        write(f'test/denoise/bsd68/{name}', number)
    write_list('noisy/denoise.txt', clean)
    for number in (1, 2):
        write(f'Train/Derain/rainy/rain-{number}.png', number)
        write(f'Train/Derain/gt/norain-{number}.png', number)
        write(f'test/derain/Rain100L/input/{number}.png', number)
        write(f'test/derain/Rain100L/target/{number}.png', number)
    write_list('rainy/rainTrain.txt', ['rainy/rain-1.png', 'rainy/rain-2.png'])
    hazy = ['synthetic/part1/0025_0.8_0.04.jpg', 'synthetic/part1/0025_1_0.2.jpg', 'synthetic/part2/0062_0.9_0.1.jpg']
    for name in hazy:
        write(f'Train/Dehaze/{name}', 0)
    for scene in ('0025', '0062'):
        write(f'Train/Dehaze/original/{scene}.jpg', 0)
    write('test/dehaze/input/0001_0.8_0.2.jpg', 0)
    write('test/dehaze/target/0001.png', 0)
    write_list('hazy/hazy_outside.txt', hazy)
    for lq, gt in (
        ('Train/Deblur/blur', 'Train/Deblur/sharp'),
        ('test/deblur/gopro/input', 'test/deblur/gopro/target'),
        ('Train/Enhance/low', 'Train/Enhance/gt'),
        ('test/enhance/lol/input', 'test/enhance/lol/target'),
    ):
        write(f'{lq}/1.png', 1)
        write(f'{gt}/1.png', 0)
    for part in ('train', 'test'):
        for kind in (*KINDS, 'clear'):
            write(f'CDD-11_{part}/{kind}/00001.png', 1)
    for name in ('city_read_00001.jpg', 'im_0402_s90_a06.png', '12_rain.png'):
        write(f'train/allweather/input/{name}', 0)
        write(f'train/allweather/gt/{name}', 1)
    for lq, gt in (
        ('Snow100K-L/synthetic/city_read_00002.jpg', 'Snow100K-L/gt/city_read_00002.jpg'),
        ('Test1/input/im_0301_s80_a04.png', 'Test1/gt/im_0301.png'),
        ('RainDrop/test_a/data/0_rain.png', 'RainDrop/test_a/gt/0_clean.png'),
    ):
        write(f'test/{lq}', 0)
        write(f'test/{gt}', 1)


def short(name: str) -> list[str]:
    """Changes that make a file run in seconds."""
    changes = [*SHORT, *([] if name in FULL_SIZE else SMALL_OF.get(name, SMALL))]
    for key in DEMOS.get(name, ()):
        tasks = load_yaml(str(OPTIONS / name))['datasets'][key]['tasks']
        changes += [f'datasets:{key}:tasks:{n}:files=[microaneurysms.png]' for n in range(len(tasks))]
    return [*changes, *(['train:scheduler:warmup_iter=1'] if name in WARMED_UP else [])]
