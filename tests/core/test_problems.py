"""A problem is an object until it is shown: nobody but the command line, the log and reports makes text of it."""

import ast
from pathlib import Path
from typing import Any, get_args

import pytest

import promptir_basicsr
from promptir_basicsr.checks.check import check_file
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core import problems
from promptir_basicsr.core.errors import OptionError, argument_error, problems_of
from promptir_basicsr.core.problems import Item, Keys, Kind, Problem, problem
from promptir_basicsr.core.yaml_loader import load_yaml_with_places
from promptir_basicsr.options.file import Places
from tests.checks.test_run import MISTAKES, put, training

PACKAGE = Path(promptir_basicsr.__file__).parent
# Who shows problems, and `core`, which says how.
EDGE = ('cli.py', 'commands/', 'core/', 'options/file.py', 'checks/check.py')
# What they call a problem is a sentence about a file.
OTHERS = ('install_basicsr.py', 'data/lmdb/prepare.py')
TAKES_APART = (
    'startswith endswith partition rpartition split rsplit splitlines removeprefix removesuffix find rfind index strip '
    'lstrip rstrip match fullmatch search findall finditer sub'
).split()


class Sealed(str):
    """A text that can be shown, and not be looked into."""

    def _refuse(self, *_: object) -> Any:
        raise AssertionError(f'somebody takes a message apart: {str.__str__(self)}')

    startswith = endswith = partition = rpartition = split = rsplit = splitlines = removeprefix = removesuffix = _refuse
    find = rfind = index = rindex = count = strip = lstrip = rstrip = __contains__ = __getitem__ = __iter__ = _refuse


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are sealed, and so are the texts that are made of problems."""
    made = Problem.__str__
    monkeypatch.setattr(Problem, '__str__', lambda self: Sealed(made(self)))
    initialise = Problem.__init__

    def seal(self: Problem, path: Keys, message: str, *args: Any, **kwargs: Any) -> None:
        initialise(self, path, Sealed(message), *args, **kwargs)

    monkeypatch.setattr(Problem, '__init__', seal)


@pytest.mark.parametrize('step', [5, pytest.param(1, marks=pytest.mark.slow)])
def test_no_message_is_parsed(step: int, sealed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = 0
    for place, value, _ in MISTAKES[::step]:
        options = training()
        put(options, place, value)
        found += len(check_options(options, is_train=True))
    assert found >= len(MISTAKES[::step])


def test_no_message_is_parsed_by_the_report(sealed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('my.yml').write_text('{datasets: {val: {type: AllInOneDataset, name: x, tasks: [{type: derrain}]}}}')
    report = check_file('my.yml', workers=0)
    assert {finding.where for finding in report.findings} == {'', 'datasets.val.tasks[0] (derrain)'}


@pytest.mark.parametrize('path', list(PACKAGE.rglob('*.py')), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_code_parses_problems(path: Path) -> None:
    """Calls such as `problem.startswith(...)`, `str(problem)` and f'{problem}' outside of the edge."""
    if path.relative_to(PACKAGE).as_posix().startswith((*EDGE, *OTHERS)):
        return
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKES_APART:
            found += [node for part in (node.func.value, *node.args) if _is_text_of_problem(part)]
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'str':
            found += [node for part in node.args if _is_problem(part)]
        elif isinstance(node, ast.FormattedValue) and _is_problem(node.value):
            found.append(node)
    assert [ast.unparse(node) for node in found] == []


def _is_problem(node: ast.AST) -> bool:
    """By its name; those of other libraries, such as `fact.problem` of an image, are strings."""
    return isinstance(node, ast.Name) and node.id == 'problem'


def _is_text_of_problem(node: ast.AST) -> bool:
    return _is_problem(node) or (isinstance(node, ast.Attribute) and node.attr in ('message', 'lines', 'problems'))


def test_there_is_one_function_that_shows_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, 'place', lambda keys: ' > '.join(map(str, keys)))
    assert str(Problem(('train', 'lr'), 'x.')) == 'train > lr: x.'


@pytest.mark.parametrize('kind', get_args(Kind))
def test_the_kind_of_a_problem_does_not_change_its_line(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / 'my.yml'
    path.write_text('name: x\ntasks:\n  - type: derain\n    list: names.txt\n')
    places = Places('my.yml', load_yaml_with_places(str(path))[1])
    where = ('tasks', Item(0, 'derain'))
    for message in ('name: is wrong.', "unknown option 'name'.", 'type', ''):
        assert places.located(Problem((*where, 'list'), message, kind)).startswith('my.yml:4: tasks[0] (derain).list: ')
        assert places.located(Problem(where, message, kind)).startswith('my.yml:3: tasks[0] (derain): ')
        assert places.located(problem(where, message, ('list',))).startswith('my.yml:4: tasks[0] (derain): ')


def test_errors_hold_problems() -> None:
    error = OptionError(['a sentence.', Problem(('train', 'lr'), 'x.')])
    assert [found.path for found in error.problems] == [(), ('train', 'lr')]
    assert str(error) == 'a sentence.\ntrain.lr: x.'
    shown = OptionError(error.problems, lambda found: f'my.yml: {found}')
    assert str(shown) == 'my.yml: a sentence.\nmy.yml: train.lr: x.'
    assert OptionError('a sentence.').lines == ['a sentence.']


def test_errors_of_constructors_are_problems_of_their_options() -> None:
    inner = argument_error('PromptIR', ('heads', 1), 'heads[1] is 3.')
    assert str(inner) == 'PromptIR: heads[1] is 3.'
    (found,) = problems_of('network_g', inner)
    assert (str(found), found.path) == ('network_g: PromptIR: heads[1] is 3.', ('network_g', 'heads', 1))
    assert [str(each) for each in problems_of('a', TypeError('b\nc'))] == ['a: b', 'a: c']
    assert [str(each) for each in problems_of('a', KeyError())] == ['a: KeyError']
