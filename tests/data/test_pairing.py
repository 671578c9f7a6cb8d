"""Every pairing rule on the folder layout of its corpus, against pairs written by hand."""

import random

import pytest

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data.pairing import PairFinder, compile_template, fill_template, find_pairs
from promptir_basicsr.data.tasks import build_tasks
from promptir_basicsr.options.data import TaskOptions
from promptir_basicsr.options.pairing import PAIRING_RULES, PairingRule
from promptir_basicsr.pictures.picture import EXTENSIONS

# rule -> (degraded -> its clear image, other files of the corpus), as they lie under `root`
LAYOUTS = {
    'rain100l_train': (
        {
            'rainy/rain-1.png': 'gt/norain-1.png',
            'rainy/rain-10.png': 'gt/norain-10.png',
            'rainy/rain-2.png': 'gt/norain-2.png',
        },
        ['gt/norain-3.png'],
    ),
    'rain100l_test': ({'input/1.png': 'target/1.png', 'input/100.png': 'target/100.png'}, []),
    'reside_ots': (
        {
            'synthetic/part1/0025_0.8_0.04.jpg': 'original/0025.jpg',
            'synthetic/part1/0025_0.85_0.2.jpg': 'original/0025.jpg',
            'synthetic/part1/0025_1_0.1.jpg': 'original/0025.jpg',
            'synthetic/part4/8180_0.95_0.16.jpg': 'original/8180.jpg',
        },
        ['original/9999.jpg'],
    ),
    'reside_sots': (
        {
            'input/0001_0.8_0.2.jpg': 'target/0001.png',
            'input/0002_0.8_0.08.jpg': 'target/0002.png',
            'input/1400_1.png': 'target/1400.png',
            'input/1400_10.png': 'target/1400.png',
        },
        [],
    ),
    'gopro_nested': (
        {
            'GOPR0372_07_00/blur/000047.png': 'GOPR0372_07_00/sharp/000047.png',
            'GOPR0372_07_00/blur/000048.png': 'GOPR0372_07_00/sharp/000048.png',
            'GOPR0884_11_00/blur/000047.png': 'GOPR0884_11_00/sharp/000047.png',
        },
        ['GOPR0372_07_00/blur_gamma/000047.png'],
    ),
    'gopro_flat': (
        {
            'blur/GOPR0372_07_00-000047.png': 'sharp/GOPR0372_07_00-000047.png',
            'blur/GOPR0372_07_00-000048.png': 'sharp/GOPR0372_07_00-000048.png',
        },
        [],
    ),
    'lol': ({'low/1.png': 'high/1.png', 'low/22.png': 'high/22.png'}, []),
    'cdd11': (
        {
            'haze/00001.png': 'clear/00001.png',
            'haze_snow/00001.png': 'clear/00001.png',
            'low/00001.png': 'clear/00001.png',
            'low/00002.png': 'clear/00002.png',
            'low_haze_rain/00002.png': 'clear/00002.png',
        },
        [],
    ),
}

# (rule, lq folder, gt folder, degraded -> clear): the two folders are named, the rule speaks of what is in them
TWO_FOLDERS = [
    ('same_name', 'rainy', 'clear', {'1.png': '1.png', 'sub/2.png': 'sub/2.png'}),
    ('rain100l_train', 'rainy', 'norain', {'rain-1.png': 'norain-1.png', 'rain-2.png': 'norain-2.png'}),
    ('rain100l_test', 'rain', 'clean', {'1.png': '1.png'}),
    ('reside_ots', 'OTS/hazy', 'OTS/clear', {'part1/0025_0.8_0.04.jpg': '0025.jpg'}),
    ('reside_sots', 'outdoor/hazy', 'outdoor/gt', {'0001_0.8_0.2.jpg': '0001.png', '0002_0.8_0.2.jpg': '0002.png'}),
    ('gopro_nested', 'train', 'train', {'GOPR0372/blur/1.png': 'GOPR0372/sharp/1.png'}),
    ('gopro_flat', 'b', 's', {'1.png': '1.png'}),
    ('lol', 'our485/low', 'our485/high', {'2.png': '2.png', '5.png': '5.png'}),
    ('cdd11', 'CDD', 'CDD/clear', {'haze/1.png': '1.png', 'rain/1.png': '1.png'}),
]


def pairs_of(folder, **task) -> list[tuple[str, str]]:
    """The pairs of one task below a folder."""
    built = build_tasks({'dataroot': str(folder), 'tasks': [{'type': 'derain', **task}]}, 'datasets.train')
    return list(built[0].names)


def problems_of(folder, **task) -> str:
    with pytest.raises(OptionError) as raised:
        pairs_of(folder, **task)
    return str(raised.value)


