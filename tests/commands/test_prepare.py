"""`basicsr prepare`: the same samples from databases as from folders, whatever happens while they are written."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import skimage.data
import torch
import yaml

import promptir_basicsr  # noqa: F401  (prepares BasicSR)
from promptir_basicsr import cli
from promptir_basicsr.core.yaml_loader import load_yaml
from promptir_basicsr.data import AllInOneDataset
from promptir_basicsr.data.lmdb import writer
from promptir_basicsr.data.lmdb.plan import estimated_bytes, plan_preparation, readable_name
from promptir_basicsr.data.lmdb.prepare import verify_databases
from promptir_basicsr.data.lmdb.reader import HEADER_KEY, LmdbSource, chunks, unpack_records
from promptir_basicsr.data.sources import resolve

CAT, PERSON, COFFEE = (
    np.ascontiguousarray(photograph()[100:196, 150:246])
    for photograph in (skimage.data.chelsea, skimage.data.astronaut, skimage.data.coffee)
)
NOISE = {'type': 'gaussian_noise', 'sigma': 25, 'quantize': 'floor'}
HAZES = [f'{a}_{beta}' for a in (0.8, 1) for beta in (0.04, 0.2)]


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1].tobytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The three-degradation protocol's folders and lists with a few tiny images, and two folders of pairs."""
    data = tmp_path / 'data'
    for number, image in enumerate((CAT, PERSON, COFFEE), 1):
        write(data / f'Train/Denoise/{number:05}.bmp', image)
        write(data / f'Train/Denoise/a{number}.jpg', image[:60])
        write(data / f'Train/Derain/rainy/rain-{number}.png', 255 - image)
        write(data / f'Train/Derain/gt/norain-{number}.png', image)
        write(data / f'Train/Dehaze/original/000{number}.jpg', image[:70, :80])
        for haze in HAZES:
            write(data / f'Train/Dehaze/synthetic/part{number}/000{number}_{haze}.jpg', image[:70, :80] // 2 + 99)
        write(data / f'pairs/dark/night {number}.png', image // 8)
        write(data / f'pairs/bright/night {number}.jpg', image)
        write(data / f'test/dehaze/input/000{number}_0.8_0.2.jpg', image[:50] // 2 + 99)
        write(data / f'test/dehaze/target/000{number}.png', image[:50])
        write(data / f'test/denoise/bsd68/{number}.png', image[:40])
    for name, lines in (
        ('data_dir/noisy/denoise.txt', ['a1.jpg', '00003.bmp', '00001.bmp']),
        ('data_dir/rainy/rainTrain.txt', ['# two of three', 'rainy/rain-3.png', 'rainy/rain-1.png']),
        (
            'data_dir/hazy/hazy_outside.txt',
            [f'synthetic/part{n}/000{n}_{haze}.jpg' for haze in HAZES[1:] for n in (2, 1)],
        ),
    ):
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return data


def options_of(data: Path) -> dict[str, Any]:
    denoise = {'type': 'denoise', 'clean': 'Train/Denoise', 'degrade': NOISE, 'copies': 2}
    return {
        'name': 'three',
        'manual_seed': 3,
        'datasets': {
            'train': {
                'name': 'train',
                'type': 'AllInOneDataset',
                'dataroot': str(data),
                'gt_size': 32,
                'crop_multiple': 16,
                'use_hflip': True,
                'use_rot': True,
                'tasks': [
                    {'name': 'listed', **denoise, 'list': 'data_dir/noisy/denoise.txt'},
                    {'name': 'files', **denoise, 'files': ['a2.jpg', '00003.bmp']},
                    {
                        'type': 'derain',
                        'root': 'Train/Derain',
                        'pairing': 'rain100l_train',
                        'list': 'data_dir/rainy/rainTrain.txt',
                    },
                    {
                        'type': 'dehaze',
                        'root': 'Train/Dehaze',
                        'pairing': 'reside_ots',
                        'list': 'data_dir/hazy/hazy_outside.txt',
                    },
                    {'type': 'lowlight', 'lq': 'pairs/dark', 'gt': str(data / 'pairs/bright')},
                ],
            },
            'val': {
                'name': 'val',
                'type': 'AllInOneDataset',
                'dataroot': str(data / 'test'),
                'crop_multiple': 16,
                'tasks': [
                    {'name': 'SOTS', 'type': 'dehaze', 'root': 'dehaze', 'pairing': 'reside_sots'},
                    {'name': 'CBSD68', 'type': 'denoise', 'clean': 'denoise/bsd68', 'degrade': NOISE},
                ],
            },
        },
    }


@pytest.fixture
def options(data: Path, tmp_path: Path) -> dict[str, Any]:
    """Content of three.yml."""
    options = options_of(data)
    save(tmp_path / 'three.yml', options)
    return options


def save(path: Path, options: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(options), encoding='utf-8')


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """prepare(...): run the verb on three.yml; its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    return lambda *words, opt='three.yml': cli.main(['prepare', '-opt', opt, '--out', 'out', '--workers', '2', *words])


def datasets(options: dict[str, Any]) -> dict[str, AllInOneDataset]:
    return {key: AllInOneDataset({**dataset, 'phase': key}) for key, dataset in options['datasets'].items()}


def assert_same_samples(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every sample of two epochs, and of the validation, bit by bit."""
    found, expected = datasets(after), datasets(before)
    assert list(found) == list(expected)
    for key, dataset in expected.items():
        assert len(found[key]) == len(dataset)
        for epoch in range(2):
            for index in range(len(dataset)):
                one, other = dataset[epoch, index], found[key][epoch, index]
                assert torch.equal(one['lq'], other['lq'])
                assert torch.equal(one['gt'], other['gt'])
                assert [one[k] for k in ('task', 'degradation', 'name')] == [
                    other[k] for k in ('task', 'degradation', 'name')
                ]


def stored(path: str | Path) -> set[bytes]:
    """Keys of the images in a database."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {bytes(key) for key, _ in transaction.cursor() if not bytes(key).startswith(b'\0')}


def files_below(folder: str | Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*') if path.is_file())


# What is prepared


@pytest.mark.parametrize('storage', ['original', 'lossless', 'raw'])
def test_samples_are_those_of_the_folders(storage, options, data, prepare, capsys) -> None:
    assert prepare('--storage', storage) == 0
    images = {'Train_Denoise': 4, 'Train_Derain': 4, 'Train_Dehaze': 8, 'pairs_dark': 3, 'pairs_bright': 3}
    assert {name: len(stored(f'out/train/{name}.lmdb')) for name in images} == images
    assert len(stored('out/val/dehaze.lmdb')) == 6
    said = capsys.readouterr().out
    assert all(f'train/{name}.lmdb' in said for name in images)
    assert prepare('--storage', storage, '--verify', 'all') == 0
    said = capsys.readouterr().out
    assert '31 images verified: identical to their sources.' in said
    assert 'basicsr train' not in said  # three.yml has no `train` section to train by
    prepared = load_yaml('out/three.yml')
    assert_same_samples(options, prepared)
    assert {LmdbSource(f'out/train/{name}.lmdb').storage for name in images} == {storage}
    assert LmdbSource('out/val/dehaze.lmdb').storage == 'original'
    assert (prepared['name'], prepared['manual_seed']) == ('three', 3)
    assert files_below('out/lists') == ['denoise.txt', 'hazy_outside.txt', 'rainTrain.txt']


def test_a_clear_image_of_many_pairs_is_stored_once(options, prepare) -> None:
    assert prepare() == 0
    keys = stored('out/train/Train_Dehaze.lmdb')
    assert {key for key in keys if b'original' in key} == {b'original/0001', b'original/0002'}
    assert len(keys - {b'original/0001', b'original/0002'}) == 6


def test_a_moved_folder_needs_nothing_but_dataroot(options, data, tmp_path, prepare) -> None:
    assert prepare() == 0
    before = [[sample['lq'] for sample in dataset] for dataset in datasets(options).values()]
    shutil.move('out', 'elsewhere')
    shutil.rmtree(data)
    moved = load_yaml('elsewhere/three.yml')
    for dataset in moved['datasets'].values():
        assert dataset['dataroot'] == str(tmp_path / 'out')
        dataset['dataroot'] = str(tmp_path / 'elsewhere')
    for images, dataset in zip(before, datasets(moved).values(), strict=True):
        for image, sample in zip(images, dataset, strict=True):
            assert torch.equal(image, sample['lq'])


def test_the_new_options_name_their_source(options, prepare) -> None:
    assert prepare() == 0
    head = Path('out/three.yml').read_text(encoding='utf-8').splitlines()[:2]
    assert head[0] == '# Written by `basicsr prepare` from three.yml: the same options on the databases of this folder.'
    assert 'dataroot' in head[1]


def test_a_database_does_not_depend_on_the_number_of_workers(options, prepare) -> None:
    contents = []
    for workers in ('1', '5'):
        assert prepare('--workers', workers) == 0
        contents.append([(p, (Path('out') / p).read_bytes()) for p in files_below('out')])
        shutil.rmtree('out')
    assert contents[0] == contents[1]


def test_a_protocol_without_an_option_file(data, tmp_path, prepare, capsys) -> None:
    words = ['--protocol', 'dehaze', '--dataroot', str(data), '--out', 'out']
    assert cli.main(['prepare', *words, '--verify']) == 0
    said = capsys.readouterr().out
    assert 'contains only datasets' in said
    prepared = load_yaml('out/dehaze.yml')
    assert 'protocol' not in prepared['datasets']['train']
    assert len(AllInOneDataset({**prepared['datasets']['train'], 'phase': 'train'})) == 6


def test_options_that_name_a_protocol_are_written_out(data, tmp_path, prepare) -> None:
    options = {
        'datasets': {
            'train': {
                'name': 't',
                'type': 'AllInOneDataset',
                'protocol': '3d',
                'dataroot': str(data),
                'tasks': {'denoise_15': None, 'dehaze': {'copies': 2}},
            }
        }
    }
    save(tmp_path / 'three.yml', options)
    assert prepare() == 0
    prepared = load_yaml('out/three.yml')['datasets']['train']
    assert [task['name'] for task in prepared['tasks']] == ['denoise_25', 'denoise_50', 'derain', 'dehaze']
    assert 'protocol' not in prepared
    dataset = AllInOneDataset({**options['datasets']['train'], 'phase': 'train'})
    again = AllInOneDataset({**prepared, 'phase': 'train'})
    assert len(dataset) == len(again)
    assert all(torch.equal(dataset[0, i]['lq'], again[0, i]['lq']) for i in range(0, len(dataset), 29))


def test_databases_are_prepared_again(options, prepare) -> None:
    assert prepare() == 0
    words = ['--out', 'again', '--storage', 'raw', '--verify', 'all']
    assert cli.main(['prepare', '-opt', 'out/three.yml', *words]) == 0
    assert_same_samples(options, load_yaml('again/three.yml'))
    assert LmdbSource('again/train/train_Train_Dehaze.lmdb').storage == 'raw'


def test_pixels_cannot_be_stored_as_original_files(options, prepare, capsys) -> None:
    assert prepare('--storage', 'raw') == 0
    assert cli.main(['prepare', '-opt', 'out/three.yml', '--out', 'again']) == 2
    assert "Train_Denoise.lmdb' contains pixels, not the original files" in capsys.readouterr().err
    assert not Path('again').exists()


@pytest.mark.parametrize(
    ('option', 'dataroot', 'name'),
    [
        ('Train/Dehaze', 'data', 'Train_Dehaze'),
        ('.', '/some/data', 'data'),
        ('../rain 1/a:b', 'data', 'rain_1_a_b'),
        ('/some/data/Train/x', '/some/data', 'Train_x'),
        ('/other/corpus/train/hazy', '/some/data', 'train_hazy'),
        ('~/sets/GoPro', None, 'sets_GoPro'),
        ('skimage://', None, 'skimage'),
        ('train/Train_Dehaze.lmdb', 'data', 'train_Train_Dehaze'),
        ('v1.2/set', 'data', 'v1.2_set'),
        ('/', None, 'images'),
    ],
)
def test_databases_have_readable_names(option, dataroot, name) -> None:
    assert readable_name(resolve(option, dataroot), option, dataroot) == name


def test_databases_of_pieces_are_replaced_when_asked(options, prepare, capsys) -> None:
    """What an earlier version wrote with --sub-images, finished or not, is prepared again."""
    assert prepare('--storage', 'raw') == 0
    database = lmdb.open('out/train/pairs_bright.lmdb', lock=False)
    with database, database.begin(write=True) as writing:
        header = json.loads(writing.get(HEADER_KEY))
        writing.put(HEADER_KEY, json.dumps({**header, 'sub_images': [64, 32]}).encode())
    assert prepare('--storage', 'raw') == 1
    told = capsys.readouterr().err
    assert 'contains image patches' in told
    assert '--overwrite' in told
    assert prepare('--storage', 'raw', '--overwrite', '--verify', 'all') == 0


# Mistakes in the options


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--verify', 'some'], "--verify: 'some' is not a number of images or 'all'"),
        (['--workers', '0'], '--workers: 0 is not a whole number of at least 1'),
        (['--dataroot', 'x'], '--dataroot: only for --protocol'),
        (
            ['--force_yml', 'datasets:train:gt_size=x'],
            "--force_yml datasets:train:gt_size=x: datasets.train.gt_size: 'x",
        ),
        (
            ['--force_yml', 'datasets:train:dataroot=/no', 'datasets:val:dataroot=/no'],
            ': datasets.val.tasks[0]',
        ),
        (['--force_yml', 'datasets='], 'none of the datasets is an AllInOneDataset'),
        (['--force_yml', 'datasets:train:protocol=4d'], "unknown protocol '4d'"),
    ],
)
def test_mistakes_end_with_status_2_and_create_nothing(words, said, options, prepare, capsys) -> None:
    assert prepare(*words) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert 'Traceback' not in told.err
    assert told.out == ''
    assert not Path('out').exists()


def test_a_protocol_needs_its_folder(prepare, capsys) -> None:
    assert cli.main(['prepare', '--protocol', '3d', '--out', 'out']) == 2
    assert capsys.readouterr().err == '--protocol: pass its root folder by --dataroot, and omit --force_yml.\n'


# What is there already


def test_what_is_there_is_left_alone(options, prepare, capsys) -> None:
    assert prepare() == 0
    before = {path: os.stat(Path('out') / path) for path in files_below('out')}
    capsys.readouterr()
    assert prepare('--verify') == 0
    assert capsys.readouterr().out.count('existed already') == 7
    after = {path: os.stat(Path('out') / path) for path in files_below('out')}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()
    }


def test_other_settings_need_overwrite(options, prepare, capsys) -> None:
    assert prepare() == 0
    assert prepare('--storage', 'raw') == 1
    said = capsys.readouterr().err
    assert "Train_Denoise.lmdb' exists already and differs: storage original instead of raw. Replace" in said
    assert LmdbSource('out/train/Train_Dehaze.lmdb').storage == 'original'
    assert prepare('--storage', 'raw', '--overwrite', '--verify', 'all') == 0
    assert LmdbSource('out/train/Train_Dehaze.lmdb').storage == 'raw'
    assert_same_samples(options, load_yaml('out/three.yml'))
    assert not [name for name in os.listdir('out/train') if not name.endswith('.lmdb')]


def test_a_changed_source_is_named(options, data, prepare, capsys) -> None:
    assert prepare() == 0
    before = Path('out/train/Train_Denoise.lmdb/data.mdb').read_bytes()
    write(data / 'Train/Denoise/00003.bmp', PERSON)
    assert prepare() == 1
    assert 'differs: 1 images changed (00003.bmp). Replace it with --overwrite' in capsys.readouterr().err
    assert Path('out/train/Train_Denoise.lmdb/data.mdb').read_bytes() == before
    assert prepare('--overwrite', '--verify', 'all') == 0
    pixels = LmdbSource('out/train/Train_Denoise.lmdb').open('00003.bmp').pixels()
    np.testing.assert_array_equal(pixels, PERSON)


def test_other_images_are_named(options, data, prepare, capsys) -> None:
    assert prepare() == 0
    (data / 'data_dir/noisy/denoise.txt').write_text('a1.jpg\na3.jpg\n', encoding='utf-8')
    assert prepare() == 1
    assert "'out/lists/denoise.txt' exists already and has other content." in capsys.readouterr().err
    Path('out/lists/denoise.txt').unlink()
    assert prepare() == 1
    said = capsys.readouterr().err
    assert '1 images missing (a3.jpg); 1 images unexpected (00001.bmp)' in said


def test_options_that_were_edited_are_not_lost(options, prepare, capsys) -> None:
    assert prepare() == 0
    edited = Path('out/three.yml').read_text() + 'comment: mine\n'
    Path('out/three.yml').write_text(edited)
    assert prepare() == 1
    assert "'out/three.yml' exists already and has other content" in capsys.readouterr().err
    assert Path('out/three.yml').read_text() == edited
    assert prepare('--overwrite') == 0
    assert 'mine' not in Path('out/three.yml').read_text()


def test_options_of_others_are_never_replaced(options, tmp_path, capsys, prepare) -> None:
    before = (tmp_path / 'three.yml').read_text()
    assert cli.main(['prepare', '-opt', 'three.yml', '--out', '.', '--overwrite']) == 1
    assert "'three.yml' exists already and has other content. Set another" in capsys.readouterr().err
    assert (tmp_path / 'three.yml').read_text() == before


def test_what_is_not_a_database_is_never_removed(options, prepare, capsys) -> None:
    Path('out/train/Train_Denoise.lmdb').mkdir(parents=True)
    Path('out/train/Train_Denoise.lmdb/thesis.txt').write_text('years of work')
    for words in ([], ['--overwrite']):
        assert prepare(*words) == 1
        assert 'Train_Denoise.lmdb' in capsys.readouterr().err
    assert Path('out/train/Train_Denoise.lmdb/thesis.txt').read_text() == 'years of work'


# Images that cannot be used


def test_damaged_images_are_named_together_and_cost_no_second_run(options, data, prepare, capsys) -> None:
    hazy = data / 'Train/Dehaze/synthetic/part1'
    jpeg = (hazy / '0001_0.8_0.2.jpg').read_bytes()
    (hazy / '0001_0.8_0.2.jpg').write_bytes(jpeg[: len(jpeg) // 2])
    (data / 'Train/Denoise/00001.bmp').write_bytes(b'')
    (data / 'Train/Derain/rainy/rain-3.png').write_text('<html>404</html>')
    assert prepare() == 1
    said = capsys.readouterr()
    assert said.err.startswith('3 images or pairs cannot be used:\n')
    assert 'part1/0001_0.8_0.2.jpg: not a readable image' in said.err
    assert 'Denoise/00001.bmp: not a readable image (empty file)' in said.err
    assert 'rainy/rain-3.png: not a readable image (16 bytes)' in said.err
    assert said.out == ''
    assert not Path('out/three.yml').exists()
    assert sorted(os.listdir('out/train')) == [
        'Train_Dehaze.lmdb.part',
        'Train_Denoise.lmdb.part',
        'Train_Derain.lmdb.part',
        'pairs_bright.lmdb',
        'pairs_dark.lmdb',
    ]
    with pytest.raises(ValueError, match='is incomplete'):
        LmdbSource('out/train/Train_Dehaze.lmdb')
    write(data / 'Train/Denoise/00001.bmp', CAT)
    write(data / 'Train/Derain/rainy/rain-3.png', 255 - COFFEE)
    (hazy / '0001_0.8_0.2.jpg').write_bytes(jpeg)
    # What was good is not read again: this one could not be.
    good = hazy / '0001_1_0.04.jpg'
    times = good.stat()
    good.write_bytes(b'\0' * times.st_size)
    os.utime(good, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepare() == 0
    assert LmdbSource('out/train/Train_Dehaze.lmdb').open('synthetic/part1/0001_1_0.04.jpg').size == (70, 80)
    capsys.readouterr()
    assert prepare('--verify', 'all') == 1
    said = capsys.readouterr().err
    assert said.startswith('1 of 31 images compared differ from their sources:\n')
    assert 'part1/0001_1_0.04.jpg' in said


def test_the_first_ten_of_many_are_named(options, data, prepare, capsys) -> None:
    names = [f'{number:03}.png' for number in range(25)]
    for name in names:
        (data / 'Train/Denoise' / name).write_bytes(b'x')
    (data / 'data_dir/noisy/denoise.txt').write_text('\n'.join(names))
    assert prepare() == 1
    said = capsys.readouterr().err
    assert [name for name in names if name in said] == names[:10]
    assert '  and 15 more\n' in said


def test_clear_images_with_a_border_are_stored_whole(options, data, prepare) -> None:
    """The new options cut it, as the old ones do."""
    (task,) = [task for task in options['datasets']['train']['tasks'] if task.get('lq') == 'pairs/dark']
    task['crop_border_gt'] = 2
    for number, image in enumerate((CAT, PERSON, COFFEE), 1):
        write(data / f'pairs/dark/night {number}.png', image[2:-2, 2:-2] // 8)
    save(data.parent / 'three.yml', options)
    assert prepare('--verify', 'all') == 0
    assert_same_samples(options, load_yaml('out/three.yml'))


def test_pairs_of_different_size_are_named(options, data, prepare, capsys) -> None:
    write(data / 'pairs/bright/night 2.jpg', PERSON[:90])
    assert prepare() == 1
    said = capsys.readouterr().err
    assert 'night 2.png' in said
    assert 'night 2.jpg differ in size (96x96 and 96x90).' in said
    assert not Path('out/train/pairs_bright.lmdb').exists()
    write(data / 'pairs/bright/night 2.jpg', PERSON)
    assert prepare('--verify', 'all') == 0
    assert_same_samples(options, load_yaml('out/three.yml'))


def test_a_difference_is_found(options, data, prepare, capsys) -> None:
    assert prepare() == 0
    path = data / 'Train/Derain/gt/norain-1.png'
    times, content = path.stat(), bytearray(path.read_bytes())
    write(path, CAT[::-1])
    path.write_bytes(path.read_bytes().ljust(len(content), b'\0')[: len(content)])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepare('--verify', 'all') == 1
    assert 'Train_Derain.lmdb/gt/norain-1.png: ' in capsys.readouterr().err


def test_verification_compares_as_many_as_asked(many) -> None:
    assert cli.main(MANY) == 0
    preparation = plan_preparation(many, Path('out'), 'many', 'many.yml', 'raw')
    assert verify_databases(preparation, 10) == 10
    assert verify_databases(preparation, 1000) == verify_databases(preparation, None) == 400


# Kills, and whatever else may come in between


def in_a_process(words: list[str], commit: int, said: str, limit: int | None = None) -> multiprocessing.Process:
    """Start the verb in a process of its own that writes a transaction every few images."""

    def run() -> None:
        writer.COMMIT_RECORDS = commit
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with open(said, 'w') as sys.stderr:
            status = cli.main(words)
        os._exit(status)

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    return process


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of 400 images, which take a while."""
    monkeypatch.chdir(tmp_path)
    photograph = skimage.data.astronaut()
    for number in range(400):
        top, left = divmod(number * 7, 300)
        write(tmp_path / f'clean/{number:04}_0.8.png', photograph[top : top + 60, left : left + 80])
    dataset = {'name': 'many', 'type': 'AllInOneDataset', 'dataroot': str(tmp_path), 'gt_size': 32}
    dataset['tasks'] = [{'type': 'denoise', 'clean': 'clean', 'degrade': NOISE}]
    options = {'datasets': {'train': dataset}}
    save(tmp_path / 'many.yml', options)
    return options


MANY = ['prepare', '-opt', 'many.yml', '--out', 'out', '--storage', 'raw', '--workers', '1']
PART = Path('out/train/clean.lmdb.part/data.mdb')


def indexed(path: Path) -> set[str]:
    """Names in the index of a database, complete or not."""
    with lmdb.open(str(path.parent), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {record.name for _, chunk in chunks(transaction) for record in unpack_records(chunk)}


def test_kills_at_random_moments_leave_what_is_written(many) -> None:
    rng = random.Random(0)
    written = 0
    for _ in range(3):
        process = in_a_process(MANY, commit=5, said='said.txt')
        goal, deadline = PART.stat().st_size if PART.exists() else 0, time.monotonic() + 60
        while not PART.exists() or PART.stat().st_size < goal + 800_000:
            assert process.is_alive(), Path('said.txt').read_text()
            assert time.monotonic() < deadline
        time.sleep(rng.random() / 50)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert not Path('out/train/clean.lmdb').exists()
        assert not Path('out/many.yml').exists()
        before, written = written, len(indexed(PART))
        assert before < written <= 400
    done = indexed(PART)
    # Images that are done are not read again.
    for name in done:
        stat = os.stat(f'clean/{name}')
        os.rename(f'clean/{name}', f'clean/{name}.kept')
        Path(f'clean/{name}').write_bytes(bytes(stat.st_size))
        os.utime(f'clean/{name}', ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cli.main(MANY) == 0
    for name in done:
        os.replace(f'clean/{name}.kept', f'clean/{name}')
    assert cli.main([*MANY, '--verify', 'all']) == 0
    assert files_below('out') == ['many.yml', 'train/clean.lmdb/data.mdb']


def test_a_source_that_changed_after_a_kill_is_done_again(many) -> None:
    process = in_a_process(MANY, commit=5, said='said.txt')
    while not PART.exists() or PART.stat().st_size < 1_000_000:
        assert process.is_alive(), Path('said.txt').read_text()
    process.kill()
    process.join()
    name = min(indexed(PART))
    write(Path('clean') / name, CAT)
    os.unlink('clean/' + sorted(indexed(PART))[1])
    assert cli.main(MANY) == 0
    assert len(stored('out/train/clean.lmdb')) == 399
    assert cli.main([*MANY, '--verify', 'all']) == 0
    np.testing.assert_array_equal(LmdbSource('out/train/clean.lmdb').open(name).pixels(), CAT)


def test_other_settings_after_a_kill_restart(many, log_text) -> None:
    process = in_a_process(MANY, commit=5, said='said.txt')
    while not PART.exists() or PART.stat().st_size < 1_000_000:
        assert process.is_alive(), Path('said.txt').read_text()
    process.kill()
    process.join()
    assert cli.main([*MANY, '--storage', 'original', '--verify', 'all']) == 0
    assert LmdbSource('out/train/clean.lmdb').storage == 'original'
    assert any('was started with other settings; starting from scratch.' in text for text in log_text)


@pytest.fixture
def log_text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages that the writer logs."""
    texts: list[str] = []
    monkeypatch.setattr(writer.logger, 'handle', lambda record: texts.append(record.getMessage()))
    return texts


def test_a_kill_while_databases_change_places(many) -> None:
    assert cli.main(MANY) == 0
    os.rename('out/train/clean.lmdb', 'out/train/clean.lmdb.old')
    assert cli.main([*MANY, '--verify', 'all']) == 0
    assert os.listdir('out/train') == ['clean.lmdb']
    shutil.copytree('out/train/clean.lmdb', 'out/train/clean.lmdb.old')
    assert cli.main(MANY) == 0
    assert os.listdir('out/train') == ['clean.lmdb']


def test_two_at_once(many, capsys) -> None:
    first = in_a_process(MANY, commit=5, said='said.txt')
    while not PART.exists():
        assert first.is_alive(), Path('said.txt').read_text()
    assert cli.main(MANY) == 1
    said = capsys.readouterr().err
    assert said.startswith("'out/train/clean.lmdb' is being written by another `basicsr prepare`.")
    with pytest.raises(ValueError, match='is incomplete: it is being written'):
        LmdbSource('out/train/clean.lmdb')
    first.join()
    assert first.exitcode == 0
    assert cli.main([*MANY, '--verify', 'all']) == 0


# The disk


def test_a_full_disk(many) -> None:
    process = in_a_process(MANY, commit=20, said='said.txt', limit=2_000_000)
    process.join()
    assert process.exitcode == 1
    said = Path('said.txt').read_text()
    assert "'out/train/clean.lmdb' cannot be written (" in said
    assert 'bytes are free there, the next write needs 288,000' in said
    assert "Written data stays in 'out/train/clean.lmdb.part'" in said
    assert said.count('\n') == 1
    assert 100 <= len(indexed(PART)) < 140
    assert cli.main([*MANY, '--verify', 'all']) == 0


def test_too_little_room_is_known_before(options, data, prepare, capsys) -> None:
    with open(data / 'Train/Denoise/a1.jpg', 'ab') as file:
        file.truncate(10 << 40)  # a hole
    assert prepare() == 1
    said = capsys.readouterr().err
    assert 'the databases need about 11 TB (Train_Denoise.lmdb 11 TB' in said
    assert 'free. Free some space, set another --out' in said


@pytest.mark.parametrize('storage', ['original', 'lossless', 'raw'])
def test_the_estimated_disk_space_is_sufficient(storage, many) -> None:
    preparation = plan_preparation(many, Path('out'), 'many', 'many.yml', storage)
    estimate = estimated_bytes(preparation.databases[0], preparation.databases[0].names)
    assert cli.main([*MANY, '--storage', storage]) == 0
    assert 1 <= estimate / os.path.getsize('out/train/clean.lmdb/data.mdb') < 1.6


@pytest.mark.parametrize('out', ['three.yml/below', '/proc/prepared'])
def test_a_folder_that_cannot_be_written(out, options, prepare, capsys) -> None:
    assert prepare('--out', out) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"'{out}' is not writable (")
    assert said.count('\n') == 1


# Longer


@pytest.mark.slow
def test_ten_kills_of_the_command(many) -> None:
    command = [sys.executable, '-c', 'import sys; from promptir_basicsr.data.lmdb import writer as w; ']
    command[-1] += 'w.COMMIT_RECORDS = 5; from promptir_basicsr.cli import main; sys.exit(main())'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    rng = random.Random(1)
    for _ in range(10):
        process = subprocess.Popen([*command, *MANY], env=environment)
        goal, deadline = PART.stat().st_size if PART.exists() else 0, time.monotonic() + 120
        while not PART.exists() or PART.stat().st_size < goal + rng.randrange(1, 400_000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -9
        assert not Path('out/many.yml').exists()
    finished = subprocess.run([*command, *MANY, '--verify', 'all'], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert '400 images verified: identical to their sources.' in finished.stdout
