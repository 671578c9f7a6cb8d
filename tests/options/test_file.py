"""Each mistake is told with the line of its option in the file, or as one of the command line."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.problems import Item, Keys, Problem
from promptir_basicsr.core.yaml_loader import load_yaml_with_places
from promptir_basicsr.host.options import checked_options
from promptir_basicsr.options.file import Places
from tests.checks.test_run import MISSING, MISTAKES, measuring, put, training

FILE = """\
name: tiny
base: &base
  copies: 3
  degrade: {type: rain, sigma: 4}
datasets:
  train:
    tasks:
      - {name: first, copies: 1}
      -
        type: denoize
        clean: x
      - <<: *base
        name: second (a)
        copies: 2
    protocol: 3d
  val:
    tasks:
      derain: {copies: 7}
network_g:
  type: PromptIR
  heads: [1, 2]
  taps:
    - {module: a}
    - module: b
train: {total_iter: 5, trian.x: 1}
val:
  metrics:
    psnr.y: {type: x}
    psnr:
      type: y
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    Path('my.yml').write_text(FILE, encoding='utf-8')
    return Places('my.yml', load_yaml_with_places('my.yml')[1])


FIRST, SECOND = Item(0, 'first'), Item(2, 'second (a)')
TRAIN, VAL = ('datasets', 'train', 'tasks'), ('datasets', 'val', 'tasks')


@pytest.mark.parametrize(
    ('path', 'line'),
    [
        (('name',), 1),
        (TRAIN, 7),
        ((*TRAIN, FIRST, 'copies'), 8),
        ((*TRAIN, 1, 'clean'), 11),
        ((*TRAIN, Item(1, 'denoize'), 'type'), 10),
        ((*TRAIN, SECOND, 'copies'), 14),
        ((*TRAIN, SECOND, 'degrade', 'sigma'), 4),  # of what was merged
        ((*VAL, Item(4, 'derain'), 'copies'), 18),  # of a protocol, by name
        ((*VAL, Item(5, 'dehaze'), 'root'), 17),  # of a protocol, not in the file
        ((*VAL, 0, 'copies'), 17),  # of a protocol, without a name
        (('datasets', 'train', 'protocol'), 15),
        (('network_g', 'type'), 20),
        (('network_g', 'heads'), 21),
        (('network_g', 'heads', 1), 21),
        (('network_g', 'taps', 1, 'module'), 24),
        (('network_g', 'dim'), 19),
        (('train', 'total_iter'), 25),
        (('train', 'trian.x'), 25),
        (('val', 'metrics', 'psnr.y', 'type'), 28),  # of a name with a dot
        (('val', 'metrics', 'psnr', 'type'), 30),
        (('base',), 2),
        (('logger',), None),
        ((), None),
        ((*TRAIN, 9), 7),
        (('name', 'inner', 0), 1),
    ],
)
@pytest.mark.parametrize('message', ['is missing.', "unknown option 'type'. Allowed: name, heads.", 'network_g: heads'])
def test_lines_of_a_file(places: Places, path: Keys, line: int | None, message: str) -> None:
    """Whatever the words are."""
    problem = Problem(path, message)
    assert places.located(problem) == (f'my.yml:{line}: {problem}' if line else f'my.yml: {problem}')
    assert places.located(problem.said_by('X')).startswith(f'my.yml:{line}: X: ' if line else 'my.yml: X: ')


def test_the_line_of_several_options_is_that_of_the_first_that_is_there(places: Places) -> None:
    absent, there, later = ('network_g', 'dim'), ('network_g', 'heads'), ('network_g', 'taps')
    assert places.located(Problem(absent, 'x', others=(there, later))) == 'my.yml:21: network_g.dim: x'
    assert places.located(Problem(later, 'x', others=(there,))) == 'my.yml:22: network_g.taps: x'
    assert places.located(Problem(absent, 'x', others=(('train', 'lr'),))) == 'my.yml:19: network_g.dim: x'


def test_how_a_place_is_shown() -> None:
    assert str(Problem((*TRAIN, Item(1, 'derain'), 'copies'), 'x.')) == 'datasets.train.tasks[1] (derain).copies: x.'
    assert str(Problem((*TRAIN, 1, 'heads', 2), 'x.')) == 'datasets.train.tasks[1].heads[2]: x.'
    assert str(Problem((), 'x.')) == 'x.'
    wrong = Problem(('heads', 1), 'heads[1] is 3.', shown=()).said_by('PromptIR')
    assert str(wrong) == 'PromptIR: heads[1] is 3.'
    assert str(wrong.below('network_g')) == 'network_g: PromptIR: heads[1] is 3.'
    assert wrong.below('network_g').path == ('network_g', 'heads', 1)
    travelled = pickle.loads(pickle.dumps(Problem((*TRAIN, Item(1, 'derain')), 'x.')))
    assert str(travelled) == 'datasets.train.tasks[1] (derain): x.'


