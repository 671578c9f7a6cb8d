"""BasicSR's option parser runs on options that are checked, completed, and never evaluated."""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.host.distributed import processes_of
from promptir_basicsr.host.options import copy_option_file, parse_options, relative_roots
from promptir_basicsr.options.file import read_options

# isort: split
import basicsr.test
import basicsr.train

TRAINING = """
name: tiny
model_type: PromptModel
scale: 1
num_gpu: 0
manual_seed: 7
datasets:
  train:
    name: tiny_train
    type: AllInOneDataset
    gt_size: 16
    tasks:
      - &denoise
        name: denoise
        type: denoise
        clean: skimage://
        files: &photographs [astronaut.png, coffee.png]
        degrade: {type: gaussian_noise, sigma: 25}
        copies: 4
      - {<<: *denoise, name: derain, type: derain, degrade: {type: rain}}
    batch_size_per_gpu: 2
    num_worker_per_gpu: 0
    pin_memory: true
  val:
    name: tiny_val
    type: AllInOneDataset
    tasks: [{type: denoise, clean: 'skimage://', files: *photographs, degrade: {type: gaussian_noise, sigma: 25}}]
network_g: {type: PromptIR, dim: 8, num_blocks: [1, 1, 1, 1], heads: [1, 1, 1, 1], prompt_sizes: [4, 4, 4]}
path: {}
train:
  total_iter: 8
  optim_g: {type: AdamW, lr: 1e-3}
  scheduler: {type: FixedLR}
  pixel_opt: {type: L1Loss}
val: {val_freq: 4, save_img: false, metrics: {psnr: {type: calculate_paper_psnr}}}
logger: {print_freq: 2, save_checkpoint_freq: 4, use_tb_logger: false}
"""
Parse = Callable[..., tuple[dict[str, Any], argparse.Namespace]]


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parse:
    """parse(words of the command line) in an empty folder that holds the option file `tiny.yml`."""
    monkeypatch.chdir(tmp_path)
    Path('tiny.yml').write_text(TRAINING, encoding='utf-8')

    def parse(*words: str, is_train: bool = True) -> tuple[dict[str, Any], argparse.Namespace]:
        monkeypatch.setattr(sys, 'argv', ['basicsr', '-opt', 'tiny.yml', *words])
        return parse_options(os.getcwd(), is_train)

    return parse


def forced(*entries: str) -> dict[str, Any]:
    return read_options('tiny.yml', list(entries))


def refusal(parse: Parse, *words: str) -> list[str]:
    """The report on a command line, which must leave the folder as it was."""
    with pytest.raises(OptionError) as caught:
        parse(*words)
    assert os.listdir() == ['tiny.yml']
    return caught.value.lines


def test_basicsr_calls_this_parser() -> None:
    assert basicsr.train.parse_options is parse_options
    assert basicsr.test.parse_options is parse_options


