"""Option files with one mistake each, made of the correct ones in options/: all are refused, by key and line.

Every key is misspelt and mistyped, those that have to be there are taken out, numbers leave their range.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.host.options import parse_options
from promptir_basicsr.options.file import has_base, read_option_file
from tests.forked import basicsr

FOLDER = Path(__file__).parents[2] / 'options'
# The demonstrations first: their data are there, and their networks small.
FILES = sorted(
    (path for path in FOLDER.glob('*.yml') if not has_base(str(path))),
    key=lambda path: ('demo' not in path.name, path.name),
)
# Whoever writes the file names what is in them, or somebody else reads it.
FREE = ('network_g.network', 'val.metrics')
NEEDED = (
    'name model_type num_gpu datasets network_g path train logger datasets.train datasets.train.name '
    'datasets.train.type datasets.train.gt_size datasets.train.tasks datasets.train.batch_size_per_gpu '
    'datasets.train.num_worker_per_gpu datasets.train.tasks.0.type datasets.train.tasks.0.clean '
    'datasets.train.tasks.0.degrade datasets.train.tasks.0.degrade.type datasets.train.tasks.0.degrade.sigma '
    'datasets.val.name datasets.val.type datasets.val.tasks network_g.type train.total_iter train.optim_g '
    'train.optim_g.type train.optim_g.lr train.scheduler train.scheduler.type train.pixel_opt train.pixel_opt.type '
    'val.val_freq val.save_img val.metrics.psnr.type val.metrics.psnr_basicsr.crop_border logger.print_freq '
    'logger.save_checkpoint_freq logger.use_tb_logger'
).split()
OUT_OF_RANGE = {
    'name': '../../x',
    'num_gpu': '-1',
    'manual_seed': '4294967296',
    'scale': '2',
    'gt_size': '0',
    'crop_multiple': '0',
    'batch_size_per_gpu': '0',
    'num_worker_per_gpu': '-1',
    'copies': '0',
    'label': '-1',
    'sigma': '-1',
    'beta': '[0.12, 0.06]',
    'density': '-1',
    'intensity': '[0.4, 80]',
    'radius': '-3',
    'exposure': '-1',
    'dim': '0',
    'width': '3',
    'heads': '[5, 2, 4, 8]',
    'num_blocks': '[1, 1, -1, 1]',
    'num_refinement_blocks': '-1',
    'ffn_expansion_factor': '-2.0',
    'num_prompts': '0',
    'prompt_sizes': '[0, 16, 8]',
    'prompt_dims': '[7, 7, 7]',
    'num_degradations': '0',
    'total_iter': '0',
    'lr': '-1e-3',
    'betas': '[0.9, 1.5]',
    'weight_decay': '-1',
    'warmup_iter': '99999999',
    'eta_min': '1000',
    'ema_decay': '1',
    'grad_clip_norm': '0',
    'label_smoothing': '1',
    'history': '0',
    'factor': '99',
    'val_freq': '0',
    'comparisons': '-1',
    'crop_border': '-1',
    'print_freq': '0',
    'save_checkpoint_freq': '0',
    'port': '0',
}


def text_of(file: Path) -> str:
    """A file of options/ with few blocks in the networks, which are built for every check."""
    return re.sub(r'(num_blocks|enc_blk_nums|depths): \[.*\]', r'\1: [1, 1, 1, 1]', file.read_text(encoding='utf-8'))


@dataclass(frozen=True)
class Option:
    """A key of a file: its place as `train.optim_g.lr`, where it stands, and where its value begins and ends."""

    file: Path
    place: str
    key: yaml.Node
    value: yaml.Node
    line: int

    @property
    def name(self) -> str:
        return self.place.rpartition('.')[2]

    @property
    def text(self) -> str:
        """Of the value."""
        return text_of(self.file)[self.value.start_mark.index : self.value.end_mark.index]

    def with_key(self, key: str) -> str:
        text = text_of(self.file)
        return text[: self.key.start_mark.index] + key + text[self.key.end_mark.index :]

    def with_value(self, value: str) -> str:
        """The text of the file with another value; an anchor (&) before it and what follows stay."""
        text = text_of(self.file)
        old = self.text
        anchor = old.split()[0] + ' ' if old.startswith('&') else ''
        kept = old[len(old.rstrip()) :]
        new = anchor + value + kept
        block = '\n' in text[self.key.end_mark.index : self.value.start_mark.index]
        return (
            text[: self.key.end_mark.index] + ': ' + new + text[self.value.end_mark.index :]
            if block
            else (text[: self.value.start_mark.index] + new + text[self.value.end_mark.index :])
        )


def options_of(file: Path) -> Iterator[Option]:
    """Every key of a file that is not free, read by PyYAML alone."""

    def walk(node: yaml.Node, place: str) -> Iterator[Option]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = f'{place}.{key.value}' if place else key.value
                if not any(place == free or (place.startswith(f'{free}.') and free != 'val.metrics') for free in FREE):
                    yield Option(file, here, key, value, key.start_mark.line + 1)
                yield from walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                yield from walk(item, f'{place}.{number}')

    yield from walk(yaml.compose(text_of(file)), '')


def once_each() -> list[Option]:
    """Every key of options/ once, whatever the position in a list and whichever the file."""
    found: dict[str, Option] = {}
    for file in FILES:
        options = list(options_of(file))
        network = next(option.value.value for option in options if option.place == 'network_g.type')
        for option in options:
            kind = '.'.join(part for part in option.place.split('.') if not part.isdecimal())
            found.setdefault(f'{network} {kind}' if kind.startswith('network_g.') else kind, option)
    return list(found.values())


OPTIONS = once_each()
PARTS = [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))]
TYPED = [option for option in OPTIONS if '&' not in option.text]  # what has an alias elsewhere stays
SCALARS = [option for option in OPTIONS if option.name in OUT_OF_RANGE]


def misspelt(key: str) -> str:
    """With a letter too many, which no key has: `namme`, `typpe`."""
    middle = len(key) // 2
    return key[:middle] + key[middle] + key[middle:]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


NONSENSE = "unknown option 'name'. PromptIR: type, heads, train.optim_g.lr and datasets: degrade is missing."


def check_lines(error: OptionError) -> None:
    """The place that is shown in front of each problem is that of its path, whatever its words are."""
    _, places = read_option_file('wrong.yml')
    for problem, line in zip(error.problems, error.lines, strict=True):
        where = places.line(problem.path, *problem.others)
        assert line.startswith(f'{where}: ')
        for shown in (None, (), problem.place):
            other = replace(problem, message=NONSENSE, shown=shown)
            assert places.located(other).startswith(f'{where}: ')


def refusal(text: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the parser of `basicsr train` and `basicsr test` says to a file; it must leave the folder as it is."""
    Path('wrong.yml').write_text(text, encoding='utf-8')
    monkeypatch.setattr(sys, 'argv', ['basicsr', '-opt', 'wrong.yml'])
    try:
        parse_options(os.getcwd(), training)
    except OptionError as error:
        assert os.listdir() == ['wrong.yml']
        check_lines(error)
        return [problem for problem in error.lines if 'does not exist' not in problem]  # data of protocols
    return []


