"""Activation checkpointing of any network: the same numbers from the same names, with less kept."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import promptir_basicsr  # noqa: F401  (registers)

# isort: split
from basicsr.archs import build_network

from promptir_basicsr.archs.layers.formulation import Formulated
from promptir_basicsr.runtime.recompute import repeated_blocks, set_activation_checkpointing, set_blocks

EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 3, 'upscale': 1}
SWINIR = {
    'type': 'SwinIR',
    'img_size': 16,
    'window_size': 8,
    'embed_dim': 8,
    'depths': [2, 2],
    'num_heads': [2, 2],
    'drop_path_rate': 0.5,
    'upscale': 1,
    'upsampler': '',
}
NAFNET = {
    'type': 'PIPNAFNet',
    'width': 8,
    'enc_blk_nums': [1, 1, 1, 2],
    'dec_blk_nums': [1, 1, 1, 1],
    'prompt_sizes': [4, 4, 4, 4],
}
# The first tap lies inside of a block, the second one is a block.
TAPS = {'type': 'PromptedNetwork', 'network': SWINIR, 'taps': ['layers.0.residual_group.blocks.1', 'layers.1']}
PIP_TAPS = {**TAPS, 'interaction': 'gate'}
# What is kept in relation to what was kept, at most.
NETWORKS = [(EDSR, 0.5), (SWINIR, 0.1), (NAFNET, 0.7), (PIP_TAPS, 0.1), ({**TAPS, 'prompts': 'promptir'}, 0.2)]


def build(options: dict[str, Any]) -> nn.Module:
    """A network in double precision whose vectors are not at their first values, many of which are 0."""
    torch.manual_seed(0)
    net = build_network(copy.deepcopy(options)).double().train()
    for parameter in net.parameters():
        if parameter.ndim < 2 or parameter.shape[1:].numel() == parameter.shape[1]:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def step(net: Any) -> tuple[Tensor, dict[str, Tensor], int]:
    """Output, gradients and bytes that were kept for them."""
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(2)  # of what is dropped
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(image, torch.tensor([0, 1])) if getattr(net, 'takes_degradation', False) else net(image)
    net.zero_grad()
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}, kept


def name_of(options: object) -> str:
    return options['type'] if isinstance(options, dict) else str(options)


@pytest.mark.parametrize(('options', 'share'), NETWORKS, ids=name_of)
def test_blocks_give_the_same_output_and_gradients_and_keep_less(options: dict[str, Any], share: float) -> None:
    net = build(options)
    names, (output, gradients, kept) = list(net.state_dict()), step(net)
    assert set_activation_checkpointing(net, 'block') > 1
    again, gradients_again, kept_again = step(net)
    assert list(net.state_dict()) == names
    assert torch.equal(again, output)
    assert gradients_again.keys() == gradients.keys()
    assert all(torch.equal(gradients_again[name], gradient) for name, gradient in gradients.items())
    assert kept_again < share * kept


@pytest.mark.parametrize('options', [SWINIR, PIP_TAPS], ids=name_of)
def test_a_copy_computes_with_its_own_weights(options: dict[str, Any]) -> None:
    net = build(options)
    set_activation_checkpointing(net, 'block')
    other = copy.deepcopy(net)
    before, _, kept = step(other)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    after, gradients, kept_again = step(other)
    assert torch.equal(after, before)
    assert kept_again == kept
    assert all(name in gradients for name, parameter in other.named_parameters() if parameter.requires_grad)


def test_none_turns_it_off_again() -> None:
    net = build(EDSR)
    kind, (*_, kept) = type(net.body[0]), step(net)
    for _ in range(2):  # a second time changes nothing
        assert set_activation_checkpointing(net, 'block') == 3
        assert isinstance(net.body[0], kind)
        assert step(net)[2] < kept
    assert set_activation_checkpointing(net, 'none') == 0
    assert type(net.body[0]) is kind
    assert step(net)[2] == kept


def test_nothing_is_recomputed_without_gradients() -> None:
    net = build(EDSR)
    calls = []
    set_activation_checkpointing(net, 'block')
    net.body[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(torch.rand(1, 3, 16, 16, dtype=torch.float64))
    assert len(calls) == 1
    step(net)
    assert len(calls) == 3


class Inner(nn.Module):
    """Two convolutions, in a list of equals."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Outer.layer(), Outer.layer()])


class Outer(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.parts = nn.Sequential(Outer.layer(), nn.BatchNorm2d(3) if norm else nn.Identity(), Outer.layer())

    @staticmethod
    def layer() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.GELU())


class Own(Formulated, Outer):
    pass


def test_blocks_are_the_outermost_of_what_is_repeated() -> None:
    single, first, second = Outer(), Inner(), Inner()
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(single), nn.ModuleList([first]), nn.ModuleList([second]))
    # Single layers, lists and what there is but once are none.
    assert list(repeated_blocks(net)) == [first, second]
    net.append(nn.ModuleList([Outer(), Own(), Own()]))
    assert list(repeated_blocks(net)) == [single, first, second, net[-1][0]]


def test_what_cannot_be_is_refused_and_nothing_changed() -> None:
    for net, checkpointing, message in (
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), 'block', "Sequential: 'block' needs repeated blocks"),
        (nn.Sequential(Outer(), Outer()), 'gate', "Sequential: 'gate' needs the Transformer blocks"),
        (nn.Sequential(Outer(), Outer(norm=True)), 'block', 'the batch normalisation in Outer'),
        (nn.Sequential(Outer(), Outer()), 'blocks', "unknown checkpointing 'blocks'. Did you mean 'block'?"),
    ):
        kinds = [type(module) for module in net.modules()]
        with pytest.raises(ValueError, match=message):
            set_activation_checkpointing(net, checkpointing)
        assert [type(module) for module in net.modules()] == kinds


def test_built_in_blocks_choose_for_themselves() -> None:
    net = nn.Sequential(Own(), Own(), Outer(), Outer())
    assert set_activation_checkpointing(net, 'block') == 4
    assert [type(each) is Own for each in net] == [True, True, False, False]
    assert [each.checkpointing for each in net[:2]] == ['block', 'block']
    assert set_activation_checkpointing(net, 'gate') == 2
    assert [each.checkpointing for each in net[:2]] == ['gate', 'gate']
    assert type(net[2]) is Outer
    assert set_blocks(net, 'plain', 'none') == []
    (problem,) = set_blocks(net, 'plain', 'none', 'triton')
    assert str(problem).startswith('kernels: triton is for the fast formulation of PromptIR and PIP, not the plain')
    assert [each.formulation for each in net[:2]] == ['plain', 'plain']
    assert set_blocks(net, None, None) == []
    assert [each.formulation for each in net[:2]] == ['fast', 'fast']
