"""Lists of images as people and published programs write them: names, columns, encodings, and what is said of them."""

import pytest

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.data.lists import Entry, Names, find_names, read_list
from promptir_basicsr.data.tasks import build_tasks

# isort: split
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

FOLDER = ['a/1.png', 'a/2.png', 'b/1.png', 'my photo.png', 'two.jpg', 'two.png']


def names_of(*texts: str, folder=tuple(FOLDER), root='/data/GoPro/test') -> list[str]:
    listing = find_names([Entry(text, number) for number, text in enumerate(texts, 1)], Names(folder, root))
    assert not listing.missing
    assert not listing.mistakes
    return listing.names


@pytest.mark.parametrize(
    'texts',
    [
        ('a/1.png', 'b/1.png'),
        ('./a/1.png', './b/1.png'),
        ('a\\1.png', 'b\\1.png'),
        ('.\\a\\1.png', 'a//../b///1.png'),
        ('/data/GoPro/test/a/1.png', 'b/1.png'),
        ('GoPro/test/a/1.png', 'GoPro/test/b/1.png'),
        ('D:\\sets\\other\\a\\1.png', 'D:\\sets\\other\\b\\1.png'),
        ('/a/1.png', '/b/1.png'),
        ('a/1', 'b/1'),
        ('test\\a\\1', 'test\\b\\1'),
        ('a/1.png (480,640,3)', 'b/1.png (480,640,3)'),  # as BasicSR's own meta_info files
    ],
    ids=str,
)
def test_names_as_people_write_them(texts) -> None:
    assert names_of(*texts) == ['a/1.png', 'b/1.png']


def test_a_name_with_spaces_is_one_name() -> None:
    assert names_of('my photo.png', 'b/1.png') == ['my photo.png', 'b/1.png']


def test_the_name_itself_goes_first() -> None:
    folder = ['a\\1.png', 'a/1.png', 'two', 'two.png', 'x/a/1.png']
    assert names_of('a\\1.png', 'two', 'a/1.png', folder=folder) == ['a\\1.png', 'two', 'a/1.png']
    assert names_of('x/a/1.png', folder=folder) == ['x/a/1.png']


def test_no_more_leading_folders_are_ignored_than_needed() -> None:
    assert names_of('set/a/1.png', folder=['1.png', 'a/1.png']) == ['a/1.png']
    assert names_of('set/a/1.png', 'set/a/2.png', folder=['2.png', 'a/1.png', 'a/2.png']) == ['a/1.png', 'a/2.png']


def test_folders_are_ignored_only_where_all_entries_share_them() -> None:
    texts = [Entry('x/a/1.png', 3), Entry('a/2.png', 4), Entry('two', 6)]
    listing = find_names(texts, Names(FOLDER, '/data'))
    assert listing.names == ['a/2.png']
    assert listing.missing == [(texts[0], []), (texts[2], ['two.jpg', 'two.png'])]


def test_it_is_noted_which_folders_are_ignored_unless_they_are_the_sources_own() -> None:
    texts = [Entry('GoPro/test/a/1.png', 1)]
    assert find_names(texts, Names(FOLDER, '/data/GoPro/test')).notes == []
    assert find_names(texts, Names(FOLDER, '/data/mine')).notes == [
        "the leading 'GoPro/test/' of every entry of the list is ignored"
    ]


def test_repeated_entries_are_mistakes() -> None:
    listing = find_names([Entry('a/1.png', 1), Entry('b/1', 2), Entry('./a/1.png', 7)], Names(FOLDER, '/data'))
    assert listing.names == ['a/1.png', 'b/1.png']
    assert listing.mistakes == [
        '1 of 3 entries repeat an earlier one: ./a/1.png (line 7), first in line 1. '
        'Remove them. To repeat images, set `copies`.'
    ]


# Encodings

