"""The sensor: any size, gradients, the same answer in any batch, blind to how values are stored; inside PIP."""

import copy
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from promptir_basicsr.archs import DegradationSensor, PIPRestormer
from promptir_basicsr.archs.sensor_arch import (
    high_pass,
    image_statistics,
    mean_and_deviation,
    statistics_count,
    to_levels,
)
from promptir_basicsr.core.errors import OptionError

PIP: dict[str, Any] = {
    'dim': 8,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 1],
    'prompt_dims': [12, 12, 12],
    'prompt_sizes': [4, 4, 4],
}
SENSOR: dict[str, Any] = {'type': 'DegradationSensor', 'dim': 4}


def photograph(height: int = 40, width: int = 56) -> Tensor:
    return torch.from_numpy(
        skimage.data.chelsea()[80 : 80 + height, 120 : 120 + width].astype(np.float32) / 255
    ).permute(2, 0, 1)[None]


@pytest.fixture
def sensor() -> DegradationSensor:
    torch.manual_seed(0)
    return DegradationSensor(dim=8)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 3), (15, 16), (16, 16), (33, 57)])
def test_any_size(sensor: DegradationSensor, size: tuple[int, int]) -> None:
    x = photograph(*size).expand(2, -1, -1, -1)
    assert sensor(x).shape == (2, 5)
    sensor(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in sensor.parameters())
    found = sensor.probabilities(x)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(found, torch.softmax(sensor(x), dim=1))


def test_a_flat_image_has_finite_gradients(sensor: DegradationSensor) -> None:
    for value in (0.0, 1.0):
        sensor.zero_grad()
        sensor(torch.full((1, 3, 20, 20), value)).sum().backward()
        assert all(p.grad.isfinite().all() for p in sensor.parameters())


def test_every_parameter_learns(sensor: DegradationSensor) -> None:
    torch.nn.functional.cross_entropy(sensor(photograph()), torch.tensor([3])).backward()
    assert [name for name, p in sensor.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_an_image_gets_the_same_answer_in_any_batch_and_mode(sensor: DegradationSensor) -> None:
    images = torch.cat([photograph(), 0.2 * photograph(), photograph().flip(3)])
    together = sensor.train()(images)
    alone = torch.cat([sensor.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sensor(images[[2, 0, 1]]), together[[2, 0, 1]], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_values_that_no_file_holds_change_nothing(sensor: DegradationSensor) -> None:
    """Some synthetic degradations leave floats between the 256 levels; a sensor must not go by that."""
    exact = photograph()
    between = exact + 0.4 / 255 * (2 * torch.rand(exact.shape) - 1)
    assert not torch.equal(exact, between)
    assert torch.equal(sensor(exact), sensor(between))
    assert torch.equal(sensor(torch.cat([2 * exact, -exact])), sensor(torch.cat([(2 * exact).clamp(0, 1), 0 * exact])))


def test_gradients_of_the_image_pass_through_the_levels() -> None:
    x = photograph(4, 4).requires_grad_()
    to_levels(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_statistics_equal_those_of_numpy() -> None:
    x = photograph(24, 32)
    image = x[0].numpy().astype(np.float64)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode='edge')
    mean = sum(padded[:, i : i + 24, j : j + 32] for i in range(3) for j in range(3)) / 9
    fine = image - mean
    np.testing.assert_allclose(high_pass(x)[0].numpy(), fine, atol=1e-6)
    found = image_statistics(x)[0].numpy()
    assert len(found) == statistics_count(3) == 26
    np.testing.assert_allclose(found[:3], image.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found[3:6], np.log(image.std(axis=(1, 2))), rtol=1e-3, atol=1e-4)
    dark = [
        [image[:, max(i - 3, 0) : i + 4, max(j - 3, 0) : j + 4].min() for j in range(0, 32, 2)] for i in range(0, 24, 2)
    ]
    np.testing.assert_allclose(found[6], np.mean(dark), rtol=1e-5)
    np.testing.assert_allclose(found[8:11], np.log(np.abs(fine).mean(axis=(1, 2)) + 1e-4), rtol=1e-4)
    np.testing.assert_allclose(found[11:14], 0.5 * np.log((fine**2).mean(axis=(1, 2)) + 1e-8), rtol=1e-4)


def test_deviation_of_one_pixel_is_finite() -> None:
    x = torch.ones(1, 2, 1, 1, requires_grad=True)
    mean_and_deviation(x).sum().backward()
    assert x.grad.isfinite().all()


def test_it_is_small() -> None:
    """The released sensor has 20,029,605 parameters."""
    assert sum(p.numel() for p in DegradationSensor().parameters()) == 490_265
    assert sum(p.numel() for p in DegradationSensor(dim=16).parameters()) == 125_865


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'dim': 3}, 'dim is 3; it must be an integer of at least 4'),
        ({'dim': True}, 'dim is True'),
        ({'num_blocks': -1}, 'num_blocks is -1; it must be an integer of at least 0'),
        ({'inp_channels': 0}, 'inp_channels is 0'),
        ({'num_degradations': 0}, 'num_degradations is 0; it must be an integer of at least 1'),
        ({'num_degradations': 2, 'degradations': ['snow']}, 'num_degradations = 2 different names'),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r'^DegradationSensor: ') as error:
        DegradationSensor(**arguments)
    assert message in str(error.value)