def is_training(option: Option) -> bool:
    return not option.file.name.startswith('test_')


def test_the_corpus_has_its_documented_size() -> None:
    assert len(OPTIONS) >= 130
    assert len(NEEDED) >= 35
    assert len(SCALARS) >= 40
    assert {option.file.name for option in OPTIONS} >= {'demo.yml', 'pip_demo.yml', 'sensor_demo.yml', 'pip_nafnet.yml'}


@pytest.mark.parametrize('part', PARTS)
def test_every_key_misspelt(part: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = []
    for option in OPTIONS[part::3]:
        said = refusal(option.with_key(misspelt(option.name)), is_training(option), monkeypatch)
        place = f'wrong.yml:{option.line}: '
        if not any(line.startswith(place) and misspelt(option.name) in line for line in said):
            silent.append((option.file.name, option.place, said))
    assert silent == []


@pytest.mark.parametrize('part', PARTS)
def test_every_key_mistyped(part: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = []
    for option in TYPED[part::3]:
        wrong = '[nonsense]' if isinstance(option.value, yaml.MappingNode) else '{nonsense: 1}'
        said = refusal(option.with_value(wrong), is_training(option), monkeypatch)
        if not any(line.startswith(f'wrong.yml:{option.line}: ') and option.name in line for line in said):
            silent.append((option.file.name, option.place, said))
    assert silent == []


def test_every_number_out_of_its_range(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = []
    for option in SCALARS:
        said = refusal(option.with_value(OUT_OF_RANGE[option.name]), is_training(option), monkeypatch)
        if not any(line.startswith(f'wrong.yml:{option.line}: ') and option.name in line for line in said):
            silent.append((option.file.name, option.place, said))
    assert silent == []


def test_every_needed_key_taken_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = []
    for place in NEEDED:
        options = load_yaml(str(FOLDER / 'demo.yml'))
        *parents, key = (int(part) if part.isdecimal() else part for part in place.split('.'))
        section = options
        for part in parents:
            section = section[part]
        del section[key]
        said = refusal(yaml.safe_dump(options), True, monkeypatch)
        wanted = ('missing', 'needs', 'give', 'must be')
        if not any(str(key) in line and any(word in line for word in wanted) for line in said):
            silent.append((place, said))
    assert silent == []


COMMANDS = [
    ('train', 'name', '../../x', "name: '../../x' is not a name without slashes."),
    ('check', 'val.save_img', 'perhaps', "val.save_img: 'perhaps' is neither true nor false."),
    ('test', 'network_g.heads', '[5, 5, 5, 5]', 'network_g: PromptIR: heads'),
]
MORE_COMMANDS = [
    ('train', 'train.total_iter', '0', 'train.total_iter: 0 is not a whole number of at least 1.'),
    ('train', 'network_g.dim', '2', 'network_g: PromptIR: dim'),
    ('train', 'datasets.val.name', '..', "datasets.val.name: '..' is not a name without slashes."),
]


@pytest.mark.parametrize(
    ('verb', 'place', 'value', 'said'),
    [*COMMANDS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_COMMANDS)],
)
def test_the_command_refuses_and_starts_nothing(verb: str, place: str, value: str, said: str, folder: Path) -> None:
    file = FOLDER / ('test_promptir_5d.yml' if verb == 'test' else 'demo.yml')
    option = next(option for option in options_of(file) if option.place == place)
    Path('wrong.yml').write_text(option.with_value(value), encoding='utf-8')
    ended = basicsr(verb, '-opt', 'wrong.yml')
    assert ended.returncode == (1 if verb == 'check' else 2), ended.stderr
    output = ended.stdout if verb == 'check' else ended.stderr
    assert f'wrong.yml:{option.line}: {said}' in output
    assert 'Traceback' not in ended.stdout + ended.stderr
    assert os.listdir() == ['wrong.yml']
