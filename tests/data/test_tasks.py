"""Tasks from options: labels, vocabulary, and what is said about mistakes; `docs/data.md` is held to the code."""

import copy
import re
from pathlib import Path

import pytest

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.vocabulary import DEGRADATION_TYPES
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data.allinone_dataset import DATASET_KEYS, HOST_KEYS, check_dataset
from promptir_basicsr.data.tasks import build_tasks
from promptir_basicsr.options.data import TaskOptions
from promptir_basicsr.options.pairing import PAIRING_RULES
from promptir_basicsr.pictures.picture import EXTENSIONS

DOCS = Path(__file__).parents[2] / 'docs' / 'data.md'
TEXT = DOCS.read_text(encoding='utf-8')


def built(*tasks, **options):
    return build_tasks({'tasks': list(tasks), **options}, 'datasets.train')


def problems(*tasks, **options) -> list[str]:
    with pytest.raises(OptionError) as raised:
        built(*tasks, **options)
    return raised.value.lines


# What a task is


def test_labels_are_the_class_ids_of_pip(denoise) -> None:
    tasks = [{**denoise, 'name': kind, 'type': kind} for kind in ('deblur', 'lowlight', 'denoise', 'derain', 'dehaze')]
    labels = {task.name: task.label for task in built(*tasks)}
    assert labels == {'denoise': 0, 'derain': 1, 'dehaze': 2, 'deblur': 3, 'lowlight': 4}


def test_a_custom_vocabulary_defines_the_labels(denoise) -> None:
    tasks = [{**denoise, 'name': kind, 'type': kind} for kind in ('desnow', 'denoise')]
    words = ['desnow', 'demoire', 'denoise']
    assert [(task.type, task.label) for task in built(*tasks, degradations=words)] == [('desnow', 0), ('denoise', 2)]


def test_a_label_of_a_task_overrides_the_default(denoise) -> None:
    tasks = [{**denoise, 'name': f's{sigma}', 'label': label} for sigma, label in ((15, 0), (25, 7), (50, 2))]
    assert [task.label for task in built(*tasks)] == [0, 7, 2]


def test_a_task_is_called_like_its_type_unless_it_has_a_name(denoise) -> None:
    named = built(denoise)[0]
    unnamed = built({key: value for key, value in denoise.items() if key != 'name'})[0]
    assert (named.name, unnamed.name) == ('denoise25', 'denoise')


def test_the_two_kinds_of_task(denoise, derain) -> None:
    clean, pairs = built(denoise, derain)
    assert (clean.paired, len(clean), clean.copies) == (False, 2, 1)
    assert list(clean.names) == [('00001.bmp', '00001.bmp'), ('00002.bmp', '00002.bmp')]
    assert (pairs.paired, len(pairs), pairs.degrade) == (True, 3, None)


def test_folders_start_at_the_dataroot(denoise, derain, tmp_path, monkeypatch) -> None:
    relative = {**derain, 'root': 'Derain'}
    assert built(relative, dataroot=str(tmp_path))[0].names == built(derain)[0].names
    assert built(relative, dataroot=tmp_path)[0].names == built(derain)[0].names
    monkeypatch.chdir(tmp_path)
    assert built(relative)[0].names == built(derain)[0].names
    assert built({**denoise, 'clean': 'skimage://', 'files': ['coffee.png']}, dataroot='/nowhere')[0].names


def test_options_are_not_changed(denoise, derain) -> None:
    options = {'tasks': [{**denoise, 'files': ['00002.bmp']}, derain], 'degradations': list(DEGRADATION_TYPES)}
    before = copy.deepcopy(options)
    first = build_tasks(options, 'x')
    assert options == before
    assert [task.names for task in build_tasks(options, 'x')] == [task.names for task in first]


# Mistakes


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'type': 'denoize'}, "unknown task type 'denoize'. Did you mean 'denoise'? Allowed: deblur, dehaze, denoise,"),
        ({'copys': 3}, "unknown option 'copys'. Did you mean 'copies'?"),
        ({'copies': 0}, '.copies: 0 is not a whole number of at least 1.'),
        ({'copies': 1.5}, '.copies: 1.5 is not a whole number of at least 1.'),
        ({'copies': True}, '.copies: True is not a whole number of at least 1.'),
        ({'label': -1}, '.label: -1 is not a whole number of at least 0.'),
        ({'label': 'noise'}, ".label: 'noise' is not a whole number of at least 0."),
        ({'expected_images': '400'}, ".expected_images: '400' is not a whole number"),
        ({'name': 'de noise'}, ".name: 'de noise' is not a name without spaces and slashes."),
        ({'name': 'a/b'}, ".name: 'a/b' is not a name without spaces and slashes."),
        ({'name': 25}, '.name: 25 is not a name'),
        ({'clean': 5}, '.clean: 5 is not a folder.'),
        ({'root': 'x'}, '.root: only for paired tasks; this one is synthesised from `clean`.'),
        ({'crop_border_gt': 10}, '.crop_border_gt: only for paired tasks'),
        ({'pairing': 'lol'}, '.pairing: only for paired tasks'),
        ({'degrade': {'type': 'gausian_noise'}}, ".degrade: unknown degradation 'gausian_noise'. Did you mean"),
        ({'degrade': {'type': 'gaussian_noise'}}, 'needs sigma'),
        ({'channels': 2}, '.channels: 2 is neither 1 (grey) nor 3 (RGB).'),
        ({'channels': True}, '.channels: True is neither 1 (grey) nor 3 (RGB).'),
        ({'files': []}, '.files: must be a list of at least one name.'),
        ({'files': '00001.bmp'}, '.files: must be a list of at least one name.'),
        ({'files': ['1.bmp']}, ".files: 1 of 1 entries are not in '"),
    ],
    ids=str,
)
def test_mistakes_in_a_task_of_clean_images(change, expected, denoise) -> None:
    (problem, *others) = problems({**denoise, **change})
    assert expected in problem
    assert problem.startswith('datasets.train.tasks[0]')
    assert not others