def test_an_image_of_another_shape_is_refused(sensor: DegradationSensor) -> None:
    with pytest.raises(ValueError, match=r'the input is \(1, 1, 8, 8\); it must be \(B, 3, H, W\)'):
        sensor(torch.zeros(1, 1, 8, 8))


# inside a network


def pip(**options: Any) -> PIPRestormer:
    torch.manual_seed(0)
    return PIPRestormer(**PIP, **options)


def test_a_sensor_changes_nothing_else_of_the_network() -> None:
    plain, sensing = pip(), pip(sensor=SENSOR)
    state = sensing.state_dict()
    assert [name for name in state if not name.startswith('sensor.')] == list(plain.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    x = photograph()
    assert torch.equal(plain(x, 2), sensing(x, 2))
    assert list(sensing.released_state_dict()) == list(plain.released_state_dict())


def test_it_is_used_if_no_label_is_given() -> None:
    x = torch.cat([photograph(), 0.1 * photograph()])
    for hard in (False, True):
        net = pip(sensor=SENSOR, hard_sensor=hard).eval()
        probabilities = net.sensor.probabilities(x)
        told = probabilities.argmax(dim=1) if hard else probabilities
        torch.testing.assert_close(net(x), net(x, told), rtol=0, atol=0)
        assert torch.equal(net.sense(x), probabilities)
        assert not torch.equal(net(x), net(x, (probabilities.argmax(dim=1) + 1) % 5))


def test_it_is_frozen_and_stays_in_evaluation_mode() -> None:
    net = pip(sensor=SENSOR).train()
    assert not net.sensor.training
    assert net.encoder_level1.training
    net(photograph()).mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in net.sensor.parameters())
    assert copy.deepcopy(net).train().sensor.training is False


def test_a_sensor_of_ones_own_that_is_trained_along_follows_the_mode() -> None:
    net = pip()
    net.sensor = DegradationSensor(dim=4)
    assert net.train().sensor.training
    assert not net.eval().sensor.training


def test_weights_without_a_sensor_load_strictly_and_leave_it_as_it_is() -> None:
    net, plain = pip(sensor=SENSOR), pip()
    before = copy.deepcopy(net.sensor.state_dict())
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(1)
    weights = plain.released_state_dict()
    names = list(weights)
    net.load_state_dict(weights, strict=True)
    assert list(weights) == names
    assert all(torch.equal(value, net.sensor.state_dict()[name]) for name, value in before.items())
    assert torch.equal(net.output.weight, plain.output.weight)
    # As a part of something larger, under a prefix.
    larger = torch.nn.ModuleDict({'net': net})
    larger.load_state_dict({f'net.{name}': value for name, value in weights.items()}, strict=True)


def test_weights_with_a_sensor_have_to_be_complete() -> None:
    net = pip(sensor=SENSOR)
    weights = net.state_dict()
    pip(sensor=SENSOR).load_state_dict(weights, strict=True)
    del weights['sensor.classifier.bias']
    with pytest.raises(RuntimeError, match=r'sensor\.classifier\.bias'):
        net.load_state_dict(weights, strict=True)


def test_it_has_the_networks_degradations() -> None:
    net = pip(sensor=SENSOR, num_degradations=2, degradations=['snow', 'fog'])
    assert net.sensor.num_degradations == 2
    assert net.sensor.degradations == ('snow', 'fog')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'sensor': 'DegradationSensor'}, 'PIPRestormer: sensor: must be options with a type, e.g.'),
        ({'sensor': {'dim': 4}}, 'must be options with a type'),
        (
            {'sensor': {'type': 'DegradationSensr'}},
            "unknown network 'DegradationSensr'. Did you mean 'DegradationSensor'?",
        ),
        (
            {'sensor': {'type': 'PromptIR'}},
            "'PromptIR' is not a sensor: it has no `probabilities`. Allowed: DegradationSensor",
        ),
        ({'sensor': {**SENSOR, 'dmi': 4}}, "sensor: unknown option 'dmi'. Did you mean 'dim'?"),
        ({'sensor': {**SENSOR, 'num_degradations': 4}}, 'num_degradations is 4, of the network 5. Omit it'),
        ({'hard_sensor': 'yes'}, "PIPRestormer: hard_sensor is 'yes'; it must be true or false."),
        ({'sensor': {**SENSOR, 'dim': 1}}, 'DegradationSensor: dim is 1'),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, ValueError)) as error:
        pip(**options)
    assert message in str(error.value)
