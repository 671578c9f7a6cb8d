"""`basicsr measure` and `basicsr compare`: restored images give the numbers of the test that has written them."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import yaml

from promptir_basicsr import cli
from promptir_basicsr.evaluation.record import Results, read_results
from tests.models.model_options import NETWORK

BOTH = ['restored', '--target', 'clear']
METRICS = {'psnr': {'type': 'calculate_paper_psnr'}, 'ssim': {'type': 'calculate_paper_ssim'}}
# rule -> clear file, degraded file, task options, templates for what `test` has written
RULES: dict[str, tuple[str, str, dict[str, str], list[str]]] = {
    'same_name': ('gt/{}.png', 'lq/{}.png', {'lq': 'data/lq', 'gt': 'data/gt'}, ['{id}_restored.{ext}', '{id}.{ext}']),
    'rain100l_test': ('target/{}.png', 'input/{}.png', {'root': 'data'}, ['{id}_restored.{ext}', 'target/{id}.{ext}']),
    'gopro_nested': (
        's{}/sharp/7.png',
        's{}/blur/7.png',
        {'root': 'data'},
        ['{seq}_blur_{id}_restored.{ext}', '{seq}/sharp/{id}.{ext}'],
    ),
}


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def run_test(folder: Path, rule: str, bits: int) -> Results:
    """A test of a small network on three pairs."""
    clear_name, lq_name, options, _ = RULES[rule]
    for number in range(3):
        clear = skimage.data.astronaut()[40 * number :, 100:][:50, :60].astype(np.uint16)
        degraded = clear // 2 + 20
        for name, image in ((clear_name, clear), (lq_name, degraded)):
            pixels = (image * 257).astype(np.uint16) if bits == 16 else image.astype(np.uint8)
            write(folder / 'data' / name.format(number), pixels)
    task = {'name': 'pairs', 'type': 'derain', **options, **({'pairing': rule} if 'root' in options else {})}
    opt = {
        'name': 'tested',
        'model_type': 'PromptModel',
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {'test': {'name': 'set', 'type': 'AllInOneDataset', 'crop_multiple': 8, 'tasks': [task]}},
        'network_g': dict(NETWORK),
        'path': {},
        'val': {'save_img': True, 'metrics': METRICS},
    }
    (folder / 'test.yml').write_text(yaml.safe_dump(opt))
    os.chdir(folder)
    assert cli.main(['test', '-opt', 'test.yml']) == 0
    return read_results('results/tested')


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('rule', RULES)
def test_restored_images_give_the_numbers_of_the_test(
    rule: str, bits: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_test(here, rule, bits)
    target = 'data/gt' if rule == 'same_name' else 'data'
    restored = 'results/tested/visualization/set/pairs'
    command = ['measure', restored, '--target', target, '--crop-multiple', '8', '--pairing', *RULES[rule][3]]
    assert cli.main([*command, '-o', 'measured.json']) == 0
    (measured,) = read_results('measured.json').tasks
    (task,) = results.tasks
    assert measured.images == task.images == 3
    close = {'psnr': 0.02, 'ssim': 1e-3} if bits == 8 else {'psnr': 1e-3, 'ssim': 1e-5}
    for metric, value in task.values.items():
        assert measured.values[metric] == pytest.approx(value, abs=close[metric])
    assert f'{measured.values["psnr"]:.2f}' in capsys.readouterr().out
    assert results.facts['network'] == 'PromptIR'
    assert results.facts['parameters'] > 0
    text = Path('results/tested/results.md').read_text()
    assert f'- parameters: {results.facts["parameters"]:,}' in text


def test_a_measured_folder_is_compared_with_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_test(here, 'same_name', 16)
    restored = 'results/tested/visualization/set/pairs'
    command = ['measure', restored, '--target', 'data/gt', '--crop-multiple', '8', '--pairing', *RULES['same_name'][3]]
    assert cli.main([*command, '-o', 'measured.json', '--name', 'theirs']) == 0
    capsys.readouterr()
    assert cli.main(['compare', 'ours=results/tested', 'measured.json']) == 0
    head, _, ours, theirs, *_ = capsys.readouterr().out.splitlines()
    assert head == '| psnr / ssim | params (M) | Gops | pairs |'
    assert ours.startswith('| ours | ')
    assert theirs.startswith('| theirs | ')
    assert ours.split('|')[-2] == theirs.split('|')[-2]
    for form in ('latex', 'csv', 'html'):
        assert cli.main(['compare', 'results/tested', 'measured.json', '--format', form, '-o', f'table.{form}']) == 0
        assert Path(f'table.{form}').stat().st_size > 100
    assert cli.main(['compare', 'results/tested', '-o', 'table.csv']) == 2
    assert "'table.csv' already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['nothing', '--target', 'clear'], "RESTORED: the folder 'nothing' does not exist"),
        (['restored', '--target', 'nothing'], "--target: the folder 'nothing' does not exist"),
        (['restored'], 'pass either --target (the folder of ground-truth images) or --protocol.'),
        ([*BOTH, '--metrics', 'psrn'], "--metrics: unknown metric 'psrn'. Did you mean 'psnr'?"),
        ([*BOTH, '--pairing', 'lool'], "unknown pairing rule 'lool'. Did you mean 'lol'?"),
        ([*BOTH, '--protocol', '3d'], 'pass either --target (the folder of ground-truth images) or --protocol.'),
        (['restored', '--protocol', '3d'], "RESTORED: 'restored' contains none of the task folders SOTS"),
        ([*BOTH, '-o', 'clear'], "'clear' is a folder. Use the name of a file."),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ('restored', 'clear'):
        write(here / folder / '1.png', skimage.data.astronaut()[:32, :32])
    assert cli.main(['measure', *arguments]) == 2
    assert said in capsys.readouterr().err


def test_images_that_do_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / 'restored/1.png', skimage.data.astronaut()[:32, :32])
    write(here / 'clear/2.png', skimage.data.astronaut()[:32, :32])
    assert cli.main(['measure', 'restored', '--target', 'clear']) == 2
    assert '1 of 1 degraded images have no clear image' in capsys.readouterr().err
    write(here / 'clear/1.png', skimage.data.astronaut()[:32, :40])
    assert cli.main(['measure', 'restored', '--target', 'clear']) == 1
    assert 'differ in size (32x32 and 40x32). Check --pairing' in capsys.readouterr().err
    write(here / 'clear/1.png', skimage.data.astronaut()[:32, :32])
    (here / 'restored/1.png').write_bytes((here / 'restored/1.png').read_bytes()[:200])
    assert cli.main(['measure', 'restored', '--target', 'clear']) == 1
    assert 'not a readable image' in capsys.readouterr().err


def test_folders_of_a_protocol(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol: dict[str, Any] = {
        'title': 'two',
        'test': {
            'crop_multiple': 8,
            'tasks': {
                'noisy': {'type': 'denoise', 'clean': 'clean', 'degrade': {'type': 'gaussian_noise', 'sigma': 25}},
                'rainy': {'type': 'derain', 'root': 'rain', 'pairing': 'rain100l_test'},
            },
        },
    }
    (here / 'two.yml').write_text(yaml.safe_dump(protocol))
    image = skimage.data.astronaut()[:50, :60]
    write(here / 'data/clean/1.png', image)
    write(here / 'restored/noisy/1.png', cv2.blur(image[1:49, 2:58], (3, 3)))
    assert cli.main(['measure', 'restored', '--protocol', './two.yml', '--dataroot', 'data', '-o', 'm.json']) == 0
    content = json.loads((here / 'm.json').read_text())
    assert [(task['task'], task['images']) for task in content['tasks']] == [('noisy', 1)]
    assert content['tasks'][0]['made_by'].endswith('cut to multiples of 8')
    (here / 'restored/noisy/1.png').rename(here / 'restored/noisy/other.png')
    assert cli.main(['measure', 'restored', '--protocol', './two.yml', '--dataroot', 'data']) == 2
    assert '1 of 1 images of noisy are not in' in capsys.readouterr().err
