"""Option files that go on from others: what wins, what is replaced, and whose line a mistake has."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from promptir_basicsr import cli
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.options.file import find_option_file, read_option_file, read_options
from tests.tiny_training import TINY_TRAINING


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**files: str) -> None:
    for name, text in files.items():
        Path(f'{name}.yml').write_text(text, encoding='utf-8')


@pytest.mark.parametrize(
    ('own', 'expected'),
    [
        ('{}', {'a': 1, 'b': {'c': [1, 2], 'd': {'e': 1}}, 'n': {'type': 'X', 'width': 8}}),
        ('a: 2', {'a': 2, 'b': {'c': [1, 2], 'd': {'e': 1}}, 'n': {'type': 'X', 'width': 8}}),
        ('b: {c: [3]}', {'a': 1, 'b': {'c': [3], 'd': {'e': 1}}, 'n': {'type': 'X', 'width': 8}}),
        ('b: {d: {f: 2}, c: ~}', {'a': 1, 'b': {'d': {'e': 1, 'f': 2}}, 'n': {'type': 'X', 'width': 8}}),
        ('b: ~', {'a': 1, 'n': {'type': 'X', 'width': 8}}),
        ('b: 3', {'a': 1, 'b': 3, 'n': {'type': 'X', 'width': 8}}),
        ('z: ~', {'a': 1, 'b': {'c': [1, 2], 'd': {'e': 1}}, 'n': {'type': 'X', 'width': 8}, 'z': None}),
        ('n: {width: 9}', {'a': 1, 'b': {'c': [1, 2], 'd': {'e': 1}}, 'n': {'type': 'X', 'width': 9}}),
        ('n: {type: X, dim: 9}', {'a': 1, 'b': {'c': [1, 2], 'd': {'e': 1}}, 'n': {'type': 'X', 'width': 8, 'dim': 9}}),
        ('n: {type: Y, dim: 9}', {'a': 1, 'b': {'c': [1, 2], 'd': {'e': 1}}, 'n': {'type': 'Y', 'dim': 9}}),
        ('b: &x {g: 1}\nq: {<<: *x, h: 2}', {
            'a': 1, 'b': {'c': [1, 2], 'd': {'e': 1}, 'g': 1}, 'n': {'type': 'X', 'width': 8}, 'q': {'g': 1, 'h': 2}
        }),
    ],
)  # fmt: skip
def test_the_order_of_priority(own: str, expected: dict[str, Any]) -> None:
    write(base='a: 1\nb: {c: [1, 2], d: {e: 1}}\nn: {type: X, width: 8}\n')
    lines = '' if own == '{}' else own
    write(own=f'base: base.yml\n{lines}\n')
    assert read_options('own.yml') == expected


def test_later_files_win_and_chains_are_followed() -> None:
    write(
        one='a: 1\nb: 1\nc: 1\n', two='base: one.yml\nb: 2\n', three='c: 3\n', own='base: [two.yml, three.yml]\nd: 4\n'
    )
    assert read_options('own.yml') == {'a': 1, 'b': 2, 'c': 3, 'd': 4}


def test_base_files_are_next_to_the_file_or_shipped(here: Path) -> None:
    (here / 'folder').mkdir()
    write(**{'folder/base': 'a: 1\n', 'folder/own': 'base: base.yml\n', 'demo_2': 'base: demo.yml\nname: mine\n'})
    assert read_options('folder/own.yml') == {'a': 1}
    shipped = read_options(find_option_file('demo.yml'))
    assert read_options('demo_2.yml') == {**shipped, 'name': 'mine'}


def test_a_mistake_has_the_line_of_its_own_file() -> None:
    write(base='a: 1\nb:\n  c: 2\n', own='base: base.yml\n\nb: {d: 3}\n')
    _, places = read_option_file('own.yml', ['b:e=4'])
    assert places.line(('b', 'c')) == './base.yml:3' or places.line(('b', 'c')) == 'base.yml:3'
    assert places.line(('b', 'd')) == 'own.yml:3'
    assert places.line(('a',)).endswith('base.yml:1')
    assert places.line(('b', 'e')) == '--force_yml b:e=4'


@pytest.mark.parametrize(
    ('files', 'said'),
    [
        ({'own': 'a: 1\nbase: nothing.yml\n'}, "own.yml:2: base: the option file 'nothing.yml' does not exist."),
        ({'own': 'base: {x: 1}\n'}, 'own.yml:1: base: must be the name of an option file, or a list of names'),
        ({'own': 'base: own.yml\n'}, "own.yml:1: base: 'own.yml' is based on 'own.yml', which is based on it."),
        ({'own': 'base: a.yml\n', 'a': 'base: own.yml\n'}, "a.yml:1: base: 'own.yml' is based on 'a.yml'"),
        ({'own': 'base: a.yml\n', 'a': 'x: [\n'}, 'a.yml: line 2'),
    ],
)
def test_what_cannot_be_a_base(files: dict[str, str], said: str) -> None:
    write(**files)
    with pytest.raises(OptionError) as error:
        read_options('own.yml')
    assert said in str(error.value)


def test_a_run_keeps_a_self_contained_option_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tiny=TINY_TRAINING, own='base: tiny.yml\nname: based\ntrain: {total_iter: 2}\n')
    assert cli.main(['train', '-opt', 'own.yml', '--set', 'logger:print_freq=2']) == 0
    copied = here / 'experiments/based/own.yml'
    options = yaml.safe_load(copied.read_text(encoding='utf-8'))
    assert 'base' not in options
    assert (options['train']['total_iter'], options['logger']['print_freq']) == (2, 2)
    assert cli.main(['check', '-opt', str(copied), '--fast']) == 0
