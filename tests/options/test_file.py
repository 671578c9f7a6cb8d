"""Each mistake is told with the line of its option in the file, or as one of the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr.core.errors import MachineProblem, OptionError
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


@pytest.mark.parametrize(
    ('problem', 'line'),
    [
        ('name: 5 is not text.', 1),
        ('datasets.train.tasks: give a list.', 7),
        ('datasets.train.tasks[0] (first).copies: 1 is wrong.', 8),
        ('datasets.train.tasks[1].clean: no such folder.', 11),
        ("datasets.train.tasks[1] (denoize): unknown task type 'denoize'. Did you mean 'denoise'?", 10),
        ('datasets.train.tasks[2] (second (a)).copies: its own, not the merged one.', 14),
        ('datasets.train.tasks[2] (second (a)).degrade.sigma: of what was merged.', 4),
        ("datasets.train.tasks[0] (first): unknown option 'copies'. Allowed: name.", 8),
        ('datasets.val.tasks[4] (derain).copies: of a protocol, by name.', 18),
        ('datasets.val.tasks[5] (dehaze).root: of a protocol, not in the file.', 17),
        ("datasets.train.protocol: unknown protocol '4d'.", 15),
        ('datasets.train and datasets.val: have the same name.', 6),
        ('network_g.type: unknown network.', 20),
        ('network_g: PromptIR: heads is [1, 2]; it must have four numbers.', 21),
        ('network_g: PromptedNetwork: taps[1].module: no module b.', 24),
        ('network_g.dim: is missing.', 19),
        ("train: unknown option 'total_iter'. Allowed: heads, name.", 25),
        ("train: unknown option 'trian.x'. Allowed: heads, name.", 25),
        ('val.metrics.psnr.y.type: of a name with a dot.', 28),
        ('val.metrics.psnr.type: of a name without.', 30),
        ("options: unknown option 'base'. Allowed: name.", 2),
        ('logger: is missing.', None),
        ('something else altogether.', None),
    ],
)
def test_lines_of_a_file(places: Places, problem: str, line: int | None) -> None:
    assert places.located(problem) == (f'my.yml:{line}: {problem}' if line else f'my.yml: {problem}')


@pytest.mark.parametrize(
    ('keys', 'problem', 'told'),
    [
        ('train:total_iter', 'train.total_iter: 0 is wrong.', True),
        ('train:total_iter', "train: unknown option 'trian.x'.", False),
        ('train', 'train.total_iter: is missing.', True),
        ('train:new', "train: unknown option 'new'.", True),
        ('datasets:train:tasks:0:copies', 'datasets.train.tasks[0] (first).copies: 0.', True),
        ('datasets:train:tasks:0:copies', 'datasets.train.tasks[1].clean: no.', False),
        ('datasets:train:tasks:2:degrade:sigma', 'datasets.train.tasks[2] (second (a)).degrade.sigma: 0.', True),
        ('datasets:val:tasks:SOTS:copies', 'datasets.val.tasks[0] (SOTS).copies: 0.', True),
        ('network_g:heads', 'network_g: PromptIR: heads is 5.', True),
        ('logger:print_freq', 'logger.print_freq: 0.', True),
    ],
)
def test_replacements_of_the_command_line(places: Places, keys: str, problem: str, told: bool) -> None:
    entry = f'--force_yml {keys}=0'
    places.replace(keys.split(':'), entry)
    assert places.located(problem).startswith(f'{entry}: {problem}' if told else 'my.yml:')
    # What an alias shares with a place is not replaced with it.
    assert places.located('base.degrade.sigma: of the base.') == 'my.yml:4: base.degrade.sigma: of the base.'


def test_a_problem_of_the_machine_stays_one(places: Places) -> None:
    located = places.located(MachineProblem('name: 4 GPUs.'))
    assert isinstance(located, MachineProblem)
    assert located == 'my.yml:1: name: 4 GPUs.'


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
    (problem,) = caught.value.problems
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
    assert sorted(caught.value.problems) == [
        "--force_yml val:save_img=no way: val.save_img: 'no way' is neither true nor false.",
        "--force_yml val:suffix=..: val.suffix: '..' is not a name without slashes.",
        f'my.yml:{text.splitlines().index("  pbar: 7") + 1}: val.pbar: 7 is neither true nor false.',
    ]
