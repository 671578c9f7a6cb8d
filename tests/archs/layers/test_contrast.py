"""The contrastive encoder: order of its steps, its queue, and weights with queues of other lengths."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptir_basicsr.archs import ContrastiveEncoder
from promptir_basicsr.archs.layers.contrast import ResidualEncoder


def encoder(queue_length: int = 6, **options: Any) -> ContrastiveEncoder:
    torch.manual_seed(0)
    return ContrastiveEncoder(dim=2, queue_length=queue_length, **options)


def crops(number: int, seed: int) -> Tensor:
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_at_first_the_copy_is_the_encoder_and_keys_have_length_one() -> None:
    net = encoder()
    for own, copied in zip(net.encoder_q.state_dict().values(), net.encoder_k.state_dict().values(), strict=True):
        assert torch.equal(own, copied)
        assert own.data_ptr() != copied.data_ptr()
    assert not any(p.requires_grad for p in net.encoder_k.parameters())
    torch.testing.assert_close(net.queue.norm(dim=0), torch.ones(6))
    assert net.queue_ptr.tolist() == [0]


def test_a_pass_is_that_of_the_definition() -> None:
    """First the copy moves, then it encodes the keys; the queue is the one from before them."""
    net = encoder(momentum=0.9, temperature=0.5)
    with torch.no_grad():
        for parameter in net.encoder_q.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before, x, key = copy.deepcopy(net), crops(2, 1), crops(2, 2)
    found = net(x, key)

    slow = copy.deepcopy(before.encoder_k)
    with torch.no_grad():
        for own, query in zip(slow.parameters(), before.encoder_q.parameters(), strict=True):
            own.copy_(0.9 * own + 0.1 * query)
    keys = F.normalize(slow(key).embedding, dim=1)
    expected = before.encoder_q(x)
    query = F.normalize(expected.embedding, dim=1)
    logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ before.queue], dim=1) / 0.5
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.map, expected.map)
    torch.testing.assert_close(found.feature, expected.feature)
    assert torch.equal(found.labels, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(net.queue, torch.cat([keys.T, before.queue[:, 2:]], dim=1), rtol=1e-5, atol=1e-6)
    for name, value in slow.state_dict().items():  # with the running statistics of its own passes
        torch.testing.assert_close(net.encoder_k.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_queue_goes_round() -> None:
    net, seen = encoder(6), []
    for step in range(4):
        net(crops(2, step), crops(2, 10 + step))
        seen.append(net.queue_ptr.item())
    assert seen == [2, 4, 0, 2]
    torch.testing.assert_close(net.queue.norm(dim=0), torch.ones(6))
    # Keys that do not divide the length overwrite the oldest ones as well.
    net(crops(5, 7), crops(5, 8))
    assert net.queue_ptr.item() == 1


def test_more_keys_than_the_queue_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match='room for 6 keys, and a training step has 7'):
        encoder(6)(crops(7, 1), crops(7, 2))


def test_gradients_reach_the_encoder_alone() -> None:
    net = encoder()
    found = net(crops(2, 1), crops(2, 2))
    F.cross_entropy(found.logits, found.labels).backward()
    assert all(p.grad is not None for p in net.encoder_q.parameters())
    assert all(p.grad is None for p in net.encoder_k.parameters())


def test_the_moving_state_is_all_that_a_pass_changes_besides_statistics() -> None:
    net = encoder()
    with torch.no_grad():
        net.encoder_q.mlp[0].weight.add_(1)
    before = copy.deepcopy(net.state_dict())
    moving = {id(tensor) for tensor in net.moving_state()}
    net(crops(2, 1), crops(2, 2))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    moved = {name for name, value in net.state_dict(keep_vars=True).items() if id(value) in moving}
    assert changed - moved == {name for name in changed if 'running' in name or 'num_batches' in name}
    assert {'queue', 'queue_ptr', 'encoder_k.mlp.0.weight'} <= changed & moved


def test_a_compiled_pass_is_the_plain_one() -> None:
    """Nothing in it waits for a number of the device, which would break the graph."""
    plain = encoder()
    compiled = copy.deepcopy(plain)
    run = torch.compile(compiled, backend='aot_eager', fullgraph=True)
    for step in range(2):
        expected, found = (net(crops(2, step), crops(2, 9 + step)) for net in (plain, run))
        torch.testing.assert_close(found.logits, expected.logits)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


@pytest.mark.parametrize('length', [4, 6, 9, None])
@pytest.mark.parametrize('prefix', ['', 'E.'])
def test_weights_with_a_queue_of_any_length(
    length: int | None, prefix: str, host_log: pytest.LogCaptureFixture
) -> None:
    source, net = encoder(length or 6), encoder(6)
    with torch.no_grad():
        source.encoder_q.mlp[0].weight.add_(1)
    source(crops(2, 1), crops(2, 2))
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    if length is None:
        del weights[f'{prefix}queue'], weights[f'{prefix}queue_ptr']
    target = torch.nn.ModuleDict({'E': net}) if prefix else net
    given, random = dict(weights), torch.get_rng_state()
    target.load_state_dict(weights, strict=True)
    assert weights.keys() == given.keys()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(net.encoder_q.mlp[0].weight, source.encoder_q.mlp[0].weight)
    if length == 6:
        assert torch.equal(net.queue, source.queue)
        assert (net.queue_ptr.item(), host_log.text) == (2, '')
    else:
        assert net.queue.shape == (8, 6)
        torch.testing.assert_close(net.queue.norm(dim=0), torch.ones(6))
        assert net.queue_ptr.item() == 0
        assert 'it starts from scratch' in host_log.text


def test_a_queue_of_another_width_is_of_another_network() -> None:
    with pytest.raises(RuntimeError, match='size mismatch for queue'):
        encoder().load_state_dict({**encoder().state_dict(), 'queue': torch.zeros(4, 6)})


def test_weights_of_other_parts_leave_the_queue_alone() -> None:
    net = torch.nn.ModuleDict({'E': encoder(), 'R': torch.nn.Conv2d(1, 1, 1)})
    before = net['E'].queue.clone()
    net.load_state_dict(torch.nn.ModuleDict({'R': torch.nn.Conv2d(1, 1, 1)}).state_dict(), strict=False)
    assert torch.equal(net['E'].queue, before)


def test_the_map_sees_five_pixels() -> None:
    net = ResidualEncoder(3, 2).double().eval()
    x = crops(1, 1)[..., :8, :8].double().requires_grad_()
    net(x).map[0, :, 4, 4].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    assert seen.nonzero().amin(0).tolist() == [2, 2]
    assert seen.nonzero().amax(0).tolist() == [6, 6]