def test_the_parsed_options_hold_what_basicsr_adds(parse: Parse) -> None:
    opt, args = parse()
    assert {'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True, 'auto_resume': False}.items() <= opt.items()
    assert {key: dataset['phase'] for key, dataset in opt['datasets'].items()} == {'train': 'train', 'val': 'val'}
    assert opt['datasets']['train']['scale'] == 1
    assert opt['train']['optim_g']['lr'] == 1e-3
    assert torch.initial_seed() == 7
    assert (args.opt, args.force_yml, args.launcher) == ('tiny.yml', None, 'none')


def test_the_parser_leaves_no_trace(parse: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    _, args = parse('--force_yml', 'name=other')
    assert sys.argv == ['basicsr', '-opt', 'tiny.yml', '--force_yml', 'name=other']
    assert (args.opt, args.force_yml) == ('tiny.yml', ['name=other'])
    assert list(temporary.iterdir()) == []
    assert sorted(os.listdir()) == ['temporary', 'tiny.yml']


def test_names_that_are_not_ascii_arrive(parse: Parse) -> None:
    opt, _ = parse('--force_yml', 'name=entrauschen_für_日本')
    assert opt['name'] == 'entrauschen_für_日本'


# folders


@pytest.mark.parametrize('root', [None, 'elsewhere', 'a/b', '{absolute}', '~/runs'])
def test_experiments_are_below_the_current_folder_or_experiments_root(
    parse: Parse, root: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path / 'home'))
    absolute = str(tmp_path / 'disk')
    given = root and root.format(absolute=absolute)
    opt, _ = parse(*(('--force_yml', f'path:experiments_root={given}', 'path:results_root=r') if given else ()))
    folder = {
        None: 'experiments',
        '{absolute}': absolute,
        '~/runs': str(tmp_path / 'home' / 'runs'),
    }.get(root, str(root))
    expected = Path.cwd() / folder / 'tiny'
    # BasicSR makes a folder of every further key.
    assert {key: Path(path) for key, path in opt['path'].items()} == {
        'experiments_root': expected,
        'models': expected / 'models',
        'training_states': expected / 'training_states',
        'log': expected,
        'visualization': expected / 'visualization',
    }


@pytest.mark.parametrize('root', [None, 'elsewhere'])
def test_results_are_below_the_current_folder_or_results_root(parse: Parse, root: str | None) -> None:
    text = TRAINING.replace('  train:\n', '  test:\n').replace('    pin_memory: true\n', '')
    Path('tiny.yml').write_text(text, encoding='utf-8')
    words = ('--force_yml', f'path:results_root={root}', 'path:experiments_root=x') if root else ()
    opt, _ = parse(*words, is_train=False)
    expected = Path.cwd() / (root or 'results') / 'tiny'
    assert {key: Path(path) for key, path in opt['path'].items()} == {
        'results_root': expected,
        'log': expected,
        'visualization': expected / 'visualization',
    }
    assert opt['datasets']['test']['phase'] == 'test'


def test_roots_of_options_without_a_path() -> None:
    roots = {key: os.path.join('root', key.partition('_')[0]) for key in ('experiments_root', 'results_root')}
    assert relative_roots('root', {}) == relative_roots('root', {'path': None}) == roots


# what is completed


def test_the_seed_of_the_run_is_the_seed_of_the_training_set_alone(parse: Parse) -> None:
    opt, _ = parse()
    assert opt['datasets']['train']['seed'] == 7
    assert 'seed' not in opt['datasets']['val']
    opt, _ = parse('--force_yml', 'datasets:val:seed=3', 'datasets:train:seed=4')
    assert (opt['datasets']['train']['seed'], opt['datasets']['val']['seed']) == (4, 3)


def test_without_a_seed_the_training_set_takes_the_one_that_basicsr_draws(parse: Parse) -> None:
    opt, _ = parse('--force_yml', 'manual_seed=')
    assert isinstance(opt['manual_seed'], int)
    assert opt['datasets']['train']['seed'] == opt['manual_seed']


def test_num_gpu_auto_is_what_the_machine_has(parse: Parse) -> None:
    Path('tiny.yml').write_text(TRAINING.replace('copies: 4', 'copies: 4000'), encoding='utf-8')
    opt, _ = parse('--force_yml', 'num_gpu=auto', 'train:total_iter=1')
    assert opt['num_gpu'] == torch.cuda.device_count()


@pytest.mark.skipif(torch.cuda.is_available(), reason='pinned memory can be had')
def test_memory_is_pinned_only_for_a_gpu(parse: Parse) -> None:
    opt, _ = parse()
    assert opt['datasets']['train']['pin_memory'] is False


def test_zero_workers_are_not_kept(parse: Parse) -> None:
    kept = [
        parse('--force_yml', 'datasets:train:persistent_workers=true', f'datasets:train:num_worker_per_gpu={workers}')
        for workers in (0, 1)
    ]
    assert [opt['datasets']['train']['persistent_workers'] for opt, _ in kept] == [False, True]


def test_debug(parse: Parse) -> None:
    opt, _ = parse('--debug')
    assert opt['name'] == 'debug_tiny'
    assert opt['val']['val_freq'] == 8
    assert Path(opt['path']['models']) == Path.cwd() / 'experiments' / 'debug_tiny' / 'models'


def test_processes_that_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '4')
    monkeypatch.setenv('SLURM_NTASKS', '6')
    assert [processes_of(launcher) for launcher in ('none', 'pytorch', 'slurm')] == [1, 4, 6]
    monkeypatch.delenv('WORLD_SIZE')
    assert processes_of('pytorch') == 1


