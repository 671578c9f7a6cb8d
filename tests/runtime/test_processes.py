"""Two processes share a validation and find what one finds. They are real ones, which meet over gloo."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import skimage.data
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model

from promptir_basicsr.core.errors import ImageError, OptionError
from promptir_basicsr.runtime.processes import Share
from tests.models.model_options import NETWORK, run_options
from tests.tiny_training import written

SENSOR = {'type': 'DegradationSensor', 'dim': 8, 'num_blocks': 1}
PIP = {**NETWORK, 'type': 'PIPRestormer', 'sensor': SENSOR}


class Numbers(Dataset):
    """0, 1, 2, ...; what is read of it is kept."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


def photographs(folder: Path) -> None:
    """Crops: five of the set `many`, one of the set `few`."""
    for name, number in (('many', 5), ('few', 1)):
        (folder / name).mkdir()
        for i in range(number):
            crop = skimage.data.chelsea()[60 + 20 * i : 84 + 20 * i, 100 : 129 + 3 * i]
            cv2.imwrite(str(folder / name / f'{i}.png'), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))


def options(root: Path, images: Path, **changes: Any) -> dict[str, Any]:
    """Two sets for a validation: eight images of three tasks, fewer images than processes."""

    def task(name: str, kind: str, degrade: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {'name': name, 'type': kind, 'clean': str(images / 'many'), 'degrade': degrade, **more}

    noise = {'type': 'gaussian_noise', 'sigma': 25}
    tasks = [
        task('single', 'lowlight', {'type': 'low_light', 'exposure': 0.1}, files=['0.png']),
        task('noise', 'denoise', noise),
        task('rain', 'derain', {'type': 'rain'}, files=['2.png', '4.png']),
    ]
    few = [{'name': 'noise', 'type': 'denoise', 'clean': str(images / 'few'), 'degrade': noise}]
    opt = run_options(root, val__contact_sheet=True, val__comparisons=2, network_g=copy.deepcopy(NETWORK))
    opt['datasets'].update(
        val={'name': 'many', 'type': 'AllInOneDataset', 'phase': 'val', 'tasks': tasks},
        val_2={'name': 'few', 'type': 'AllInOneDataset', 'phase': 'val', 'tasks': few},
    )
    for place, value in changes.items():
        section, _, key = place.rpartition('__')
        (opt[section] if section else opt)[key] = value
    return opt


def sensor_of(root: Path, images: Path, weights: Path) -> dict[str, Any]:
    """PIP with a sensor that labels its images."""
    return options(root, images, network_g=PIP, val__labels='sensor', path__pretrain_network_sensor=str(weights))


def sensing(root: Path, images: Path, weights: Path) -> dict[str, Any]:
    """The sensor itself."""
    return options(root, images, network_g={**SENSOR}, model_type='SensorModel', val={'val_freq': 1, 'save_img': False})


def restoring(root: Path, images: Path, weights: Path) -> dict[str, Any]:
    """PromptIR with averaged weights and pictures."""
    opt = options(root, images)
    opt['train']['ema_decay'] = 0.5
    return opt


CASES: dict[str, Callable[[Path, Path, Path], dict[str, Any]]] = {
    'restoring': restoring,
    'sensor of': sensor_of,
    'sensing': sensing,
}


def validate(opt: dict[str, Any], rank: int = 0, processes: int = 1) -> None:
    """Two validations with weights of seed 0, the second with others."""
    torch.manual_seed(0)
    model = build_model(opt)
    # A wrapper for training is not needed for that.
    model.opt.update(dist=processes > 1, rank=rank, world_size=processes)
    loaders = [build_dataloader(build_dataset(opt['datasets'][key]), opt['datasets'][key]) for key in ('val', 'val_2')]
    for iteration in (1, 2):
        for loader in loaders:
            model.validation(loader, iteration, None, opt['val']['save_img'])
        for net in (model.net_g, getattr(model, 'net_g_ema', model.net_g)):
            for parameter in net.parameters():
                nn.init.normal_(parameter, std=0.02)


def together(rank: int, folder: str, images: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    logging.getLogger('basicsr').setLevel('ERROR')
    root = Path(folder)
    distributed.init_process_group('gloo', init_method=f'file://{root}/meeting', rank=rank, world_size=2)
    try:
        share = Share(rank, 2)
        found = {'order': orders(share), 'buffers': buffers(share), 'errors': errors(share)}
        torch.save(found, root / f'rank{rank}.pth')
        for name, case in CASES.items():
            validate(case(root / name, Path(images), root / 'sensor.pth'), rank, 2)
    finally:
        distributed.destroy_process_group()


def orders(share: Share) -> list[tuple[list[int], list[int]]]:
    """What was read here of 0 to 5 images, and what came together."""
    found = []
    for length in range(6):
        numbers = Numbers(length)
        own = [batch.item() for batch in share.of(DataLoader(numbers, batch_size=1))]
        assert own == numbers.read
        found.append((own, share.in_order(own)))
    return found


def buffers(share: Share) -> dict[str, torch.Tensor]:
    """Of two normalisations that saw other batches here and there."""
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2).to(memory_format=torch.channels_last))
    for _ in range(share.rank + 1):
        net(torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(share.rank)))
    share.equalize(net)
    return net.state_dict()


