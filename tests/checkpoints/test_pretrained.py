"""A network with more prompts or labels starts from weights with fewer: old rows stay, new ones are fresh."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.models import build_model
from basicsr.utils import logger as host_logger
from basicsr.utils.registry import ARCH_REGISTRY

from promptir_basicsr import cli
from promptir_basicsr.archs import PromptIR
from promptir_basicsr.archs.traits import growable_axes
from promptir_basicsr.checkpoints.pretrained import start_problems, state_problems
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.registry import register
from promptir_basicsr.core.yaml_loader import load_yaml
from tests.models.model_options import NETWORK, run_options
from tests.tiny_training import TINY_TRAINING

SMALL = {key: value for key, value in NETWORK.items() if key != 'type'}
BANKS = [f'prompt{level}.prompt_param' for level in (1, 2, 3)]
LINEAR = [f'prompt{level}.linear_layer.{name}' for level in (1, 2, 3) for name in ('weight', 'bias')]


@register(ARCH_REGISTRY)
class TableNet(nn.Module):
    """A row for each label and one for each of two prompts."""

    takes_degradation = True
    size_multiple = 1
    growable_axes = {'labels': {'table': 0}, 'prompts': {'bank': 1}}

    def __init__(self, labels: int = 3, prompts: int = 2) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(labels, 3))
        self.bank = nn.Parameter(torch.rand(1, prompts, 3))

    def forward(self, x: Tensor, degradation: Tensor) -> Tensor:
        return x * (1 + self.table[degradation] + self.bank.mean(1))[:, :, None, None]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    logger = logging.getLogger('basicsr')
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.setLevel(level)
    logger.removeHandler(caplog.handler)


@pytest.fixture
def old() -> PromptIR:
    torch.manual_seed(1)
    return PromptIR(**SMALL, num_prompts=5)  # type: ignore[arg-type]


def save(content: Any, folder: Path) -> str:
    path = folder / 'old.pth'
    torch.save(content, path)
    return str(path)


def options(folder: Path, path: str, num_prompts: int = 6, **paths: Any) -> dict[str, Any]:
    opt = run_options(folder, network_g={**NETWORK, 'num_prompts': num_prompts})
    opt['path'].update(pretrain_network_g=path, **paths)
    return opt


def old_rows(name: str, value: Tensor, rows: int = 5) -> Tensor:
    return value[:, :rows] if name in BANKS else value[:rows] if name in LINEAR else value


def test_the_axes_are_those_that_change_with_the_number_of_prompts() -> None:
    five, seven = (PromptIR(**SMALL, num_prompts=number) for number in (5, 7))  # type: ignore[arg-type]
    sizes = {name: value.shape for name, value in seven.state_dict().items()}
    changed = {
        name: [axis for axis, (a, b) in enumerate(zip(value.shape, sizes[name], strict=True)) if a != b]
        for name, value in five.state_dict().items()
        if value.shape != sizes[name]
    }
    assert len(changed) == 9
    assert {name: [axis] for name, (_, axis) in growable_axes(five).items()} == changed
    assert {counted for counted, _ in growable_axes(five).values()} == {'prompts'}
    assert growable_axes(PromptIR(**SMALL, prompts=False)) == {}  # type: ignore[arg-type]
    assert growable_axes(TableNet()) == {'table': ('labels', 0), 'bank': ('prompts', 1)}


@pytest.mark.parametrize('layout', ['params', 'params_ema', 'bare', 'parallel', 'released'])
def test_old_rows_are_kept_bit_by_bit_new_ones_are_fresh_and_the_file_is_as_it_was(
    layout: str, tmp_path: Path, old: PromptIR, messages: Any
) -> None:
    state = old.state_dict()
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    content = {
        'params': {'params': state, 'params_ema': other},
        'params_ema': {'params': other, 'params_ema': state},
        'bare': state,
        'parallel': {'params': {f'module.{name}': value for name, value in state.items()}},
        'released': old.released_state_dict(),
    }[layout]
    path = save(content, tmp_path)
    before = Path(path).read_bytes()
    key = {'bare': None, 'released': None, 'params_ema': 'params_ema'}.get(layout, 'params')
    opt = options(tmp_path, path, num_prompts=8, grow_g=True, param_key_g=key)
    assert start_problems(opt) == []
    torch.manual_seed(7)
    net = build_model(opt).net_g.state_dict()
    torch.manual_seed(7)
    fresh = PromptIR(**SMALL, num_prompts=8).state_dict()  # type: ignore[arg-type]
    for name, value in net.items():
        assert torch.equal(old_rows(name, value), state[name]), name
        if name in BANKS:
            assert torch.equal(value[:, 5:], fresh[name][:, 5:]), name
        if name in LINEAR:
            assert torch.equal(value[5:], fresh[name][5:]), name
    assert Path(path).read_bytes() == before
    told = [message for message in messages() if ' -> ' in message]
    assert len(told) == 9
    assert '  prompt1.prompt_param (1, 5, 12, 4, 4) -> (1, 8, 12, 4, 4): 5 prompts loaded, the others are new' in told


def test_without_weight_on_the_new_prompts_the_network_is_the_old_one(tmp_path: Path, old: PromptIR) -> None:
    path = save({'params': old.state_dict()}, tmp_path)
    net = build_model(options(tmp_path, path, num_prompts=7, grow_g=True)).net_g
    x = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, as_started = old(x), net(x)
        for level in (1, 2, 3):
            getattr(net, f'prompt{level}').linear_layer.bias[5:] = -1e9
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-6)
        assert (as_started - expected).abs().max() > 1e-4  # the new prompts take part from the start
        for name, weights in net.prompt_weights(x).items():
            torch.testing.assert_close(weights[:, :5], old.prompt_weights(x)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize('bare', [True, False])
def test_the_averaged_network_starts_with_the_same_new_rows(bare: bool, tmp_path: Path, old: PromptIR) -> None:
    state = old.state_dict()
    averaged = {name: value / 2 for name, value in state.items()}
    path = save(state if bare else {'params': state, 'params_ema': averaged}, tmp_path)
    opt = options(tmp_path, path, grow_g=True, param_key_g=None if bare else 'params')
    opt['train']['ema_decay'] = 0.9
    model = build_model(opt)
    current, ema = model.net_g.state_dict(), model.net_g_ema.state_dict()
    for name, value in ema.items():
        assert torch.equal(old_rows(name, value), (state if bare else averaged)[name]), name
        if name in BANKS:
            assert torch.equal(value[:, 5:], current[name][:, 5:]), name
        if name in LINEAR:
            assert torch.equal(value[5:], current[name][5:]), name


def test_a_grown_network_trains_its_new_rows(tmp_path: Path, old: PromptIR) -> None:
    model = build_model(options(tmp_path, save({'params': old.state_dict()}, tmp_path), grow_g=True))
    before = {name: value.clone() for name, value in model.net_g.state_dict().items()}
    model.feed_data({'lq': torch.rand(2, 3, 16, 16), 'gt': torch.rand(2, 3, 16, 16)})
    model.optimize_parameters(1)
    for name in BANKS:
        assert not torch.equal(model.net_g.state_dict()[name][:, 5], before[name][:, 5]), name
    for name in LINEAR:
        assert not torch.equal(model.net_g.state_dict()[name][5], before[name][5]), name


def test_labels_and_prompts_grow_together(tmp_path: Path) -> None:
    old = TableNet()
    opt = run_options(tmp_path, network_g={'type': 'TableNet', 'labels': 5, 'prompts': 4})
    opt['path']['pretrain_network_g'] = save({'params': old.state_dict()}, tmp_path)
    labels, prompts = map(str, start_problems(opt))
    assert 'the network has 5 labels, but the file' in labels
    assert 'the network has 4 prompts, but the file' in prompts
    opt['path']['grow_g'] = True
    net = build_model(opt).net_g
    assert torch.equal(net.table[:3], old.table)
    assert torch.equal(net.bank[:, :2], old.bank)


# what does not fit


def problem_of(opt: dict[str, Any]) -> str:
    """The one problem, which the check of the options and the model tell in the same words."""
    (problem,) = map(str, start_problems(opt))
    with pytest.raises(OptionError) as told:
        build_model(opt)
    assert told.value.lines == [problem]
    return problem


def test_without_grow_g_the_message_names_the_tensors_and_the_option(tmp_path: Path, old: PromptIR) -> None:
    path = save({'params': old.state_dict()}, tmp_path)
    problem = problem_of(options(tmp_path, path))
    assert problem.startswith(f"path.pretrain_network_g: the network has 6 prompts, but the file '{path}' has 5. ")
    assert 'prompt1.prompt_param (1, 5, 12, 4, 4) -> (1, 6, 12, 4, 4)' in problem
    assert [name for name in BANKS + LINEAR if name not in problem] == []
    assert problem.endswith('Set `path: {grow_g: true}` to load the 5 of the file and initialise the new ones.')


@pytest.mark.parametrize('grow_g', [True, False])
def test_a_network_with_fewer_is_refused(grow_g: bool, tmp_path: Path, old: PromptIR) -> None:
    path = save({'params': old.state_dict()}, tmp_path)
    problem = problem_of(options(tmp_path, path, num_prompts=3, grow_g=grow_g))
    assert f"the network has 3 prompts, but the file '{path}' has 5." in problem
    assert problem.endswith('can grow, not shrink: set at least 5 for the network.')


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'prompt_sizes': [8, 4, 4]}, 'other sizes: prompt1.prompt_param (1, 5, 12, 4, 4) -> (1, 6, 12, 8, 8). Set'),
        ({'num_blocks': [2, 1, 1, 1]}, 'not in the file: encoder_level1.1.'),
        ({'num_refinement_blocks': 0}, 'not in the network: refinement.0.'),
        ({'dim': 16}, 'other sizes: '),
    ],
    ids=['sizes', 'missing', 'unexpected', 'dim'],
)
def test_everything_else_stays_strict(change: dict[str, Any], said: str, tmp_path: Path, old: PromptIR) -> None:
    opt = options(tmp_path, save(old.released_state_dict(), tmp_path), grow_g=True)
    opt['network_g'].update(change)
    problem = problem_of(opt)
    assert 'are of another PromptIR; ' in problem
    assert said in problem
    assert 'chnl_reduce' not in problem  # what the network leaves out on purpose is no mistake


def test_a_loose_load_keeps_what_fits_and_grows_where_asked(tmp_path: Path, old: PromptIR) -> None:
    state = old.state_dict()
    path = save({'params': state}, tmp_path)
    for grow_g in (False, True):
        opt = options(tmp_path, path, strict_load_g=False, grow_g=grow_g)
        opt['network_g']['prompt_sizes'] = [8, 4, 4]
        assert start_problems(opt) == []
        net = build_model(opt).net_g.state_dict()
        assert torch.equal(net['output.weight'], state['output.weight'])
        assert torch.equal(net['prompt2.prompt_param'][:, :5], state['prompt2.prompt_param']) == grow_g
        assert not torch.equal(net['prompt1.prompt_param'][:, :5, :, :4, :4], state['prompt1.prompt_param'])


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'epoch': 3, 'state_dict': {'net.weight': torch.zeros(1)}}, 'not in the network: weight. Set network_g'),
        ({'params_ema': {'weight': torch.zeros(1)}}, "no weights under 'params'. Set `param_key_g: params_ema`."),
        ({'epoch': 3, 'iter': 4}, 'contains no weights of a network. It has: epoch, iter'),
        ([torch.zeros(1)], 'contains no weights by name, but a list'),
        (b'PK\x03\x04 torn', 'is cut off: 0.0 MB without the end.'),
        (b'words', 'contains no weights: it is text, not a file of PyTorch (.pth, .pt, .ckpt) or safetensors.'),
        (b'version https://git-lfs.github.com/spec/v1', 'is a git LFS pointer'),
        (b'<!doctype html>', 'is a web page'),
        (b'', 'is empty.'),
    ],
    ids=['lightning', 'ema', 'numbers', 'list', 'torn', 'text', 'lfs', 'page', 'empty'],
)
def test_files_that_hold_no_weights(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / 'old.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    opt = options(tmp_path, str(path))
    problem = problem_of(opt)
    assert problem.startswith(('path.pretrain_network_g: ', 'path.param_key_g: '))
    assert said in problem
    if isinstance(content, bytes):  # also where BasicSR reads it later
        opt['network_g'] = {
            'type': 'EDSR',
            'num_in_ch': 3,
            'num_out_ch': 3,
            'num_feat': 4,
            'num_block': 1,
            'upscale': 1,
        }
        assert problem_of(opt) == problem
    assert problem.count('\n') == 0
    assert f"'{path}'" in problem


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / 'run'),)

    path = save({'params': {'weight': torch.zeros(1)}, 'callbacks': Runs()}, tmp_path)
    assert 'are of another PromptIR; ' in problem_of(options(tmp_path, path))
    assert not (tmp_path / 'run').exists()


WRAPPERS = ('module.', 'net.', 'model.', 'net_g.', '_orig_mod.', 'net._orig_mod.module.', 'module.module.model.net.')


@pytest.mark.parametrize('wrapper', ['', *WRAPPERS])
@pytest.mark.parametrize('name', ['old.pth', 'old.ckpt', 'old.safetensors', 'released.ckpt'])
def test_training_starts_from_every_layout_and_wrapper(
    name: str, wrapper: str, tmp_path: Path, old: PromptIR, messages: Any
) -> None:
    released = name.startswith('released')
    state = {
        f'{wrapper}{key}': value for key, value in (old.released_state_dict() if released else old.state_dict()).items()
    }
    path = tmp_path / name
    if name.endswith('.safetensors'):
        safetensors.torch.save_file(state, path)
    elif name.endswith('.ckpt'):
        torch.save({'epoch': 3, 'state_dict': {**state, 'loss_fn.weight': torch.zeros(2)} if wrapper else state}, path)
    else:
        torch.save({'params': state, 'params_ema': state}, path)
    opt = options(tmp_path, str(path), num_prompts=5)
    opt['train']['ema_decay'] = 0.9
    assert start_problems(opt) == []
    model = build_model(opt)
    for net in (model.net_g, model.net_g_ema):
        assert all(torch.equal(value, old.state_dict()[key]) for key, value in net.state_dict().items())


class Wrapping(nn.Module):
    """A network of a third party, with parameters that have the names of wrappers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.model = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.model(x))


