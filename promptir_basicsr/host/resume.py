"""Resuming a training: without a GPU, from the run's folder, and only from complete files."""

import os
from collections.abc import Mapping
from typing import Any

from basicsr.utils import check_resume
from torch import distributed

from promptir_basicsr.checkpoints.checkpoint import digest
from promptir_basicsr.checkpoints.folder import damage, remove_unfinished, saved_iterations
from promptir_basicsr.checkpoints.reading import read_state, read_weight_file
from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import first_few


def load_resume_state(opt: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The training state to resume from, or None for a fresh start, and notes for the log.

    Also sets the paths of the networks.

    Raises:
        OptionError: the file is not a training state, or the weights of its iteration are not in the run's folder;
            with `--auto_resume`, there are states, but none of them is complete.
    """
    newest: str | None = None
    notes: list[str] = []
    if opt['auto_resume']:
        newest, notes = _agreed(opt)
        if newest is not None:
            opt['path']['resume_state'] = newest
    path = opt['path'].get('resume_state')
    if path is None:
        return None, notes
    state = _read_state(path)
    check_resume(opt, state['iter'])
    network = opt['path'].get('pretrain_network_g')
    if network is not None and not os.path.isfile(network):
        raise OptionError(f"path.resume_state: '{path}' needs the weights '{network}', which do not exist.")
    if network is not None and path != newest and (wrong := _other_weights(state, network)):  # else compared already
        raise OptionError(f"path.resume_state: '{path}': {wrong}.")
    return state, notes


def _agreed(opt: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The result of the first process; other processes may see an older state of the folder."""
    found: list[Any] = [None, None]
    if opt.get('rank', 0) == 0:
        try:
            found[0] = find_state(opt)
        except OptionError as error:
            found[1] = error.problems
    if opt.get('dist'):
        distributed.broadcast_object_list(found)
    if found[1]:
        raise OptionError(found[1])
    return found[0]


def find_state(opt: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The newest complete state with matching weights, and lines for the log.

    Removes unfinished files of a killed run.

    Args:
        opt: the options of a run; a network in `path.ignore_resume_networks` needs no weights.

    Raises:
        OptionError: there are states, but none of them is complete.
    """
    paths = opt['path']
    models, states = paths.get('models') or '', paths['training_states']
    lines = []
    pictures = [folder for folder, _, _ in os.walk(paths.get('visualization') or '')]
    unfinished = remove_unfinished([models, states, os.path.dirname(states), *pictures])
    if unfinished:
        lines.append(f'--auto_resume: removed unfinished files of a killed run: {first_few(unfinished)}.')
    iterations = saved_iterations(states, '', '.state')
    if not iterations:
        instead = f"resuming from '{paths['resume_state']}'" if paths.get('resume_state') else 'starting from scratch'
        return None, [*lines, f'--auto_resume: no training state in {states}; {instead}.']
    with_weights = 'network_g' not in (paths.get('ignore_resume_networks') or ())
    torn: list[tuple[int, str]] = []
    for iteration in iterations:
        files = [os.path.join(states, f'{iteration}.state')]
        files += [os.path.join(models, f'net_g_{iteration}.pth')] if with_weights else []
        wrong = [f"'{path}': {what}" for path, what in ((path, damage(path)) for path in files) if what]
        if not wrong and with_weights and (other := _other_weights(_read_state(files[0]), files[1])):
            wrong = [other]
        if not wrong:
            lines += [f'--auto_resume: iteration {each} is not complete ({what}).' for each, what in torn]
            what = f'the newest complete one of {len(iterations):,}' if torn else f'the newest of {len(iterations):,}'
            return files[0], [*lines, f'--auto_resume: {files[0]} is {what}.']
        torn.append((iteration, '; '.join(wrong)))
    problems = [f'iteration {iteration}: {what}.' for iteration, what in torn]
    raise OptionError(
        [
            f"--auto_resume: none of the {len(torn)} training states in '{states}' is complete. Restore one, or start "
            'from scratch without --auto_resume, which renames the old folder.',
            *problems,
        ]
    )


def _other_weights(state: Mapping[str, Any], path: str) -> str:
    """Why a state does not match the weights of a file; '' if it does, or if an older version has written it."""
    expected = state.get('weights')
    if expected is None:
        return ''
    weights = read_weight_file(path, ('path', 'resume_state')).sets.get('params')
    if weights and digest(weights) == expected:
        return ''
    return f"the state was saved with other weights than those in '{path}'"


def _read_state(path: str) -> dict[str, Any]:
    try:
        return read_state(path)
    except OptionError as error:
        raise OptionError(problem.below(('path', 'resume_state')) for problem in error.problems) from error
