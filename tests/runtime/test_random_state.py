import random

import numpy as np
import torch

from promptir_basicsr.runtime.random_state import kept_random_state, random_state, set_random_state


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_a_state_saved_to_a_file_restores_the_same_numbers(tmp_path) -> None:
    draws()  # both normal generators hold a second number now
    torch.save(random_state(), tmp_path / 'random.pth')
    expected = [draws() for _ in range(3)]
    assert set_random_state(torch.load(tmp_path / 'random.pth', weights_only=True)) == []
    assert [draws() for _ in range(3)] == expected


def test_random_draws_in_between_do_not_change_the_state() -> None:
    state = random_state()
    expected = draws()
    set_random_state(state)
    with kept_random_state():
        assert draws() == expected
        torch.manual_seed(7)
    assert draws() == expected


def test_a_state_of_missing_gpus_is_reported() -> None:
    there = torch.cuda.device_count()
    assert set_random_state({**random_state(), 'cuda': [torch.zeros(16, dtype=torch.uint8)] * (there + 1)}) == ['CUDA']
