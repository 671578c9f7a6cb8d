"""The commands that the pages show are accepted by their parsers, name what exists, and run."""

import argparse
import importlib.util
import re
import runpy
import shutil
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import pytest
import skimage.data
import torch
from torch.distributed.run import get_args_parser

from promptir_basicsr.archs import AirNet, PIPRestormer, PromptIR
from promptir_basicsr.cli import VERBS, main
from promptir_basicsr.core.command_line import argument_parser
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data import protocol_names
from promptir_basicsr.options.file import read_options
from tests.option_files import OPTIONS, SMALL, short, write_released_tree
from tests.pages import PAGES, ROOT, Command, mentioned_commands, run, shown_commands, text_of

ALL = [*PAGES, 'CONTRIBUTING.md']
SHOWN = [command for page in ALL for command in shown_commands(page)]
MENTIONED = [command for page in ALL for command in mentioned_commands(page)]
EXTRAS = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
EXPLAINED = runpy.run_path(str(ROOT / 'docs' / 'site' / 'hook.py'))['EXPLAINED']
PAGE_OF = {verb: EXPLAINED.get(verb, f'{verb}.md') for verb in VERBS}
MISSPELT = 'basicsr retore'  # whose message is timed
# Option files that stand for the reader's, and files that other programs write.
IMAGINED = {
    ('docs/airnet.md', 'probe.yml'),
    ('docs/check.md', 'example.yml'),
    ('docs/options.md', 'my.yml'),
    ('docs/check.md', 'options.yml'),
}


def of(commands: list[Command], wanted: Callable[[Command], object]) -> list[Command]:
    """Those commands, each once."""
    return list(dict.fromkeys(command for command in commands if wanted(command)))


def words_of(command: Command) -> list[str]:
    """The arguments of a verb, with a number in place of N and without the redirection."""
    return [re.sub(r'\bN\b', '2', word) for word in command.arguments[1:]]


@pytest.mark.parametrize('command', of(SHOWN, lambda command: command.arguments), ids=str)
def test_shown_commands_are_accepted(command: Command) -> None:
    parsed = argument_parser(command.arguments[0]).parse_args(words_of(command))
    names = [name for key in ('protocol', 'published') if (name := getattr(parsed, key, None))]
    assert set(names) <= set(protocol_names())
    path = OPTIONS / Path(getattr(parsed, 'opt', None) or 'FILE').name
    if getattr(parsed, 'force_yml', None) and path.exists():
        read_options(str(path), parsed.force_yml)


