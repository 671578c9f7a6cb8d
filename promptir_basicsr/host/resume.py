"""Resume without a GPU, from where the run writes."""

import logging
import os
import pickle
from typing import Any

import basicsr.train
import torch
from basicsr.utils import check_resume

from promptir_basicsr.option_util import OptionError

logger = logging.getLogger('basicsr')


def adapt() -> None:
    """BasicSR asks for the current CUDA device before it loads a state, so a resume without a GPU dies; and
    `--auto_resume` looks below ./experiments wherever the run writes and starts from zero silently (StarSRGAN#7)."""
    basicsr.train.load_resume_state = load_resume_state


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The training state to continue from, or None for a fresh start; sets the paths of the networks as well.

    Raises:
        OptionError: the file is not a training state, or the weights of its iteration are not in the run's folder.
    """
    if opt['auto_resume']:
        newest = newest_state(opt['path']['training_states'])
        if newest is None:
            logger.warning('--auto_resume: no training state in %s; starting anew.', opt['path']['training_states'])
        else:
            opt['path']['resume_state'] = newest
    path = opt['path'].get('resume_state')
    if path is None:
        return None
    state = _read_state(path)
    check_resume(opt, state['iter'])
    network = opt['path'].get('pretrain_network_g')
    if network is not None and not os.path.isfile(network):
        raise OptionError([f"path.resume_state: '{path}' goes with the weights '{network}', which do not exist."])
    return state


def _read_state(path: str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first_line = str(error).partition('\n')[0]
        raise OptionError([f"path.resume_state: '{path}' cannot be read ({first_line})."]) from error
    if not isinstance(state, dict) or not {'epoch', 'iter', 'optimizers', 'schedulers'} <= state.keys():
        raise OptionError([f"path.resume_state: '{path}' is no training state. Take one of `training_states`."])
    return state


def newest_state(folder: str) -> str | None:
    """The state with the highest iteration in a folder."""
    if not os.path.isdir(folder):
        return None
    states = [name for name in os.listdir(folder) if name.endswith('.state') and name[: -len('.state')].isdigit()]
    if not states:
        return None
    return os.path.join(folder, max(states, key=lambda name: int(name[: -len('.state')])))
