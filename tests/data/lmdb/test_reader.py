"""Images come out of an LMDB as they went in, whatever their names, and what is wrong with one is said."""

import json
import os
import pickle
import shutil
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.data.images import EncodedImage, PixelImage
from promptir_basicsr.data.lmdb import writer
from promptir_basicsr.data.lmdb.reader import (
    HEADER_KEY,
    INDEX_PREFIX,
    PATH,
    LmdbSource,
    Record,
    key_kinds,
    key_of,
    pack_records,
)
from promptir_basicsr.data.lmdb.writer import DatabasePlan, DatabaseWriter, make_record
from promptir_basicsr.data.sources import FolderSource, open_source

# isort: split
# BasicSR can be imported once the package has prepared it
from basicsr.data import build_dataset
from basicsr.utils import FileClient, imfrombytes
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

STORAGES = ['original', 'lossless', 'raw']


def store(path: Path, folder: Path, storage: str = 'original', names=None) -> Path:
    """Write the images of a folder into a database."""
    source = FolderSource(folder)
    names = source.names() if names is None else names
    plan = DatabasePlan(path, source, names, storage)
    with DatabaseWriter(plan) as writer:
        for name in writer.missing:
            writer.add(*make_record(plan, name, writer.kinds[name]))
        writer.complete()
    return path