# --force_yml


@pytest.mark.parametrize(
    ('entry', 'keys', 'value'),
    [
        ('train:optim_g:lr=1e-4', ('train', 'optim_g', 'lr'), 1e-4),
        ('train:optim_g:lr=!!float1e-4', ('train', 'optim_g', 'lr'), 1e-4),
        ('train:total_iter=20', ('train', 'total_iter'), 20),
        ('val:save_img=true', ('val', 'save_img'), True),
        ('path:pretrain_network_g=none', ('path', 'pretrain_network_g'), None),
        ('path:pretrain_network_g=', ('path', 'pretrain_network_g'), None),
        ('path:pretrain_network_g=a=b.pth', ('path', 'pretrain_network_g'), 'a=b.pth'),
        ('network_g:heads=[1, 2, 2, 4]', ('network_g', 'heads'), [1, 2, 2, 4]),
        (
            'train:scheduler={type: MultiStepLR, gamma: 5e-1}',
            ('train', 'scheduler'),
            {'type': 'MultiStepLR', 'gamma': 0.5},
        ),
        ('datasets:train:tasks:0:copies=5', ('datasets', 'train', 'tasks', 0, 'copies'), 5),
        ('datasets:train:tasks:1:degrade:type=rain', ('datasets', 'train', 'tasks', 1, 'degrade', 'type'), 'rain'),
        ('datasets:train:tasks:0:files:1=rocket.jpg', ('datasets', 'train', 'tasks', 0, 'files', 1), 'rocket.jpg'),
        (' train : ema_decay = 0.5 ', ('train', 'ema_decay'), 0.5),
        # what the schema says is text stays as it was typed
        ('name=123', ('name',), '123'),
        ('name=1e5', ('name',), '1e5'),
        ('name=none', ('name',), 'none'),
        ('name=2024-01-01', ('name',), '2024-01-01'),
        ('datasets:train:name=007', ('datasets', 'train', 'name'), '007'),
        ('datasets:train:tasks:0:name=25', ('datasets', 'train', 'tasks', 0, 'name'), '25'),
        ('datasets:train:tasks:0:files:1=5', ('datasets', 'train', 'tasks', 0, 'files', 1), '5'),
        ('path:experiments_root=2024', ('path', 'experiments_root'), '2024'),
        ('path:experiments_root=~', ('path', 'experiments_root'), None),
        ('network_g:layer_norm_type=true', ('network_g', 'layer_norm_type'), 'true'),
        ('val:metrics:psnr:better=1', ('val', 'metrics', 'psnr', 'better'), '1'),
        ('num_gpu=1', ('num_gpu',), 1),
        ('manual_seed=none', ('manual_seed',), None),
    ],
)
def test_values_are_typed(parse: Parse, entry: str, keys: tuple[Any, ...], value: Any) -> None:
    options: Any = forced(entry)
    for key in keys:
        options = options[key]
    assert options == value
    assert type(options) is type(value)


def test_forced_values_reach_the_parsed_options(parse: Parse) -> None:
    opt, _ = parse('--force_yml', 'train:optim_g:lr=1e-4', 'datasets:train:tasks:0:copies=5', 'name=trial')
    assert opt['train']['optim_g']['lr'] == 1e-4
    assert opt['datasets']['train']['tasks'][0]['copies'] == 5
    assert Path(opt['path']['log']).name == 'trial'


def test_one_place_is_changed_even_where_the_file_has_an_alias(parse: Parse) -> None:
    options = forced('datasets:train:tasks:0:files:0=rocket.jpg', 'datasets:train:tasks:0:degrade:sigma=50')
    first, second = options['datasets']['train']['tasks']
    assert first['files'] == ['rocket.jpg', 'coffee.png']
    assert second['files'] == options['datasets']['val']['tasks'][0]['files'] == ['astronaut.png', 'coffee.png']