@pytest.mark.parametrize('rule', LAYOUTS)
def test_rule_pairs_the_released_layout(rule, write, tmp_path) -> None:
    pairs, others = LAYOUTS[rule]
    for name in {*pairs, *pairs.values(), *others}:
        write(name)
    assert pairs_of(tmp_path, root='.', pairing=rule) == sorted(pairs.items())


@pytest.mark.parametrize(('rule', 'lq', 'gt', 'pairs'), TWO_FOLDERS, ids=[row[0] for row in TWO_FOLDERS])
def test_rule_pairs_two_named_folders(rule, lq, gt, pairs, write, tmp_path) -> None:
    for lq_name, gt_name in pairs.items():
        write(f'{lq}/{lq_name}')
        write(f'{gt}/{gt_name}')
    assert pairs_of(tmp_path, lq=lq, gt=gt, pairing=rule) == sorted(pairs.items())


def test_every_rule_has_a_layout() -> None:
    assert LAYOUTS.keys() == PAIRING_RULES.keys() - {'same_name'}
    assert {row[0] for row in TWO_FOLDERS} == PAIRING_RULES.keys()


def test_two_folders_without_a_rule_pair_by_name_whatever_the_extensions(write, tmp_path) -> None:
    for name in ('lq/1.jpg', 'lq/2.png', 'lq/deep/er/3.bmp', 'gt/1.png', 'gt/2.png', 'gt/2.jpg', 'gt/deep/er/3.TIFF'):
        write(name)
    assert pairs_of(tmp_path, lq='lq', gt='gt') == [
        ('1.jpg', '1.png'),
        ('2.png', '2.png'),
        ('deep/er/3.bmp', 'deep/er/3.TIFF'),
    ]


def test_upper_case_extensions_pair(write, tmp_path) -> None:
    for name in ('rainy/rain-1.PNG', 'gt/norain-1.png', 'rainy/rain-2.png', 'gt/norain-2.PNG', 'rainy/rain-3.JPG'):
        write(name)
    write('gt/norain-3.JPG')
    assert pairs_of(tmp_path, root='.', pairing='rain100l_train') == [
        ('rainy/rain-1.PNG', 'gt/norain-1.png'),
        ('rainy/rain-2.png', 'gt/norain-2.PNG'),
        ('rainy/rain-3.JPG', 'gt/norain-3.JPG'),
    ]


@pytest.mark.parametrize('stem', ['a photo (1)', 'v1.0.final', 'Zürich', '雨-夜', '{id}', 'a+b[c]', "it's_50%"])
def test_unusual_names_pair(stem, write, tmp_path) -> None:
    write(f'low/{stem}.png')
    write(f'high/{stem}.jpg')
    write('high/other.png')
    assert pairs_of(tmp_path, root='.', pairing='lol') == [(f'low/{stem}.png', f'high/{stem}.jpg')]


def test_hidden_files_and_folders_and_other_files_are_not_seen(write, tmp_path) -> None:
    for name in ('low/1.png', 'high/1.png', 'low/._1.png', 'low/.thumbs/1.png', '.cache/low/2.png'):
        write(name)
    for name in ('low/Thumbs.db', 'low/notes.txt', 'low/png', 'low/1.png.part'):
        (tmp_path / name).write_bytes(b'x')
    assert pairs_of(tmp_path, root='.', pairing='lol') == [('low/1.png', 'high/1.png')]


def test_templates_of_the_user(write, tmp_path) -> None:
    for name in (
        'in/car/f01_noisy.png',
        'in/car/f02_noisy.png',
        'in/car/readme.png',
        'out/car-01.jpg',
        'out/car-02.jpg',
    ):
        write(name)
    templates = {'lq': 'in/{scene}/f{frame}_{kind}.{ext}', 'gt': 'out/{scene}-{frame}.jpg'}
    expected = [('in/car/f01_noisy.png', 'out/car-01.jpg'), ('in/car/f02_noisy.png', 'out/car-02.jpg')]
    assert pairs_of(tmp_path, root='.', pairing=templates) == expected


def test_custom_templates_are_relative_to_lq_and_gt(write, tmp_path) -> None:
    write('in/rainy/1.png')
    write('out/dry/1.png')
    templates = {'lq': 'rainy/{id}.png', 'gt': 'dry/{id}.png'}
    assert pairs_of(tmp_path, lq='in', gt='out', pairing=templates) == [('rainy/1.png', 'dry/1.png')]


def test_a_repeated_field_must_have_the_same_value(write, tmp_path) -> None:
    for name in ('lq/7/7_a.png', 'lq/7/8_a.png', 'gt/7.png', 'gt/8.png'):
        write(name)
    templates = {'lq': 'lq/{id}/{id}_{n}.png', 'gt': 'gt/{id}.png'}
    assert pairs_of(tmp_path, root='.', pairing=templates) == [('lq/7/7_a.png', 'gt/7.png')]