def records_of(path: Path) -> dict[bytes, bytes]:
    """Everything in a database, read with nothing but lmdb."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def change(path: Path, records: dict[bytes, bytes | None]) -> None:
    """Put records into a database, or take them out."""
    with lmdb.open(str(path), lock=False, map_size=1 << 30) as environment, environment.begin(write=True) as writing:
        for key, value in records.items():
            assert writing.delete(key) if value is None else writing.put(key, value)


@pytest.fixture
def folder(tmp_path, write, photographs) -> Path:
    """Images of every kind."""
    cat, person, coffee = photographs
    write('kinds/colour.png', cat[:61, :83])
    write('kinds/photograph.jpg', person[:67, :90])
    write('kinds/bitmap.bmp', coffee[:5, :7])
    write('kinds/below/deep.png', cat.astype(np.uint16) * 251 + 7)
    write('kinds/below/tiny_deep.png', cat[:1, :3].astype(np.uint16) * 251 + 7)
    for name, grey in (('grey.png', cat[..., 1]), ('grey_deep.png', cat[..., 0].astype(np.uint16) * 251 + 7)):
        (tmp_path / 'kinds' / name).write_bytes(cv2.imencode('.png', grey)[1].tobytes())
    return tmp_path / 'kinds'


# Round trips


@pytest.mark.parametrize('storage', STORAGES)
def test_images_come_out_as_they_went_in(storage, folder, tmp_path) -> None:
    expected, found = FolderSource(folder), open_source(store(tmp_path / 'x.lmdb', folder, storage))
    assert isinstance(found, LmdbSource)
    assert found.names() == expected.names()
    assert len(found.names()) == 7
    for name in expected.names():
        pixels, image = expected.open(name).pixels(), found.open(name)
        assert isinstance(image, PixelImage if storage == 'raw' else EncodedImage)
        assert image.size == pixels.shape[:2]
        assert image.pixels().dtype == pixels.dtype
        np.testing.assert_array_equal(image.pixels(), pixels)
        top, left = pixels.shape[0] // 3, pixels.shape[1] // 4
        np.testing.assert_array_equal(found.open(name).crop(top, left, 1, 2), pixels[top : top + 1, left : left + 2])
        assert found.where(name) == f'{tmp_path}/x.lmdb/{name}'


def test_original_storage_keeps_the_bytes(folder, tmp_path) -> None:
    records = records_of(store(tmp_path / 'x.lmdb', folder))
    for name in FolderSource(folder).names():
        assert records[name.rpartition('.')[0].encode()] == (folder / name).read_bytes()


def test_lossless_storage_is_png(folder, tmp_path, photographs) -> None:
    records = records_of(store(tmp_path / 'x.lmdb', folder, 'lossless'))
    deep = cv2.imdecode(np.frombuffer(records[b'below/deep'], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(deep[..., ::-1], photographs[0].astype(np.uint16) * 251 + 7)
    assert all(value[:4] == b'\x89PNG' for key, value in records.items() if not key.startswith(b'\0'))


def test_raw_storage_is_pixels_that_are_not_copied(folder, tmp_path, photographs) -> None:
    path = store(tmp_path / 'x.lmdb', folder, 'raw')
    assert records_of(path)[b'colour.png'] == photographs[0][:61, :83].tobytes()
    source = LmdbSource(path)
    pixels, crop = source.open('colour.png').pixels(), source.open('colour.png').crop(10, 10, 20, 20)
    assert np.shares_memory(pixels, crop)
    assert not pixels.flags.writeable
    assert not crop.flags.writeable


def test_the_map_grows_with_what_is_put_into_it(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writer, 'MAP_SIZE', 1 << 15)
    source = LmdbSource(store(tmp_path / 'x.lmdb', folder, 'raw'))
    np.testing.assert_array_equal(
        source.open('below/deep.png').pixels(), FolderSource(folder).open('below/deep.png').pixels()
    )


# Names


HARD = [
    '0025_0.8_0.04.png',
    '0025_0.8_0.06.png',
    '0025.png',
    'a b.png',
    'a\nb.png',
    'a.png',
    'a.bmp',
    'a@0,0.png',
    'A.png',
    'v1.2/c.png',
    'ä/ö.png',
    '雨.png',
    '/'.join(['x' * 200] * 3) + '.png',
    '/'.join(['x' * 200] * 3) + 'y.png',
    '/'.join(['ß' * 120] * 3) + '.png',
]


@pytest.mark.parametrize('storage', STORAGES)
def test_any_name_has_a_key_of_its_own(storage, tmp_path, write) -> None:
    names = [*HARD, os.fsdecode(b'\xb0\xa1.png'), os.fsdecode(b'\xb0\xa2.png')]
    for number, name in enumerate(names):
        write(f'hard/{name}', np.full((2, 3, 3), number, np.uint8))
    path = store(tmp_path / 'x.lmdb', tmp_path / 'hard', storage)
    keys = [key for key in records_of(path) if not key.startswith(b'\0')]
    found = LmdbSource(path)
    assert found.names() == sorted(names) == FolderSource(tmp_path / 'hard').names()
    assert [int(found.open(name).pixels().max()) for name in names] == list(range(len(names)))
    assert len(keys) == len(names)
    kinds = key_kinds(names, storage != 'raw')
    assert set(keys) == {key_of(name, kind) for name, kind in zip(names, kinds, strict=True)}


def test_an_at_sign_in_a_name_never_makes_the_key_of_another_image(tmp_path, write, photographs) -> None:
    for name in ('a.png', 'a@0,0.png', 'a.png@0,0.png'):
        write(f'names/{name}', photographs[0][: 30 + len(name)])
    found = LmdbSource(store(tmp_path / 'x.lmdb', tmp_path / 'names', 'lossless'))
    for name in found.names():
        np.testing.assert_array_equal(found.open(name).pixels(), photographs[0][: 30 + len(name)])


def test_basicsr_reads_what_it_can(tmp_path, write, photographs) -> None:
    for number, name in enumerate(['one/1.png', 'one/2.jpg', '3.png', '0025_0.8_0.04.png', 'ö.png']):
        write(f'images/{name}', photographs[number % 3][: 20 + number])
    path = store(tmp_path / 'x.lmdb', tmp_path / 'images')
    assert (path / 'meta_info.txt').read_text().splitlines() == [
        '3.png (22,96,3) 0',
        'one/1.png (20,96,3) 0',
        'one/2.jpg (21,96,3) 0',
    ]
    client = FileClient('lmdb', db_paths=str(path))
    for key, name in (('3', '3.png'), ('one/1', 'one/1.png'), ('one/2', 'one/2.jpg')):
        bgr = imfrombytes(client.get(key))
        np.testing.assert_array_equal(bgr[..., ::-1], FolderSource(tmp_path / 'images').open(name).pixels())


def test_basicsrs_paired_dataset_reads_prepared_pairs(tmp_path, write, photographs) -> None:
    for number, photograph in enumerate(photographs):
        write(f'gt/{number}.png', photograph)
        write(f'lq/{number}.png', 255 - photograph)
    options = {
        'name': 'pairs',
        'type': 'PairedImageDataset',
        'phase': 'val',
        'scale': 1,
        'io_backend': {'type': 'lmdb'},
    }
    for side in ('gt', 'lq'):
        options[f'dataroot_{side}'] = str(store(tmp_path / f'{side}.lmdb', tmp_path / side, 'lossless'))
    dataset = build_dataset(options)
    assert len(dataset) == 3
    for number, photograph in enumerate(photographs):
        sample = dataset[number]
        assert sample['lq_path'] == str(number)
        np.testing.assert_array_equal(np.rint(sample['gt'].numpy().transpose(1, 2, 0) * 255), photograph)
        np.testing.assert_array_equal(np.rint(sample['lq'].numpy().transpose(1, 2, 0) * 255), 255 - photograph)


def test_databases_of_basicsrs_own_tool_are_read(tmp_path, write, photographs, capsys) -> None:
    for number, photograph in enumerate(photographs):
        write(f'images/00{number}/x_{number}.png', photograph)
    names = FolderSource(tmp_path / 'images').names()
    path = str(tmp_path / 'theirs.lmdb')
    make_lmdb_from_imgs(str(tmp_path / 'images'), path, names, [name[:-4] for name in names])
    source = LmdbSource(path)
    assert source.names() == names
    for name, photograph in zip(names, photographs, strict=True):
        np.testing.assert_array_equal(source.open(name).pixels(), photograph)


def test_images_that_basicsrs_tool_lost_are_reported(tmp_path, write, photographs, capsys) -> None:
    names = ['0025_0.8_0.04.png', '0025_0.8_0.06.png']
    for name in names:
        write(f'images/{name}', photographs[0])
    path = str(tmp_path / 'theirs.lmdb')
    make_lmdb_from_imgs(str(tmp_path / 'images'), path, names, [name[:-4] for name in names])
    with pytest.raises(ValueError, match=r'has lost images: .*0025_0\.8_0\.04\.png, 0025_0\.8_0\.06\.png'):
        LmdbSource(path)


# Databases of earlier versions


def written_with_pieces(path: Path, sub_images: list[int] | None) -> None:
    """Turn a database into what earlier versions wrote: a header with `sub_images`, an index with a column `cut`."""
    records = records_of(path)
    header = {**json.loads(records[HEADER_KEY]), 'sub_images': sub_images}
    (chunk,) = (key for key in records if key.startswith(INDEX_PREFIX))
    columns = json.loads(zlib.decompress(records[chunk]))
    columns['cut'] = [sub_images is not None] * len(columns['name'])
    change(path, {HEADER_KEY: json.dumps(header).encode(), chunk: zlib.compress(json.dumps(columns).encode())})


@pytest.mark.parametrize('storage', STORAGES)
def test_databases_without_pieces_are_read_as_before(storage, folder, tmp_path) -> None:
    path = store(tmp_path / 'x.lmdb', folder, storage)
    new = LmdbSource(path)
    written_with_pieces(path, None)
    old = LmdbSource(path)
    assert old.names() == new.names()
    for name in old.names():
        np.testing.assert_array_equal(old.open(name).pixels(), FolderSource(folder).open(name).pixels())


def test_databases_of_pieces_are_refused(folder, tmp_path) -> None:
    path = store(tmp_path / 'x.lmdb', folder, 'raw')
    written_with_pieces(path, [32, 24])
    with pytest.raises(ValueError, match=r'contains image patches, .* Write the database again with `basicsr prepare'):
        LmdbSource(path)


# What is wrong with a record


def test_damaged_records_name_themselves(folder, tmp_path) -> None:
    original, raw = (store(tmp_path / f'{storage}.lmdb', folder, storage) for storage in ('original', 'raw'))
    content = records_of(original)[b'photograph']
    change(original, {b'colour': None, b'photograph': content[:-9], b'grey': bytes(len(records_of(original)[b'grey']))})
    change(raw, {b'colour.png': b'\0' * 9})
    for path, name, reason in (
        (original, 'colour.png', 'damaged record (the record is missing)'),
        (original, 'photograph.jpg', f'damaged record ({len(content) - 9:,} bytes instead of {len(content):,})'),
        (original, 'grey.png', 'not a readable image'),
        (raw, 'colour.png', 'damaged record (9 bytes instead of 15,189)'),
    ):
        with pytest.raises(ImageError) as raised:
            LmdbSource(path).open(name).pixels()
        assert str(raised.value).startswith(f'{path}/{name}: {reason}')


def test_a_database_that_is_replaced_under_its_reader(folder, tmp_path) -> None:
    source = LmdbSource(store(tmp_path / 'x.lmdb', folder))
    shutil.rmtree(tmp_path / 'x.lmdb')
    store(tmp_path / 'y.lmdb', folder).rename(tmp_path / 'x.lmdb')
    with pytest.raises(ImageError, match=r'x\.lmdb: was replaced after its index was read'):
        source.open('colour.png')
    assert LmdbSource(tmp_path / 'x.lmdb').open('colour.png').size == (61, 83)


def test_a_reader_continues_with_its_open_database(folder, tmp_path) -> None:
    source = LmdbSource(store(tmp_path / 'x.lmdb', folder, 'raw'))
    pixels = source.open('colour.png').pixels()
    shutil.rmtree(tmp_path / 'x.lmdb')
    np.testing.assert_array_equal(source.open('colour.png').pixels(), pixels)
    np.testing.assert_array_equal(pixels, FolderSource(folder).open('colour.png').pixels())


# What is no database


@pytest.mark.parametrize('storage', STORAGES)
def test_a_database_that_is_cut_off_while_it_is_open(storage: str, tmp_path: Path, write, photographs) -> None:
    """Reading on would end the process by SIGBUS."""
    for number in range(3):
        write(f'images/{number}.png', photographs[number])
    source = LmdbSource(store(tmp_path / 'x.lmdb', tmp_path / 'images', storage))
    assert source.open('0.png').pixels().shape == (96, 96, 3)
    os.truncate(tmp_path / 'x.lmdb/data.mdb', 4096)
    with pytest.raises(ImageError, match=r'2\.png: damaged record \(the LMDB .* is cut off: data\.mdb has 4,096 of'):
        source.open('2.png')


def torn(path: Path) -> None:
    os.truncate(path / 'data.mdb', os.path.getsize(path / 'data.mdb') // 2)


def unfinished(path: Path) -> None:
    header = json.loads(records_of(path)[HEADER_KEY])
    change(path, {HEADER_KEY: json.dumps({**header, 'complete': False}).encode()})


def of_a_later_release(path: Path) -> None:
    header = json.loads(records_of(path)[HEADER_KEY])
    change(path, {HEADER_KEY: json.dumps({**header, 'format': 99}).encode()})


def without_index(path: Path) -> None:
    change(path, {key: None for key in records_of(path) if key.startswith(b'\0')})
    (path / 'meta_info.txt').unlink()


def without_records(path: Path) -> None:
    change(path, dict.fromkeys(records_of(path)))


def without_a_chunk(path: Path) -> None:
    change(path, {INDEX_PREFIX + b'00000000': None})


def with_a_damaged_chunk(path: Path) -> None:
    change(path, {INDEX_PREFIX + b'00000000': b'no zlib'})


def of_text(path: Path) -> None:
    (path / 'data.mdb').write_text('hello' * 999)


def emptied(path: Path) -> None:
    (path / 'data.mdb').unlink()


def being_written(path: Path) -> None:
    path.rename(f'{path}.part')


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (torn, r'is cut off: data.mdb has [\d,]+ of [\d,]+ bytes. Copy it again'),
        (unfinished, 'is incomplete'),
        (of_a_later_release, 'has format 99, but this release supports up to 1. Update promptir_basicsr'),
        (without_index, r'has no index of `basicsr prepare` and no meta_info.txt'),
        (without_records, r'has 0 of the 7 images in its meta_info.txt'),
        (without_a_chunk, '0 of 7 images in its index'),
        (with_a_damaged_chunk, 'is damaged'),
        (of_text, r'cannot be opened as an LMDB \(.*MDB_INVALID'),
        (emptied, 'is not an LMDB: data.mdb cannot be read'),
        (being_written, 'is incomplete: it is being written, or writing was interrupted. Run `basicsr prepare` again'),
        (shutil.rmtree, 'does not exist'),
    ],
)
def test_what_cannot_be_read(damage, said, folder, tmp_path) -> None:
    path = store(tmp_path / 'x.lmdb', folder)
    damage(path)
    with pytest.raises(ValueError, match=said) as raised:
        LmdbSource(path)
    assert str(path) in str(raised.value)
    assert '\n' not in str(raised.value)


# Processes


class Images(Dataset):
    """All images of a source."""

    def __init__(self, source: LmdbSource) -> None:
        self.source, self.all = source, source.names()

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source.open(self.all[index]).pixels().copy()


@pytest.mark.parametrize('read_before', [False, True])
@pytest.mark.parametrize('context', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_read_what_a_folder_gives(context, read_before, folder, tmp_path) -> None:
    sources = [LmdbSource(store(tmp_path / f'{storage}.lmdb', folder, storage)) for storage in STORAGES]
    expected = [FolderSource(folder).open(name).pixels() for name in FolderSource(folder).names()] * len(sources)
    dataset = ConcatDataset([Images(source) for source in sources])
    kept = [source.open(name).pixels() for source in sources for name in source.names()] if read_before else []
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=context, persistent_workers=True
    )
    for _ in range(2):
        for pixels, found in zip(expected, loader, strict=True):
            np.testing.assert_array_equal(np.asarray(found), pixels)
    assert len(kept) == read_before * len(expected)
    for pixels, image in zip(expected, kept, strict=False):
        np.testing.assert_array_equal(image, pixels)


def test_a_source_travels_by_pickle(folder, tmp_path) -> None:
    source = LmdbSource(store(tmp_path / 'x.lmdb', folder, 'raw'))
    source.open('colour.png')
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.open('colour.png').pixels(), source.open('colour.png').pixels())


def test_the_index_of_72135_images_is_small_and_read_at_once(tmp_path) -> None:
    names = sorted(
        f'synthetic/part{scene % 4 + 1}/{scene:04}_{haze // 7}_{haze % 7}.jpg'
        for scene in range(2061)
        for haze in range(35)
    )
    assert len(names) == 72135
    path = tmp_path / 'ots.lmdb'
    header = {'format': 1, 'storage': 'original', 'complete': True, 'images': 72135, 'bytes': 0}
    with lmdb.open(str(path), lock=False, map_size=1 << 28) as environment, environment.begin(write=True) as writing:
        writing.put(HEADER_KEY, json.dumps(header).encode())
        for number in range(0, 72135, 1024):
            records = [Record(name, PATH, 413, 550, 8, 40000, 40000, 1) for name in names[number : number + 1024]]
            writing.put(INDEX_PREFIX + b'%08d' % (number // 1024), pack_records(records))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        source = LmdbSource(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    tracemalloc.start()
    source = LmdbSource(path)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.names() == names
    assert size < 15e6
    assert peak < 40e6
    assert sys.getsizeof(pickle.dumps(source)) < 10e6
