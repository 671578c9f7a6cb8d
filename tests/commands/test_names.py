"""Control characters in names of files, of tensors and in metadata never reach the terminal."""

import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from promptir_basicsr import cli
from promptir_basicsr.explain.experiments import untrained_network
from tests.explain.explain_data import PROMPTIR, options_of

# isort: split
from basicsr.utils import logger as host_logger

ODD, SHOWN = 'a\x1b[31m\nb', 'a\\x1b[31m\\nb'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*words: object, status: int) -> str:
        capsys.readouterr()
        assert cli.main([*map(str, words)]) == status
        said = ''.join(capsys.readouterr())
        assert [c for c in said if not c.isprintable() and c not in '\n\t\r'] == []
        assert SHOWN in said
        return said

    return run


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a file of an odd name, with odd metadata and the name of an odd tensor."""
    path = tmp_path_factory.mktemp('weights') / f'{ODD}.pth'
    state = {f'net.{name}': value for name, value in untrained_network(PROMPTIR, 1).state_dict().items()}
    known = {'format': 1, 'name': ODD, 'tasks': [ODD], 'metrics': {'rows': [{'task': ODD, ODD: 1.0}]}}
    torch.save({'params': {**state, f'loss.{ODD}': torch.zeros(1)}, 'metadata': known}, path)
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((24, 16), 40).convert('RGB').save(path)
    return path


def data(folder: Path, *names: str, damaged: bool = False) -> Path:
    """An option file with images of these names; its own name is odd as well."""
    for name in names:
        path = picture(folder / 'images' / name)
        if damaged:
            path.write_bytes(path.read_bytes()[:-60])
    options = {**options_of(PROMPTIR, ['denoise']), 'num_gpu': 0}
    task = {key: value for key, value in options['datasets']['val']['tasks'][0].items() if key != 'files'}
    options['datasets']['val']['tasks'] = [{**task, 'clean': str(folder / 'images')}]
    opt = folder / f'{ODD}.yml'
    opt.write_text(yaml.safe_dump(options, sort_keys=False))
    return opt


def test_restore(here: Path, weights: Path, run) -> None:
    picture(here / 'in' / f'{ODD}.png')
    (here / 'in' / f'torn{ODD}.png').write_bytes((here / 'in' / f'{ODD}.png').read_bytes()[:-40])
    said = run('restore', 'in', '-o', 'out', '--weights', weights, status=1)
    assert f'in/{SHOWN}.png -> out/{SHOWN}.png' in said
    assert f"failed: 'in/torn{SHOWN}.png'" in said
    run('restore', 'in', '-o', 'out', '--weights', weights, status=2)  # they are there already
    run('restore', 'in', '-o', 'out2', '--weights', here / ODD, status=2)


def test_convert(weights: Path, run) -> None:
    said = run('convert', weights, f'new{ODD}.ckpt', status=0)
    for part in (
        f'/{SHOWN}.pth\n',
        f'unknown       1: loss.{SHOWN}\n',
        f'name          {SHOWN}\n',
        f'new{SHOWN}.ckpt\n',
    ):
        assert part in said
    run('convert', weights, f'new{ODD}.ckpt', status=2)
    run('convert', f'{ODD}.none', status=2)


def test_export(weights: Path, run) -> None:
    assert f'{SHOWN}.pt2: ' in run('export', weights, f'{ODD}.pt2', '--fixed', '16x24', status=0)
    run('export', weights, f'{ODD}.pt2', status=2)


@pytest.mark.parametrize('damaged', [True, False])
def test_check(damaged: bool, here: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = data(here, f'{ODD}.png', 'b.png', damaged=damaged)
    run('check', '-opt', opt, '--force_yml', 'datasets:val:tasks:0:expected_images=3', status=1)
    run('check', '-opt', f'{ODD}.none', status=2)


def test_prepare(here: Path, run) -> None:
    opt = data(here, f'{ODD}.png', 'b.png')
    said = run('prepare', '-opt', opt, '--out', f'out{ODD}', status=0)
    assert f'basicsr train -opt out{SHOWN}/{SHOWN}.yml' in said
    data(here, f'{ODD}.png', damaged=True)
    said = run('prepare', '-opt', opt, '--out', f'other{ODD}', status=1)
    assert f'images/{SHOWN}.png' in said


def test_explain(here: Path, weights: Path, run) -> None:
    opt = shutil.copy(data(here), here / f'opt{ODD}.yml')
    Path(opt).write_text(yaml.safe_dump(options_of(PROMPTIR), sort_keys=False))
    small = [
        '--images',
        '2',
        '--size',
        '16',
        '--untrained',
        '0',
        '--permutations',
        '19',
        '--device',
        'cpu',
        '--no-page',
    ]
    arguments = ['-opt', opt, '--weights', weights, '--out', f'out{ODD}', *small]
    assert run('explain', *arguments, status=0).endswith(f'out{SHOWN}\n')
    run('explain', *arguments, status=2)  # the folder is not empty


def test_the_log_of_a_run(here: Path, weights: Path, run) -> None:
    opt = data(here, 'b.png')
    options = yaml.safe_load(opt.read_text())
    opt.write_text(yaml.safe_dump({**options, 'path': {'pretrain_network_g': str(weights)}}, sort_keys=False))
    logger = logging.getLogger('basicsr')
    host_logger.initialized_logger.clear()
    try:
        said = run('test', '-opt', opt, status=0)
    finally:
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        host_logger.initialized_logger.clear()
    assert f'Loading PromptIR model from {weights.parent}/{SHOWN}.pth (params)' in said
    (log,) = here.glob('results/*/*.log')
    assert '\x1b' not in log.read_text()


def test_arguments_that_are_not_understood(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(['restore', 'a.png', '--tile', ODD])
    said = capsys.readouterr().err
    assert '\x1b' not in said
    run(ODD, status=2)