@pytest.mark.parametrize(
    ('task', 'expected'),
    [
        ({}, 'set `lq` and `gt` (two folders), or `root` (one folder with both), or `clean` and `degrade`.'),
        ({'lq': '.'}, 'set `lq` and `gt` (two folders)'),
        ({'lq': '.', 'gt': '.', 'root': '.'}, 'set `lq` and `gt` (two folders)'),
        ({'root': '.'}, '`pairing` is missing. One of: same_name, rain100l_train,'),
        ({'root': '.', 'pairing': 'lol', 'degrade': {'type': 'jpeg'}}, '.degrade: needs `clean`'),
        ({'clean': '.'}, '`degrade` is missing. Set how to degrade the clean images, '),
    ],
    ids=str,
)
def test_a_task_that_is_neither_kind(task, expected, write, tmp_path) -> None:
    write('low/1.png')
    write('high/1.png')
    (problem, *others) = problems({'type': 'lowlight', **task}, dataroot=str(tmp_path))
    assert expected in problem
    assert not others


def test_a_task_without_type(denoise) -> None:
    task = {key: value for key, value in denoise.items() if key not in ('type', 'name')}
    assert problems(task) == [
        'datasets.train.tasks[0]: `type` is missing. One of: denoise, derain, dehaze, deblur, lowlight.'
    ]


def test_a_custom_type_gets_a_hint_how_to_add_it(denoise) -> None:
    (problem,) = problems({**denoise, 'type': 'desnow'})
    assert problem.endswith('To add a new degradation, set `degradations` of the dataset.')


def test_a_list_and_files(denoise, tmp_path) -> None:
    (tmp_path / 'list.txt').write_text('00001.bmp')
    (problem,) = problems({**denoise, 'files': ['00001.bmp'], 'list': str(tmp_path / 'list.txt')})
    assert 'set `list` (a text file) or `files` (names), not both.' in problem


def test_two_tasks_of_one_name(denoise) -> None:
    assert problems(denoise, denoise) == [
        "datasets.train.tasks: two tasks have the name 'denoise25'. Set a unique `name` for each."
    ]


@pytest.mark.parametrize('words', ['denoise', 5, {'denoise': 0}, ['a', 'a'], [1, 2]], ids=str)
def test_a_vocabulary_that_is_not_a_list_of_words(words, denoise) -> None:
    assert problems(denoise, degradations=words) == [
        f'datasets.train.degradations: must be a list of different words, not {words!r}.'
    ]


@pytest.mark.parametrize('tasks', [None, [], {}, 'denoise'], ids=str)
def test_no_tasks(tasks) -> None:
    with pytest.raises(OptionError, match=r'^datasets\.train\.tasks: must be a list with at least one task'):
        build_tasks({'tasks': tasks}, 'datasets.train')


def test_a_task_that_is_not_a_mapping_and_a_dataroot_that_is_not_a_folder(denoise) -> None:
    assert 'tasks[0]: set options such as {type: denoise' in problems('denoise')[0]
    assert problems(denoise, dataroot=5) == ['datasets.train.dataroot: 5 is not a folder.']


def test_a_missing_folder_names_task_folder_what_was_expected_and_what_exists(tmp_path) -> None:
    task = {'name': 'rain', 'type': 'derain', 'root': 'Train/Derain', 'pairing': 'rain100l_train'}
    (problem,) = problems({**task, 'expected_images': 1200}, dataroot=str(tmp_path))
    assert problem.startswith(
        f"datasets.train.tasks[0] (rain).root: the folder '{tmp_path}/Train/Derain' does not exist"
    )
    assert f"('{tmp_path}' does)" in problem
    assert "Expected there: 1,200 images, laid out as 'rainy/rain-{id}.{ext}' with 'gt/norain-{id}.{ext}'." in problem
    assert problem.endswith(f"Fix the path, or `dataroot` of the dataset (now '{tmp_path}').")


