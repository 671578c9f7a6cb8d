"""Protocols: what the files say, how an option file changes them, and a page that cannot drift from them."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data.allinone_dataset import DATASET_KEYS, AllInOneDataset, check_dataset
from promptir_basicsr.data.protocol import (
    CATALOGUE,
    FOLDER,
    Corpus,
    Part,
    Protocol,
    ProtocolFile,
    expand_protocol,
    load_protocol,
    protocol_datasets,
    protocol_names,
)
from promptir_basicsr.data.tasks import known_count, survey_tasks
from promptir_basicsr.options.file import read_options

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / 'docs' / name).read_text() for name in ('data.md', 'protocols.md')}
NAMES = '3d 5d_adair 5d_dfpir 5d_moceir 5d_tur allweather cdd11 deblur dehaze denoise derain lowlight'.split()

# The published numbers, written down once more: images x copies of each task, then the samples of an epoch.
NOISE = {'denoise_15': (5144, 3), 'denoise_25': (5144, 3), 'denoise_50': (5144, 3)}
RAIN, HAZE = {'derain': (200, 120)}, {'dehaze': (72135, 1)}
KINDS = 'low haze rain snow low_haze low_rain low_snow haze_rain haze_snow low_haze_rain low_haze_snow'.split()
TRAINING = {
    '3d': ({**NOISE, **RAIN, **HAZE}, 142_431),
    '5d_adair': ({**NOISE, **RAIN, **HAZE, 'deblur': (2103, 5), 'lowlight': (485, 20)}, 162_646),
    '5d_tur': ({**NOISE, **RAIN, **HAZE, 'deblur': (2103, 10), 'lowlight': (485, 50)}, 187_711),
    '5d_dfpir': ({**NOISE, 'derain': (200, 80), **HAZE, 'deblur': (2103, 30), 'lowlight': (485, 60)}, 226_621),
    '5d_moceir': ({**NOISE, **RAIN, **HAZE, 'deblur': (None, 5), 'lowlight': (485, 20)}, None),
    'denoise': (NOISE, 46_296),
    'derain': (RAIN, 24_000),
    'dehaze': (HAZE, 72_135),
    'deblur': ({'deblur': (2103, 5)}, 10_515),
    'lowlight': ({'lowlight': (485, 20)}, 9_700),
    'cdd11': (dict.fromkeys(KINDS, (1183, 1)), 13_013),
    'allweather': ({'snow': (9001, 1), 'rain_haze': (8250, 1), 'raindrop': (818, 1)}, 18_069),
}
FIVE = {'SOTS': 500, 'Rain100L': 100, 'CBSD68_25': 68, 'GoPro': 1111, 'LOL': 15}
TESTS = {
    '3d': ({'SOTS': 500, 'Rain100L': 100, 'CBSD68_15': 68, 'CBSD68_25': 68, 'CBSD68_50': 68}, 804),
    **dict.fromkeys(('5d_adair', '5d_tur', '5d_dfpir', '5d_moceir'), (FIVE, 1_794)),
    'denoise': ({'CBSD68_15': 68, 'CBSD68_25': 68, 'CBSD68_50': 68}, 204),
    'derain': ({'Rain100L': 100}, 100),
    'dehaze': ({'SOTS': 500}, 500),
    'deblur': ({'GoPro': 1111}, 1_111),
    'lowlight': ({'LOL': 15}, 15),
    'cdd11': (dict.fromkeys(KINDS, 200), 2_200),
    'allweather': ({'Snow100K-L': 16_801, 'Test1': 750, 'RainDrop': 58}, 17_609),
}


def expand(protocol: str, phase: str = 'train', **beside: Any) -> dict[str, Any]:
    return expand_protocol({'protocol': protocol, 'phase': phase, **beside}, 'datasets.x')


def task(options: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [task for task in options['tasks'] if task['name'] == name]
    return found


def names(options: dict[str, Any]) -> list[str]:
    return [task['name'] for task in options['tasks']]


def problems(opt: dict[str, Any]) -> list[str]:
    with pytest.raises(OptionError) as caught:
        expand_protocol(opt, 'datasets.x')
    return caught.value.lines


# What the files say


def test_the_protocols_are_those_that_were_promised() -> None:
    assert protocol_names() == NAMES
    assert sorted(TRAINING) == sorted(TESTS) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_counts_copies_and_samples_are_the_published_ones(name) -> None:
    expected, samples = TRAINING[name]
    training = expand(name)
    assert {t['name']: (t.get('expected_images'), t['copies']) for t in training['tasks']} == expected
    assert load_protocol(name).train.samples == samples
    if samples is not None:
        assert sum(t['expected_images'] * t['copies'] for t in training['tasks']) == samples
    expected, samples = TESTS[name]
    test = expand(name, 'test')
    assert {t['name']: t['expected_images'] for t in test['tasks']} == expected
    assert load_protocol(name).test.samples == samples == sum(t['expected_images'] for t in test['tasks'])


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('phase', ['train', 'val', 'test'])
def test_the_only_problems_of_a_protocol_are_missing_images(name, phase, tmp_path) -> None:
    """Types, rules, degradations and keys are known: on an empty folder only missing folders and lists are told."""
    options = expand(name, phase, dataroot=str(tmp_path))
    with pytest.raises(OptionError) as caught:
        check_dataset(options, 'x')
    told = [p for p in caught.value.lines if 'does not exist' not in p and 'cannot be read as text' not in p]
    assert told == []
    assert len(caught.value.lines) >= len(options['tasks'])


@pytest.mark.parametrize('name', NAMES)
def test_training_and_test_have_the_same_labels(name) -> None:
    assert expand(name).get('degradations') == expand(name, 'val').get('degradations')


def test_labels_are_those_of_pip_and_the_folders_of_onerestore(write, tmp_path) -> None:
    for kind in (*KINDS, 'clear'):
        write(f'CDD-11_test/{kind}/00001.png')
    dataset = AllInOneDataset({'protocol': 'cdd11', 'phase': 'val', 'dataroot': str(tmp_path)})
    assert [(t.name, t.label) for t in dataset.tasks] == [(kind, label) for label, kind in enumerate(KINDS)]
    for folder in ('deblur/gopro', 'enhance/lol'):
        write(f'test/{folder}/input/1.png')
        write(f'test/{folder}/target/1.png')
    changes = {'SOTS': None, 'Rain100L': None, 'CBSD68_25': None}
    five = AllInOneDataset({'protocol': '5d_adair', 'phase': 'val', 'dataroot': str(tmp_path), 'tasks': changes})
    assert [(t.name, t.label) for t in five.tasks] == [('GoPro', 3), ('LOL', 4)]


def test_allweather_identifies_the_corpora_of_its_folder_by_file_name(write, tmp_path) -> None:
    for image in ('city_read_14216.jpg', 'im_0402_s90_a06.png', '12_rain.png', '13_rain.png'):
        write(f'train/allweather/input/{image}')
        write(f'train/allweather/gt/{image}')
    dataset = AllInOneDataset({'protocol': 'allweather', 'phase': 'train', 'dataroot': str(tmp_path)})
    found = {t.name: [lq for lq, _ in t.names] for t in dataset.tasks}
    assert found == {
        'snow': ['city_read_14216.jpg'],
        'rain_haze': ['im_0402_s90_a06.png'],
        'raindrop': ['12_rain.png', '13_rain.png'],
    }


def test_known_counts_are_not_published_counts_of_the_same_task() -> None:
    for name in NAMES:
        for phase in ('train', 'val'):
            for t in expand(name, phase)['tasks']:
                assert t.get('expected_images') not in t.get('known_counts', {})


# How an option file changes them


def test_without_a_protocol_options_come_back_as_a_copy() -> None:
    options = {'name': 'own', 'tasks': [{'type': 'derain'}]}
    expanded = expand_protocol(options, 'x')
    assert expanded == options
    expanded['tasks'][0]['type'] = 'dehaze'
    assert options['tasks'] == [{'type': 'derain'}]
    assert expand_protocol({'protocol': None, 'name': 'own'}, 'x') == {'name': 'own'}


def test_the_options_given_stay_as_they_are() -> None:
    options = {'protocol': '3d', 'phase': 'train', 'tasks': {'derain': {'copies': 60}, 'dehaze': None}}
    before = copy.deepcopy(options)
    first = expand_protocol(options, 'x')
    assert options == before
    first['tasks'][0]['degrade']['sigma'] = 99
    assert task(expand_protocol(options, 'x'), 'denoise_15')['degrade']['sigma'] == 15


def test_train_takes_the_training_part_and_every_other_phase_the_test_part() -> None:
    assert 'denoise_15' in names(expand('3d', 'train'))
    assert names(expand('3d', 'val')) == names(expand('3d', 'test')) == list(TESTS['3d'][0])
    assert names(expand_protocol({'protocol': '3d'}, 'x')) == list(TRAINING['3d'][0])
    assert 'gt_size' not in expand('3d', 'val')


def test_keys_override_the_protocol_and_null_removes_one() -> None:
    expanded = expand('3d', gt_size=192, augment_identity=True, crop_multiple=None, name='mine', prefetch_mode=None)
    assert (expanded['gt_size'], expanded['augment_identity'], expanded['name']) == (192, True, 'mine')
    assert 'crop_multiple' not in expanded
    assert expanded['prefetch_mode'] is None  # a key of BasicSR's, not the protocol's
    assert expanded['use_hflip'] is True
    assert 'protocol' not in expanded


def test_tasks_change_by_name() -> None:
    own = {'type': 'deblur', 'lq': 'mine/blurred', 'gt': 'mine/sharp', 'copies': 2}
    plain = expand('3d')
    expanded = expand('3d', tasks={'derain': {'copies': 60, 'list': None}, 'dehaze': None, 'own': own})
    assert names(expanded) == ['denoise_15', 'denoise_25', 'denoise_50', 'derain', 'own']
    rain = {key: value for key, value in task(plain, 'derain').items() if key != 'list'}
    assert task(expanded, 'derain') == {**rain, 'copies': 60}
    assert task(expanded, 'own') == {'name': 'own', **own}
    assert task(expanded, 'denoise_25') == task(plain, 'denoise_25')


def test_the_tasks_of_a_protocol_become_grey() -> None:
    plain, grey = expand('3d'), expand('3d', tasks={'denoise_25': {'channels': 1}})
    assert task(grey, 'denoise_25') == {**task(plain, 'denoise_25'), 'channels': 1}
    assert task(grey, 'denoise_50') == task(plain, 'denoise_50')


def test_a_list_of_tasks_replaces_them_all() -> None:
    own = [{'type': 'derain', 'lq': 'a', 'gt': 'b'}]
    assert expand('3d', tasks=own)['tasks'] == own
    assert expand('3d', tasks=None)['tasks'] == expand('3d')['tasks']


@pytest.mark.parametrize(
    ('protocol', 'name', 'change', 'gone'),
    [
        ('5d_adair', 'deblur', {'root': 'GoPro/train', 'pairing': 'gopro_nested'}, {'lq', 'gt'}),
        ('3d', 'derain', {'lq': 'rain', 'gt': 'clear', 'pairing': 'same_name'}, {'root'}),
        ('3d', 'derain', {'clean': 'photos', 'degrade': {'type': 'rain'}}, {'root', 'pairing'}),
        ('3d', 'denoise_15', {'root': 'real', 'pairing': 'lol'}, {'clean', 'degrade'}),
        ('3d', 'denoise_15', {'files': ['1.png']}, {'list'}),
    ],
)
def test_a_new_source_of_images_takes_the_place_of_the_old(protocol, name, change, gone) -> None:
    before = task(expand(protocol), name)
    after = task(expand(protocol, tasks={name: change}), name)
    assert gone <= set(before)
    assert set(after) == (set(before) - gone) | set(change)
    assert {key: after[key] for key in change} == change


def test_gopro_as_published_pairs_by_an_override(write, tmp_path) -> None:
    for sequence in ('GOPR0372_07_00', 'GOPR0374_11_00'):
        for folder in ('blur', 'blur_gamma', 'sharp'):
            write(f'GoPro/train/{sequence}/{folder}/000047.png')
    options = {'protocol': 'deblur', 'phase': 'train', 'dataroot': str(tmp_path)}
    (found,) = check_dataset({**options, 'tasks': {'deblur': {'root': 'GoPro/train', 'pairing': 'gopro_nested'}}}, 'x')
    assert found.names == [
        (f'{sequence}/blur/000047.png', f'{sequence}/sharp/000047.png')
        for sequence in ('GOPR0372_07_00', 'GOPR0374_11_00')
    ]


def test_mistakes_in_tasks_are_reported_together() -> None:
    told = problems({'protocol': '3d', 'tasks': {'derian': {'copies': 5}, 'dehaze': 3, 'other': None, 'new': {}}})
    assert len(told) == 4
    assert told[0].startswith("datasets.x.tasks: unknown task 'derian'. Did you mean 'derain'?")
    assert 'needs `type` and its images' in told[0]
    assert told[1].startswith('datasets.x.tasks.dehaze: set options to change, or ~ to remove the task, not 3')
    assert "unknown task 'other'" in told[2]
    assert problems({'protocol': 'derain', 'tasks': {'derain': None}}) == [
        'datasets.x.tasks: all tasks are removed. Keep at least one.'
    ]


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('3D', "unknown protocol '3D'. Did you mean '3d'?"),
        ('cdd-11', "unknown protocol 'cdd-11'. Did you mean 'cdd11'?"),
        ('5d', "unknown protocol '5d'. Did you mean 5d_adair, 5d_dfpir, 5d_moceir, 5d_tur?"),
        ('low', "unknown protocol 'low'. Did you mean 'lowlight'?"),
        ('mine/no.yml', "the file 'mine/no.yml' does not exist."),
        ('3d.yml', "the file '3d.yml' does not exist. Did you mean '3d'?"),
        (3, '3 is not the name of a protocol or a path.'),
        (['3d'], "['3d'] is not the name of a protocol or a path."),
    ],
)
def test_a_missing_protocol(name, told) -> None:
    (problem,) = problems({'protocol': name})
    assert problem.startswith(f'datasets.x.protocol: {told}')


def test_a_typo_next_to_a_protocol_is_still_a_mistake(tmp_path) -> None:
    with pytest.raises(OptionError) as caught:
        check_dataset({'protocol': 'derain', 'dataroot': str(tmp_path), 'gt_sise': 64}, 'x')
    assert "x: unknown option 'gt_sise'. Did you mean 'gt_size'?" in str(caught.value)


def test_datasets_for_prepare_are_written_out() -> None:
    datasets = protocol_datasets('derain', '/corpora')
    assert {key: (d['name'], d['type'], d['dataroot']) for key, d in datasets.items()} == {
        'train': ('derain_train', 'AllInOneDataset', '/corpora'),
        'val': ('derain_test', 'AllInOneDataset', '/corpora'),
    }
    for key, dataset in datasets.items():
        assert set(dataset) <= {'name', 'type', *DATASET_KEYS}
        assert dataset['tasks'] == expand('derain', key)['tasks']
        assert expand_protocol(dataset, 'x') == dataset


# Through the data set


def test_a_data_set_is_the_same_by_name_and_written_out(derain, tmp_path) -> None:
    """Samples of `protocol:` with changes are those of the options written by hand."""
    beside = {'phase': 'train', 'gt_size': 32, 'dataroot': str(tmp_path), 'seed': 7}
    changes = {'derain': {'root': 'Derain', 'list': None, 'copies': 2}}
    by_name = AllInOneDataset({'protocol': 'derain', 'tasks': changes, **beside})
    written = {'crop_multiple': 16, 'use_hflip': True, 'use_rot': True, 'augment_identity': False, **beside}
    by_hand = AllInOneDataset({'tasks': [{**derain, 'copies': 2}], **written})
    assert len(by_name) == len(by_hand) == 6
    for index in range(6):
        ours, theirs = by_name[3, index], by_hand[3, index]
        assert ours['lq'].equal(theirs['lq'])
        assert ours['gt'].equal(theirs['gt'])
        assert (ours['task'], ours['degradation'], ours['lq_path']) == ('derain', 1, theirs['lq_path'])


def notes(log) -> list[str]:
    return [record.getMessage().strip() for record in log if 'Note:' in record.getMessage()]


def test_the_log_explains_a_known_count(denoise, derain, log) -> None:
    """Small folders stand for the corpora: what counts is the number, and the words that go with it."""
    counts = {'expected_images': 5, 'known_counts': {2: 'BSD400 missing: this is the WED-only variant'}}
    more = {'expected_images': 1, 'known_counts': {3: 'another OTS: this is that of v0'}}
    crops = {'name': 'deblur', 'known_counts': {3: 'whole images: the recipe takes crops'}}
    right = {'name': 'right', 'expected_images': 3, 'known_counts': {3: 'never said', 200: 'nor this'}}
    tasks = [{**denoise, **counts}, {**derain, **more}, {**derain, **crops}, {**derain, **right}]
    AllInOneDataset({'phase': 'val', 'tasks': tasks})
    ending = 'results will not be comparable with published ones.'
    assert notes(log) == [
        f"Note: task 'denoise25': BSD400 missing: 2 of 5, this is the WED-only variant; {ending}",
        f"Note: task 'derain': another OTS: 3 instead of 1, this is that of v0; {ending}",
        "Note: task 'deblur': whole images: 3, the recipe takes crops.",
    ]


def test_the_wed_only_variant_is_a_known_count() -> None:
    known = task(expand('3d'), 'denoise_15')['known_counts']
    assert known_count(4744, 5144, known) == 'BSD400 missing: 4,744 of 5,144, this is the WED-only variant'
    assert known_count(5144, 5144, known) == known_count(4743, 5144, known) == ''
    haze = task(expand('3d'), 'dehaze')['known_counts']
    assert '313,950 instead of 72,135' in known_count(313_950, 72_135, haze)
    assert 'RESIDE v0' in known_count(313_950, 72_135, haze)


def test_a_list_without_a_corpus_reports_which(denoise, tmp_path) -> None:
    (tmp_path / 'list.txt').write_text('00001.bmp\n00002.bmp\na1.jpg\n')
    options = {**denoise, 'list': str(tmp_path / 'list.txt'), 'known_counts': {2: 'BSD400 missing: as ever'}}
    (survey,), _ = survey_tasks({'tasks': [options]}, 'x')
    (gap,) = map(str, survey.gaps)
    assert "1 of 3 entries are not in '" in gap
    assert 'BSD400 missing: 2 of 3, as ever.' in gap
    assert len(survey.task) == 2


@pytest.mark.parametrize('wrong', [5, ['BSD400 missing'], {'4744': 'text for a number'}, {4744: 5}])
def test_known_counts_are_numbers_with_words(denoise, wrong) -> None:
    (survey,), _ = survey_tasks({'tasks': [{**denoise, 'known_counts': wrong}]}, 'x')
    (problem,) = map(str, survey.problems)
    assert problem == f'x.tasks[0] (denoise25).known_counts: must be `number: what it means`, not {wrong!r}.'


# A file of one's own

OWN = """
title: Mine
sources: [{title: 'A paper', url: 'https://example.org'}]
corpora: {Rain100L: ~, own: {holds: my photographs, images: {train: 12}}}
train:
  samples: 36
  gt_size: 64
  tasks:
    rain: {type: derain, lq: rain, gt: clear, copies: 3, expected_images: 12}
