"""Random state of a process for training states."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of the generators of Python, numpy, torch and its GPUs as numbers and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert name == 'MT19937'
    state: dict[str, Any] = {
        'python': {'version': version, 'words': list(words), 'gauss': gauss},
        'numpy': {
            'keys': torch.from_numpy(np.asarray(keys).astype(np.int64)),
            'position': int(position),
            'has_gauss': int(has_gauss),
            'cached': float(cached),
        },
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> list[str]:
    """Restore a `random_state`.

    Returns:
        The generators that could not be restored because this machine has other GPUs.
    """
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words']), python['gauss']))
    keys = numpy['keys'].numpy().astype(np.uint32)
    np.random.set_state(('MT19937', keys, numpy['position'], numpy['has_gauss'], numpy['cached']))
    torch.set_rng_state(state['torch'])
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state.get('cuda', ())) != there:
        return ['CUDA']
    if there:
        torch.cuda.set_rng_state_all(state['cuda'])
    return []


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Context manager that restores the random state at the end of the block."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