def test_a_missing_folder_with_expected_images_that_is_not_a_number(tmp_path) -> None:
    found = problems({'type': 'derain', 'root': 'x', 'pairing': 'lol', 'expected_images': '5'}, dataroot=str(tmp_path))
    assert len(found) == 2
    assert "'5' is not a whole number" in found[0]
    assert 'does not exist' in found[1]


def test_a_file_where_a_folder_is_expected_and_an_empty_folder(tmp_path, denoise) -> None:
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    assert "the folder '" in problems({**denoise, 'clean': str(tmp_path / 'file')})[0]
    assert "' is a file." in problems({**denoise, 'clean': str(tmp_path / 'file')})[0]
    assert f".clean: no images in '{tmp_path}/empty'." in problems({**denoise, 'clean': str(tmp_path / 'empty')})[0]


def test_several_mistakes_in_one_report(denoise, tmp_path) -> None:
    found = problems(
        {**denoise, 'type': 'denoize', 'copies': 0},
        {'name': 'rain', 'type': 'derain', 'root': 'nowhere', 'pairing': 'rain100'},
        {**denoise, 'clean': 'nowhere', 'degrade': [{'type': 'rian'}, {'type': 'gaussian_noise', 'sigma': '25'}]},
        dataroot=str(tmp_path),
    )
    starts = [problem.split(': ')[0] for problem in found]
    assert starts == [
        'datasets.train.tasks[0] (denoise25).copies',
        'datasets.train.tasks[0] (denoise25)',
        'datasets.train.tasks[1] (rain).pairing',
        'datasets.train.tasks[1] (rain).root',
        'datasets.train.tasks[2] (denoise25).degrade[0]',
        'datasets.train.tasks[2] (denoise25).degrade[1].sigma',
        'datasets.train.tasks[2] (denoise25).clean',
    ]


# docs/data.md


def rows() -> dict[str, str]:
    """First cell -> the line, of every table row whose first cell is code."""
    return {match[1]: match[0] for match in re.finditer(r'^\| `([^`]+)` \|.*$', TEXT, re.MULTILINE)}


def blocks(language: str) -> list[str]:
    fenced = re.findall(r'^```(\w*)\n(.*?)^```$', TEXT, re.DOTALL | re.MULTILINE)
    return [block for found, block in fenced if found == language]


@pytest.mark.parametrize('key', [*TaskOptions.model_fields, *DATASET_KEYS])
def test_every_key_is_documented(key) -> None:
    assert key in rows()


def test_every_key_of_basicsr_is_mentioned() -> None:
    assert [key for key in HOST_KEYS if f'`{key}`' not in TEXT] == []


@pytest.mark.parametrize('name', PAIRING_RULES)
def test_every_pairing_rule_is_documented_with_its_templates(name) -> None:
    rule = PAIRING_RULES[name]
    assert f'`{rule.lq}`' in rows()[name]
    assert f'`{rule.gt}`' in rows()[name]


def test_vocabulary_and_extensions_are_documented() -> None:
    for label, kind in enumerate(DEGRADATION_TYPES):
        assert re.search(rf'\| `{kind}` \| {label} \|', TEXT)
    assert f'`{"`, `".join(EXTENSIONS)}`' in TEXT.replace('\n', ' ')


def test_option_examples_hold_nothing_but_missing_folders(tmp_path) -> None:
    """What is shown can be typed: every key, type, rule and degradation of it is known."""
    assert len(blocks('yaml')) >= 3
    for number, block in enumerate(blocks('yaml')):
        path = tmp_path / f'{number}.yml'
        path.write_text(block)
        example = load_yaml(str(path))
        for phase, options in example.get('datasets', {'train': {'gt_size': 128, **example}}).items():
            assert mistakes({**options, 'phase': phase, 'dataroot': str(tmp_path)}) == []


def mistakes(options: dict) -> list[str]:
    """What is wrong with a dataset, folders and lists aside."""
    try:
        check_dataset(options, 'x')
    except OptionError as error:
        return [problem for problem in error.lines if 'does not exist' not in problem]
    return []


def test_python_example_runs() -> None:
    (block,) = blocks('python')
    names: dict = {}
    exec(block, names)
    assert all(f'`{key}`' in TEXT for key in names['sample'])
    assert names['sample']['task'] == 'denoise'


def test_all_tasks_of_a_data_set_have_the_same_channels(denoise, derain) -> None:
    grey = {**denoise, 'channels': 1}
    assert [task.channels for task in built(grey, {**derain, 'channels': 1})] == [1, 1]
    assert [task.channels for task in built(denoise, derain)] == [3, 3]
    assert problems(grey, derain, {**grey, 'name': 'other'}) == [
        'datasets.train.tasks: images with 1 channel (denoise25, other) and with 3 (derain) in one dataset. '
        'Set the same `channels` in all of its tasks.'
    ]
    assert len(problems(grey, {**derain, 'channels': 4})) == 1
