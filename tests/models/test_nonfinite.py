"""A batch that is not finite changes nothing, is named and counted; too many of them end the training."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from promptir_basicsr import cli
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.models.step import TrainingStep
from tests.models.step_data import distribute, model_with, photographs, train
from tests.models.test_resume import options, weights

# isort: split
from basicsr.utils.registry import DATASET_REGISTRY

BN = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1}
TRAIN = {'train__ema_decay': 0.9, 'train__grad_clip_norm': 1.0, 'train__loss_scaler': {}}


@pytest.fixture(params=[True, False], ids=['at once', 'later'])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """How a step is judged: before the optimizer, or by the device itself, as with fused optimizers on a GPU."""
    monkeypatch.setattr(TrainingStep, 'knows_at_once', property(lambda step: request.param))
    return request.param


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger('basicsr').addHandler(caplog.handler)  # BasicSR's logger may not propagate
    return caplog


def normed(folder: Path, **changes: Any) -> Any:
    """A model whose network has running statistics."""
    model = model_with(folder, BN, **TRAIN, **changes)
    for net in (model.net_g, model.net_g_ema):
        torch.manual_seed(0)
        net.conv_after_body = nn.Sequential(net.conv_after_body, nn.BatchNorm2d(8))
    model.optimizers.clear()
    model.opt['train']['optim_g'] = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}
    model.setup_optimizers()
    model.setup_step(model.step.objective)
    return model


def everything(model: Any) -> list[torch.Tensor]:
    """Weights, running statistics, averages and moments."""
    found = [*model.net_g.state_dict().values(), *model.net_g_ema.state_dict().values()]
    found += [value for entries in model.optimizer_g.state.values() for value in entries.values()]
    return [value.clone() for value in found]


def poisoned(batch: dict[str, Any], key: str, value: float, place: int = 2) -> dict[str, Any]:
    changed = batch[key].clone()
    changed[place, 1, 3, 4] = value
    return {**batch, key: changed, 'lq_path': [f'folder/{i}.png' for i in range(len(changed))]}


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('key', ['lq', 'gt'])
def test_a_sick_step_changes_nothing_and_is_named(
    way: bool, key: str, value: float, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    model, batch = normed(tmp_path), photographs()
    train(model, batch, steps=2)
    before = everything(model)
    (said,) = train(model, poisoned(batch, key, value), first=3)
    assert all(map(torch.equal, everything(model), before))
    assert said['sick_steps'] == 1
    (record,) = (record for record in log.records if record.levelno == logging.ERROR)
    assert record.message.startswith('Iteration 3: l_pix ')
    assert record.message.endswith('(1 in a row, 1 in total). Images (not finite): denoise: folder/2.png.')
    (after,) = train(model, batch, first=4)
    assert after['l_pix'] < 1
    assert model.step.sick.row == 0
    assert not all(map(torch.equal, everything(model), before))


def test_an_output_that_is_not_finite_is_not_blamed_on_the_image(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    model, batch = model_with(tmp_path, BN), photographs()
    with torch.no_grad():
        next(model.net_g.parameters()).fill_(1e38)
    train(model, batch)
    (record,) = (record for record in log.records if record.levelno == logging.ERROR)
    assert 'Images (finite, their outputs not): denoise: image 0 of the batch, ' in record.message


def test_training_with_a_sick_batch_is_training_without_it(way: bool, tmp_path: Path) -> None:
    """Means of the log and the memory of the loss scaler included."""
    with_it, without = (normed(tmp_path / name) for name in ('with', 'without'))
    batch = photographs()
    for model in (with_it, without):
        model.feed_data(batch)
        model.optimize_parameters(1)
        if model is with_it:
            model.feed_data(poisoned(batch, 'lq', float('nan')))
            model.optimize_parameters(2)
        model.feed_data(photographs(3))
        model.optimize_parameters(3)
    for one, other in zip(everything(with_it), everything(without), strict=True):
        assert torch.equal(one, other)
    said = dict(with_it.get_current_log())
    assert said.pop('sick_steps') == 1
    assert said == pytest.approx(without.get_current_log(), rel=1e-6)
    assert said['l_pix'] > 0


def test_both_ways_to_judge_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for at_once in (True, False):
        monkeypatch.setattr(TrainingStep, 'knows_at_once', property(lambda step, way=at_once: way))
        model, batch = normed(tmp_path), photographs()
        logs = train(model, batch, steps=3)
        ends.append((everything(model), logs))
    for one, other in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert ends[1][1] == [pytest.approx(entry, rel=1e-5) for entry in ends[0][1]]


def test_an_overflow_of_the_fp16_scale_does_not_count_as_nonfinite(tmp_path: Path) -> None:
    model = model_with(tmp_path, BN, **TRAIN, precision='fp16')
    model.step.grad_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**120)
    before = [value.clone() for value in model.net_g.parameters()]
    said = train(model, photographs(), steps=3)
    assert all(map(torch.equal, model.net_g.parameters(), before))
    assert [entry['grad_scale'] for entry in said] == [2.0**119, 2.0**118, 2.0**117]
    assert model.step.sick.total == 0
    train(model, poisoned(photographs(), 'lq', float('nan')), first=4)
    assert model.step.sick.total == 1


def train_half(rank: int, folder: str) -> None:
    """One of two processes; the second one gets a sick image."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    try:
        model = model_with(Path(folder), BN, **TRAIN)
        distribute(model, rank)
        handler = logging.FileHandler(f'{folder}/rank{rank}.log')
        logging.getLogger('basicsr').addHandler(handler)
        batch = photographs(2)
        train(model, batch)
        before = everything(model)
        # A target that is not finite leaves the gradient of L1 finite: the others would step.
        told = train(model, poisoned(batch, 'gt', float('inf'), place=1) if rank else batch, first=2)
        unchanged = all(map(torch.equal, everything(model), before))
        torch.save({'unchanged': unchanged, 'told': told}, f'{folder}/rank{rank}.pth')
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_leave_out_a_step_that_is_sick_on_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_half, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f'rank{rank}.pth', weights_only=True)
        assert found['unchanged']
        assert found['told'][0]['sick_steps'] == 1
    assert (tmp_path / 'rank0.log').read_text().endswith('Images (not finite): derain: folder/1.png.\n')
    assert (tmp_path / 'rank1.log').read_text() == ''


