"""The `basicsr` command: its verbs, its exit status, and what it says to mistakes."""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import skimage.data
import skimage.io

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr import cli

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from tests.forked import basicsr
from tests.tiny_training import TINY_TRAINING

CONSOLE = [str(shutil.which('basicsr', path=os.path.dirname(sys.executable)))]
MODULE = [sys.executable, '-m', 'promptir_basicsr']
NETWORK = """
network_g:
  type: PromptIR
  dim: 8
  num_blocks: [1, 1, 1, 1]
  num_refinement_blocks: 1
  heads: [1, 1, 1, 1]
  prompt_sizes: [4, 4, 4]
"""
TRAINING = TINY_TRAINING.replace('use_tb_logger: false', 'use_tb_logger: true')
TEST = f"""
name: tiny_test
model_type: PromptModel
num_gpu: 0
manual_seed: 0
datasets:
  test:
    name: photographs
    type: AllInOneDataset
    tasks: [{{type: derain, clean: photographs, degrade: {{type: rain}}}}]
{NETWORK}
path: {{}}
val:
  save_img: false
  metrics:
    psnr: {{type: calculate_paper_psnr}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    return tmp_path


def run(command: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=120)


# help


@pytest.mark.parametrize('words', [[], ['-h'], ['--help']])
def test_help_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith('usage: basicsr VERB ...\n')
    assert [line.split()[0] for line in said.out.splitlines() if line.startswith('  ')] == list(cli.VERBS)
    assert said.err == ''


@pytest.mark.parametrize('verb', ['train', 'test'])
def test_help_of_a_verb(verb: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, '--help'])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f'usage: basicsr {verb} [-h] -opt FILE')
    assert '--auto_resume' in said
    assert '--force_yml' in said
    assert '--local' not in said


def test_arguments_that_are_missing_or_unknown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (['train'], ['train', '-opt', 'x.yml', '--resume'], ['train', '-opt', 'x.yml', '--launcher', 'mpi']):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith('usage: basicsr train ')


def test_a_misspelt_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['trian', '-opt', 'x.yml']) == 2
    said = capsys.readouterr()
    assert said.err.startswith("basicsr: unknown verb 'trian'. Did you mean 'train'? Allowed: ")
    assert said.err.count('\n') == 1
    assert said.out == ''


def test_a_misspelt_verb_in_a_process_of_its_own() -> None:
    process = run(MODULE, 'trian')
    assert process.returncode == 2
    assert process.stderr.startswith("basicsr: unknown verb 'trian'. Did you mean 'train'?")
    assert process.stdout == ''


def test_the_version_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['--version']) == 0
    said = capsys.readouterr()
    assert said.out == (
        f'promptir_basicsr {version("promptir_basicsr")}, BasicSR {version("basicsr")}, torch {version("torch")}, '
        f'Python {platform.python_version()}\n'
    )
    assert said.err == ''


LIGHT = [[], ['--help'], ['--version'], ['trian'], *([verb, '--help'] for verb in cli.VERBS), ['restore', '--no-such']]


@pytest.mark.parametrize('words', LIGHT, ids=' '.join)
def test_what_needs_no_torch_does_not_import_it(words: list[str]) -> None:
    program = f"""
import sys
sys.orig_argv = ['python', 'basicsr', *{words}]
from promptir_basicsr import cli
try:
    cli.main({words})
except SystemExit as ended:
    assert ended.code == (2 if '--no-such' in {words} else 0)