def test_later_entries_see_earlier_ones(parse: Parse) -> None:
    assert forced('val:metrics:ssim={type: calculate_ssim}', 'val:metrics:ssim:crop_border=0')['val']['metrics'][
        'ssim'
    ] == {'type': 'calculate_ssim', 'crop_border': 0}


@pytest.mark.parametrize(
    ('entry', 'said'),
    [
        ('trian:total_iter=5', "'trian' does not exist. Did you mean 'train'?"),
        ('train:optm_g:lr=5', "'optm_g' does not exist. Did you mean 'optim_g'?"),
        ('datasets:train:tasks:2:copies=5', "'2' does not exist."),
        ('datasets:train:tasks:-1:copies=5', "'-1' does not exist."),
        ('datasets:train:tasks:denoise:copies=5', "'denoise' does not exist."),
        ('datasets:train:tasks:0:files:9=x.png', "'9' does not exist."),
        ('datasets:train:tasks:²=5', "'²' does not exist."),
        ('train:total_iter:x=5', "'total_iter' is a value without keys, so 'x' cannot be set."),
        ('name:x:y=5', "'x' does not exist."),
        ('train:total_iter', "must be KEY=VALUE, with ':' between the levels of the key."),
        ('train:total_iter=[5', 'line 1, column 3: '),
    ],
)
def test_entries_that_lead_nowhere(parse: Parse, entry: str, said: str) -> None:
    (problem,) = refusal(parse, '--force_yml', entry)
    assert problem.startswith(f'--force_yml {entry}: ')
    assert said in problem


def test_a_misspelt_last_key_is_reported_by_the_check(parse: Parse) -> None:
    (problem,) = refusal(parse, '--force_yml', 'train:total_itr=5')
    assert problem.startswith(
        "--force_yml train:total_itr=5: train: unknown option 'total_itr'. Did you mean 'total_iter'?"
    )


@pytest.mark.parametrize(
    'value',
    [
        '[__import__("os").system("touch pwned")]',
        '[open("pwned", "w")]',
        '__import__("os").system("touch pwned")',
        '!!python/object/apply:os.system ["touch pwned"]',
        '[!!python/object/new:os.system [touch pwned]]',
    ],
)
@pytest.mark.parametrize('key', ['network_g:heads', 'name', 'x"]=__import__("os").system("touch pwned");opt["y'])
def test_nothing_is_evaluated(parse: Parse, key: str, value: str) -> None:
    """BasicSR evaluates lists and executes the key."""
    try:
        parse('--force_yml', f'{key}={value}')
    except OptionError as error:
        assert error.lines  # noqa: PT017  (text is a name like any other, so this one may pass)
    assert os.listdir() == ['tiny.yml']


# refusals


def test_mistakes_come_at_once_with_the_file_and_leave_nothing(parse: Parse) -> None:
    Path('tiny.yml').write_text(TRAINING.replace('lr: 1e-3', 'lr: fast'), encoding='utf-8')
    problems = refusal(parse, '--force_yml', 'train:total_iter=0', 'network_g:type=PromtIR', 'val:val_freq=x')
    assert sorted(': '.join(problem.split(': ')[:2]) for problem in problems) == [
        '--force_yml network_g:type=PromtIR: network_g.type',
        '--force_yml train:total_iter=0: train.total_iter',
        '--force_yml val:val_freq=x: val.val_freq',
        f'tiny.yml:{TRAINING.splitlines().index("  optim_g: {type: AdamW, lr: 1e-3}") + 1}: train.optim_g.lr',
    ]


def test_a_missing_file(parse: Parse) -> None:
    problems = refusal(parse, '-opt', 'tinny.yml')
    assert problems == ["the option file 'tinny.yml' does not exist. Paths are relative to the current folder."]


def test_the_seed_of_the_process_is_untouched_by_a_refusal(parse: Parse) -> None:
    torch.manual_seed(123)
    refusal(parse, '--force_yml', 'train:total_iter=0')
    assert torch.initial_seed() == 123


