"""How `basicsr explain` looks at prompts and changes their weights, on networks of which the answer is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from promptir_basicsr.archs import PromptedNetwork
from promptir_basicsr.archs.layers.formulation import set_formulation
from promptir_basicsr.archs.layers.prompts import PromptGenBlock
from promptir_basicsr.data.allinone_dataset import AllInOneDataset
from promptir_basicsr.explain.experiments import investigate, passes, untrained_network
from promptir_basicsr.explain.prompted import PromptedNet, Sample, choose_samples, fixed, observe, without
from tests.explain.explain_data import PIP, PROMPTED, PROMPTIR, TASKS, options_of, samples_of


class AddsPrompts(nn.Module):
    """x + the weighted sum of constants 0, 0.1, 0.2 and 0.3."""

    size_multiple = 1
    takes_degradation = False

    def __init__(self) -> None:
        super().__init__()
        self.prompt = PromptGenBlock(3, 4, 4, 3)
        self.prompt.prompt_param.data = (torch.arange(4.0) / 10).view(1, 4, 1, 1, 1).expand(1, 4, 3, 4, 4).clone()
        self.prompt.conv3x3.weight.data.zero_()
        self.prompt.conv3x3.weight.data[range(3), range(3), 1, 1] = 1

    def forward(self, x: torch.Tensor, degradation: Any = None) -> torch.Tensor:
        return x + self.prompt(x)

    def prompt_weights(self, x: torch.Tensor, degradation: Any = None) -> dict[str, torch.Tensor]:
        return {'only': self.prompt.weights(x)}

    def prompt_vectors(self) -> dict[str, torch.Tensor]:
        return {'only': self.prompt.prompt_param[0].flatten(1)}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize('formulation', ['fast', 'plain'])
@pytest.mark.parametrize('batch', [1, 6])  # more images than prompts take another way
def test_forced_weights_are_used_and_end_with_the_block(formulation, batch):
    net = AddsPrompts().eval()
    set_formulation(net, formulation)
    prompted, x = PromptedNet(net), torch.rand(batch, 3, 9, 7)
    own = net.prompt_weights(x)['only']
    before = net(x)
    values = torch.arange(4.0) / 10
    kept = own.clone()
    kept[:, 2] = 0
    for change, weights in (
        (fixed([0, 0, 1, 0]), torch.eye(4)[2].expand(batch, 4)),
        (fixed(np.full(4, 0.25)), torch.full((batch, 4), 0.25)),
        (without(2), kept / kept.sum(dim=1, keepdim=True)),
    ):
        with prompted.changed({'only': change}):
            torch.testing.assert_close(net(x), x + (weights @ values).view(-1, 1, 1, 1))
            torch.testing.assert_close(net.prompt_weights(x)['only'], weights)
        assert torch.equal(net(x), before)
    with pytest.raises(KeyError), prompted.changed({'only': fixed([1, 0, 0, 0])}):
        raise KeyError
    assert torch.equal(net(x), before)
    assert 'weights' not in vars(net.prompt)


def test_without_a_prompt_that_has_everything_the_others_share():
    assert torch.equal(without(1)(torch.tensor([[0.0, 1.0, 0.0]])), torch.tensor([[0.5, 0.0, 0.5]]))


def test_a_knocked_out_prompt_costs_what_it_must():
    """Each task needs a constant of its own, and gets it from the weights that are forced."""
    prompted = PromptedNet(AddsPrompts())
    samples, ids = [], np.repeat([0, 1], 3)
    for i, task in enumerate(ids):
        lq = torch.rand(3, 16, 16) / 2
        samples.append(Sample(f'task{task}', str(i), int(task), lq, lq + (0.1, 0.3)[task] + 0.01))
    found = investigate(prompted, samples, ids, ['task0', 'task1'])
    changes = found.trials.levels['only']
    error = {f'only {k + 1}': np.abs(k / 10 - np.array([0.1, 0.3])[ids] - 0.01) for k in range(4)}
    own = found.seen.weights['only'] @ np.arange(4) / 10
    for name, expected in {**error, 'equal': np.abs(0.15 - np.array([0.1, 0.3])[ids] - 0.01)}.items():
        np.testing.assert_allclose(changes[name], -20 * np.log10(expected), atol=1e-3)
    np.testing.assert_allclose(
        found.trials.base, -20 * np.log10(np.abs(own - np.array([0.1, 0.3])[ids] - 0.01)), atol=1e-3
    )
    # The mean of the other images of the own task, of all images of the other task.
    weights = found.seen.weights['only']
    others = weights[[1, 2]].mean(axis=0) @ np.arange(4) / 10
    assert found.trials.choices[0, 0] == pytest.approx(-20 * np.log10(abs(others - 0.11)), abs=1e-3)
    theirs = weights[3:].mean(axis=0) @ np.arange(4) / 10
    assert found.trials.choices[0, 1] == pytest.approx(-20 * np.log10(abs(theirs - 0.11)), abs=1e-3)


# What is looked at


def test_samples_are_the_data_sets_images_cut_at_their_centre():
    options = options_of(PROMPTIR)
    dataset = AllInOneDataset({**options['datasets']['val'], 'phase': 'val'})
    samples = choose_samples(dataset, 1, 5, 100, 8)
    assert [sample.task for sample in samples] == TASKS
    assert len({sample.name for sample in samples}) == 1  # the same photograph of each task
    whole = {(data['task'], data['name']): data for data in dataset}
    for sample in samples:
        data = whole[sample.task, sample.name]
        assert sample.lq.shape == (3, 96, 96)
        top, left = (data['lq'].shape[-2] - 96) // 2, (data['lq'].shape[-1] - 96) // 2
        assert torch.equal(sample.lq, data['lq'][:, top : top + 96, left : left + 96])
        assert torch.equal(sample.gt, data['gt'][:, top : top + 96, left : left + 96])
        assert sample.label == data['degradation']
    assert len(choose_samples(dataset, 9, 0, 32, 8)) == 6


def test_features_and_weights_are_what_the_prompts_get():
    samples = samples_of(options_of(PROMPTIR))[:3]
    net: Any = untrained_network(PROMPTIR, 0)
    found = observe(PromptedNet(net), samples)
    for i, sample in enumerate(samples):
        heard = []
        handle = net.latent.register_forward_hook(lambda _, __, output, heard=heard: heard.append(output))
        with torch.no_grad():
            net(sample.lq[None])
        handle.remove()
        mean = heard[0].mean(dim=(-2, -1))[0]
        deviation = heard[0].flatten(2).std(dim=-1, correction=0)[0]
        np.testing.assert_allclose(found.features['level3'][i], torch.cat([mean, deviation]), atol=1e-5)
        logits = net.prompt3.linear_layer.weight @ mean + net.prompt3.linear_layer.bias
        np.testing.assert_allclose(found.weights['level3'][i], logits.softmax(0).detach(), atol=1e-6)
    vectors = net.prompt_vectors()['level3'].detach().double().numpy()
    given = found.weights['level3'] @ vectors
    for i, j in ((0, 1), (1, 2)):
        apart = np.linalg.norm(found.prompts['level3'][i] - found.prompts['level3'][j])
        assert apart == pytest.approx(np.linalg.norm(given[i] - given[j]), rel=1e-6)


def test_encoder_features_of_pip_do_not_depend_on_the_label():
    sample = samples_of(options_of(PIP))[0]
    other = Sample(sample.task, sample.name, 3, sample.lq, sample.gt)
    found = observe(PromptedNet(untrained_network(PIP, 0)), [sample, other])
    for level in found.features:
        assert np.array_equal(*found.features[level])
        assert not np.allclose(*found.prompts[level])
        assert np.array_equal(found.weights[level], np.eye(5)[[sample.label, 3]])


@pytest.mark.parametrize('prompts', ['promptir', 'pip'])
def test_taps_in_any_network_are_levels(prompts):
    torch.manual_seed(1)
    prompted = PromptedNet(PromptedNetwork(network=PROMPTED, taps=['encoders.0', 'decoders.3'], prompts=prompts))
    assert list(prompted.levels) == ['encoders.0', 'decoders.3']
    samples = samples_of(options_of(PROMPTIR))[:2]
    done: list[int] = []
    found = investigate(prompted, samples, np.array([0, 1]), ['a', 'b'], passed=done.append)
    assert sum(done) == 2 * passes(prompted, 2, True)
    assert {level: each.shape for level, each in found.seen.weights.items()} == dict.fromkeys(prompted.levels, (2, 5))
    assert np.isfinite(found.trials.base).all()