CHINESE = '雨天/图1.png\n# 注释\n雨天/图2.png\n'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'gb18030'])
@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
def test_encodings(encoding, newline, tmp_path) -> None:
    mark = {'utf-16-le': b'\xff\xfe', 'utf-16-be': b'\xfe\xff'}.get(encoding, b'')
    (tmp_path / 'list.txt').write_bytes(mark + CHINESE.replace('\n', newline).encode(encoding))
    listing = read_list(tmp_path / 'list.txt', Names(['雨天/图1.png', '雨天/图2.png', '雨天/图3.png'], tmp_path))
    assert listing.names == ['雨天/图1.png', '雨天/图2.png']
    assert listing.notes == (['the list is read as GB18030'] if encoding == 'gb18030' else [])


def test_names_that_are_not_text_on_the_disk_either(tmp_path) -> None:
    """A zip archive of another system leaves names in its encoding."""
    content = CHINESE.encode('gb18030')
    (tmp_path / 'list.txt').write_bytes(content)
    folder = [line.decode(errors='surrogateescape') for line in content.splitlines()]
    assert read_list(tmp_path / 'list.txt', Names(folder, tmp_path)).names == [folder[0], folder[2]]


def test_a_comment_in_another_encoding_does_no_harm(tmp_path) -> None:
    (tmp_path / 'list.txt').write_bytes(b'# caf\xe9\na/1.png\n')
    assert read_list(tmp_path / 'list.txt', Names(FOLDER, tmp_path))._replace(entries=0) == (['a/1.png'], 0, [], [], [])


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (b'a/1.png\nb\xe9/1.png\n', 'line 2 is not UTF-8; save it as UTF-8'),
        ('a/1.png'.encode('utf-16-le'), 'it contains zero bytes; save it as UTF-8'),
        (b'\xff\xfea\0b', 'truncated'),
        (b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'zero bytes'),
    ],
)
def test_what_is_not_text(content, told, tmp_path) -> None:
    (tmp_path / 'list.txt').write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_list(tmp_path / 'list.txt', Names(FOLDER, tmp_path))


# Tasks

REAL_BLUR = {'pairing': {'lq': '{scene}/blur/blur_{id}.png', 'gt': '{scene}/gt/gt_{id}.png'}, 'type': 'deblur'}


@pytest.fixture
def real_blur(write, tmp_path):
    """Two scenes in the layout of RealBlur, and a way to make a task of them with the lines of a list."""
    for scene in ('scene001', 'scene002'):
        for number in (1, 2):
            write(f'RealBlur-J/{scene}/gt/gt_{number}.png')
            write(f'RealBlur-J/{scene}/blur/blur_{number}.png')

    def task(*lines: str, **options):
        (tmp_path / 'list.txt').write_text('\n'.join(lines), encoding='utf-8')
        return {**REAL_BLUR, 'root': 'RealBlur-J', 'list': 'list.txt', **options}

    return task


def built(tmp_path, *tasks):
    return build_tasks({'tasks': list(tasks), 'dataroot': str(tmp_path)}, 'x')


def problem(tmp_path, task) -> str:
    with pytest.raises(OptionError) as raised:
        built(tmp_path, task)
    (line,) = raised.value.lines
    return line


LINES = [f'RealBlur-J/scene00{scene}/gt/gt_1.png RealBlur-J/scene00{scene}/blur/blur_1.png' for scene in (1, 2)]
PAIRS = [(f'scene00{scene}/blur/blur_1.png', f'scene00{scene}/gt/gt_1.png') for scene in (1, 2)]


@pytest.mark.parametrize('turned', [False, True], ids=['clear first', 'degraded first'])
@pytest.mark.parametrize('between', [' ', '\t', ',', ', '])
def test_two_columns_in_one_folder(real_blur, tmp_path, turned, between) -> None:
    lines = [between.join(line.split()[:: -1 if turned else 1]) for line in LINES]
    (task,) = built(tmp_path, real_blur(*lines))
    assert task.names == PAIRS
    assert task.notes == [f'column {1 if turned else 2} of 2 of the list is used']


def test_two_columns_in_two_folders(real_blur, write, tmp_path, log) -> None:
    for number in (1, 2):
        write(f'test/input/{number}.png')
        write(f'test/target/{number}.png')
    task = real_blur('target/2.png  input/2.png', 'target/1.png  input/1.png', lq='test/input', gt='test/target')
    del task['root'], task['pairing']
    (found,) = built(tmp_path, task)
    assert found.names == [('2.png', '2.png'), ('1.png', '1.png')]
    AllInOneDataset({'phase': 'val', 'dataroot': str(tmp_path), 'tasks': [real_blur(*LINES)]})
    notes = [record.getMessage().strip() for record in log if 'column' in record.getMessage()]
    assert notes == ["Note: task 'deblur': column 2 of 2 of the list is used."]


