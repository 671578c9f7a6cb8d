"""Every verb reads the same weights from the same files."""

import logging
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from promptir_basicsr import cli
from promptir_basicsr.explain.experiments import untrained_network
from promptir_basicsr.inference.restorer import Restorer
from tests.explain.explain_data import PROMPTIR, options_of

# isort: split
from basicsr.utils import logger as host_logger

WRAPPERS = ['module.', '_orig_mod.', 'model.net.', 'net._orig_mod.module.']


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, options, and the weights of one network in several files."""
    folder = tmp_path_factory.mktemp('weights')
    state = untrained_network(PROMPTIR, 1).state_dict()
    torch.save({'params': state}, folder / 'plain.pth')
    for number, wrapper in enumerate(WRAPPERS):
        named = {f'{wrapper}{name}': value for name, value in state.items()}
        torch.save({'epoch': 1, 'state_dict': {**named, 'loss.weight': torch.zeros(1)}}, folder / f'{number}.ckpt')
    Image.effect_noise((24, 16), 40).convert('RGB').save(folder / 'a.png')
    options = {**options_of(PROMPTIR, ['denoise']), 'num_gpu': 0}
    (folder / 'tiny.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])


FILES = ['plain.pth', *(f'{number}.ckpt' for number in range(len(WRAPPERS)))]


@pytest.mark.parametrize('file', FILES[1:])
def test_convert_and_restore_and_the_page(file: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name in ('plain.pth', file):
        assert cli.main(['convert', str(folder / name)]) == 0
        sums = re.findall('SHA-256 +(.*)', capsys.readouterr().out)
        assert cli.main(['restore', str(folder / 'a.png'), '-o', name, '--weights', str(folder / name)]) == 0
        found.append((sums, (Path(name) / 'a.png').read_bytes()))
    assert found[0] == found[1]
    weights = [Restorer(folder / name, device='cpu').checkpoint.weights for name in ('plain.pth', file)]
    assert all(torch.equal(value, weights[0][name]) for name, value in weights[1].items())


def test_export_explain_and_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opt, file = folder / 'tiny.yml', str(folder / FILES[-1])
    assert cli.main(['export', file, 'net.pt2', '--fixed', '16x24']) == 0
    small = ['--images', '2', '--size', '16', '--untrained', '0', '--permutations', '19', '--device', 'cpu']
    several = folder / 'several.yml'
    several.write_text(yaml.safe_dump(options_of(PROMPTIR), sort_keys=False))
    assert cli.main(['explain', '-opt', str(several), '--weights', file, '--out', 'explained', *small]) == 0
    logger = logging.getLogger('basicsr')
    host_logger.initialized_logger.clear()
    tables = []
    try:
        for name in ('plain.pth', FILES[-1]):
            changes = [f'path:pretrain_network_g={folder / name}', f'name={name[0]}']
            assert cli.main(['test', '-opt', str(opt), '--force_yml', *changes]) == 0
            tables.append((Path('results') / name[0] / 'metrics.csv').read_text().replace(f'\n{name[0]},', '\n'))
    finally:
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        host_logger.initialized_logger.clear()
    assert tables[0] == tables[1]
