"""Option files are read as their users mean them, and never run."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.yaml_loader import load_yaml, parse_value


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(text: str) -> dict[str, Any]:
        path = tmp_path / 'options.yml'
        path.write_text(text, encoding='utf-8')
        return load_yaml(str(path))

    return read


def problem(read: Any, text: str) -> str:
    """The one line that a file is refused with, without its path."""
    with pytest.raises(OptionError) as caught:
        read(text)
    (line,) = caught.value.lines
    assert '\n' not in line
    path, _, message = line.partition('options.yml: ')
    assert Path(path).is_absolute()
    return message


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('1e-4', 1e-4),
        ('-2E+3', -2000.0),
        ('1.5e3', 1500.0),
        ('1.e3', 1000.0),
        ('.5e3', 500.0),
        ('2e0', 2.0),
        ('1_000e1', 10000.0),
        ('0.1', 0.1),
    ],
)
def test_floats_of_every_spelling(read: Any, text: str, number: float) -> None:
    value = read(f'lr: {text}')['lr']
    assert isinstance(value, float)
    assert value == number
    assert read(f'betas: [{text}]')['betas'] == [number]


@pytest.mark.parametrize('text', ['1e', 'e4', '1e-4x', '4-e1', 'v1e5', '1.2.3e4', '.e3'])
def test_words_that_look_like_numbers_stay_text(read: Any, text: str) -> None:
    assert read(f'name: {text}')['name'] == text


@pytest.mark.parametrize('text', ['2024-01-01', '2024-13-01', '2024-01-01 10:00:00', '='])
def test_dates_are_text(read: Any, text: str) -> None:
    assert read(f'name: {text}')['name'] == text


def test_quoted_numbers_stay_text(read: Any) -> None:
    assert read("name: '1e-4'")['name'] == '1e-4'


def test_the_float_rule_stays_in_our_loader() -> None:
    assert yaml.safe_load('1e-4') == '1e-4'


def test_a_key_given_twice_is_refused_with_its_lines(read: Any) -> None:
    message = problem(read, 'train:\n  total_iter: 1\n  lr: 2\n  total_iter: 3\n')
    assert "duplicate key 'total_iter' in lines 2 and 4" in message
    assert message.startswith('line 4, column 3: ')


def test_a_key_given_twice_on_one_line_is_refused(read: Any) -> None:
    assert "duplicate key 'a' in lines 1 and 1" in problem(read, 'x: {a: 1, b: 2, "a": 3}')


def test_equal_keys_at_different_places_are_fine(read: Any) -> None:
    assert read('a: {type: 1}\nb: {type: 2}\n') == {'a': {'type': 1}, 'b': {'type': 2}}


def test_merge_keys_and_overrides(read: Any) -> None:
    options = read('base: &base {a: 1, b: 2}\nother: &other {c: 3}\nx: {<<: *base, b: 5}\ny: {<<: [*base, *other]}\n')
    assert options['x'] == {'a': 1, 'b': 5}
    assert options['y'] == {'a': 1, 'b': 2, 'c': 3}


def test_a_merged_mapping_that_itself_merges_and_overrides(read: Any) -> None:
    # PyYAML makes `later` before the deeper `middle`, whose merged keys stand beside its own by then.
    options = read(
        'base: &base {a: 1, b: 2}\n'
        'deep:\n'
        '  deeper:\n'
        '    - middle: &middle {<<: *base, a: 3}\n'
        'later: {<<: *middle, b: 4}\n'
    )
    assert options['deep']['deeper'][0]['middle'] == {'a': 3, 'b': 2}
    assert options['later'] == {'a': 3, 'b': 4}


# Keys of several letters: a PyYAML release once merged lists with the last mapping winning, and lost keys of chains.
LAYERS = """
network: &network {type: PromptIR, dim: 48, heads: [1, 2, 4, 8]}
small: &small {<<: *network, dim: 24}
smaller: &smaller {<<: *small, dim: 16, bias: false}
"""


def test_a_chain_of_merges(read: Any) -> None:
    options = read(LAYERS)
    assert options['small'] == {'type': 'PromptIR', 'dim': 24, 'heads': [1, 2, 4, 8]}
    assert options['smaller'] == {'type': 'PromptIR', 'dim': 16, 'heads': [1, 2, 4, 8], 'bias': False}


def test_the_first_of_a_list_of_merges_has_priority(read: Any) -> None:
    options = read(f'{LAYERS}other: &other {{type: PIP, dim: 32, sensor: null}}\nmixed: {{<<: [*smaller, *other]}}\n')
    assert options['mixed'] == {'type': 'PromptIR', 'dim': 16, 'heads': [1, 2, 4, 8], 'bias': False, 'sensor': None}
    options = read(f'{LAYERS}other: &other {{type: PIP, dim: 32}}\nmixed: {{bias: true, <<: [*other, *smaller]}}\n')
    assert options['mixed'] == {'type': 'PIP', 'dim': 32, 'heads': [1, 2, 4, 8], 'bias': True}


@pytest.mark.parametrize('merged', ['5', '[*network, 5]', '[[*network]]'])
def test_only_mappings_can_be_merged(read: Any, merged: str) -> None:
    assert 'expected a mapping or a list of mappings after <<' in problem(read, f'{LAYERS}wrong: {{<<: {merged}}}\n')


def test_two_merges_in_one_mapping_are_refused(read: Any) -> None:
    message = problem(read, f'{LAYERS}both:\n  <<: *small\n  <<: *network\n')
    assert "duplicate key '<<' in lines 6 and 7; merge several mappings with <<: [*a, *b]" in message


def test_the_value_of_an_alias_can_be_changed_independently(read: Any) -> None:
    options = read('a: &files [x.png]\nb: *files\nc: {<<: {files: *files}}\n')
    options['a'][0] = 'y.png'
    assert options == {'a': ['y.png'], 'b': ['x.png'], 'c': {'files': ['x.png']}}


@pytest.mark.parametrize(
    ('text', 'place', 'reason'),
    [
        ('a: 1\n\tb: 2\n', 'line 2, column 1', "'\\t'"),
        ('a: [1, 2\nb: 3\n', 'line 2, column 2', "',' or ']'"),
        ('a: b: c\n', 'line 1, column 5', 'mapping values are not allowed'),
        ('a: *missing\n', 'line 1, column 4', "undefined alias 'missing'"),
        ('a: {{b}}\n', 'line 1, column 5', 'unhashable key'),
        ("a: !!int ''\n", 'line 1, column 4', "'' is not a valid int"),
        ('a: 0xffffffffffffffff\n', 'line 1, column 4', 'whole numbers must not exceed 9,223,372,036,854,775,807'),
        ('a: !!timestamp 2024-01-01\n', 'line 1, column 4', 'could not determine a constructor for the tag'),
        ('a: !!binary aGVsbG8=\n', 'line 1, column 4', 'could not determine a constructor for the tag'),
        ('a: !!float x\n', 'line 1, column 4', "'x' is not a valid float"),
        ('a: !!bool perhaps\n', 'line 1, column 4', "'perhaps' is not a valid bool"),
        ('a: 1\n---\nb: 2\n', 'line 2, column 1', 'another document'),
    ],
)
def test_broken_files_are_reported_in_one_line_with_the_place(read: Any, text: str, place: str, reason: str) -> None:
    message = problem(read, text)
    assert message.startswith(f'{place}: ')
    assert reason in message


def test_an_alias_inside_of_itself_is_refused(read: Any) -> None:
    assert 'alias' in problem(read, 'a: &a\n  b: *a\n')


def test_aliases_that_multiply_are_refused_at_once(read: Any) -> None:
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n']
    lines += [f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]\n' for n in range(1, 40)]
    start = time.perf_counter()
    assert 'more than 1,000,000 values with aliases (*) expanded' in problem(read, ''.join(lines))
    merged = ['b0: &b0 {k: 1}\n', *(f'b{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}]}}\n' for n in range(1, 60))]
    assert 'more than 1,000,000 values' in problem(read, ''.join(merged))
    assert time.perf_counter() - start < 5


def test_what_is_nested_without_end_is_refused(read: Any) -> None:
    assert problem(read, f'a: {"[" * 5000}') == 'nested too deeply.'
    assert problem(read, f'a: {"{b: " * 5000}') == 'nested too deeply.'


@pytest.mark.parametrize(
    ('text', 'found'), [('', 'NoneType'), ('- a\n', 'list'), ('just words', 'str'), ('# nothing\n', 'NoneType')]
)
def test_a_file_without_options_is_refused(read: Any, text: str, found: str) -> None:
    assert f'contains {found}, must be options' in problem(read, text)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'options.yml'
    path.write_bytes(b'\x89PNG\r\n\x1a\n')
    with pytest.raises(OptionError, match='cannot be read as text'):
        load_yaml(str(path))


@pytest.mark.parametrize(
    'tag',
    [
        '!!python/object/apply:os.system ["touch pwned"]',
        '!!python/object/new:os.system ["touch pwned"]',
        '!!python/name:os.system',
        '!!python/module:os',
        '!!python/tuple [1, 2]',
        '!unheard_of 1',
    ],
)
def test_tags_that_make_objects_are_refused(
    read: Any, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'could not determine a constructor for the tag' in problem(read, f'a: {tag}\n')
    with pytest.raises(OptionError, match='could not determine a constructor'):
        parse_value(tag, '--force_yml a=...')
    assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-4', 1e-4),
        ('!!float1e-4', 1e-4),
        ('!!float 1e-4', 1e-4),
        ('!!float5', 5.0),
        ('5', 5),
        ('true', True),
        ('False', False),
        ('none', None),
        ('None', None),
        ('~', None),
        ('null', None),
        ('', None),
        ('[1, 2e-1, x]', [1, 0.2, 'x']),
        ('{type: AdamW, lr: 1e-3}', {'type': 'AdamW', 'lr': 1e-3}),
        ('skimage://', 'skimage://'),
        ("'5'", '5'),
    ],
)
def test_values_of_the_command_line(text: str, value: Any) -> None:
    found = parse_value(text, '--force_yml a=...')
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize('text', ['[1, 2', 'a: b: c', '*x', '!!float x', '!!int 1.5'])
def test_broken_values_name_their_place(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_value(text, '--force_yml a=...')
    assert caught.value.lines[0].startswith('--force_yml a=...: line 1, column ')
