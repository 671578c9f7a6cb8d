"""Images kept in memory are the images, in every process, and never more of them than allowed."""

import multiprocessing
import os
import signal
from multiprocessing import get_context

import numpy as np
import pytest
from torch.utils.data import DataLoader

import promptir_basicsr  # noqa: F401  (registers)
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data import AllInOneDataset
from promptir_basicsr.data.cache import CachedSource, PixelCache, memory_of_machine
from promptir_basicsr.data.sources import FolderSource


def image(seed: int, shape=(5, 7), kind='uint8') -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (*shape, 3), dtype=kind)


def fill(cache: PixelCache, numbers) -> None:
    for number in numbers:
        cache.put(number, image(number))


def die_while_filling(cache: PixelCache) -> None:
    """The system ends the process in the middle of `put`, with the lock in its hands."""
    with cache._locked():
        os.kill(os.getpid(), signal.SIGKILL)


def in_process(method: str, function, *arguments) -> None:
    process = get_context(method).Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None


def test_what_is_put_is_got() -> None:
    cache = PixelCache(4, 10_000)
    assert cache.get(2) is None
    for number, (shape, kind) in enumerate([((5, 7), 'uint8'), ((1, 1), 'uint16'), ((9, 2), 'uint16')]):
        cache.put(number, image(number, shape, kind))
    for number, (shape, kind) in enumerate([((5, 7), 'uint8'), ((1, 1), 'uint16'), ((9, 2), 'uint16')]):
        got = cache.get(number)
        np.testing.assert_array_equal(got, image(number, shape, kind))
        assert got.dtype == kind
        assert not got.flags.writeable
    assert cache.get(3) is None


def test_it_stays_within_its_bounds_and_goes_on_with_smaller_images() -> None:
    cache = PixelCache(20, 1000)
    fill(cache, range(20))  # 105 bytes each, in steps of 64
    kept = [number for number in range(20) if cache.get(number) is not None]
    assert kept == list(range(7))
    assert cache.used <= 1000
    small = image(0, (1, 5))
    cache.put(19, small)
    np.testing.assert_array_equal(cache.get(19), small)
    for number in kept:
        np.testing.assert_array_equal(cache.get(number), image(number))


def test_an_image_is_kept_once() -> None:
    cache = PixelCache(2, 1000)
    cache.put(0, image(0))
    used = cache.used
    cache.put(0, image(1))
    assert cache.used == used
    np.testing.assert_array_equal(cache.get(0), image(0))


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_processes_share_it_both_ways(method) -> None:
    cache = PixelCache(6, 10_000)
    cache.put(0, image(0))
    in_process(method, fill, cache, [0, 1, 2])
    for number in (0, 1, 2):
        np.testing.assert_array_equal(cache.get(number), image(number))


def test_many_processes_fill_it_at_once() -> None:
    cache = PixelCache(300, 50_000_000)
    processes = [get_context('fork').Process(target=fill, args=(cache, range(300))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    for number in range(300):
        np.testing.assert_array_equal(cache.get(number), image(number))
    assert cache.used == 300 * 128


def test_a_killed_process_does_not_stop_the_others() -> None:
    cache = PixelCache(3, 10_000)
    in_process('fork', die_while_filling, cache)
    in_process('fork', fill, cache, [1])
    np.testing.assert_array_equal(cache.get(1), image(1))


def test_memory_is_taken_as_it_fills() -> None:
    def shared() -> int:
        with open('/proc/self/statm') as file:
            return int(file.read().split()[2]) * os.sysconf('SC_PAGE_SIZE')

    before = shared()
    cache = PixelCache(10, 1_000_000_000)
    assert shared() - before < 50e6
    cache.put(0, image(0, (1000, 1000)))
    assert cache.used == 3_000_000


def test_a_source_reads_each_image_once(write, photographs, monkeypatch) -> None:
    folder = write('a.png', photographs[0]).parent
    write('b.png', photographs[1])
    source = FolderSource(folder)
    cache = PixelCache(2, 1_000_000)
    kept = CachedSource(source, source.names(), cache, 0)
    for _ in range(2):
        np.testing.assert_array_equal(kept.open('b.png').pixels(), photographs[1])
        np.testing.assert_array_equal(kept.open('a.png').crop(3, 5, 20, 30), photographs[0][3:23, 5:35])
        for path in folder.glob('*.png'):
            path.unlink(missing_ok=True)  # the second time it is not there
    assert (kept.root, kept.where('b.png'), kept.parts('b.png')) == (folder, f'{folder}/b.png', ('b.png',))


def dataset(*tasks, **options) -> AllInOneDataset:
    return AllInOneDataset(
        {'phase': 'train', 'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'tasks': list(tasks), **options}
    )


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert (value == other[key]).all() if hasattr(value, 'shape') else value == other[key]


@pytest.mark.parametrize('megabytes', [1, 0.03], ids=['all fits', 'one image fits'])
@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_samples_are_those_without_a_cache(method, megabytes, denoise, derain) -> None:
    tasks = {**denoise, 'copies': 3}, {**derain, 'copies': 2}, {**denoise, 'name': 'again'}
    plain = dataset(*tasks)
    kept = dataset(*tasks, cache_gb=megabytes / 1000)
    loader = DataLoader(kept, batch_size=4, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for _ in range(2):
        for batch, expected in zip(loader, DataLoader(plain, batch_size=4), strict=True):
            assert_same(batch, expected)
    cache = kept.tasks[0].lq._cache
    assert cache is kept.tasks[1].gt._cache
    pictures = (2 + 6) * 96 * 96 * 3  # tasks of one folder share them
    assert cache.used == (pictures if megabytes == 1 else 96 * 96 * 3)


def test_its_option_is_checked(denoise, monkeypatch) -> None:
    for size in ('big', 0, -1, True):
        with pytest.raises(OptionError, match=r'cache_gb: .* is not a number of GB above 0'):
            dataset(denoise, cache_gb=size)
    with pytest.raises(OptionError, match=r'cache_gb: only training keeps images'):
        AllInOneDataset({'phase': 'val', 'tasks': [denoise], 'cache_gb': 1})
    too_much = memory_of_machine() / 1e9 + 1
    with pytest.raises(OptionError, match=r'cache_gb: [\d.]+ GB is more than the \d+ GB of memory'):
        dataset(denoise, cache_gb=too_much)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    with pytest.raises(OptionError, match=r'cache_gb: [\d.]+ GB in each of 4 processes'):
        dataset(denoise, cache_gb=too_much / 3)


def test_memory_of_machine_is_what_the_kernel_says() -> None:
    with open('/proc/meminfo') as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < memory_of_machine() <= total


def test_the_log_tells_of_it(denoise, log) -> None:
    dataset(denoise, cache_gb=0.5)
    assert any('up to 0.5 GB of decoded images' in record.getMessage() for record in log)
    assert multiprocessing.active_children() == []