@pytest.mark.parametrize('command', of(MENTIONED, lambda command: command.arguments), ids=str)
def test_mentioned_commands_have_these_options(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """They may lack required arguments and values."""
    verb, *words = [command.arguments[0], *words_of(command)]
    if command.text == MISSPELT or verb in ('--help', '--version'):
        return
    parser = argument_parser(verb)
    for action in [*parser._actions, *parser._mutually_exclusive_groups]:
        action.required = False
    with suppress(SystemExit):
        parser.parse_args(words)
    error = capsys.readouterr().err
    assert not error or 'expected' in error


@pytest.mark.parametrize('page', dict.fromkeys(PAGE_OF.values()))
def test_tables_of_arguments_have_the_parsers_options(page: str) -> None:
    verbs = [verb for verb in VERBS if PAGE_OF[verb] == page]
    known = {option for verb in verbs for option in argument_parser(verb)._option_string_actions}
    cells = re.findall(r'^\| (`-.*?`) \|', text_of(f'docs/{page}'), re.M)
    shown = {word for cell in cells for word in re.findall(r'(?:`|, )(-[\w-]+)', cell)}
    assert shown <= known


@pytest.mark.parametrize('page', ALL)
def test_option_files_exist(page: str) -> None:
    text = ' '.join(text_of(page).split())
    made = set(re.findall(r'(?:Save this as|copy it to) `([\w.]+\.yml)`', text))
    for command in [*shown_commands(page), *mentioned_commands(page)]:
        for path in re.findall(r'\S+\.yml', ' '.join(command.words)):
            prepared = re.search(rf'prepare -opt \S*{Path(path).name} --out {Path(path).parent}', text)
            there = (ROOT / path).exists() or (OPTIONS / path).exists()
            assert there or prepared or path in made or (page, path) in IMAGINED, command
    assert [path for path in re.findall(r'options/\w+\.yml', text) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize('command', of(SHOWN + MENTIONED, lambda command: command.words[0][:6] == 'python'), ids=str)
def test_modules_and_scripts_exist(command: Command) -> None:
    paths = [word for word in command.words if word.endswith('.py') or word.startswith('tests/')]
    saved = re.findall(r'Save this as `([\w.]+)`', text_of(command.page))
    assert [path for path in paths if not (ROOT / path).exists() and path not in saved] == []
    if command.module and command.module[0] != 'pip':  # which uv's environments lack
        assert importlib.util.find_spec(command.module[0])


class Parsed(Exception):
    """The arguments of a program are accepted."""


def path_of(command: Command) -> Path:
    return ROOT / f'{command.module[0].replace(".", "/")}.py'


def has_parser(command: Command) -> bool:
    benchmark = command.module and command.module[0].startswith('benchmarks.')
    return bool(benchmark) and 'ArgumentParser(' in path_of(command).read_text(encoding='utf-8')


@pytest.mark.parametrize('command', of(SHOWN + MENTIONED, has_parser), ids=str)
def test_arguments_of_benchmarks_are_accepted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *given: list[str] | None) -> None:
        parse(parser, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_only)
    monkeypatch.setattr(sys, 'argv', [*command.module])
    with pytest.raises(Parsed):
        runpy.run_path(str(path_of(command)), run_name='__main__')


@pytest.mark.parametrize('command', of(SHOWN + MENTIONED, lambda command: 'torchrun' in command.words), ids=str)
def test_arguments_of_torchrun_are_accepted(command: Command) -> None:
    words = [word for word in command.words[1:] if word != '...']
    get_args_parser().parse_args([*words, *([] if command.arguments else ['script.py'])])


def test_pip_installs_extras_and_files_that_exist() -> None:
    installs = of(SHOWN + MENTIONED, lambda command: {'pip', 'install'} <= set(command.words))
    assert len(installs) > 10
    for command in installs:
        extras = [name for word in command.words for name in re.findall(r'^(?:promptir_basicsr|\.)\[(.+)\]$', word)]
        assert set(extras) <= set(EXTRAS), command
        assert [word for word in command.words if word.endswith('.txt') and not (ROOT / word).exists()] == [], command
    comments = re.findall(r"pip install '[\w.]+\[(\w+)\]'", '\n'.join(map(text_of, ALL)))
    assert set(comments) <= set(EXTRAS)


def test_make_has_these_targets() -> None:
    targets = {
        name for names in re.findall(r'^([a-z ]+):', (ROOT / 'Makefile').read_text(), re.M) for name in names.split()
    }
    makes = of(SHOWN + MENTIONED, lambda command: command.words[0] == 'make')
    assert {word for command in makes for word in command.words[1:] if '=' not in word} <= targets
    assert makes


# Commands that another test runs, or none.
ELSEWHERE = {
    'basicsr check -opt example.yml': 'an invalid file; tests/checks',
    'basicsr demo --weights FILE': 'tests/demo/test_app.py',
    'basicsr demo --weights net_g_latest.pth': 'tests/demo/test_app.py',
    'basicsr demo --weights experiments/demo/models/net_g_best.pth': 'tests/demo/test_app.py',
    'basicsr train -opt mine.yml': 'tests/test_extending.py',
}
RUN = of(
    SHOWN,
    lambda command: (
        command.words[0] == 'basicsr' and command.text not in ELSEWHERE and command.page != 'docs/quickstart.md'
    ),
)
STATUS = {'basicsr train -opt my.yml --force_yml train:total_iter=0': 2}
WEIGHTS = 'net_g_latest.pth'


def test_commands_that_run_elsewhere_are_shown() -> None:
    assert ELSEWHERE.keys() <= {command.text for command in SHOWN}


def crop(path: Path, photograph: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), getattr(skimage.data, photograph)()[100:148, 150:206, ::-1])


