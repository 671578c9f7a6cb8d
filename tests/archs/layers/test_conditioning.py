"""What may be said of degradations, the weights it stands for, and what is refused."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from promptir_basicsr.archs.layers.conditioning import ConditionedNetwork, weights_of

NAMES = ('denoise', 'derain', 'dehaze', 'deblur', 'lowlight')
X = torch.zeros(2, 3, 4, 4)


class TwoLevels(ConditionedNetwork):
    levels = ('level2', 'level1')


class Darkness(nn.Module):
    """A sensor: the darker an image, the more lowlight; what is left is noise and, of it a quarter, rain."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        dark = 1 - self.scale * x.mean(dim=(1, 2, 3))
        return torch.stack([(1 - dark) * 0.75, (1 - dark) * 0.25, 0 * dark, 0 * dark, dark], dim=1)


def weights(degradation: Any, x: Tensor = X, names: Any = NAMES) -> Tensor:
    return weights_of(degradation, x, 5, names)


@pytest.mark.parametrize(
    ('degradation', 'rows'),
    [
        (3, [[0, 0, 0, 1, 0]] * 2),
        (np.int64(3), [[0, 0, 0, 1, 0]] * 2),
        ('dehaze', [[0, 0, 1, 0, 0]] * 2),
        ({'denoise': 1, 'deblur': 3}, [[0.25, 0, 0, 0.75, 0]] * 2),
        ({0: 0.5, 'denoise': 0.5, 4: 1}, [[0.5, 0, 0, 0, 0.5]] * 2),
        ([1, 4], [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]),
        (('lowlight', 0), [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]),
        (['derain', {'derain': 7, 'lowlight': 7}], [[0, 1, 0, 0, 0], [0, 0.5, 0, 0, 0.5]]),
        (torch.tensor([4, 1]), [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]),
        (torch.tensor([4, 1], dtype=torch.uint8), [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]),
        (torch.tensor(2), [[0, 0, 1, 0, 0]] * 2),
        (torch.tensor([1.0, 0, 0, 1, 2]), [[0.25, 0, 0, 0.25, 0.5]] * 2),
        (torch.tensor([[2.0, 0, 0, 0, 2], [0, 0, 8, 0, 0]]), [[0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0]]),
    ],
)
def test_valid_degradations(degradation: Any, rows: list[list[float]]) -> None:
    assert torch.equal(weights(degradation), torch.tensor(rows))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('degradation', [1, 'derain', torch.tensor([1, 1]), torch.tensor([[0, 3.0, 0, 0, 0]] * 2)])
def test_weights_have_type_and_device_of_the_images(degradation: Any, dtype: torch.dtype) -> None:
    found = weights(degradation, X.to(dtype))
    assert torch.equal(found, torch.tensor([[0, 1, 0, 0, 0]] * 2, dtype=dtype))
    assert weights(degradation, X.to('meta')).device.type == 'meta'


def test_gradients_reach_the_mixture() -> None:
    mixture = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: weights(m, X.double()), (mixture,))