def test_columns_that_contradict_the_rule(real_blur, tmp_path) -> None:
    wrong = LINES[1].replace('gt_1', 'gt_2')
    assert problem(tmp_path, real_blur('', LINES[0], wrong)) == (
        f'x.tasks[0] (deblur).list: 1 of 2 lines contradict the pairing rule: {wrong} (line 3), '
        'expected scene002/gt/gt_1.png. Fix the list or `pairing`.'
    )


def test_two_columns_of_a_task_of_clean_images(real_blur, denoise, tmp_path) -> None:
    clean = {**denoise, 'clean': 'RealBlur-J', 'list': real_blur(*LINES)['list']}
    assert problem(tmp_path, clean) == (
        f'x.tasks[0] (denoise25).list: 2 columns name images of the folder ({LINES[0]} (line 1)). '
        'Write one name per line.'
    )
    (task,) = built(tmp_path, {**clean, 'clean': 'RealBlur-J/scene001/gt', 'list': real_blur(LINES[0])['list']})
    assert task.names == [('gt_1.png', 'gt_1.png')]


def test_missing_entries_are_reported_with_their_lines(denoise, write, tmp_path) -> None:
    (tmp_path / 'list.txt').write_text('# two of them\n\n00001.bmp\n3.bmp\n00002\n', encoding='utf-8')
    write('Denoise/00002.png')
    with pytest.raises(OptionError) as raised:
        built(tmp_path, {**denoise, 'list': 'list.txt'})
    (gap,) = raised.value.problems
    assert gap.items == (('3.bmp', 'line 4'), ('00002', 'line 5'))
    assert gap.message == (
        f"2 of 3 entries are not in '{tmp_path}/Denoise': 3.bmp (line 4), 00002 (line 5), possibly 00002.bmp "
        'or 00002.png. Add the files, or remove the names from the list.'
    )


@pytest.mark.parametrize('written', ['00001.BMP', '00001.png', './00001.Jpg'])
def test_entries_that_differ_in_case_or_extension_are_reported(written, denoise, tmp_path) -> None:
    (tmp_path / 'list.txt').write_text(f'{written}\n00002.bmp\n', encoding='utf-8')
    told = problem(tmp_path, {**denoise, 'list': 'list.txt'})
    assert f'{written} (line 1), possibly 00001.bmp. Use the exact names of the files.' in told


def test_a_list_of_another_folder_is_shown_what_names_there_are(denoise, tmp_path) -> None:
    (tmp_path / 'list.txt').write_text('x.bmp\ny.bmp\n', encoding='utf-8')
    told = problem(tmp_path, {**denoise, 'list': 'list.txt'})
    assert "x.bmp (line 1), y.bmp (line 2). Images there have names such as '00001.bmp'. Add" in told


@pytest.mark.parametrize('files', [['.\\00002.bmp', '00001'], ['Denoise/00002.bmp', 'Denoise/00001.bmp']])
def test_files_of_the_option_file_are_read_like_lines(files, denoise, tmp_path) -> None:
    (task,) = built(tmp_path, {**denoise, 'files': files})
    assert [name for name, _ in task.names] == ['00002.bmp', '00001.bmp']


def test_names_in_a_database_are_found_the_same_way(denoise, tmp_path) -> None:
    folder = tmp_path / 'Denoise'
    make_lmdb_from_imgs(
        str(folder),
        str(tmp_path / 'clean.lmdb'),
        ['00001.bmp', '00002.bmp'],
        ['00001', '00002'],
        multiprocessing_read=False,
    )
    (tmp_path / 'list.txt').write_text('.\\Denoise\\00002.png\n', encoding='utf-8')
    (task,) = built(tmp_path, {**denoise, 'clean': 'clean.lmdb', 'list': 'list.txt'})
    assert [name for name, _ in task.names] == ['00002.png']