@pytest.mark.parametrize('wrapper', ['', *WRAPPERS])
def test_names_of_a_network_that_look_like_wrappers(
    wrapper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Wrapping', Wrapping)
    state = Wrapping().state_dict()
    opt = run_options(tmp_path, network_g={'type': 'Wrapping'})
    opt['path']['pretrain_network_g'] = save({f'{wrapper}{key}': value for key, value in state.items()}, tmp_path)
    loaded = build_model(opt).net_g.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


def test_networks_of_others_are_checked_when_they_are_loaded(tmp_path: Path) -> None:
    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1}
    opt = run_options(tmp_path, network_g=network)
    net = ARCH_REGISTRY.get('EDSR')(**{key: value for key, value in network.items() if key != 'type'})
    opt['path']['pretrain_network_g'] = save({'params': net.state_dict()}, tmp_path)
    loaded = build_model(opt).net_g.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
    opt['network_g']['num_feat'] = 16
    assert start_problems(opt) == []
    with pytest.raises(OptionError, match=r'are of another EDSR; other sizes: conv_first\.weight'):
        build_model(opt)


def test_growing_belongs_to_training(tmp_path: Path) -> None:
    (problem,) = map(str, start_problems({'path': {'grow_g': True}, 'network_g': dict(NETWORK)}, is_train=False))
    assert problem.startswith('path.grow_g: only for training')