def test_braces_that_are_not_a_field_are_literal(write, tmp_path) -> None:
    write('lq/{0}{}1.png')
    write('gt/{0}{}1.png')
    assert pairs_of(tmp_path, root='.', pairing={'lq': 'lq/{0}{}{id}.png', 'gt': 'gt/{0}{}{id}.png'}) == [
        ('lq/{0}{}1.png', 'gt/{0}{}1.png')
    ]


def test_clear_images_in_the_folder_of_the_degraded_ones(write, tmp_path) -> None:
    for name in ('1.png', '1_gt.png', '2.png', '2_gt.png'):
        write(name)
    templates = {'lq': '{id}.png', 'gt': '{id}_gt.png'}
    assert pairs_of(tmp_path, root='.', pairing=templates) == [('1.png', '1_gt.png'), ('2.png', '2_gt.png')]
    write('3.png')
    assert '1 of 3 degraded images' in problems_of(tmp_path, root='.', pairing=templates)


# Lists


def test_a_list_chooses_and_orders(write, tmp_path) -> None:
    for number in range(1, 5):
        write(f'rainy/rain-{number}.png')
        write(f'gt/norain-{number}.png')
    text = '\ufeffrainy/rain-3.png\n\n# held out\nrainy/rain-1.png  \r\n'
    (tmp_path / 'train.txt').write_text(text, encoding='utf-8')
    task = {'root': '.', 'pairing': 'rain100l_train'}
    expected = [('rainy/rain-3.png', 'gt/norain-3.png'), ('rainy/rain-1.png', 'gt/norain-1.png')]
    assert pairs_of(tmp_path, **task, list='train.txt') == expected
    assert pairs_of(tmp_path, **task, files=['rainy/rain-3.png', 'rainy/rain-1.png']) == expected
    assert pairs_of(tmp_path, **task, list=str(tmp_path / 'train.txt')) == expected


def test_entries_that_are_missing_are_counted_and_named(write, tmp_path) -> None:
    write('rainy/rain-1.png')
    write('gt/norain-1.png')
    (tmp_path / 'train.txt').write_text(''.join(f'rainy/rain-{number}.png\n' for number in range(1, 8)))
    message = problems_of(tmp_path, root='.', pairing='rain100l_train', list='train.txt')
    assert 'tasks[0] (derain).list: 6 of 7 entries' in message
    assert str(tmp_path) in message
    named = [f'rainy/rain-{number}.png (line {number})' for number in (2, 3, 4)]
    assert f'{", ".join(named)} and 3 more' in message
    assert 'Add the files' in message


def test_listed_names_that_do_not_fit_are_named(write, tmp_path) -> None:
    for name in ('rainy/rain-1.png', 'gt/norain-1.png', 'rainy/other.png'):
        write(name)
    message = problems_of(
        tmp_path, root='.', pairing='rain100l_train', files=['rainy/rain-1.png', 'rainy/other.png', 'gt/norain-1.png']
    )
    assert "2 of 3 names do not match the lq template 'rainy/rain-{id}.{ext}'" in message
    assert 'rainy/other.png, gt/norain-1.png' in message
    assert 'Set another pairing rule' in message


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (None, 'cannot be read as text'),
        (b'\xff\xfe\x00', 'cannot be read as text'),
        (b'# nothing\n', 'contains no names'),
    ],
)
def test_a_list_that_is_missing_not_text_or_empty(content, expected, write, tmp_path) -> None:
    write('low/1.png')
    write('high/1.png')
    if content is not None:
        (tmp_path / 'train.txt').write_bytes(content)
    message = problems_of(tmp_path, root='.', pairing='lol', list='train.txt')
    assert '.list: ' in message
    assert expected in message


# What cannot be paired


def test_degraded_images_without_a_clear_one_are_counted_and_named(write, tmp_path) -> None:
    for number in range(1, 6):
        write(f'rainy/rain-{number}.png')
    write('gt/norain-5.png')
    message = problems_of(tmp_path, root='.', pairing='rain100l_train')
    assert 'tasks[0] (derain): 4 of 5 degraded images have no clear image: ' in message
    assert 'rainy/rain-1.png -> gt/norain-1.png, rainy/rain-2.png -> gt/norain-2.png,' in message
    assert 'and 1 more. Add the clear images, or select degraded ones by `list` or `files`.' in message


def test_a_rule_of_another_corpus_is_reported_with_its_template(write, tmp_path) -> None:
    for name in ('rainy/1.png', 'clear/1.png'):
        write(name)
    message = problems_of(tmp_path, root='.', pairing='rain100l_train')
    assert "2 of 2 names do not match the lq template 'rainy/rain-{id}.{ext}': clear/1.png, rainy/1.png." in message
    assert 'or templates {lq: ..., gt: ...}' in message