"""


def test_a_file_of_ones_own(tmp_path, monkeypatch) -> None:
    (tmp_path / 'mine.yml').write_text(OWN)
    monkeypatch.chdir(tmp_path)
    protocol = load_protocol('mine.yml')
    rain = {'name': 'rain', 'type': 'derain', 'lq': 'rain', 'gt': 'clear', 'copies': 3, 'expected_images': 12}
    assert protocol == Protocol(
        name='mine.yml',
        title='Mine',
        sources=[{'title': 'A paper', 'url': 'https://example.org'}],
        corpora=[*load_protocol('derain').corpora, Corpus(name='own', holds='my photographs', images={'train': 12})],
        train=Part({'gt_size': 64, 'tasks': [rain]}, 36),
    )
    assert expand(str(tmp_path / 'mine.yml'), tasks={'rain': {'copies': 1}})['tasks'] == [{**rain, 'copies': 1}]
    assert list(protocol_datasets('mine.yml', 'd')) == ['train']
    assert problems({'protocol': 'mine.yml', 'phase': 'val'}) == ["datasets.x.protocol: 'mine.yml' has no test part."]


def test_a_file_may_extend_another(tmp_path) -> None:
    (tmp_path / 'first.yml').write_text('extends: derain\ntrain: {tasks: {derain: {copies: 7}}}\n')
    (tmp_path / 'second.yml').write_text('extends: first.yml\ntitle: Second\ntrain: {gt_size: 96}\ntest: ~\n')
    second = load_protocol(str(tmp_path / 'second.yml'))
    assert (second.train.options['gt_size'], second.train.options['tasks'][0]['copies']) == (96, 7)
    assert second.test is None
    assert second.train.samples is None  # no longer what the base says
    assert second.corpora == load_protocol('derain').corpora


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('titel: x\ntrain: {tasks: {a: {type: derain}}}', "unknown option 'titel'. Did you mean 'title'?"),
        ('title: x', 'has no `train` or `test` part.'),
        ('title: 5\ntrain: {tasks: {a: {type: derain, lq: a, gt: b}}}', 'title: 5 is not text.'),
        ('train: 5', 'train: set options of a dataset, not 5.'),
        ('train: {gt_sise: 5, tasks: {a: {type: derain, lq: a, gt: b}}}', "unknown option 'gt_sise'."),
        ('train: {protocol: 3d, tasks: {a: {type: derain, lq: a, gt: b}}}', "train: unknown option 'protocol'."),
        ('train: {gt_size: 5}', 'train.tasks: set tasks, `name: {type: ..., ...}`, not [].'),
        ('train: {tasks: {a: {lq: a, gt: b}}}', "train.tasks: unknown task 'a'."),
        ('train: {tasks: {a: {type: derain, lq: a, gt: b, copy: 5}}}', "train.tasks.a: unknown option 'copy'."),
        ('train: {tasks: {a: {type: derain, lq: a, gt: b, copies: x}}}', "train.tasks.a.copies: 'x' is not a whole"),
        ('train: {tasks: [{type: derain}]}', "train.tasks[0]: set options with a `name`, not {'type': 'derain'}."),
        (
            'train: {samples: 5, tasks: {a: {type: derain, lq: a, gt: b, copies: 2, expected_images: 3}}}',
            'train.samples: is 5, but the tasks have 6.',
        ),
        ('extends: nothing', "extends: unknown protocol 'nothing'."),
        ('extends: self.yml', "extends: 'self.yml' extends itself, directly or indirectly."),
        ('extends: 3d\ntrain: {tasks: {derian: ~}}', "unknown task 'derian'. Did you mean 'derain'?"),
        ('extends: 3d\ncorpora: [Rain100]', "corpora: unknown corpus 'Rain100'. Did you mean 'Rain100L'?"),
        ('extends: 3d\ncorpora: 5', 'corpora: set a list of names'),
        ('extends: 3d\ncorpora: {own: {url: x}}', 'corpora.own.holds: is missing'),
        (
            'extends: 3d\ncorpora: {own: {holds: x, images: 5}}',
            'corpora.own.images: must be options such as {train: 200',
        ),
        ('extends: 3d\ncorpora: {own: {holds: x, images: {train: x}}}', "corpora.own.images.train: 'x' is not a whole"),
        ('extends: 3d\ncorpora: {own: 5}', 'corpora.own: must be options such as {holds: ..., url: ...}, not 5.'),
        ('extends: 3d\nsources: [x]', 'sources: set a list of {title: ..., url: ...}'),
        ('extends: 3d\nnotes: x', "notes: 'x' is not a list of sentences."),
        ('train: [', 'self.yml: line 1'),
    ],
)
def test_mistakes_in_a_file_name_it_and_the_place(tmp_path, text, told) -> None:
    path = tmp_path / 'self.yml'
    path.write_text(text)
    (first, *_) = problems({'protocol': str(path)})
    assert first.startswith(str(path))
    assert told in first


# The pages


def described(protocol: Protocol) -> str:
    """A protocol's section of docs/protocols.md. Where a test asks for another text, paste the one it shows."""
    sources = ', '.join(f'[{source["title"]}]({source["url"]})' for source in protocol.sources)
    lines = [f'### `{protocol.name}`', '', f'{protocol.title}. {protocol.about.strip()} Source: {sources}.', '']
    lines += ['| task | images | copies | samples | share |', '|:--|--:|--:|--:|--:|']
    for t in protocol.train.options['tasks']:
        images, copies = t.get('expected_images'), t['copies']
        samples = images and images * copies
        known = samples and protocol.train.samples
        share = f'{samples / protocol.train.samples:.1%}'.replace('%', ' %') if known else ''
        cells = (f'`{t["name"]}`', f'{images:,}' if images else '', copies, f'{samples:,}' if samples else '', share)
        lines.append(f'| {" | ".join(map(str, cells))} |')
    if protocol.train.samples:
        lines.append(f'| an epoch | | | {protocol.train.samples:,} | |')
    tests = ', '.join(f'{t["name"]} {t["expected_images"]:,}' for t in protocol.test.options['tasks'])
    lines += [
        '',
        f'Tests: {tests}; {protocol.test.samples:,} evaluations. '
        f'Corpora: {", ".join(corpus.name for corpus in protocol.corpora)}.',
    ]
    if 'notes' in load_yaml(str(FOLDER / f'{protocol.name}.yml')):  # those of the protocol it extends stand there
        lines += [line for note in protocol.notes for line in ('', note.strip())]
    return '\n'.join(lines)


