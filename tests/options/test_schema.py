"""The schema of the options: what editors and readers are told is what the check knows."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr.archs import PIPRestormer, PromptIR
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.degradations.spec import DEGRADATIONS
from promptir_basicsr.losses import PromptDecorrelationLoss, SmoothL1Loss
from promptir_basicsr.optim.schedules import SCHEDULERS
from promptir_basicsr.options.__main__ import files, main
from promptir_basicsr.options.catalogue import registered
from promptir_basicsr.options.data import MeasuringSet, TrainingSet
from promptir_basicsr.options.reference import COMMAND, JSON_SCHEMA, REFERENCE
from promptir_basicsr.options.registered import argument_meanings, section_of
from promptir_basicsr.options.run import OWN_RUNS, HostTest, HostTraining, run_schema
from promptir_basicsr.options.section import Section, sections_in
from tests.checks.test_run import measuring, put, training
from tests.options.test_corpus import FOLDER, OPTIONS, Option, misspelt

DOCS = Path(__file__).parents[2] / 'docs'
KINDS = ('network', 'loss', 'prompt loss', 'loss scaler', 'schedule', 'metric')


def sections() -> dict[str, type[Section]]:
    """Every section of an option file, by name."""
    found: dict[str, type[Section]] = {}

    def add(section: type[Section]) -> None:
        if section.__name__ not in found:
            found[section.__name__] = section
            for field in section.model_fields.values():
                for inner in sections_in(field.annotation):
                    add(inner)

    for section in (*OWN_RUNS.values(), TrainingSet, MeasuringSet, HostTraining, HostTest):
        add(section)
    for kind in KINDS:
        found |= registered(kind)
    return found


@pytest.fixture(scope='module')
def validator() -> jsonschema.Draft7Validator:
    schema = json.loads(files()[JSON_SCHEMA])
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def mistakes(validator: jsonschema.Draft7Validator, options: Any) -> list[str]:
    return [f'{list(error.absolute_path)}: {error.message}' for error in validator.iter_errors(options)]


# the files in docs/


@pytest.mark.parametrize('name', [JSON_SCHEMA, REFERENCE])
def test_the_files_in_docs_are_those_of_the_code(name: str) -> None:
    assert (DOCS / name).read_text(encoding='utf-8') == files()[name], f'Type: {COMMAND}'


def test_the_command_prints_the_json_schema() -> None:
    module = [sys.executable, '-m', 'promptir_basicsr.options']
    assert COMMAND.split()[1:3] == module[1:]
    printed = subprocess.run(module, capture_output=True, text=True, check=True)
    assert (printed.stdout, printed.stderr) == (files()[JSON_SCHEMA], '')


def test_the_command_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, 'argv', ['schema', '--write', str(tmp_path)])
    assert main() == 0
    assert {path.name: path.read_text(encoding='utf-8') for path in tmp_path.iterdir()} == files()
    monkeypatch.setattr(sys, 'argv', ['schema', '--write', str(tmp_path / 'no')])
    assert main() == 2
    assert "no' does not exist" in capsys.readouterr().err


def test_every_key_has_a_line_with_a_meaning_in_the_reference() -> None:
    page = files()[REFERENCE]
    rows = [[cell.strip() for cell in line.split(' | ')] for line in page.splitlines() if line.startswith('| `')]
    assert [row for row in rows if len(row) != 4 or len(row[3].rstrip(' |')) < 3] == []
    told = {row[0].strip('| `') for row in rows}
    keys = {key for section in sections().values() for key in section.model_fields} - {'train', 'val', 'test'}
    assert keys - told == set()


# the sections


@pytest.mark.parametrize('name', sorted(sections()))
def test_every_key_has_a_meaning(name: str) -> None:
    section = sections()[name]
    assert (section.__doc__ or '').strip()
    assert [key for key, field in section.model_fields.items() if not (field.description or '').strip()] == []


def test_arguments_of_classes_are_their_constructors() -> None:
    for kind, function in (('network', PromptIR), ('network', PIPRestormer), ('loss', SmoothL1Loss)):
        fields = registered(kind)[function.__name__].model_fields
        parameters = inspect.signature(function).parameters
        assert list(fields) == list(parameters)
        assert {key: field.default for key, field in fields.items()} == {
            key: parameter.default for key, parameter in parameters.items()
        }
    assert set(registered('prompt loss')) == {PromptDecorrelationLoss.__name__}
    assert set(registered('schedule')) == set(SCHEDULERS)
    assert set(registered('metric')) == {'calculate_paper_psnr', 'calculate_paper_ssim'}


def test_meanings_come_from_the_docstring() -> None:
    docstring = inspect.cleandoc(
        """What it is.

        Args:
            first: words
                and more words.
            second, third: of both. And so on.

        Raises:
            ValueError: none of these.
        """
    )
    assert argument_meanings(docstring) == {
        'first': 'words and more words',
        'second': 'of both. And so on.',
        'third': 'of both. And so on.',
    }
    assert argument_meanings('No arguments.') == {}


def test_types_are_strict() -> None:
    class Everything:
        def __init__(
            self,
            flag: bool = True,
            whole: int = 1,
            number: float = 1.0,
            text: str = '',
            numbers: 'list[int] | None' = None,
        ) -> None: ...

    section = section_of(Everything)
    assert section.problems({'flag': True, 'whole': 2, 'number': 2, 'text': 'x', 'numbers': [1]}) == []
    wrong = {'flag': 1, 'whole': True, 'number': '2', 'text': 3}
    assert [str(problem) for problem in section.problems(wrong, 'here')] == [
        'here.flag: 1 is neither true nor false.',
        'here.whole: True is not a whole number.',
        "here.number: '2' is not a number. Remove the quotes.",
        'here.text: 3 is not text.',
    ]


def test_models_of_others_have_keys_of_their_own() -> None:
    assert run_schema('SRModel', True) is HostTraining
    assert run_schema(['PromptModel'], False) is HostTest
    options = {**training(), 'model_type': 'SRModel', 'of_their_own': {1: [None]}}
    for section in ('path', 'train', 'val'):
        options[section] = {**options[section], 'of_their_own': 'x'}
    assert check_options(options, is_train=True) == []


# the JSON schema, asked through another program


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.yml')), ids=lambda path: path.name)
def test_correct_files_fit_the_json_schema(path: Path, validator: jsonschema.Draft7Validator) -> None:
    assert mistakes(validator, json.loads(json.dumps(load_yaml(str(path))))) == []


def test_a_file_with_a_base_may_omit_the_keys_of_the_base(validator: jsonschema.Draft7Validator) -> None:
    part = {'name': 'mine', 'train': {'total_iter': 5}}
    assert mistakes(validator, part) == ["[]: 'model_type' is a required property"]
    assert mistakes(validator, {**part, 'base': 'demo.yml'}) == []
    assert mistakes(validator, {**part, 'base': ['a.yml', 'b.yml']}) == []
    assert mistakes(validator, {**part, 'base': 3}) != []


def test_options_of_every_kind_fit_the_json_schema(validator: jsonschema.Draft7Validator) -> None:
    assert mistakes(validator, training()) == mistakes(validator, measuring()) == []
    options = training()
    simple = [
        name for name, kind in DEGRADATIONS.items() if all(p.default is not None for p in kind.parameters.values())
    ]
    options['datasets']['train']['tasks'][0]['degrade'] = [{'type': name} for name in simple]
    options['datasets']['train']['tasks'] += [{'type': 'x', 'lq': 'a', 'gt': 'b', 'pairing': {'lq': 'c', 'gt': 'd'}}]
    options['datasets']['val_2'] = {'name': 'x', 'type': 'AllInOneDataset', 'protocol': '3d', 'tasks': {'SOTS': None}}
    options['datasets']['val_3'] = {'name': 'x', 'type': 'OfSomebodyElse', 'anything': 1}
    options['network_g'] = {'type': 'OfSomebodyElse', 'anything': 1}
    options['train']['optim_g'] = {'type': 'OfSomebodyElse', 'lr': 1, 'anything': 1}
    options['val']['labels'] = {'derain': 0.5, 'dehaze': 0.5}
    options['compile'], options['precision'] = 'max-autotune', 'bf16'
    assert mistakes(validator, options) == []
    assert mistakes(validator, {'name': 'x', 'model_type': 'OfSomebodyElse', 'anything': 1}) == []


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        ('nmae', 1),
        ('name', 5),
        ('num_gpu', 'all'),
        ('scale', 2),
        ('precision', 'fp8'),
        ('datasets.train.gt_sise', 1),
        ('datasets.train.gt_size', '16'),
        ('datasets.train.tasks.0.copis', 1),
        ('datasets.train.tasks.0.copies', 0),
        ('datasets.train.tasks.0.degrade.sigma', 300),
        ('datasets.train.tasks.0.degrade.sigmma', 1),
        ('datasets.vall', {}),
        ('network_g.dmi', 1),
        ('network_g.dim', 'wide'),
        ('network_g.num_blocks', 4),
        ('path.models', 'x'),
        ('train.total_iter', 0),
        ('train.optim_g.lr', 0),
        ('train.scheduler.warmup_iters', 1),
        ('train.pixel_opt', 'L1Loss'),
        ('train.prompt_opt.knid', 'angle'),
        ('train.loss_scaler.histroy', 1),
        ('val.metrcs', {}),
        ('val.metrics.psnr.crop_boarder', 1),
        ('logger.print_freq', 0.5),
    ],
)
def test_mistakes_do_not_fit_the_json_schema(place: str, value: Any, validator: jsonschema.Draft7Validator) -> None:
    options = training()
    put(options, place, value)
    assert mistakes(validator, options) != []


def test_misspelt_keys_do_not_fit_the_json_schema(
    validator: jsonschema.Draft7Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for arguments of what is not ours, and of modules that are named in a list."""

    def fits(option: Option) -> bool:
        Path('wrong.yml').write_text(option.with_key(misspelt(option.name)), encoding='utf-8')
        return mistakes(validator, json.loads(json.dumps(load_yaml('wrong.yml')))) == []

    monkeypatch.chdir(tmp_path)
    passed = [option.place for option in OPTIONS if fits(option)]
    metrics = ('val.metrics.psnr_basicsr.', 'val.metrics.ssim_basicsr.')
    of_basicsr = [f'train.scheduler.{key}' for key in ('milestones', 'gamma', 'restarts', 'restart_weights')]
    open_ended = ('train.optim_g.', 'train.pixel_opt.', 'network_g.taps.', *metrics, *of_basicsr)
    assert [place for place in passed if not place.startswith(open_ended)] == []
    assert len(passed) < 12 + len(of_basicsr)