# real trainings

TRAINING = (
    TINY_TRAINING.replace('name: tiny\n', 'name: RUN\n')
    .replace('prompt_sizes: [4, 4, 4]', 'prompt_sizes: [4, 4, 4]\n  num_prompts: 5')
    .replace('total_iter: 4', 'total_iter: 2')
    .replace('{type: FixedLR}', '{type: FixedLR}\n  ema_decay: 0.9')
)


def train(name: str, *changes: str) -> int:
    """A real training in the current folder, with a logger of its own."""
    Path('tiny.yml').write_text(TRAINING.replace('RUN', name), encoding='utf-8')
    logger = logging.getLogger('basicsr')
    host_logger.initialized_logger.clear()
    try:
        return cli.main(['train', '-opt', 'tiny.yml', '--force_yml', 'logger:print_freq=1', *changes])
    finally:
        for handler in list(logger.handlers):
            handler.close()
            logger.removeHandler(handler)
        host_logger.initialized_logger.clear()


@pytest.fixture
def first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training with 5 prompts; the current folder is the one of all runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    assert train('first') == 0
    return tmp_path / 'experiments' / 'first'


def test_a_run_continues_with_more_prompts_and_is_resumed(first_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = first_run / 'models' / 'net_g_latest.pth'
    released = first_run / 'bare.pth'
    torch.save(torch.load(file, weights_only=True)['params_ema'], released)
    start = [f'path:pretrain_network_g={released}', 'path:param_key_g=~', 'network_g:num_prompts=6']
    there = sorted(os.listdir('experiments'))
    assert train('second', *start) == 2
    assert '`path: {grow_g: true}` to load the 5' in capsys.readouterr().err
    assert sorted(os.listdir('experiments')) == there  # told before anything is created
    assert train('second', *start, 'path:grow_g=true') == 0
    own = ['path:pretrain_network_g=experiments/second/models/net_g_latest.pth', 'network_g:num_prompts=6']
    assert train('second', *own) == 2
    assert "is in the folder of this run, 'experiments/second'" in capsys.readouterr().err
    state = Path('experiments/second/training_states/2.state')
    assert train('second', *start, 'path:grow_g=true', f'path:resume_state={state}', 'train:total_iter=4') == 0
    grown = torch.load('experiments/second/models/net_g_4.pth', weights_only=True)
    assert {grown[key]['prompt3.prompt_param'].shape[1] for key in ('params', 'params_ema')} == {6}


def test_a_resume_with_other_sizes_is_refused(first_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [f'path:resume_state={first_run / "training_states" / "2.state"}', 'network_g:num_prompts=6']
    weights = (first_run / 'models' / 'net_g_2.pth').read_bytes()
    for changes in ([], ['path:grow_g=true']):
        assert train('first', *more, *changes, 'train:total_iter=4') == 2
        line = capsys.readouterr().err.splitlines()[-1]  # after the log
        assert line.startswith('path.resume_state: the network has 6 prompts, but the file ')
        assert 'start a new run from its weights under another name: `path: {pretrain_network_g: FILE, grow_g' in line
    fresh = ['path:ignore_resume_networks=[network_g]', 'train:total_iter=4']
    assert train('first', *more, *fresh) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('path.resume_state: the optimizer was saved for a network of other sizes: ')
    assert 'prompt3.prompt_param (1, 5, 52, 4, 4) -> (1, 6, 52, 4, 4)' in line
    assert (first_run / 'models' / 'net_g_2.pth').read_bytes() == weights


@pytest.mark.parametrize('kind', ['Adam', 'SGD', 'RMSprop', 'Adagrad', 'Adadelta', 'NAdam', 'Adafactor', 'Rprop'])
def test_states_of_optimizers_that_fit_are_taken(kind: str) -> None:
    def stepped(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Linear(width, 4)
        settings = {'momentum': 0.9} if kind == 'SGD' else {}
        optimizer = getattr(torch.optim, kind)(net.parameters(), lr=1e-3, **settings)
        net(torch.ones(1, width)).sum().backward()
        optimizer.step()
        return net, optimizer

    (_, saved), (net, same), (wider, other) = stepped(3), stepped(3), stepped(5)
    assert state_problems([saved.state_dict()], [same], net) == []
    if kind not in ('Adafactor', 'Rprop'):  # which keep no moments of the parameter's size
        (problem,) = map(str, state_problems([saved.state_dict()], [other], wider))
        assert 'weight (4, 3) -> (4, 5).' in problem
    one = torch.optim.SGD([net.weight], lr=1e-3)
    (problem,) = map(str, state_problems([saved.state_dict()], [one], net))
    assert '2 -> 1 parameters' in problem


def test_the_example_is_a_right_option_file(tmp_path: Path) -> None:
    path = tmp_path / 'tiny.yml'
    path.write_text(TRAINING, encoding='utf-8')
    from promptir_basicsr.checks.run import check_options

    assert check_options(load_yaml(str(path)), is_train=True) == []
    opt = load_yaml(str(path))
    opt['path'] = {'grow_g': 'yes'}
    (problem,) = map(str, check_options(opt, is_train=True))
    assert problem == "path.grow_g: 'yes' is neither true nor false."