def corpus_row(name: str, options: dict[str, Any]) -> str:
    counts = ', '.join(f'{number:,} {part}' for part, number in options['images'].items())
    where = f'[page]({options["url"]})' + (f', [archive]({options["archive"]})' if 'archive' in options else '')
    cells = (
        name,
        options['holds'],
        counts,
        where,
        options['paper'],
        options.get('license', ''),
        options.get('note', ''),
    )
    return f'| {" | ".join(cells)} |'


@pytest.mark.parametrize('name', NAMES)
def test_the_page_has_the_section_of_a_protocol(name) -> None:
    section = re.search(rf'^### `{name}`\n.*?(?=^##|\Z)', PAGES['protocols.md'], re.M | re.S)
    assert section is not None
    # Lines are wrapped on the page.
    assert section[0].split() == described(load_protocol(name)).split()


def test_the_tables_of_the_page_have_the_same_numbers() -> None:
    page = PAGES['protocols.md']
    for name, (_, samples) in TRAINING.items():
        stated = f'{samples:,}' if samples else 'depends on the crops'
        link = f'[`{name}`](#{name})'
        (row,) = [line for line in page.splitlines() if line.startswith('| [`') and link in line]
        assert row.endswith(('| a single degradation | |', f'| {stated} |'))
    for paper, name in (('AdaIR, BioIR, PIP', '5d_adair'), ('TUR', '5d_tur'), ('DFPIR', '5d_dfpir')):
        tasks, samples = TRAINING[name]
        copies = ' | '.join(f'x{tasks[key][1]}' for key in ('deblur', 'lowlight', 'derain'))
        assert f'| {paper} | {copies} | {samples:,} |' in page.splitlines()