@pytest.mark.parametrize(
    ('degradation', 'message'),
    [
        ('derrain', r"^degradation: unknown degradation 'derrain'\. Did you mean 'derain'\? Allowed: deblur, dehaze"),
        ('', "unknown degradation ''"),
        (5, r'^degradation: unknown id 5\. Allowed: an id or a name: 0 denoise, 1 derain, .*4 lowlight\.$'),
        (-1, 'unknown id -1'),
        ([0, 9], r'^degradation\[1\]: unknown id 9'),
        ({'rain': 1}, "unknown degradation 'rain'. Did you mean 'derain'?"),
        ({'derain': -1, 'dehaze': 2}, r"the weight of 'derain' is -1; it must be a number of at least 0"),
        ({'derain': 'much'}, "the weight of 'derain' is 'much'; it must be a number"),
        ({'derain': float('nan')}, "the weight of 'derain' is nan"),
        ({'derain': float('inf')}, "the weight of 'derain' is inf"),
        ({'derain': 0, 'dehaze': 0}, r'no weight is above 0\. At least one must be'),
        ({}, 'no weight is above 0'),
        ([1, 2, 3], r'^degradation: 3 are passed for a batch of 2\. Pass one for each image\.$'),
        ([], '0 are passed for a batch of 2'),
        (True, 'degradation is True; it must be an id or a name: 0 denoise'),
        (1.0, r'degradation is 1\.0; it must be .* or of float weights \(B, 5\)'),
        ([[1, 0], 3], r'degradation\[0\] is \[1, 0\]; it must be'),
        ({(0, 3): 1}, r'degradation is \(0, 3\); it must be'),
        (torch.tensor([0, 5]), r'degradation\[1\]: unknown id 5'),
        (torch.tensor(-1), '^degradation: unknown id -1'),
        (
            torch.tensor([0, 1, 2]),
            r'ids of shape \(3,\); for a batch of 2 and 5 degradations it must be \(2,\), or \(\)',
        ),
        (torch.ones(2, 4), r'weights of shape \(2, 4\); .* it must be \(2, 5\), or \(5,\) for all images'),
        (torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]), r'degradation\[1\]: no weight is above 0'),
        (torch.tensor([0.0, 0, -2, 3, 0]), r'^degradation: the weight of 2 is -2\.0'),
        (torch.tensor([float('nan')] * 5), 'the weight of 0 is nan'),
        (torch.tensor([True, False]), r'degradation is a tensor of torch\.bool; it must be'),
    ],
)
def test_what_is_refused(degradation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights(degradation)


def test_all_mistakes_of_a_list_are_reported() -> None:
    with pytest.raises(ValueError, match='unknown id 7') as error:
        weights([7, 'snow', {'derain': -1}])
    assert [line.split(':')[0] for line in str(error.value).splitlines()] == [
        *('degradation[0]', 'degradation[1]', 'degradation[2]', 'degradation')
    ]


def test_names_that_are_not_known() -> None:
    with pytest.raises(
        ValueError, match=r"'derain' is a name, but the network has no names\. Use an id from 0 to 4, or"
    ):
        weights('derain', names=None)


def test_an_id_out_of_range_is_poison_where_nobody_looks() -> None:
    """As on an accelerator, whose values are not waited for."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda ids: weights_of(ids, X, 5, NAMES), fullgraph=True, backend='eager')
    assert torch.equal(compiled(torch.tensor([4, 1])), weights([4, 1]))
    found = compiled(torch.tensor([4, 5]))
    assert torch.equal(found[0], weights(4)[0])
    assert found[1].isnan().all()


def test_names_of_a_network() -> None:
    assert TwoLevels(5).degradations == NAMES
    assert TwoLevels(3).degradations is None
    net = TwoLevels(2, ['snow', 'fog'])
    assert torch.equal(net.degradation_weights(X, 'fog'), torch.tensor([[0.0, 1.0]] * 2))
    with pytest.raises(ValueError, match=r"^TwoLevels: degradation: unknown degradation 'fogg'\. Did you mean 'fog'\?"):
        net.degradation_weights(X, 'fogg')


@pytest.mark.parametrize('names', [['snow'], ['snow', 'snow'], ['snow', ''], 'ab', ['snow', 2], 7])
def test_names_have_to_be_one_for_each(names: Any) -> None:
    with pytest.raises(ValueError, match='it must be a list of num_degradations = 2 different names, by id'):
        TwoLevels(2, names)


@pytest.mark.parametrize('count', [0, 2.0, True, 'five'])
def test_number_has_to_be_whole(count: Any) -> None:
    with pytest.raises(ValueError, match=r'num_degradations is .*; it must be an integer of at least 1'):
        TwoLevels(count)


def test_nothing_given_and_no_sensor() -> None:
    with pytest.raises(
        ValueError, match=r'no degradation is passed and there is no sensor .* Pass `degradation` \(an id or'
    ):
        TwoLevels(5).degradation_weights(X)
    with pytest.raises(ValueError, match=r'an id from 0 to 2; a mixture .* or attach a sensor: `net\.sensor = \.\.\.`'):
        TwoLevels(3).prompt_context(X)


def test_sensor_is_used_if_no_label_is_given() -> None:
    net, x = TwoLevels(5), torch.tensor([0.2, 1], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    net.sensor = Darkness().double()
    soft = torch.tensor([[0.15, 0.05, 0, 0, 0.8], [0.75, 0.25, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(net.degradation_weights(x), soft, rtol=0, atol=1e-12)
    net.hard_sensor = True
    assert torch.equal(net.degradation_weights(x), weights([4, 0], x))
    assert torch.equal(net.degradation_weights(x, 1), weights(1, x))


def test_sensor_is_a_part_of_the_network_or_any_function() -> None:
    net = TwoLevels(5)
    net.sensor = Darkness()
    assert list(net.state_dict()) == ['sensor.scale']
    assert torch.equal(copy.deepcopy(net).degradation_weights(X), net.degradation_weights(X))
    net = TwoLevels(5)
    net.sensor = lambda x: torch.ones(len(x), 5)
    assert list(net.state_dict()) == []
    assert torch.equal(net.degradation_weights(X), torch.full((2, 5), 0.2))


def test_sensor_of_another_size_or_without_probabilities_is_refused() -> None:
    net = TwoLevels(5)
    net.sensor = lambda x: torch.ones(len(x), 4)
    with pytest.raises(ValueError, match=r'TwoLevels: the sensor returned \(2, 4\); it must return \(2, 5\)'):
        net.degradation_weights(X)
    net.sensor = lambda x: torch.full((len(x), 5), -1.0)
    with pytest.raises(ValueError, match=r'the output of the sensor\[0\]: the weight of 0 is -1\.0'):
        net.degradation_weights(X)


def test_context_is_computed_once() -> None:
    calls, net = [], TwoLevels(5)

    def sensor(x: Tensor) -> Tensor:
        calls.append(x)
        return torch.ones(len(x), 5)

    net.sensor = sensor
    context = net.prompt_context(X)
    assert len(calls) == 1
    assert context.weights['level1'] is context.weights['level2']
    assert context.strength == {'level2': 1.0, 'level1': 1.0}


def test_levels_may_differ() -> None:
    context = TwoLevels(5).prompt_context(X, 1, strength={'level1': 0.5}, overrides={'level2': 'lowlight'})
    assert list(context.weights) == ['level2', 'level1']
    assert torch.equal(context.weights['level2'], weights(4))
    assert torch.equal(context.weights['level1'], weights(1))
    assert context.strength == {'level2': 1.0, 'level1': 0.5}
    both = TwoLevels(5).prompt_context(X, overrides={'level1': 0, 'level2': 3}, strength=2)
    assert torch.equal(both.weights['level1'], weights(0))
    assert both.strength == {'level2': 2, 'level1': 2}


def test_mistakes_of_levels_are_reported_at_once() -> None:
    with pytest.raises(ValueError, match='level') as error:
        TwoLevels(5).prompt_context(X, 0, strength={'lvel1': 1, 'level2': 'full'}, overrides={'level9': 0})
    lines = str(error.value).splitlines()
    assert lines[0] == ("TwoLevels: strength: unknown level 'lvel1'. Did you mean 'level1'? Allowed: level1, level2.")
    assert lines[1].startswith("TwoLevels: overrides: unknown level 'level9'.")
    assert lines[2] == "TwoLevels: the strength of level2 is 'full'; it must be a finite number. As trained: 1."
    with pytest.raises(ValueError, match='the strength of level2 is inf'):
        TwoLevels(5).prompt_context(X, 0, strength=float('inf'))
    with pytest.raises(ValueError, match=r'^TwoLevels: overrides\.level1: unknown id 8'):
        TwoLevels(5).prompt_context(X, 0, overrides={'level1': 8})
