"""Reading, checking and completing options before BasicSR creates anything."""

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
"""File with the effective options of a run, in its folder; every verb accepts it."""

_host_parse_options: Callable[..., tuple[dict[str, Any], argparse.Namespace]] = host_options.parse_options


def adapt() -> None:
    """Replace BasicSR's option parser and folder creation.

    BasicSR evaluates `--force_yml` as code, ignores typos and `path: experiments_root` (index release), and requires
    CUDA unless `num_gpu` is 0. Its own parser still runs, on checked options. It copies the option file in the locale's
    encoding, in place, and in every process.
    """
    basicsr.train.parse_options = basicsr.test.parse_options = parse_options
    basicsr.train.make_exp_dirs = basicsr.test.make_exp_dirs = make_exp_dirs


def parse_options(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], argparse.Namespace]:
    """Run `basicsr.utils.options.parse_options` on checked options.

    Raises:
        OptionError: all problems of the file and of `--force_yml`; nothing has been created.
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
    # Processes that torchrun restarts after a failure must resume.
    args.auto_resume = args.auto_resume or (is_train and restarted())
    with tempfile.TemporaryDirectory() as folder:
        complete = Path(folder) / Path(args.opt).name
        # In ASCII, because BasicSR reads in the locale's encoding.
        atomic_write(yaml.safe_dump(options, sort_keys=False), complete)
        opt, parsed = _call_host(root_path, is_train, args, str(complete))
    parsed.opt, parsed.force_yml = args.opt, args.force_yml
    _complete(opt, where, is_train)
    return opt, parsed


def make_exp_dirs(opt: Mapping[str, Any]) -> None:
    """Create the folders of a run. BasicSR would create one for every unknown key of `path`, even for booleans."""
    paths = {key: value for key, value in opt['path'].items() if not isinstance(value, bool)}
    _host_make_exp_dirs({**opt, 'path': paths})


@master_only
def copy_option_file(opt_file: str, force_yml: list[str] | None, experiments_root: str, seed: int | None) -> None:
    """Copy the option file of a run to its folder, after comments with the time and the command.

    With `--force_yml` or `base`, the effective options are written, without comments and anchors of the file.
    `options.resolved.yml` always has the effective options, including the drawn seed if none is set. Only the first
    process writes: it creates the folder, and BasicSR lets the others continue before it exists.

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
    """The checked options of a file with overrides, and their places in the file.

    Raises:
        OptionError: all problems, each with its line in the file; nothing has been created.
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
    """Folders of experiments and results: as set by the options, or below the current folder."""
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
    """Complete the parsed options for this machine and this version of BasicSR."""
    for dataset in opt['datasets'].values():
        # Only for the training set: the noise of a validation must not depend on the run's seed.
        if (dataset.get('type'), dataset['phase'], dataset.get('seed')) == ('AllInOneDataset', 'train', None):
            dataset['seed'] = opt['manual_seed']
        if opt['num_gpu'] == 0 and not torch.cuda.is_available():
            dataset['pin_memory'] = False
        if dataset.get('num_worker_per_gpu') == 0:
            dataset['persistent_workers'] = False  # torch refuses persistent workers without workers
    if not is_train:  # BasicSR needs it, although one of its own option files lacks it
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
