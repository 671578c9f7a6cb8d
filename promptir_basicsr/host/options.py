"""Read, check and complete options before BasicSR creates anything."""

import argparse
import codecs
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import basicsr.test
import basicsr.train
import torch
import yaml
from basicsr.utils import make_exp_dirs as _host_make_exp_dirs
from basicsr.utils import options as host_options
from basicsr.utils.dist_util import master_only

from promptir_basicsr.checks.rehearsal import rehearse
from promptir_basicsr.checks.run import check_options
from promptir_basicsr.core.command_line import argument_parser
from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.files import atomic_write
from promptir_basicsr.core.messages import printable
from promptir_basicsr.host.distributed import (
    check_agreement,
    common_seed,
    launch_problems,
    processes_of,
    restarted,
    start_processes,
)
from promptir_basicsr.options.file import Places, find_option_file, has_base, read_option_file

RESOLVED = 'options.resolved.yml'
"""The options of a run as they count, in its folder; every verb accepts them."""

_host_parse_options: Callable[..., tuple[dict[str, Any], argparse.Namespace]] = host_options.parse_options


def adapt() -> None:
    """BasicSR evaluates `--force_yml` as code, lets typos pass, ignores `path: experiments_root` (index release) and
    asks for CUDA wherever `num_gpu` is not 0. Its own parser still runs, on options that are checked. It copies the
    option file in the encoding of the locale, in place, and in every process."""
    basicsr.train.parse_options = basicsr.test.parse_options = parse_options
    basicsr.train.make_exp_dirs = basicsr.test.make_exp_dirs = make_exp_dirs


def parse_options(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], argparse.Namespace]:
    """`basicsr.utils.options.parse_options` on checked options.

    Raises:
        OptionError: every mistake found in the file and in `--force_yml`; nothing has been created then.
    """
    args = argument_parser('train' if is_train else 'test').parse_args()
    raise_problems(launch_problems(args.launcher))
    args.opt = find_option_file(args.opt)
    options, places = checked_options(args.opt, args.force_yml, is_train, processes_of(args.launcher))
    where = relative_roots(root_path, options)
    start_processes(args.launcher, options['num_gpu'], options.get('dist_params'))
    check_agreement(options)
    if problems := rehearse(options, is_train):
        raise OptionError(problems, places.located)
    if args.launcher != 'none' and options.get('manual_seed') is None:
        options['manual_seed'] = common_seed()
    # What torchrun starts again after a failure is to go on, not to start from zero.
    args.auto_resume = args.auto_resume or (is_train and restarted())
    with tempfile.TemporaryDirectory() as folder:
        complete = Path(folder) / Path(args.opt).name
        # In ASCII: BasicSR reads in the encoding of the locale.
        atomic_write(yaml.safe_dump(options, sort_keys=False), complete)
        opt, parsed = _call_host(root_path, is_train, args, str(complete))
    parsed.opt, parsed.force_yml = args.opt, args.force_yml
    _complete(opt, where, is_train)
    return opt, parsed


def make_exp_dirs(opt: Mapping[str, Any]) -> None:
    """BasicSR makes a folder of every key of `path` that it does not know; here, of those that are paths."""
    paths = {key: value for key, value in opt['path'].items() if not isinstance(value, bool)}
    _host_make_exp_dirs({**opt, 'path': paths})


@master_only
def copy_option_file(opt_file: str, force_yml: list[str] | None, experiments_root: str, seed: int | None) -> None:
    """Copy the option file of a run into its folder, below comments with the time and the command.

    With `--force_yml` or `base`, the options are written as they count, without the comments and anchors of the file.
    `options.resolved.yml` is always written so, with the seed that was drawn where none is given. The first process
    alone does it: it makes the folder, and BasicSR lets the others go on before it is there.

    Raises:
        SaveError: the copy could not be written.
    """
    comments = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {printable(" ".join(sys.argv))}\n\n'
    options, _ = read_option_file(opt_file, force_yml)

    def write(name: str, content: bytes) -> None:
        atomic_write(comments.encode('utf-8') + content, os.path.join(experiments_root, name))

    if force_yml or has_base(opt_file):
        write(os.path.basename(opt_file), _as_yaml(options))
    else:
        write(os.path.basename(opt_file), Path(opt_file).read_bytes().removeprefix(codecs.BOM_UTF8))
    drawn = {'manual_seed': seed} if options.get('manual_seed') is None and seed is not None else {}
    write(RESOLVED, _as_yaml({**options, **drawn}))


def _as_yaml(options: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True).encode('utf-8')


def checked_options(
    path: str, force_yml: list[str] | None = None, is_train: bool = True, processes: int = 1
) -> tuple[dict[str, Any], Places]:
    """The options of a file with replacements, in which nothing is wrong, and their places in it.

    Raises:
        OptionError: every mistake, each with its line in the file; nothing has been created then.
    """
    options, places = read_option_file(path, force_yml)
    problems = check_options(options, is_train, processes)
    short = [each for each in problems if each.kind == 'short' and places.is_replaced(('train', 'total_iter'))]
    if len(problems) > len(short):
        raise OptionError([each for each in problems if each not in short], places.located)
    for each in short:
        sys.stderr.write(f'Warning: {places.located(each)}\n')
    return options, places


def relative_roots(root_path: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Folders that hold experiments and results: the user's, or below the current folder."""
    paths = options.get('path') if isinstance(options.get('path'), Mapping) else {}
    return {
        key: os.path.join(root_path, os.path.expanduser(str((paths or {}).get(key) or default)))
        for key, default in (('experiments_root', 'experiments'), ('results_root', 'results'))
    }


def _call_host(
    root_path: str, is_train: bool, args: argparse.Namespace, path: str
) -> tuple[dict[str, Any], argparse.Namespace]:
    argv = sys.argv
    sys.argv = [argv[0], '-opt', path, '--launcher', args.launcher, '--local_rank', str(args.local_rank)]
    sys.argv += ['--auto_resume'] * args.auto_resume + ['--debug'] * args.debug
    try:
        return _host_parse_options(root_path, is_train)
    finally:
        sys.argv = argv


def _complete(opt: dict[str, Any], roots: Mapping[str, str], is_train: bool) -> None:
    """What the parsed options need on this machine and in this version of BasicSR."""
    for dataset in opt['datasets'].values():
        # Only of the training set: the noise of a validation must not change with the seed of a run.
        if (dataset.get('type'), dataset['phase'], dataset.get('seed')) == ('AllInOneDataset', 'train', None):
            dataset['seed'] = opt['manual_seed']
        if opt['num_gpu'] == 0 and not torch.cuda.is_available():
            dataset['pin_memory'] = False
        if dataset.get('num_worker_per_gpu') == 0:
            dataset['persistent_workers'] = False  # torch refuses to keep workers that are not there
    if not is_train:  # BasicSR asks for it, and has an option file without
        opt.setdefault('val', {'save_img': opt.get('save_img', True)})
    paths = opt['path']
    root = os.path.join(roots['experiments_root' if is_train else 'results_root'], opt['name'])
    paths.pop('results_root' if is_train else 'experiments_root', None)
    paths['log'], paths['visualization'] = root, os.path.join(root, 'visualization')
    if is_train:
        paths['experiments_root'] = root
        paths['models'] = os.path.join(root, 'models')
        paths['training_states'] = os.path.join(root, 'training_states')
    else:
        paths['results_root'] = root