# in a run


class PoisonedDataset(AllInOneDataset):
    """Some samples of the second epoch are not finite."""

    poison = 'coffee'

    def __getitem__(self, key: Any) -> dict[str, Any]:
        sample = super().__getitem__(key)
        if key[0] == 1 and sample['name'].startswith(self.poison):
            sample['lq'][0, 0, 0] = float('nan')
        return sample


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the options of a training whose second epoch of 6 iterations is poisoned."""
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'PoisonedDataset', PoisonedDataset)
    opt = options(tmp_path, 'PromptIR', train__scheduler={'type': 'FixedLR'}, train__total_iter=14)
    opt['datasets']['train']['type'] = 'PoisonedDataset'
    opt['datasets']['train']['seed'] = 0
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt), encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(folder: Path) -> list[str]:
    (path,) = (folder / 'experiments/run').glob('*.log')
    return [line for line in path.read_text().splitlines() if ' ERROR: ' in line]


def test_a_poisoned_image_does_not_cost_the_run(run: Path) -> None:
    assert cli.main(['train', '-opt', 'run.yml']) == 0
    told = errors(run)
    assert told
    for line in told:
        iteration = int(re.search(r'Iteration (\d+): ', line)[1])
        assert 7 <= iteration <= 12
        assert re.search(r'Images \(not finite\): (denoise|lowlight): \S+/photographs/coffee.png', line)
        assert 'chelsea' not in line
    assert all(value.isfinite().all() for value in weights(run).values())
    log = next((run / 'experiments/run').glob('*.log')).read_text()
    assert f'sick_steps: {len(told):.4e}' in log


def test_too_many_in_a_row_end_the_training_with_its_state(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PoisonedDataset, 'poison', '')
    words = ['train', '-opt', 'run.yml', '--force_yml', 'train:max_sick_steps=3', 'logger:keep_last=1']
    assert cli.main(words) == 5
    *named, last = errors(run)
    assert [line.partition('Iteration ')[2].partition(':')[0] for line in named] == ['7', '8', '9']
    assert 'Training ended at iteration 9: 3 non-finite steps in a row' in last
    # The checkpoint before the fault is not removed for the one behind it.
    names = sorted(path.name for path in (run / 'experiments/run/training_states').iterdir())
    assert names == ['8.state', '9.state']
    assert all(value.isfinite().all() for value in weights(run, 'net_g_9.pth').values())

    # Saved before the fault was over, and continued behind it: as if the batches had not been there.
    monkeypatch.setattr(PoisonedDataset, 'poison', 'none')
    assert cli.main(['train', '-opt', 'run.yml', '--auto_resume']) == 0