@pytest.mark.parametrize('name', load_yaml(str(CATALOGUE)))
def test_the_page_has_the_row_of_a_corpus(name) -> None:
    assert corpus_row(name, load_yaml(str(CATALOGUE))[name]) in PAGES['protocols.md'].splitlines()


def test_every_corpus_is_of_a_protocol() -> None:
    assert {corpus.name for name in NAMES for corpus in load_protocol(name).corpora} == set(load_yaml(str(CATALOGUE)))
    for name in NAMES:
        for corpus in load_protocol(name).corpora:
            assert corpus.url.startswith('https://')
            assert corpus.paper


def test_the_page_describes_every_key_of_a_file() -> None:
    rows = set(re.findall(r'^\| `(\w+)`', PAGES['protocols.md'], re.M))
    assert {*ProtocolFile.model_fields, *Corpus.model_fields, 'samples'} - {'name'} <= rows


def examples() -> list[str]:
    return re.findall(r'^```yaml\n(.*?)^```$', PAGES['protocols.md'], re.M | re.S)


@pytest.mark.parametrize('number', range(len(examples())))
def test_the_examples_of_the_page_hold(number, tmp_path, monkeypatch) -> None:
    """Data sets of option files expand; protocol files load."""
    monkeypatch.chdir(tmp_path)
    for place, text in enumerate(examples()):
        Path(f'{place}.yml').write_text(text)
        if 'datasets' not in yaml.safe_load(text):
            Path('mine.yml').write_text(text)
    content = load_yaml(f'{number}.yml')
    if 'datasets' not in content:
        assert load_protocol(f'{number}.yml').train
        return
    for key, options in content['datasets'].items():
        assert expand_protocol({**options, 'phase': key}, key)['tasks']