assert not {{'torch', 'basicsr', 'numpy', 'pydantic', 'rich', 'yaml'}} & sys.modules.keys()
"""
    process = run([sys.executable, '-c', program])
    assert process.returncode == 0, process.stderr


# mistakes in the options


def test_mistakes_end_with_status_2_and_create_nothing(folder: Path) -> None:
    wrong = TRAINING.replace('gt_size', 'gt_sise').replace('AdamW', 'AdmaW').replace('name: tiny\n', 'name: 7\n')
    (folder / 'wrong.yml').write_text(wrong, encoding='utf-8')
    process = run(CONSOLE, 'train', '-opt', 'wrong.yml', '--force_yml', 'logger:print_freq=often')
    assert process.returncode == 2
    assert process.stdout == ''
    lines = process.stderr.splitlines()
    assert all(
        re.match(r'wrong\.yml:\d+: |--force_yml logger:print_freq=often: logger\.print_freq: ', line) for line in lines
    )
    for said in ("'gt_sise'. Did you mean 'gt_size'?", "'AdmaW'. Did you mean 'AdamW'?", 'name: 7', 'print_freq'):
        assert any(said in line for line in lines), said
    assert os.listdir() == ['wrong.yml']


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (TRAINING.replace('\npath: {}', ''), 'wrong.yml: path: is missing.'),
        (TRAINING.replace('  total_iter: 4', '\ttotal_iter: 4'), "found character '\\t' that cannot start any token"),
        (TRAINING + 'name: again\n', "duplicate key 'name' in lines 2 and "),
        (TRAINING.replace('{type: FixedLR}', 'FixedLR'), 'wrong.yml:26: train.scheduler: must be options with a type'),
        (TRAINING.replace('{type: FixedLR}', '!!python/name:os.system'), 'could not determine a constructor'),
        (TRAINING.replace('path: {}', 'path: {resume_state: no.state}'), "path.resume_state: the file 'no.state' does"),
        (TRAINING.replace('type: PromptModel', 'type: PromtModel'), "unknown model 'PromtModel'. Did you mean"),
        ('', 'contains NoneType, must be options `key: value`.'),
    ],
)
def test_wrong_files(text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / 'wrong.yml').write_text(text, encoding='utf-8')
    assert cli.main(['train', '-opt', 'wrong.yml']) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert 'Traceback' not in told.err
    assert told.err.count('\n') == 1
    assert told.out == ''
    assert os.listdir() == ['wrong.yml']


@pytest.mark.parametrize('verb', ['train', 'test'])
def test_a_missing_file(verb: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, '-opt', 'no.yml']) == 2
    assert (
        capsys.readouterr().err
        == "the option file 'no.yml' does not exist. Paths are relative to the current folder.\n"
    )
    assert os.listdir() == []


def test_files_that_the_package_ships_are_found_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['check', '-opt', 'demo.yml']) == 0, capsys.readouterr()
    (folder / 'demo.yml').write_text('name: mine', encoding='utf-8')  # one's own file comes first
    assert cli.main(['check', '-opt', 'demo.yml']) == 1
    capsys.readouterr()
    assert cli.main(['train', '-opt', 'options/dmo.yml']) == 2
    assert capsys.readouterr().err == (
        "the option file 'options/dmo.yml' does not exist. Paths are relative to the current folder. 'demo.yml' comes "
        'with promptir_basicsr and is found by that name.\n'
    )


# damaged data


@pytest.mark.parametrize('workers', [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_damaged_image_ends_a_training_with_one_sentence(workers: int, folder: Path) -> None:
    (folder / 'photographs').mkdir()
    for number in range(8):
        skimage.io.imsave(folder / 'photographs' / f'{number}.png', skimage.data.chelsea()[100:140, 100:150])
    damaged = folder / 'photographs' / '3.png'
    damaged.write_bytes(damaged.read_bytes()[:700])
    options = TRAINING.replace("'skimage://', files: [astronaut.png]", 'photographs')
    options = options.replace('num_worker_per_gpu: 0', f'num_worker_per_gpu: {workers}').replace('iter: 4', 'iter: 40')
    (folder / 'tiny.yml').write_text(options, encoding='utf-8')
    process = basicsr('train', '-opt', 'tiny.yml')
    assert process.returncode == 1
    said = (
        "task 'derain': photographs/3.png: not a readable image (700 bytes). Replace the file, or remove it from the "
        'list. `basicsr check -opt FILE` finds all such images before a run.'
    )
    assert process.stderr.count(said) == 1
    assert 'Traceback' not in process.stderr
    assert said in next(folder.glob('experiments/tiny/*.log')).read_text()


# Python 3.14

FORKSERVER = """
import multiprocessing
multiprocessing.set_start_method('forkserver', force=True)
"""


@pytest.mark.slow
def test_a_training_whose_workers_come_from_a_forkserver(folder: Path) -> None:
    """Its default on Linux."""
    (folder / 'sitecustomize.py').write_text(FORKSERVER, encoding='utf-8')
    (folder / 'tiny.yml').write_text(TRAINING.replace('worker_per_gpu: 0', 'worker_per_gpu: 1'), encoding='utf-8')
    environment = {**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1'}
    command = [*CONSOLE, 'train', '-opt', 'tiny.yml']
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    assert (folder / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth').exists()


# the test verb


def test_the_test_verb_measures_below_the_current_folder(folder: Path) -> None:
    (folder / 'photographs').mkdir()
    skimage.io.imsave(folder / 'photographs' / 'cat.png', skimage.data.chelsea()[100:140, 100:150])
    (folder / 'test.yml').write_text(TEST, encoding='utf-8')
    process = basicsr('test', '-opt', 'test.yml')
    assert process.returncode == 0, process.stderr
    assert sorted(os.listdir()) == ['photographs', 'results', 'test.yml']
    numbers = (folder / 'results' / 'tiny_test' / 'metrics.csv').read_text(encoding='utf-8')
    assert 'photographs' in numbers
    assert 'psnr' in numbers


def test_options_of_a_training_are_not_options_of_a_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / 'tiny.yml').write_text(TRAINING, encoding='utf-8')
    assert cli.main(['test', '-opt', 'tiny.yml']) == 2
    said = capsys.readouterr().err
    assert 'tiny.yml: val: is missing.' in said
    assert "tiny.yml:7: datasets.train: unknown phase 'train'. Allowed: test, val." in said


# plugins


def install(folder: Path, name: str, code: str) -> None:
    """Lay out a plugin as pip installs it: a module, and metadata that names it."""
    (folder / f'{name}.py').write_text(code, encoding='utf-8')
    metadata = folder / f'{name}-1.0.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n', encoding='utf-8')
    (metadata / 'entry_points.txt').write_text(f'[{cli.PLUGIN_GROUP}]\n{name} = {name}\n', encoding='utf-8')


PLUGIN = """
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class NetworkOfAPlugin:
    pass
