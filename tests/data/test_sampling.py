"""Shares of the tasks: counted, rounded, drawn from real files, refused, and as the page shows them."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.data.allinone_dataset import AllInOneDataset, check_dataset, describe_tasks
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.data.sampler import EpochIndex
from promptir_basicsr.data.sampling import TaskShare, apportion, check_shares, epoch_shares
from promptir_basicsr.data.sources import FolderSource
from promptir_basicsr.data.tasks import Task
from promptir_basicsr.options.data import SamplingOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'sampling.md').read_text(encoding='utf-8')
TRAIN = {'name': 'mixed', 'type': 'AllInOneDataset', 'phase': 'train', 'gt_size': 32, 'seed': 7}
SIZES = [(5144, 3), (5144, 3), (5144, 3), (200, 120), (72135, 1)]
"""Images and copies of the three-degradation protocol."""


def tasks_of(sizes: Sequence[tuple[int, int]], weights: Sequence[float] = ()) -> list[Task]:
    """Tasks of (images, copies), which nobody opens."""
    source = FolderSource(ROOT)
    return [
        Task(f't{number}', 'derain', 1, copies, source, source, [('a.png', 'a.png')] * images, weight=weight)
        for number, ((images, copies), weight) in enumerate(
            itertools.zip_longest(sizes, weights) if weights else [(size, None) for size in sizes]
        )
    ]


def samples_of(sizes: Sequence[tuple[int, int]], weights: Sequence[float] = (), **sampling: Any) -> list[int]:
    opt = {'sampling': sampling, 'batch_size_per_gpu': sampling.pop('batch', None)}
    return [share.samples for share in epoch_shares(tasks_of(sizes, weights), opt)]


# rounding


@pytest.mark.parametrize('shares', [[1, 1, 1], [5, 3, 1], [Fraction(1, 3), Fraction(1, 7), 2, Fraction(1, 100)]])
@pytest.mark.parametrize('total', [0, 1, 2, 5, 8, 11])
def test_the_numbers_are_the_nearest_whole_ones(shares, total) -> None:
    """Of all the ways to add up to the total, none lies nearer to the exact numbers."""
    counts = apportion(total, shares)

    def distance(numbers: Sequence[int]) -> Fraction:
        exact = [total * Fraction(share) / sum(shares) for share in shares]
        return sum((abs(number - goal) for number, goal in zip(numbers, exact, strict=True)), Fraction(0))

    ways = [way for way in itertools.product(range(total + 1), repeat=len(shares)) if sum(way) == total]
    assert sum(counts) == total
    assert distance(counts) == min(map(distance, ways))


def test_of_equal_fractions_the_first_is_raised() -> None:
    assert apportion(5, [1, 1, 1]) == [2, 2, 1]


# shares


def test_copies_are_taken_exactly() -> None:
    assert samples_of(SIZES) == [images * copies for images, copies in SIZES]
    assert samples_of(SIZES, temperature=1) == samples_of(SIZES)
    assert samples_of(SIZES, epoch_size=2 * 142_431) == [2 * images * copies for images, copies in SIZES]
    large = [(10**9 + 7, 3), (3, 1)]
    assert apportion(3 * 10**9 + 24, [images * copies for images, copies in large]) == [3 * 10**9 + 21, 3]


def test_weights_are_the_shares_to_the_sample() -> None:
    sizes = [(3, 1), (50, 2), (7, 1)]
    assert samples_of(sizes, [1, 2, 1], epoch_size=40) == [10, 20, 10]
    assert samples_of(sizes, [0.1, 0.2, 0.3], epoch_size=6) == [1, 2, 3]
    assert samples_of(sizes, [2.5, 5, 2.5], epoch_size=41) == [10, 21, 10]
    assert samples_of(sizes[:2], [0.3, 0.1], epoch_size=6) == [5, 1], '4.5 and 1.5 as one writes them'
    assert sum(samples_of(sizes, [1, 1, 1])) == 3 + 100 + 7, 'copies still make the length'


@pytest.mark.parametrize('temperature', [0.5, 1, 1.5, 2, 5, 100])
def test_temperature_is_the_documented_formula(temperature) -> None:
    total = 1_000_000
    sizes = np.array([images * copies for images, copies in SIZES], np.float64)
    expected = sizes ** (1 / temperature)
    expected *= total / expected.sum()
    found = samples_of(SIZES, temperature=temperature, epoch_size=total)
    assert sum(found) == total
    assert np.abs(np.array(found) - expected).max() <= 1


def test_an_endless_temperature_makes_tasks_equal() -> None:
    assert samples_of(SIZES, temperature=float('inf'), epoch_size=1000) == [200] * 5


def test_fixed_shares_round_the_batch_and_the_epoch_follows() -> None:
    shares = epoch_shares(tasks_of(SIZES), {'sampling': {'fixed_shares': True}, 'batch_size_per_gpu': 32})
    # 32 x 15,432 / 142,431 = 3.47 of each sigma, 5.39 of rain, 16.2 of haze: two remainders of .47 are raised.
    assert [share.in_batch for share in shares] == [4, 4, 3, 5, 16]
    assert [share.share for share in shares] == [4 / 32, 4 / 32, 3 / 32, 5 / 32, 16 / 32]
    assert shares[2].asked == pytest.approx(15_432 / 142_431)
    assert sum(share.samples for share in shares) == 142_431
    assert all(abs(share.samples - 142_431 * share.share) < 1 for share in shares)
    assert shares[3].draws == shares[3].samples / 200


def test_validation_takes_every_image_once() -> None:
    shares = epoch_shares(tasks_of([(3, 5), (4, 1)]), {'phase': 'val'})
    assert [(share.samples, share.draws, share.in_batch) for share in shares] == [(3, 1, 0), (4, 1, 0)]


# which image an index stands for


def share(images: int, samples: int) -> TaskShare:
    return TaskShare('t', images, samples, 0, 0)


def draws(index: EpochIndex, epoch: int, task: int, further: int = 0) -> list[int]:
    located = [index.locate(epoch, number + further * len(index)) for number in range(len(index))]
    assert [number for number, _ in located] == sorted(number for number, _ in located)
    return [position for number, position in located if number == task]


def test_indices_count_through_tasks_passes_and_images() -> None:
    index = EpochIndex([share(3, 6), share(4, 10), share(5, 2)], seed=0)
    assert len(index) == 18
    located = [index.locate(0, number) for number in range(18)]
    assert located[:14] == [(0, n % 3) for n in range(6)] + [(1, n % 4) for n in range(8)]
    assert [task for task, _ in located] == [0] * 6 + [1] * 10 + [2] * 2


@pytest.mark.parametrize(('images', 'samples'), [(7, 3), (7, 7), (7, 17), (6, 3), (1, 5), (100, 30), (5, 4)])
def test_images_take_turns(images, samples) -> None:
    """No image is two draws ahead of another one, in one epoch and in many."""
    index = EpochIndex([share(2, 2), share(images, samples), share(2, 3)], seed=3)
    counts = Counter(dict.fromkeys(range(images), 0))
    parts = []
    for epoch in range(30):
        drawn = draws(index, epoch, 1)
        within = Counter(drawn)
        assert len(drawn) == samples
        assert {within[image] for image in range(images)} <= {samples // images, -(-samples // images)}
        parts.append(frozenset(drawn[samples - samples % images :]))
        counts.update(drawn)
        assert max(counts.values()) - min(counts.values()) <= 1
    if samples % images:
        assert all(first != second for first, second in itertools.pairwise(parts))


def test_turns_come_from_the_seed_alone_and_are_a_shuffle() -> None:
    shares = [share(1000, 300)]
    first = draws(EpochIndex(shares, seed=3), 5, 0)
    assert first == draws(EpochIndex(shares, seed=3), 5, 0)
    assert first != draws(EpochIndex(shares, seed=4), 5, 0)
    assert abs(np.corrcoef(first, np.arange(300))[0, 1]) < 0.2
    assert 400 < np.mean(first) < 600


def test_tasks_of_the_same_size_have_turns_of_their_own() -> None:
    index = EpochIndex([share(1000, 300), share(1000, 300)], seed=0)
    assert draws(index, 0, 0) != draws(index, 0, 1)


def test_an_enlarged_epoch_continues_with_the_next_part() -> None:
    index = EpochIndex([share(10, 14)], seed=0)
    assert draws(index, 0, 0, further=1) == draws(index, 1, 0)
    assert draws(index, 0, 0, further=1)[:10] == list(range(10))
    assert not set(draws(index, 0, 0)[10:]) & set(draws(index, 0, 0, further=1)[10:])


def test_samples_follow_the_weights_and_no_draw_is_like_another(denoise, derain) -> None:
    """Real images: 2 to add noise to and 3 pairs."""
    tasks = [{**denoise, 'weight': 1}, {**derain, 'weight': 3}]
    dataset = AllInOneDataset({**TRAIN, 'tasks': tasks, 'sampling': {'epoch_size': 20}})
    assert len(dataset) == 20
    seen, crops = Counter(), set()
    for epoch in range(3):
        samples = [dataset[epoch, index] for index in range(20)]
        assert Counter(sample['task'] for sample in samples) == {'denoise25': 5, 'derain': 15}
        seen.update((sample['task'], sample['name']) for sample in samples)
        crops |= {sample['lq'].numpy().tobytes() for sample in samples}
    assert sorted(seen[name] for name in seen if name[0] == 'denoise25') == [7, 8]
    assert [seen['derain', f'rain-{number}'] for number in (1, 2, 3)] == [15, 15, 15]
    assert len(crops) == 60
    assert dataset[1, 4]['name'] != dataset[2, 4]['name'], 'the remaining draw goes to the other image'


# the log


def test_the_log_shows_shares_and_draws(denoise, derain, log) -> None:
    tasks = [{**denoise, 'weight': 1}, {**derain, 'weight': 3}]
    sampling = {'epoch_size': 21, 'fixed_shares': True}
    AllInOneDataset({**TRAIN, 'tasks': tasks, 'sampling': sampling, 'batch_size_per_gpu': 6})
    lines = [record.getMessage() for record in log]
    assert "Dataset 'mixed': 2 tasks, 21 samples per epoch, 6 in every batch as shown" in lines
    (head,) = [line for line in lines if line.startswith('  task ')]
    (noise,) = [line for line in lines if line.startswith('  denoise25 ')]
    (rain,) = [line for line in lines if line.startswith('  derain ')]
    assert head.split('  made by')[0].split() == 'task type label images draws samples asked in batch share'.split()
    # 25 % of 6 are 1.5: raised, as the first. 2 / 6 of 21 are 7.
    assert noise.split()[:9] == ['denoise25', 'denoise', '0', '2', '3.50', '7', '25.0%', '2', '33.3%']
    assert rain.split()[:9] == ['derain', 'derain', '1', '3', '4.67', '14', '75.0%', '4', '66.7%']


def test_columns_are_aligned_with_their_heads() -> None:
    for opt in ({}, {'sampling': {'temperature': 2}}, {'sampling': {'fixed_shares': True}, 'batch_size_per_gpu': 32}):
        tasks = tasks_of(SIZES)
        _, head, *rows = describe_tasks(tasks, 'x', True, epoch_shares(tasks, opt))
        for name in ('images', 'samples', 'share'):
            end = head.index(name) + len(name)
            assert all(row[end - 1] != ' ' and row[end] == ' ' for row in rows), name


# mistakes


def problems_of(*tasks, **options) -> list[str]:
    with pytest.raises(OptionError) as error:
        check_dataset({**TRAIN, 'tasks': list(tasks), **options}, 'datasets.train')
    return error.value.lines


ONCE = 'only for training; a validation uses every image once. Remove it.'


@pytest.mark.parametrize(
    ('sampling', 'said'),
    [
        (5, 'sampling: must be options such as {temperature: 2, fixed_shares: true}, not 5.'),
        (
            ['temperature'],
            "sampling: must be options such as {temperature: 2, fixed_shares: true}, not ['temperature'].",
        ),
        ({'temprature': 2}, "sampling: unknown option 'temprature'. Did you mean 'temperature'?"),
        ({'temperature': 0}, 'sampling.temperature: 0 is not a number above 0.'),
        ({'temperature': 'hot'}, "sampling.temperature: 'hot' is not a number above 0."),
        ({'temperature': float('nan')}, 'sampling.temperature: nan is not a number above 0.'),
        ({'fixed_shares': 1}, 'sampling.fixed_shares: 1 is neither true nor false.'),
        ({'fixed_shares': True}, 'sampling.fixed_shares: needs `batch_size_per_gpu`, a whole number of at least 1'),
        ({'epoch_size': 0}, 'sampling.epoch_size: 0 is not a whole number of at least 1.'),
        ({'epoch_size': 1e5}, 'sampling.epoch_size: 100000.0 is not a whole number of at least 1.'),
    ],
)
def test_wrong_options(sampling, said, derain) -> None:
    (problem,) = problems_of(derain, sampling=sampling)
    assert problem.startswith(f'datasets.train.{said}')


@pytest.mark.parametrize('weight', [0, -1, 'much', True, float('nan'), float('inf'), [1]])
def test_wrong_weights(weight, derain) -> None:
    (problem,) = problems_of({**derain, 'weight': weight})
    assert problem == f'datasets.train.tasks[0] (derain).weight: {weight!r} is not a number above 0.'


def test_weights_are_for_all_tasks_and_exclude_a_temperature(denoise, derain) -> None:
    mixed = [{**denoise, 'weight': 2}, derain, {**denoise, 'name': 'other', 'weight': None}]
    assert problems_of(*mixed) == [
        'datasets.train.tasks: `weight` is set in tasks[0], but is missing in tasks[1], tasks[2]. '
        'Set it for every task or for none.'
    ]
    (problem,) = problems_of({**derain, 'weight': 1}, sampling={'temperature': 2})
    assert problem.startswith('datasets.train.sampling.temperature: ')
    assert 'a `weight` already sets a share (tasks[0]). Set only one of them.' in problem


def test_several_mistakes_are_reported_at_once(denoise, derain) -> None:
    wrong = {'temperature': -1, 'fixed_shares': 'yes', 'epoch_size': 'long'}
    problems = problems_of({**denoise, 'weight': 'heavy'}, derain, sampling=wrong)
    for place in ('tasks[0] (denoise25).weight', 'tasks:', *(f'sampling.{key}' for key in wrong)):
        assert any(problem.startswith(f'datasets.train.{place}') for problem in problems), place


def test_validation_has_no_sampling(denoise, derain) -> None:
    wrong = {'phase': 'val', 'gt_size': None, 'sampling': {'temperature': 2}}
    problems = problems_of(denoise, {**derain, 'weight': 1}, **wrong)
    assert problems == [f'datasets.train.tasks[1].weight: {ONCE}', f'datasets.train.sampling: {ONCE}']
    left_out = {**TRAIN, 'phase': 'val', 'gt_size': None, 'sampling': None, 'tasks': [{**derain, 'weight': None}]}
    assert len(check_dataset(left_out, 'datasets.val')) == 1


CASES = {
    'batch below the tasks': ([], {'fixed_shares': True}, 4),
    'batch, copies': ([], {'fixed_shares': True}, 5),
    'batch, temperature': ([], {'fixed_shares': True, 'temperature': 1}, 5),
    'batch, weights': ([1, 1, 1, 0.1, 5], {'fixed_shares': True}, 8),
    'batch, two light tasks': ([1, 1, 0.01, 0.1, 5], {'fixed_shares': True}, 16),
    'batch, a very light task': ([1, 1, 1, 1e-9, 5], {'fixed_shares': True}, 32),
    'epoch': ([], {'epoch_size': 6}, 2),
    'epoch below a batch': ([], {'epoch_size': 6, 'fixed_shares': True}, 32),
    'epoch, weights': ([1, 1, 1, 1e-6, 5], {}, 2),
    'epoch, cold': ([], {'temperature': 0.001}, 2),
}


@pytest.mark.parametrize('case', CASES)
def test_a_task_without_a_sample_is_refused_and_each_suggested_fix_works(case) -> None:
    weights, sampling, batch = CASES[case]
    tasks, opt = tasks_of(SIZES, weights), {'sampling': sampling, 'batch_size_per_gpu': batch}
    (problem,) = map(str, check_shares(tasks, opt, 'datasets.train'))
    whole = 'a batch' if case.startswith('batch') else 'an epoch'
    place = 'sampling.fixed_shares' if case.startswith('batch') else 'sampling'
    assert re.match(rf"datasets\.train\.{place}: {whole} of [\d,]+ would have no sample of 't\d' \(", problem)
    mends = problem.partition('Raise ')[2].removesuffix('.').split(', or ')
    assert mends[0]
    for mend in mends:
        better, options, number = list(tasks), dict(sampling), batch
        for key, name, value in re.findall(r"`([\w.]+)`(?: of '(\w+)')? to ([\d.,e-]+)", mend):
            value = float(value.replace(',', ''))
            if key == 'batch_size_per_gpu':
                number = int(value)
            elif key.startswith('sampling.'):
                options[key.removeprefix('sampling.')] = int(value) if value % 1 == 0 else value
            else:
                changes = {key: value if key == 'weight' else int(value)}
                better[int(name[1:])] = dataclasses.replace(tasks[int(name[1:])], **changes)
        assert (better, options, number) != (tasks, sampling, batch), mend
        mended = {'sampling': options, 'batch_size_per_gpu': number}
        assert check_shares(better, mended, 'datasets.train') == [], mend


def test_the_batch_that_is_named_is_the_smallest() -> None:
    (problem,) = map(
        str, check_shares(tasks_of(SIZES), {'sampling': {'fixed_shares': True}, 'batch_size_per_gpu': 1}, 'x')
    )
    named = int(re.search(r'`batch_size_per_gpu` to (\d+)', problem)[1])
    opts = [{'sampling': {'fixed_shares': True}, 'batch_size_per_gpu': number} for number in range(1, named + 1)]
    assert [bool(check_shares(tasks_of(SIZES), opt, 'x')) for opt in opts] == [True] * (named - 1) + [False]


# the page


def protocol(weights: Sequence[float] = (), **sampling: Any) -> list[TaskShare]:
    options = yaml.safe_load((ROOT / 'options' / 'promptir_allinone.yml').read_text(encoding='utf-8'))
    tasks = expand_protocol(options['datasets']['train'], 'datasets.train')['tasks']
    assert [task['type'] for task in tasks] == ['denoise'] * 3 + ['derain', 'dehaze']
    sizes = [(task['expected_images'], task['copies']) for task in tasks]
    return epoch_shares(tasks_of(sizes, weights), {'sampling': sampling, 'batch_size_per_gpu': sampling.pop('b', 32)})


@pytest.mark.parametrize(
    ('label', 'weights', 'sampling'),
    [
        ('as published', (), {}),
        ('`temperature: 1.5`', (), {'temperature': 1.5}),
        ('`temperature: 2`', (), {'temperature': 2}),
        ('`temperature: 5`', (), {'temperature': 5}),
        ('`weight` 1, 1, 1, 3, 3', (1, 1, 1, 3, 3), {}),
        ('`weight` 1, 1, 1, 1, 1', (1, 1, 1, 1, 1), {}),
        ('`epoch_size: 64000`', (), {'epoch_size': 64_000}),
    ],
)
def test_the_table_of_shares_is_what_the_code_does(label, weights, sampling) -> None:
    shares = protocol(weights, **sampling)
    cells = [f'{share.share:.1%}, {share.draws:.3g}'.replace('%', ' %') for share in shares]
    assert cells[0] == cells[1] == cells[2]
    total = sum(share.samples for share in shares)
    assert f'| {label} | {" | ".join(cells[2:])} | {total:,} |' in PAGE.splitlines()


@pytest.mark.parametrize('batch', [7, 8, 16, 32, 64])
def test_the_table_of_batches_is_what_the_code_does(batch) -> None:
    noise = [share.in_batch for share in protocol(fixed_shares=True, b=batch)[:3]]
    rain, haze = protocol(fixed_shares=True, b=batch)[3:]
    none = f'{(1 - rain.asked) ** batch:.1%}'.replace('%', ' %')
    row = f'| {batch} | {", ".join(map(str, noise))} | {rain.in_batch} | {haze.in_batch} | {none} |'
    assert row in PAGE.splitlines()


def test_the_page_names_every_key_and_its_example_is_right() -> None:
    for key in ('copies', 'weight', *SamplingOptions.model_fields):
        assert re.search(rf'^\| `{key}` \|', PAGE, re.M), key
    (example,) = re.findall(r'^```yaml\n(.*?)^```$', PAGE, re.M | re.S)
    options = yaml.safe_load(example)['datasets']['train']
    with pytest.raises(OptionError) as error:
        check_dataset({**options, 'phase': 'train'}, 'datasets.train')
    assert all('does not exist' in problem for problem in error.value.lines), error.value.lines
    weights = [task['weight'] for task in options['tasks']]
    shares = epoch_shares(tasks_of([(10, 1)] * 3, weights), options)
    assert [share.in_batch for share in shares] == [2, 2, 4]
    assert [share.samples for share in shares] == [24_000, 24_000, 48_000]


def test_the_example_with_a_protocol_is_right() -> None:
    (example,) = re.findall(r'(?:^    .+\n)+', PAGE.partition('With a [protocol]')[2].partition('\n## ')[0], re.M)
    options = expand_protocol({**yaml.safe_load(example), 'batch_size_per_gpu': 8}, 'datasets.train')
    sizes = [(task['expected_images'], task['copies']) for task in options['tasks']]
    shares = epoch_shares(tasks_of(sizes, [task['weight'] for task in options['tasks']]), options)
    assert [share.in_batch for share in shares] == [1, 1, 1, 1, 4]