def folders() -> str:
    return ''.join(re.findall(r'^```\n(data\n├.*?)^```$', '\n'.join(PAGES.values()), re.M | re.S))


def test_the_trees_are_what_the_protocols_expect(write, tmp_path) -> None:
    """The folders as drawn, with the files named there, satisfy every data set of options/*promptir_*.yml."""
    parents, lists = [], []
    for line in folders().splitlines():
        indent, name = re.match(r'([│├└─ ]*)(\S+)', line).groups()
        parents[len(indent) // 4 :] = [name]
        if name.endswith('.txt'):
            lists.append('/'.join(parents))
        elif '.' in name:
            write('/'.join(parents))
    corpora = {'noisy': 'Denoise', 'rainy': 'Derain', 'hazy': 'Dehaze'}
    for name in lists:
        folder = tmp_path / 'data' / 'Train' / corpora[name.split('/')[2]]
        images = [path.relative_to(folder).as_posix() for path in folder.rglob('*.*')]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('\n'.join(i for i in images if not i.startswith(('gt/', 'original/'))))
    files = sorted((ROOT / 'options').glob('*promptir_*.yml'))
    assert len(files) >= 10
    for path in files:
        for key, options in read_options(str(path))['datasets'].items():
            rooted = {**options, 'phase': key.split('_')[0], 'dataroot': str(tmp_path / options['dataroot'])}
            assert all(len(task) for task in check_dataset(rooted, key))