def errors(share: Share) -> list[tuple[str, str]]:
    """What this process ends with when the second one fails, or the first, or both."""
    found = []
    for failing, error in (
        ([1], ImageError('a.png: not a readable image')),
        ([1], OptionError(['one', 'two'])),
        ([0], KeyError('gt')),
        ([0, 1], OSError(f'disk {share.rank}')),
        ([], None),
    ):
        try:
            with share.failing_together():
                if share.rank in failing:
                    raise error  # type: ignore[misc]
        except Exception as caught:
            found.append((type(caught).__name__, str(caught)))
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, and one."""
    folder = tmp_path_factory.mktemp('share')
    (folder / 'images').mkdir()
    photographs(folder / 'images')
    torch.manual_seed(1)
    sensor = build_model(sensing(folder / 'first', folder / 'images', Path()))
    torch.save({'params': sensor.net_g.state_dict()}, folder / 'sensor.pth')
    torch.multiprocessing.spawn(together, args=(str(folder), str(folder / 'images')), nprocs=2)
    return folder


def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f'rank{rank}.pth', weights_only=True) for rank in (0, 1)]


def test_every_image_is_read_once_and_results_keep_their_order(folder: Path) -> None:
    orders = [each['order'] for each in found(folder)]
    for length in range(6):
        assert [each[length][0] for each in orders] == [[*range(0, length, 2)], [*range(1, length, 2)]]
        assert [each[length][1] for each in orders] == [[*range(length)]] * 2


def test_buffers_are_those_of_the_first_process(folder: Path) -> None:
    first, second = (each['buffers'] for each in found(folder))
    assert first['0.num_batches_tracked'].item() == 1
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first['0.running_mean'].abs().min() > 0


def test_all_processes_fail_with_the_one_that_does(folder: Path) -> None:
    first, second = (each['errors'] for each in found(folder))
    assert first == [
        ('ImageError', 'process 1: a.png: not a readable image'),
        ('OptionError', 'process 1: one\nprocess 1: two'),
        ('KeyError', "'gt'"),
        ('OSError', 'disk 0'),
    ]
    assert second == [
        ('ImageError', 'a.png: not a readable image'),
        ('OptionError', 'one\ntwo'),
        ('RuntimeError', "The validation failed in process 0: KeyError: 'gt'"),
        ('OSError', 'disk 1'),
    ]


@pytest.mark.parametrize('name', CASES)
def test_two_processes_write_what_one_writes(name: str, folder: Path, tmp_path: Path) -> None:
    """To the last bit: tables, numbers, pictures and the best weights."""
    validate(CASES[name](tmp_path, folder / 'images', folder / 'sensor.pth'))
    expected = written(tmp_path)
    assert written(folder / name) == expected
    assert {Path(path).name for path in expected} >= {'results.md', 'metrics.csv', 'net_g_best.pth', 'net_g_best.json'}
    text = expected['results.md'].decode()
    assert ('| many: noise | 5 |' in text, '| few: noise | 1 |' in text) == (True, True)
    if name == 'sensor of':
        assert 'many: noise: ' in text
        assert 'of 5 recognised, mean confidence' in text
    if name == 'restoring':
        assert 'contact_sheet.png' in expected
        # Two of five and two of two images, in both validations.
        pictures = [path for path in expected if path.startswith('visualization/')]
        assert len(pictures) == 2 * (1 + 2 + 2 + 1)