def test_the_option_file_is_copied_as_it_is_below_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the encoding of the locale, and onto itself."""
    source = tmp_path / 'üben.yml'
    source.write_text('\ufeffname: "\N{LATIN SMALL LETTER U WITH DIAERESIS}"\n', encoding='utf-8')
    monkeypatch.setattr(sys, 'argv', ['basicsr train', '-opt', 'a\x1b\nb: c.yml'])
    monkeypatch.setattr('locale.getpreferredencoding', lambda *_: 'ascii')
    (tmp_path / 'run').mkdir()
    copy_option_file(str(source), None, str(tmp_path / 'run'), 7)
    copy = tmp_path / 'run' / source.name
    lines = copy.read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('# GENERATE TIME: ')
    assert lines[1:] == ['# CMD:', '# basicsr train -opt a\\x1b\\nb: c.yml', '', 'name: "ü"']
    copy_option_file(str(copy), None, str(tmp_path / 'run'), 7)
    assert read_options(str(copy)) == {'name': 'ü'}
    assert sorted(os.listdir(tmp_path / 'run')) == ['options.resolved.yml', source.name]
    assert read_options(str(tmp_path / 'run' / 'options.resolved.yml')) == {'name': 'ü', 'manual_seed': 7}


# what option files of BasicSR's users have


def test_a_float_without_a_fraction_is_a_whole_number(parse: Parse) -> None:
    opt, _ = parse('--force_yml', 'val:val_freq=!!float 4', 'train:total_iter=8e0', 'logger:print_freq=2.0')
    numbers = [opt['val']['val_freq'], opt['train']['total_iter'], opt['logger']['print_freq']]
    assert numbers == [4, 8, 2]
    assert {type(number) for number in numbers} == {int}
    assert type(forced('train:optim_g:lr=1.0')['train']['optim_g']['lr']) is float
    assert refusal(parse, '--force_yml', 'val:val_freq=4.5') == [
        '--force_yml val:val_freq=4.5: val.val_freq: 4.5 is not a whole number of at least 1.'
    ]


@pytest.mark.parametrize(
    ('scheduler', 'key'),
    [
        ('{type: MultiStepLR, milestones: [2, 6], gamma: 0.5}', 'milestones'),
        ('{type: LinearWarmupCosineLR, warmup_iter: 5}', 'warmup_iter'),
    ],
)
def test_a_run_shortened_for_a_trial_is_a_warning(
    parse: Parse, scheduler: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TRAINING.replace('{type: FixedLR}', scheduler)
    Path('tiny.yml').write_text(text, encoding='utf-8')
    opt, _ = parse('--force_yml', 'train:total_iter=4')
    assert opt['train']['total_iter'] == 4
    line = text[: text.index('scheduler:')].count('\n') + 1
    assert f'Warning: tiny.yml:{line}: train.scheduler.{key}: ' in capsys.readouterr().err
    Path('tiny.yml').write_text(text.replace('total_iter: 8', 'total_iter: 4'), encoding='utf-8')
    assert f'train.scheduler.{key}: ' in refusal(parse)[0]


def test_a_test_of_another_model_without_val_saves_its_images(parse: Parse) -> None:
    lines = TRAINING.replace('PromptModel', 'SRModel').splitlines()
    Path('tiny.yml').write_text('\n'.join(line for line in lines if not line.startswith('val:')), encoding='utf-8')
    options = {key: value for key, value in read_options('tiny.yml').items() if key not in ('train', 'logger')}
    del options['datasets']['train']
    Path('tiny.yml').write_text(yaml.safe_dump(options), encoding='utf-8')
    assert parse(is_train=False)[0]['val'] == {'save_img': True}


@pytest.mark.skipif(importlib.util.find_spec('wandb') is not None, reason='wandb is installed')
def test_a_missing_wandb_is_reported_before_the_run(parse: Parse) -> None:
    (line,) = refusal(parse, '--force_yml', 'logger:wandb={project: mine}', 'logger:use_tb_logger=true')
    assert 'logger.wandb: wandb is not installed. Run `pip install wandb`, or remove the key.' in line
