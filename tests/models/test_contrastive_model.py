"""ContrastiveModel on real BasicSR: two stages, the queue, steps that are not finite, parts, processes, resuming."""

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
import yaml
from torch import Tensor

from promptir_basicsr import cli
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.problems import place
from promptir_basicsr.models.step import TrainingStep
from tests.models.model_options import TASKS, run_options
from tests.models.step_data import distribute, photographs, train, weights
from tests.models.test_resume import assert_same_end, killed

# isort: split
from basicsr.archs import build_network
from basicsr.models import build_model

AIRNET = {'type': 'AirNet', 'dim': 4, 'num_groups': 1, 'num_blocks': 1, 'queue_length': 12}
MOVING = ('E.E.queue', 'E.E.encoder_k')


def model_with(folder: Path, **changes: Any) -> Any:
    """A ContrastiveModel of seed 0 in a folder; changes as for `run_options`."""
    torch.manual_seed(0)
    changes = {'network_g': dict(AIRNET), 'model_type': 'ContrastiveModel', **changes}
    return build_model(run_options(folder, **copy.deepcopy(changes)))


def crops(number: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A batch with keys: the images of another place and noise."""
    return {**photographs(number, dtype), 'lq_key': photographs(number + 1, dtype)['lq'][1:].flip(-1)}


def of_encoder(found: dict[str, Tensor]) -> set[str]:
    return {name for name in found if name.startswith('E.')}


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def test_the_encoder_alone_then_everything_by_one_optimizer(tmp_path: Path) -> None:
    model, batch = model_with(tmp_path, train__encoder_iter=2), crops()
    begun = weights(model)
    logs = train(model, batch, steps=2)
    between = weights(model)
    assert different(begun, between) == of_encoder(begun) - {
        name for name in begun if name.endswith('num_batches_tracked') and torch.equal(begun[name], between[name])
    }
    assert not any(name.startswith('R.') for name in different(begun, between))
    assert all(log.keys() == {'l_contrast', 'contrast_accuracy'} for log in logs)
    assert between['E.E.queue_ptr'].item() == 8
    trained = {id(p) for p in model.optimizer_g.state}
    assert trained == {id(p) for p in model.net_g.encoder.encoder_q.parameters()}

    logs = train(model, batch, steps=2, first=3)
    assert all({'l_contrast', 'l_pix', 'l_pix_denoise', 'contrast_accuracy'} <= log.keys() for log in logs)
    steps = {
        name: model.optimizer_g.state[p]['step'].item() for name, p in model.net_g.named_parameters() if p.requires_grad
    }
    assert {name[0]: step for name, step in steps.items()} == {'E': 4, 'R': 2}
    assert of_encoder(different(between, weights(model)))
    assert model.output.shape == batch['lq'].shape


def test_losses_are_those_of_the_definition(tmp_path: Path) -> None:
    model, batch = model_with(tmp_path, train__contrast_weight=0.25), crops()
    net = copy.deepcopy(model.net_g)
    (log,) = train(model, batch)
    found = net(batch['lq'], key=batch['lq_key'])
    contrast = torch.nn.functional.cross_entropy(found.logits, found.labels)
    assert log['l_contrast'] == pytest.approx(0.25 * contrast.item(), rel=1e-5)
    assert log['l_pix'] == pytest.approx((found.restored - batch['gt']).abs().mean().item(), rel=1e-5)
    assert log['contrast_accuracy'] == (found.logits.argmax(1) == 0).float().mean().item()


@pytest.mark.parametrize('encoder_iter', [0, 5])
def test_training_is_that_of_a_plain_loop(encoder_iter: int, tmp_path: Path) -> None:
    model, batch = model_with(tmp_path, train__encoder_iter=encoder_iter), crops()
    net = copy.deepcopy(model.net_g)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    train(model, batch, steps=3)
    for _ in range(3):
        found = net(batch['lq'], key=batch['lq_key'], restore=not encoder_iter)
        loss = torch.nn.functional.cross_entropy(found.logits, found.labels)
        if not encoder_iter:
            loss = (found.restored - batch['gt']).abs().mean() + 0.1 * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(weights(model)[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('at_once', [True, False], ids=['at once', 'later'])
@pytest.mark.parametrize('restores', [True, False])
@pytest.mark.parametrize('poisoned', ['lq', 'lq_key'])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    at_once: bool, restores: bool, poisoned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingStep, 'knows_at_once', property(lambda step: at_once))
    options = {'train__encoder_iter': 0 if restores else 9, 'train__ema_decay': 0.5, 'train__accumulate': 2}
    model, batch = model_with(tmp_path, train__total_iter=20, **options), crops()
    train(model, batch, steps=2)
    model.step.settle()
    before = [value.clone() for net in (model.net_g, model.net_g_ema) for value in net.state_dict().values()]
    broken = {**batch, poisoned: batch[poisoned].clone()}
    broken[poisoned][3, 0, 0, 0] = float('nan')  # in the second part: the first one has moved the queue already
    (log,) = train(model, broken, first=3)
    assert log['sick_steps'] == 1
    after = [value for net in (model.net_g, model.net_g_ema) for value in net.state_dict().values()]
    assert all(map(torch.equal, before, after))
    train(model, batch, first=4)
    assert weights(model)['E.E.queue_ptr'].item() == 0  # 3 sound steps of 4 keys, of 12


def test_an_error_in_a_step_leaves_the_queue_as_it_was(tmp_path: Path) -> None:
    model, batch = model_with(tmp_path), crops()
    before = weights(model)
    model.feed_data({**batch, 'gt': batch['gt'][..., :3]})
    with pytest.raises((RuntimeError, ValueError)):
        model.optimize_parameters(1)
    assert different(before, weights(model)) == set()


def test_parts_of_a_batch_have_their_own_keys(tmp_path: Path) -> None:
    whole, split = model_with(tmp_path), model_with(tmp_path, train__accumulate=2)
    given: list[Tensor] = []
    split.net_g.register_forward_pre_hook(lambda _, __, named: given.append(named['key']), with_kwargs=True)
    batch = crops()
    (log,), (expected,) = train(split, batch), train(whole, batch)
    assert [len(key) for key in given] == [2, 2]
    assert torch.equal(torch.cat(given), batch['lq_key'])
    assert log.keys() == expected.keys()
    assert split.output.shape == whole.output.shape
    pointer, queue = weights(split)['E.E.queue_ptr'], weights(split)['E.E.queue']
    assert pointer.item() == 4
    torch.testing.assert_close(queue.norm(dim=0), torch.ones(12))


def test_the_average_has_the_running_statistics_and_the_queue(tmp_path: Path) -> None:
    model = model_with(tmp_path, train__ema_decay=0.999)
    train(model, crops(), steps=2)
    for one, other in zip(model.net_g.buffers(), model.net_g_ema.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_batch_without_keys_is_an_error(tmp_path: Path) -> None:
    model = model_with(tmp_path)
    with pytest.raises(ValueError, match='no `lq_key`'):
        train(model, photographs())


def test_half_precision_trains(tmp_path: Path) -> None:
    model = model_with(tmp_path, precision='bf16')
    logs = train(model, crops(), steps=2)
    assert all(torch.tensor(list(log.values())).isfinite().all() for log in logs)
    assert 'sick_steps' not in logs[-1]


# options


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """An option file of a training of 8 iterations, 4 of them of the encoder alone; changes as `train__total_iter`."""
    tasks = [{**task, 'copies': 12} for task in TASKS]
    opt: dict[str, Any] = {
        'name': 'run',
        'model_type': 'ContrastiveModel',
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'train',
                'type': 'AllInOneDataset',
                'gt_size': 16,
                'second_crop': True,
                'tasks': tasks,
                'batch_size_per_gpu': 2,
                'num_worker_per_gpu': 0,
            },
            'val': {
                'name': 'val',
                'type': 'AllInOneDataset',
                'tasks': [{**TASKS[0], 'copies': 1, 'files': ['coffee.png']}],
            },
        },
        'network_g': dict(AIRNET),
        'path': {},
        'train': {
            'total_iter': 8,
            'encoder_iter': 4,
            'optim_g': {'type': 'Adam', 'lr': 1e-3},
            'scheduler': {'type': 'FixedLR'},
            'ema_decay': 0.9,
            'pixel_opt': {'type': 'L1Loss'},
        },
        'val': {'val_freq': 4, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_paper_psnr'}}},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 1, 'use_tb_logger': False},
    }
    for name, value in changes.items():
        *sections, key = name.split('__')
        section = opt
        for part in sections:
            section = section[part]
        section[key] = value
    return opt


def problems(folder: Path, processes: int = 1, **changes: Any) -> list[str]:
    found = check_options(options(folder, **changes), is_train=True, processes=processes)
    return [f'{place(each.path)}: {each.message}' for each in found]


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    assert problems(tmp_path, processes=3, datasets__train__batch_size_per_gpu=4) == []


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        (
            {'datasets__train__batch_size_per_gpu': 5},
            'network_g.queue_length: 12 is not a multiple of the 5 keys of a pass '
            '(datasets.train.batch_size_per_gpu 5). Set 10.',
        ),
        (
            {'datasets__train__batch_size_per_gpu': 10, 'train__accumulate': 2},
            'network_g.queue_length: 12 is not a multiple of the 5 keys of a pass '
            '(datasets.train.batch_size_per_gpu 10 / train.accumulate 2). Set 10.',
        ),
        (
            {'datasets__train__batch_size_per_gpu': 4, 'processes': 2},
            'network_g.queue_length: 12 is not a multiple of the 8 keys of a pass '
            '(datasets.train.batch_size_per_gpu 4 x 2 processes). Set 16.',
        ),
        (
            {'datasets__train__stages': [{'until': 4}, {'batch_size_per_gpu': 7}]},
            'network_g.queue_length: 12 is not a multiple of the 7 keys of a pass '
            '(datasets.train.stages[1].batch_size_per_gpu 7). Set 14.',
        ),
        (
            {'datasets__train__second_crop': False},
            'datasets.train.second_crop: ContrastiveModel compares two crops of each image. Set `second_crop: true`.',
        ),
        (
            {'train__encoder_iter': 8},
            'train.encoder_iter: 8 is not below total_iter 8: the restorer would never be trained. Lower it.',
        ),
        (
            {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}},
            "network_g.type: 'EDSR' has no contrastive encoder for ContrastiveModel to train. Allowed: AirNet.",
        ),
        ({'train__contrast_weight': -1}, 'train.contrast_weight: -1 is not a number of at least 0.'),
    ],
)
def test_what_does_not_fit_is_reported_before_the_training(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert problems(tmp_path, **changes) == [expected]


# in a run


def run(folder: Path, patch: pytest.MonkeyPatch, opt: dict[str, Any], *words: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / 'run.yml').write_text(yaml.safe_dump(opt, sort_keys=False), encoding='utf-8')
    patch.chdir(folder)
    return cli.main(['train', '-opt', 'run.yml', *words])


def ended(folder: Path) -> dict[str, Any]:
    return torch.load(folder / 'experiments/run/models/net_g_latest.pth', weights_only=True)


def said(folder: Path) -> str:
    return ''.join(path.read_text() for path in sorted((folder / 'experiments/run').glob('*.log')))


def test_a_training_runs_both_stages_and_resumes_from_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / 'whole'
    assert run(whole, monkeypatch, options(tmp_path)) == 0
    expected, log = ended(whole), said(whole)
    assert 'Training only the encoder up to iteration 4.' in log
    assert 'Validation skipped: only the encoder is trained up to iteration 4.' in log
    assert 'Training the restorer and the encoder from here on.' in log
    rows = list(csv.DictReader((whole / 'experiments/run/metrics.csv').open()))
    assert {row['iter'] for row in rows} == {'8'}
    assert expected['params']['E.E.queue_ptr'].item() == 4  # 16 keys, of 12
    for last in (3, 6):
        part = tmp_path / f'part{last}'
        assert run(part, monkeypatch, options(tmp_path)) == 0
        folder = part / 'experiments/run'  # what a run that was killed after this iteration leaves
        for path in [*folder.glob('models/*'), *folder.glob('training_states/*')]:
            number = path.stem.removeprefix('net_g_')
            if not number.isdigit() or int(number) > last:
                path.unlink()
        assert run(part, monkeypatch, options(tmp_path), '--auto_resume') == 0
        found = ended(part)
        for key in ('params', 'params_ema'):
            assert different(expected[key], found[key]) == set(), last


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_at_random_moments_of_both_stages_it_ends_with_the_same_weights(processes: int, tmp_path: Path) -> None:
    alone, over = tmp_path / 'alone', tmp_path / 'killed'
    for folder in (alone, over):
        folder.mkdir()
        opt = options(folder, train__total_iter=24, train__encoder_iter=10)
        (folder / 'run.yml').write_text(yaml.safe_dump(opt))
    killed(alone, processes)
    struck = killed(over, processes, 8, 0.1, alone)  # in so little of it each time that the eighth strikes as well
    assert struck == ['step', 'save', 'validation', 'any'] * 2
    assert_same_end(alone, over, 24)


def test_released_weights_are_a_start_whatever_their_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    torch.save(build_network({**AIRNET, 'queue_length': 256}).state_dict(), tmp_path / 'All.pth')
    opt = options(
        tmp_path, path={'pretrain_network_g': str(tmp_path / 'All.pth')}, train__total_iter=1, train__encoder_iter=0
    )
    del opt['val']
    assert run(tmp_path / 'run', monkeypatch, opt) == 0
    assert ended(tmp_path / 'run')['params']['E.E.queue'].shape == (16, 12)
    assert 'E.E.queue: not in the file with this length, newly initialised.' in said(tmp_path / 'run')


def test_a_test_measures_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    torch.save({'params': build_network(dict(AIRNET)).state_dict()}, tmp_path / 'net.pth')
    opt = {key: value for key, value in options(tmp_path).items() if key not in ('train', 'logger')}
    opt['datasets'] = {'test': opt['datasets']['val']}
    opt['path'] = {'pretrain_network_g': str(tmp_path / 'net.pth')}
    opt['val'] = {'save_img': False, 'metrics': {'psnr': {'type': 'calculate_paper_psnr'}}}
    (tmp_path / 'test.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.chdir(tmp_path)
    assert cli.main(['test', '-opt', 'test.yml']) == 0


# several processes


def half(rank: int, folder: str) -> None:
    """One of two processes, each with its half of the batch: two steps of the encoder alone and two of everything."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    try:
        model = model_with(Path(folder), train__encoder_iter=2, train__total_iter=9)
        distribute(model, rank)
        # As two processes of a training build it.
        model.net_g = model.model_to_device(model.net_g.module)
        assert isinstance(model.net_g, torch.nn.parallel.DistributedDataParallel)
        assert model.net_g.find_unused_parameters
        model.setup_step(model.losses)
        batch = {key: value[2 * rank : 2 * rank + 2] for key, value in crops().items()}
        keys = []
        for iteration in range(1, 5):
            train(model, batch, first=iteration)
            keys.append(weights(model)['E.E.queue'])
        unused = [name for name, p in model.net_g.module.R.named_parameters() if p not in model.optimizer_g.state]
        torch.save({'net': weights(model), 'queues': keys, 'unused': unused}, f'{folder}/rank{rank}.pth')
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_one_queue_of_all_keys(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in (0, 1))
    for name, value in first['net'].items():  # running statistics are those of a process
        assert 'running' in name or torch.equal(value, second['net'][name]), name
    assert all(map(torch.equal, first['queues'], second['queues']))
    assert first['unused'] == []
    # The first step: keys of both halves, each encoded with the statistics of its half.
    net, batch = model_with(tmp_path).net_g, crops()
    with torch.no_grad():
        halves = [net.encoder.encoder_k(batch['lq_key'][part]).embedding for part in (slice(0, 2), slice(2, 4))]
    keys = torch.nn.functional.normalize(torch.cat(halves), dim=1).T
    torch.testing.assert_close(first['queues'][0][:, :4], keys, rtol=1e-4, atol=1e-5)
    assert first['net']['E.E.queue_ptr'].item() == 4  # 16 keys, of 12