def save(path: Path, network: torch.nn.Module) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'params': network.state_dict(), 'params_ema': network.state_dict()}, path)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages assume: small images, runs of two iterations, and weights."""
    folder = tmp_path_factory.mktemp('pages')
    (folder / 'options').symlink_to(OPTIONS)
    write_released_tree(folder)
    crop(folder / 'photograph.jpg', 'astronaut')
    for name in ('astronaut', 'coffee'):
        crop(folder / 'photos' / f'{name}.png', name)
    shutil.copyfile(OPTIONS / 'demo.yml', folder / 'my.yml')
    for name, network in {'demo': PromptIR, 'pip_demo': PIPRestormer}.items():
        arguments = load_yaml(str(OPTIONS / f'{name}.yml'))['network_g']
        del arguments['type']
        save(folder / 'experiments' / name / 'models' / 'net_g_best.pth', network(**arguments))
    save(folder / 'All.pth', AirNet(dim=4, num_groups=1, num_blocks=1, queue_length=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', ['pytest'])
        for name, source in {'promptir_3d': 'promptir_allinone.yml', 'pip_3d': 'pip_allinone.yml'}.items():
            assert main(['train', '-opt', source, '--force_yml', f'name={name}', *smaller(source)]) == 0
    for name, trained in {WEIGHTS: 'promptir_3d', 'promptir.pth': 'promptir_3d', 'pip.pth': 'pip_3d'}.items():
        shutil.copyfile(folder / 'experiments' / trained / 'models' / 'net_g_latest.pth', folder / name)
    for word in ('FILE', 'IN'):
        shutil.copyfile(folder / WEIGHTS, folder / f'{word}.pth')
    return folder


def restored_images(folder: Path, by_task: bool) -> None:
    """THEIR_IMAGES: for a target folder its images, for a protocol a folder for each task."""
    sets = {'SOTS': 'dehaze/input', 'Rain100L': 'derain/Rain100L/input'}
    sets |= {f'CBSD68_{sigma}': 'denoise/bsd68' for sigma in (15, 25, 50)}
    places = {f'THEIR_IMAGES/{name}': path for name, path in sets.items()} if by_task else {}
    for place, path in (places or {'THEIR_IMAGES': sets['Rain100L']}).items():
        shutil.copytree(folder / 'data' / 'test' / path, folder / place)


def smaller(name: str) -> list[str]:
    """The changes of `short`, and a small network also where its test has the paper's."""
    return [*short(name), *(SMALL if name == 'promptir_allinone.yml' else [])]


def brief(command: Command) -> list[str]:
    """What makes a command run in seconds on a few images."""
    words = list(command.words)
    if '-opt' not in words:
        return []
    name = Path(words[words.index('-opt') + 1]).name
    if words[1] == 'explain':
        return '--images 2 --size 32 --untrained 1 --permutations 19'.split()
    counts = ['--allow-counts', '--workers', '0'] if words[1] == 'check' else []
    if words[1] == 'prepare' or name == 'my.yml':
        return []
    if name.startswith('test_'):
        return ['--force_yml', f'path:pretrain_network_g={WEIGHTS}', *SMALL]
    return [*counts, *([] if '--force_yml' in words else ['--force_yml']), *smaller(name)]


@pytest.mark.slow
@pytest.mark.parametrize('page', dict.fromkeys(command.page for command in RUN))
def test_the_commands_of_a_page_run(page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'page'
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    for command in (command for command in RUN if command.page == page):
        replaced = {'FILE': 'FILE.pth', 'IN': 'IN.pth'}
        words = [replaced.get(word, word).replace('/fast/', 'fast/') for word in command.words]
        if 'THEIR_IMAGES' in words:
            for path in ('THEIR_IMAGES', 'theirs.json'):
                shutil.rmtree(path, ignore_errors=True)
                Path(path).unlink(missing_ok=True)
            restored_images(folder, '--protocol' in words)
        status = run(Command(page, command.text, tuple(words)), *brief(command))
        assert status == STATUS.get(command.text, 0), command
        parsed = argument_parser(words[1]).parse_args(words[2:])
        outputs = [path for key in ('out', 'output') if (path := getattr(parsed, key, None))]
        assert [path for path in outputs if not Path(path).exists()] == [], command