def test_a_clear_image_is_never_its_own_degraded_one(write, tmp_path) -> None:
    write('clear/1.png')
    write('haze/1.png')
    assert pairs_of(tmp_path, root='.', pairing='cdd11') == [('haze/1.png', 'clear/1.png')]
    assert pairs_of(tmp_path, lq='.', gt='clear', pairing='cdd11') == [('haze/1.png', '1.png')]
    assert 'Set `lq` and `gt`, not `root`' in problems_of(tmp_path, root='.', pairing='same_name')
    assert '1 of 1 degraded images are their own clear image' in problems_of(tmp_path, lq='haze', gt='clear/../haze')
    listed = problems_of(tmp_path, lq='.', gt='clear', pairing='cdd11', files=['clear/1.png', 'haze/1.png'])
    assert '1 of 2 degraded images are their own clear image' in listed


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('rain100l', "unknown pairing rule 'rain100l'. Did you mean 'rain100l_t"),
        ('xyz', 'Allowed: cdd11, gopro_flat,'),
        (5, 'must be the name of a pairing rule or templates {lq: ..., gt: ...}, not 5'),
        ({'lq': 'a/{id}.png'}, 'tasks[0].pairing.gt: is missing.'),
        (
            {'lq': 'a/{id}.png', 'gt': 'b/{idd}.png'},
            "field '{idd}' is not in the lq template 'a/{id}.png'. Did you mean 'id'?",
        ),
        ({'lq': 'a/1.png', 'gt': 'b/1.png'}, 'has no field such as {id}'),
        ({'lq': 'a/{}.png', 'gt': 'b/{0}.png'}, 'has no field such as {id}'),
        ({'lq': 'a/{id}.png', 'gt': 'b/{id}.png', 'it': ''}, "unknown option 'it'"),
    ],
)
def test_mistakes_in_a_rule(option, expected) -> None:
    problems = [str(problem) for problem in TaskOptions.problems({'pairing': option}, 'tasks[0]')]
    assert expected in '\n'.join(problems)
    assert problems[0].startswith('tasks[0].pairing')


# Templates


OWN_RULES = {
    'every_field_between_folders': PairingRule('{a}/x/{b}/{c}.{ext}', 'y/{c}/{b}-{a}.{ext}'),
    'twice': PairingRule('{a}/{a}_{b}.png', '{b}/{a}/{a}.jpg'),
    'regular_expression': PairingRule('(.*)+[{a}]?/^{b}$.{ext}', '{b}|{a}.{ext}'),
}
CHARACTERS = 'abcXYZ019 .{}[]()+*?^$|\\äß雨😀%~#&\'",;='


@pytest.mark.parametrize('name', [*PAIRING_RULES, *OWN_RULES])
def test_matching_is_the_inverse_of_filling(name) -> None:
    rule = {**PAIRING_RULES, **OWN_RULES}[name]
    pattern, draw = compile_template(rule.lq), random.Random(name)
    for _ in range(200):
        fields = {key: ''.join(draw.choices(CHARACTERS, k=draw.randint(1, 6))) for key in pattern.groupindex}
        if 'ext' in fields:
            fields['ext'] = draw.choice(EXTENSIONS)
            fields['ext'] = draw.choice((fields['ext'], fields['ext'].upper()))
        if 'path' in fields:
            fields['path'] = '/'.join(''.join(draw.choices(CHARACTERS, k=3)) for _ in range(draw.randint(1, 4)))
        lq_name, gt_name = fill_template(rule.lq, fields), fill_template(rule.gt, fields)
        match = pattern.match(lq_name)
        assert match is not None
        assert match.groupdict() == fields
        assert PairFinder(rule, [gt_name, 'other.png']).gt_of(lq_name) == (gt_name, gt_name)
        assert PairFinder(rule, ['other.png']).gt_of(lq_name) == (None, gt_name)


@pytest.mark.parametrize(
    'name',
    [
        'synthetic/part1/sub/0025_0.8_0.04.jpg',
        'synthetic/0025_0.8_0.04.jpg',
        'x/synthetic/part1/0025_0.8_0.04.jpg',
        'synthetic/part1/0025_0.8.jpg',
        'synthetic/part1/0025_0.8_0.04.jpg.txt',
        'synthetic/part1/0025_0.8_0.04.svg',
    ],
)
def test_a_template_matches_whole_paths_only(name) -> None:
    assert compile_template(PAIRING_RULES['reside_ots'].lq).match(name) is None


def test_find_pairs_returns_files_that_the_rule_does_not_match() -> None:
    names = ['high/1.png', 'low/1.png', 'readme.png']
    pairs, problems, others, orphans = find_pairs('t', PAIRING_RULES['lol'], names, names, one_folder=True)
    assert (pairs, problems, others) == ([('low/1.png', 'high/1.png')], [], ['high/1.png', 'readme.png'])
    assert orphans == []
