"""What a training tells about its weights stands in their files, in words that every reader allows."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import skimage.data
import skimage.io
import torch
from torch import Tensor, nn

import promptir_basicsr
from promptir_basicsr.archs import PIPRestormer
from promptir_basicsr.checkpoints.checkpoint import read_checkpoint
from promptir_basicsr.checkpoints.reading import plain
from promptir_basicsr.core.registry import register
from promptir_basicsr.evaluation.results import Row, append_csv, average, last_measured, measured
from promptir_basicsr.models.metadata import training_metadata
from tests.models.model_options import NETWORK, run_options

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY


@register(ARCH_REGISTRY)
class GainNet(nn.Module):
    """One number times the image."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def loader(opt: dict[str, Any]) -> Any:
    """The validation set of a run, with one small photograph."""
    folder = Path(opt['path']['experiments_root']) / 'photographs'
    folder.mkdir()
    skimage.io.imsave(folder / 'a.png', skimage.data.chelsea()[100:124, 150:180])
    options = opt['datasets']['val']
    degrade = {'denoise': {'type': 'gaussian_noise', 'sigma': 25}, 'lowlight': {'type': 'low_light', 'exposure': 0.2}}
    options['tasks'] = [{'type': name, 'clean': str(folder), 'degrade': each} for name, each in degrade.items()]
    return build_dataloader(build_dataset(options), options, num_gpu=0)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run whose weights were saved at iterations 2 and 3 and measured at 2."""
    opt = run_options(tmp_path, network_g={'type': 'GainNet'}, train__ema_decay=0.9)
    model = build_model(opt)
    model.save(epoch=0, current_iter=2)
    model.validation(loader(opt), 2, None, False)
    model.save(epoch=0, current_iter=3)
    return tmp_path


def told(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)['metadata']


def test_weights_describe_their_network(trained: Path) -> None:
    first, third = (told(trained / 'models' / f'net_g_{iteration}.pth') for iteration in (2, 3))
    best = told(trained / 'models' / 'net_g_best.pth')
    assert (third['format'], third['package']) == (1, promptir_basicsr.__version__)
    assert third['network_g'] == {'type': 'GainNet'}
    assert (third['name'], third['iteration'], best['iteration']) == ('run', 3, 2)
    assert (third['tasks'], third['degradations']) == (['denoise', 'lowlight'], ['denoise', 'lowlight'])
    assert 'metrics' not in first  # it was saved before it was measured
    assert 'best' not in first
    assert third['metrics'] == best['metrics']
    with open(trained / 'metrics.csv', newline='') as file:
        table = list(csv.DictReader(file))
    rows = third['metrics']['rows']
    assert [row['task'] for row in rows] == ['denoise', 'lowlight', 'average']
    for row, line in zip(rows, table, strict=True):
        numbers = {key: value for key, value in row.items() if key not in ('dataset', 'task', 'images')}
        assert {key: repr(value) for key, value in numbers.items()} == {key: line[key] for key in numbers}
        assert {'psnr', 'ssim', 'input_psnr'} <= numbers.keys()
    assert third['best'] == {'metric': 'psnr', 'value': rows[-1]['psnr'], 'iter': 2}


def test_a_validation_that_is_made_up_for_knows_its_epoch(tmp_path: Path) -> None:
    """A resumed training repeats it before BasicSR tells the sampler the epoch."""
    build_model(run_options(tmp_path, network_g={'type': 'GainNet'})).save(epoch=3, current_iter=7)
    opt = run_options(tmp_path, network_g={'type': 'GainNet'}, train__total_iter=9)
    model = build_model(opt)
    model.resume_training(torch.load(tmp_path / 'training_states' / '7.state', weights_only=True))
    model.run.sampler = SimpleNamespace(epoch=0)
    model.validation(loader(opt), 7, None, False)
    assert (told(tmp_path / 'models' / 'net_g_best.pth')['epoch'], model.report.best['iter']) == (3, 7)


def test_basicsr_reads_weights_that_have_metadata(trained: Path) -> None:
    from basicsr.archs import build_network
    from basicsr.models.base_model import BaseModel

    path = trained / 'models' / 'net_g_3.pth'
    for key in ('params', 'params_ema'):
        net = build_network({'type': 'GainNet'})
        BaseModel({'num_gpu': 0, 'is_train': False}).load_network(net, str(path), True, key)
        assert torch.equal(net.gain, torch.load(path, weights_only=True)[key]['gain'])


def test_tests_of_weights_that_differ_only_by_seed_have_one_recipe(tmp_path: Path) -> None:
    facts = []
    for seed, rate, multiple in ((0, 1e-3, 8), (1, 1e-3, 8), (2, 2e-3, 8), (0, 1e-3, 16)):
        root = tmp_path / str(len(facts))
        opt = run_options(root, network_g={'type': 'GainNet'}, manual_seed=seed, train__optim_g__lr=rate)
        build_model(opt).save(epoch=0, current_iter=1)
        opt = run_options(root, is_train=False, network_g={'type': 'GainNet'}, val__size_multiple=multiple)
        opt['path']['pretrain_network_g'] = str(root / 'models' / 'net_g_1.pth')
        facts.append(build_model(opt).report.facts)
    first, second, other_training, other_test = (each['recipe'] for each in facts)
    assert first == second
    assert len({first, other_training, other_test}) == 3
    assert [each['seed'] for each in facts] == [0, 1, 2, 0]


def test_a_network_is_built_from_the_metadata_of_its_training(tmp_path: Path) -> None:
    opt = run_options(tmp_path, network_g={**NETWORK, 'num_prompts': 3})
    build_model(opt).save(epoch=0, current_iter=1)
    checkpoint = read_checkpoint(tmp_path / 'models' / 'net_g_1.pth')
    assert checkpoint.network == {**NETWORK, 'num_prompts': 3}
    assert 'as the file says' in ' '.join(checkpoint.notes)
    assert checkpoint.metadata['tasks'] == ['denoise', 'lowlight']


def test_names_of_degradations_are_the_networks() -> None:
    with torch.device('meta'):
        net = PIPRestormer(dim=8, num_blocks=(1, 1, 1, 1), num_degradations=2, degradations=('rain', 'snow'))
    found = training_metadata({'network_g': {'type': 'PIPRestormer'}}, net, 5, 1, None, None, {})
    assert found['degradations'] == ['rain', 'snow']
    assert (found['iteration'], found['epoch']) == (5, 1)
    assert not {'metrics', 'best', 'protocol', 'name', 'tasks'} & found.keys()


def test_a_protocol_is_named_with_its_tasks() -> None:
    opt = {'network_g': {'type': 'GainNet'}, 'datasets': {'train': {'type': 'AllInOneDataset', 'protocol': '5d_adair'}}}
    found = training_metadata(opt, nn.Linear(1, 1), 1, None, None, None, {})
    assert found['protocol'] == '5d_adair'
    assert {'denoise', 'derain', 'dehaze', 'deblur', 'lowlight'} == set(found['degradations'])
    assert len(found['tasks']) >= 5


def test_the_table_gives_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / 'metrics.csv'
    rows = [Row('val', 'denoise', 3, {'psnr': 31.25, 'ssim': 0.1 + 0.2}, {'psnr': 20.0, 'ssim': float('inf')})]
    rows.append(average(rows))
    assert last_measured('') is None
    for iteration in (2, 10):
        append_csv(str(path), iteration, rows, ['psnr', 'ssim'])
    assert last_measured(path.read_text()) == measured(10, rows)
    append_csv(str(path), 'latest', rows, ['psnr', 'ssim'])  # of a test
    assert last_measured(path.read_text()) == measured(10, rows)


def test_plain_values_are_of_types_that_readers_allow(tmp_path: Path) -> None:
    odd = {'path': tmp_path, 'pair': (1, 2.5), 3: {'none': None, 'flag': True, 'list': [Path('a')]}}
    found = plain(odd)
    assert found == {'path': str(tmp_path), 'pair': [1, 2.5], '3': {'none': None, 'flag': True, 'list': ['a']}}
    torch.save(found, tmp_path / 'told.pth')
    assert torch.load(tmp_path / 'told.pth', weights_only=True) == found
