"""Recognition of a network from the names and shapes of its weights.

Tensors show the arguments of their network: widths, numbers of blocks, heads, prompts, biases. Each reader below
determines the arguments of one network; building the network verifies them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from promptir_basicsr.archs.layers.conditioning import SENSOR_PREFIX

Shapes = Mapping[str, tuple[int, ...]]

USUAL_EXPANSION = 2.66


def recognize(shapes: Shapes) -> dict[str, Any] | None:
    """Determine the options `network_g` of the network with these parameter names and shapes.

    Arguments without a trace in the weights are omitted and have their defaults: names of degradations, `hard_sensor`,
    and the prompts of a network that has none.

    Returns:
        `type` and arguments, or None for an unknown network. The arguments are those that names and shapes show; the
        network may still differ in others.
    """
    for name, mark, read in _NETWORKS:
        if mark(shapes):
            try:
                return {'type': name, **read(shapes)}
            except (LookupError, ValueError, ArithmeticError):  # missing names, or tensors of other kinds
                return None
    return None


def expansion_factor(widths: Iterable[tuple[int, int]]) -> float | None:
    """A factor f with hidden = int(f * width) for all pairs; 2.66 if it fits.

    Args:
        widths: (width, hidden width) of feed-forward networks.

    Returns:
        f, or None if there is none.
    """
    pairs = set(widths)
    if not pairs:
        return None
    least = max(hidden / width for width, hidden in pairs)
    # Products are rounded, so the factor is the quotient or its neighbour.
    candidates = (USUAL_EXPANSION, least, math.nextafter(least, math.inf), math.nextafter(least, 0))
    return next((f for f in candidates if all(int(f * width) == hidden for width, hidden in pairs)), None)


def _count(shapes: Shapes, prefix: str) -> int:
    """Number of modules in a sequence."""
    return len({name.removeprefix(prefix).partition('.')[0] for name in shapes if name.startswith(prefix)})


def _expansion(shapes: Shapes) -> float:
    ending = 'ffn.project_out.weight'
    factor = expansion_factor((shape[0], shape[1]) for name, shape in shapes.items() if name.endswith(ending))
    if factor is None:
        raise LookupError(ending)
    return factor


def _restormer(shapes: Shapes) -> dict[str, Any]:
    """The arguments that PromptIR and PIPRestormer share."""
    stages = ('encoder_level1', 'encoder_level2', 'encoder_level3', 'latent')
    dim, channels = shapes['patch_embed.proj.weight'][:2]
    return {
        'inp_channels': channels,
        'out_channels': shapes['output.weight'][0],
        'dim': dim,
        'num_blocks': [_count(shapes, f'{stage}.') for stage in stages],
        'num_refinement_blocks': _count(shapes, 'refinement.'),
        'heads': [shapes[f'{stage}.0.attn.temperature'][0] for stage in stages],
        'ffn_expansion_factor': _expansion(shapes),
        'bias': 'encoder_level1.0.attn.qkv.bias' in shapes,
        'layer_norm_type': 'WithBias' if 'encoder_level1.0.norm1.body.bias' in shapes else 'BiasFree',
    }


def _promptir(shapes: Shapes) -> dict[str, Any]:
    if 'prompt1.prompt_param' not in shapes:
        return {**_restormer(shapes), 'prompts': False}
    return {
        **_restormer(shapes),
        'num_prompts': shapes['prompt1.prompt_param'][1],
        'prompt_sizes': [shapes[f'prompt{level}.prompt_param'][-1] for level in (1, 2, 3)],
        'prompts': True,
    }


def _pip_restormer(shapes: Shapes) -> dict[str, Any]:
    own = _without_sensor(shapes)
    return {**_restormer(own), **_pip_prompts(own, levels=3), **_sensor_inside(shapes)}


def _pip_nafnet(shapes: Shapes) -> dict[str, Any]:
    own = _without_sensor(shapes)
    width, channels = own['intro.weight'][:2]
    options = {
        'img_channel': channels,
        'width': width,
        'middle_blk_num': _count(own, 'middle_blks.'),
        'enc_blk_nums': [_count(own, f'encoders.{level}.') for level in range(_count(own, 'encoders.'))],
        'dec_blk_nums': [_count(own, f'decoders.{level}.') for level in range(_count(own, 'decoders.'))],
    }
    if 'prompt1.low_prompt_param' not in own:
        return {**options, 'prompts': False}
    residual = 'low_prompt_interaction_level1.alpha' in own
    return {**options, **_pip_prompts(own, levels=4), 'residual': residual, 'prompts': True, **_sensor_inside(shapes)}


def _pip_prompts(shapes: Shapes, levels: int) -> dict[str, Any]:
    """The arguments of PIP's prompts."""
    basic = [shapes[f'prompt{level}.low_prompt_param'] for level in range(1, levels + 1)]
    return {
        'num_degradations': shapes['prompt1.detask_prompt_param'][1],
        'prompt_dims': [shape[1] for shape in basic],
        'prompt_sizes': [shape[-1] for shape in basic],
        'interaction': _interaction(shapes),
    }