"""


def test_plugins_of_others_join(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, 'another_plugin', PLUGIN)
    monkeypatch.syspath_prepend(folder)
    options = TRAINING.replace('type: PromptIR', 'type: NetworkOfAPlugn')
    (folder / 'tiny.yml').write_text(options, encoding='utf-8')
    try:
        assert cli.main(['train', '-opt', 'tiny.yml']) == 2
        said = capsys.readouterr().err
        assert "network_g.type: unknown network 'NetworkOfAPlugn'. Did you mean 'NetworkOfAPlugin'?" in said
    finally:
        ARCH_REGISTRY._obj_map.pop('NetworkOfAPlugin')
        sys.modules.pop('another_plugin')


def test_a_broken_plugin_does_not_stop_other_commands(folder: Path) -> None:
    install(folder, 'broken_plugin', 'raise RuntimeError("written for another BasicSR")\n')
    (folder / 'tiny.yml').write_text(TRAINING, encoding='utf-8')
    environment = {**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1'}
    process = subprocess.run(
        [*CONSOLE, 'check', '-opt', 'tiny.yml'], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith(
        "basicsr: the plugin 'broken_plugin' (broken_plugin) was skipped, because it cannot be imported: "
        'RuntimeError: written for another BasicSR\n'
    )


def test_a_plugin_that_is_broken_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, 'broken_plugin', 'import a_module_that_is_nowhere\n')
    monkeypatch.syspath_prepend(folder)
    assert cli.main(['train', '-opt', 'no.yml']) == 2
    assert capsys.readouterr().err == (
        "basicsr: the plugin 'broken_plugin' (broken_plugin) was skipped, because it cannot be imported: "
        "ModuleNotFoundError: No module named 'a_module_that_is_nowhere'\n"
        "the option file 'no.yml' does not exist. Paths are relative to the current folder.\n"
    )


def test_a_misspelt_verb_does_not_wait_for_plugins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, 'broken_plugin', 'import a_module_that_is_nowhere\n')
    monkeypatch.syspath_prepend(folder)
    assert cli.main(['tset']) == 2
    assert "Did you mean 'test'?" in capsys.readouterr().err