@pytest.mark.parametrize(
    ('keys', 'path', 'told'),
    [
        ('train:total_iter', ('train', 'total_iter'), True),
        ('train:total_iter', ('train', 'trian.x'), False),
        ('train', ('train', 'total_iter'), True),
        ('train:new', ('train', 'new'), True),
        ('datasets:train:tasks:0:copies', (*TRAIN, FIRST, 'copies'), True),
        ('datasets:train:tasks:0:copies', (*TRAIN, 1, 'clean'), False),
        ('datasets:train:tasks:2:degrade:sigma', (*TRAIN, SECOND, 'degrade', 'sigma'), True),
        ('datasets:val:tasks:SOTS:copies', (*VAL, Item(0, 'SOTS'), 'copies'), True),
        ('network_g:heads', ('network_g', 'heads'), True),
        ('logger:print_freq', ('logger', 'print_freq'), True),
    ],
)
def test_replacements_of_the_command_line(places: Places, keys: str, path: Keys, told: bool) -> None:
    entry = f'--force_yml {keys}=0'
    places.replace(keys.split(':'), entry)
    problem = Problem(path, 'is wrong.')
    assert places.located(problem).startswith(f'{entry}: {problem}' if told else 'my.yml:')
    # What an alias shares with a place is not replaced with it.
    assert places.line(('base', 'degrade', 'sigma')) == 'my.yml:4'


def line_of(text: str, keys: list[str]) -> int:
    """Where a key stands, as PyYAML alone sees it; the section it is missing from; 0 for the top."""
    node, line = yaml.compose(text), 0
    for key in keys:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
            continue
        pair = next((pair for pair in node.value if pair[0].value == key), None)
        if pair is None:
            return line
        node, line = pair[1], pair[0].start_mark.line + 1
    return line


# PyYAML writes the text '1e-4' without quotes, and it is a number then.
WRITTEN = [(place, value) for place, value, _ in MISTAKES if value != '1e-4']


@pytest.mark.parametrize(('place', 'value'), WRITTEN, ids=[f'{place}-{n}' for n, (place, _) in enumerate(WRITTEN)])
def test_every_mistake_has_its_line(place: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in block style, so that every key has a line of its own."""
    options = training()
    put(options, place, value)
    text = yaml.safe_dump(options, sort_keys=False, default_flow_style=False, width=10**6)
    monkeypatch.chdir(tmp_path)
    Path('my.yml').write_text(text, encoding='utf-8')
    with pytest.raises(OptionError) as caught:
        checked_options('my.yml')
    (problem,) = caught.value.lines
    keys = place.split('.')
    # A message may be about the option, about a part of it, about the network as a whole, or about its task.
    possible = {line_of(text, keys[:end]) for end in (len(keys), len(keys) - 1)}
    if isinstance(value, dict):
        possible |= {line_of(text, [*keys, key]) for key in value}
    told = problem.split(':')[1]
    line = int(told) if told.isdecimal() else 0
    assert line in possible or place.startswith('network_g'), (problem, possible)
    assert problem.startswith(f'my.yml:{line}: ' if line else 'my.yml: ')
    if value is not MISSING and not isinstance(value, dict) and f'{place}:' in problem:
        assert line == line_of(text, keys)


def test_options_of_a_test_have_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = measuring()
    options['val']['pbar'] = 7
    text = yaml.safe_dump(options)
    monkeypatch.chdir(tmp_path)
    Path('my.yml').write_text(text, encoding='utf-8')
    with pytest.raises(OptionError) as caught:
        checked_options('my.yml', ['val:save_img=no way', 'val:suffix=..'], is_train=False)
    assert sorted(caught.value.lines) == [
        "--force_yml val:save_img=no way: val.save_img: 'no way' is neither true nor false.",
        "--force_yml val:suffix=..: val.suffix: '..' is not a name without slashes.",
        f'my.yml:{text.splitlines().index("  pbar: 7") + 1}: val.pbar: 7 is neither true nor false.',
    ]