def _interaction(shapes: Shapes) -> str:
    """The interaction of `PromptToFeature`, by modules that only it has."""
    marks = {
        'topm': 'prompt_transformer_cross.attn.attn1',
        'cross': 'prompt_transformer_cross.attn.q.weight',
        'gate': 'gate.conv1.weight',
        'promptir_gate': 'gate.block.attn.qkv.weight',
    }
    for interaction, mark in marks.items():
        if f'low_prompt_interaction_level1.{mark}' in shapes:
            return interaction
    raise LookupError('low_prompt_interaction_level1')


def _without_sensor(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(SENSOR_PREFIX)}


def _sensor_inside(shapes: Shapes) -> dict[str, Any]:
    """The option `sensor`, if there is one; it has as many degradations as the network."""
    inside = {
        name.removeprefix(SENSOR_PREFIX): shape for name, shape in shapes.items() if name.startswith(SENSOR_PREFIX)
    }
    if not inside:
        return {}
    options = {name: value for name, value in _sensor(inside).items() if name != 'num_degradations'}
    return {'sensor': {'type': 'DegradationSensor', **options}}


def _sensor(shapes: Shapes) -> dict[str, Any]:
    before = {'0', '1', '2'}  # convolution, normalisation and activation of a stage are before its blocks
    stage = {name.split('.')[2] for name in shapes if name.startswith('stages.0.')}
    dim, doubled = shapes['stem.0.weight'][:2]
    return {
        'num_degradations': shapes['classifier.weight'][0],
        'dim': dim,
        'num_blocks': len(stage - before),
        'inp_channels': doubled // 2,
    }


def _airnet(shapes: Shapes) -> dict[str, Any]:
    dim, channels = shapes['R.head.0.weight'][:2]
    options = {
        'img_channel': channels,
        'dim': dim,
        'num_groups': _count(shapes, 'R.body.') - 1,  # a convolution ends both lists
        'num_blocks': _count(shapes, 'R.body.0.body.') - 1,
    }
    return {**options, 'queue_length': shapes['E.E.queue'][1]} if 'E.E.queue' in shapes else options


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


_NETWORKS: tuple[tuple[str, Callable[[Shapes], bool], Callable[[Shapes], dict[str, Any]]], ...] = (
    ('PIPRestormer', _has('patch_embed.proj.weight', 'prompt1.low_prompt_param'), _pip_restormer),
    ('PromptIR', _has('patch_embed.proj.weight', 'reduce_noise_level3.weight'), _promptir),
    ('PIPNAFNet', _has('intro.weight', 'middle_blks.0.beta'), _pip_nafnet),
    ('AirNet', _has('R.body.0.body.0.dgm1.dcn.weight'), _airnet),
    ('DegradationSensor', _has('stem.0.weight', 'classifier.weight'), _sensor),
)

RECOGNIZED = tuple(name for name, _, _ in _NETWORKS)
"""Networks that are recognised from their weights."""
