"""PromptedNetwork: any network that preserves the image size, with prompts that modulate some of its features.

The prompts are those of PIP (arXiv 2312.05038) or PromptIR (arXiv 2306.13090); the papers add them to Restormer. Here
they follow modules of an unmodified network.

Shapes: B batch, C feature channels, H W height and width, N tokens, T degradations.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import is_whole
from promptir_basicsr.archs.layers.conditioning import ConditionedNetwork, PromptContext
from promptir_basicsr.archs.layers.taps import (
    PromptTap,
    Survey,
    TapPoint,
    check_kinds,
    check_prompt,
    default_width,
    survey,
    to_image,
    to_tokens,
)
from promptir_basicsr.archs.traits import traits_of
from promptir_basicsr.core.errors import argument_error, raise_problems
from promptir_basicsr.core.messages import unknown_keys
from promptir_basicsr.core.problems import Problem, problem
from promptir_basicsr.core.registry import build, check_call, register

IMAGE_CHANNELS = 3
PROMPT_REACH = 64  # the default size of a prompt is this over the stride, as in the released programs
LEAST_PROMPT_SIZE = 4
TAP_KEYS = ('module', 'prompt_dim', 'prompt_size')


@register(ARCH_REGISTRY)
class PromptedNetwork(ConditionedNetwork):
    """A network whose features are modulated by prompts after named modules.

    The modulated features replace the output of a tapped module wherever the network uses it: a tap in the encoder of
    a U-shaped network changes both the skip connection and the path down. With `residual` the initial output is that
    of the plain network, bit by bit.

    Args:
        network: {type: a registered network, and its arguments}; it must map (B, 3, H, W) to the same shape.
        taps: modules whose output is modulated, by their names in the network, such as 'conv_after_body' or
            {module: layers.0, prompt_dim: 64, prompt_size: 32}. A module must be called once per pass and return
            (B, C, H, W), or tokens (B, N, C) row by row. Default prompt_dim: C, or the next width that the interaction
            allows; default prompt_size: 64 over the stride of the features, at least 4.
        prompts: 'pip', selected by a label or a sensor, or 'promptir', which is blind.
        interaction: how a prompt modulates features, see `PromptToFeature`; or 'promptir', the block of PromptIR.
            Default: 'topm' for PIP's prompts, 'promptir' for PromptIR's.
        num_degradations: T, for PIP's prompts.
        degradations: names by label. Default for T = 5: denoise, derain, dehaze, deblur, lowlight.
        num_prompts: prompts in the bank of a tap, for PromptIR's prompts.
        residual: add the modulated features to the features with a learned factor that is initially 0.
        freeze_network: train only the prompts; the network also stays in evaluation mode.
        sensor: for PIP's prompts, `type` and arguments of a network that predicts the degradation if no label is
            passed, such as DegradationSensor; see `attach_sensor`.
        hard_sensor: use only the sensor's most likely degradation instead of its probabilities.

    Attributes:
        levels: names of the tapped modules, in the order in which the network calls them.
        size_multiple: the network's own, or its window size times its largest stride, or that stride.

    Raises:
        OptionError: an argument is invalid; one line for each, with the allowed values.

    Examples:
        >>> from promptir_basicsr.archs import PromptedNetwork
        >>> backbone = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 1}
        >>> net = PromptedNetwork(backbone, taps=['conv_after_body'], prompts='promptir')
        >>> net(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    scale = 1
    inp_channels = out_channels = IMAGE_CHANNELS

    def __init__(
        self,
        network: Mapping[str, Any],
        taps: Sequence[str | Mapping[str, Any]],
        prompts: str = 'pip',
        interaction: str | None = None,
        num_degradations: int = 5,
        degradations: Sequence[str] | None = None,
        num_prompts: int = 5,
        residual: bool = True,
        freeze_network: bool = False,
        sensor: Mapping[str, Any] | None = None,
        hard_sensor: bool = False,
    ) -> None:
        super().__init__(num_degradations, degradations)
        problems = check_kinds(prompts, interaction)
        if not is_whole(num_prompts, least=1):
            problems.append(problem('num_prompts', f'{num_prompts!r} is not a whole number of at least 1.'))
        if sensor is not None and prompts == 'promptir':
            message = "PromptIR's prompts are blind and do not use one. Omit it, or use PIP's prompts."
            problems.append(problem('sensor', message))
        problems += _check_network(network)
        raise_problems(problems, 'PromptedNetwork')
        interaction = interaction or ('topm' if prompts == 'pip' else 'promptir')

        # Many constructors compute with their tensors, which the meta device does not support.
        with torch.device('cpu'):
            backbone, found = _build(network)
        traits = traits_of(backbone, network)
        self.size_multiple = traits.declared_multiple or (traits.window_size or 1) * found.stride
        points = _find(found, taps, interaction)

        self.takes_degradation = prompts == 'pip'
        self.levels = tuple(point.module for point in points)
        self.freeze_network = freeze_network
        self.network: nn.Module = backbone.to(torch.get_default_device())
        count = num_degradations if prompts == 'pip' else num_prompts
        self.taps = nn.ModuleList(
            PromptTap(point.given.channels, prompts, count, point.width, point.size, interaction, residual)
            for point in points
        )
        for number, point in enumerate(points):
            self.network.get_submodule(point.module).register_forward_hook(_Modulate(number, point.module, point.given))
        self.network.requires_grad_(not freeze_network)
        self.attach_sensor(sensor, hard_sensor)
        self.train()

    def _restore(self, x: Tensor, context: PromptContext | None) -> Tensor:
        return self._run(x, context)[0]

    def prompt_weights(
        self, x: Tensor, degradation: Any = None, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return the weights as in `ConditionedNetwork`; (B, num_prompts) per tap for PromptIR's prompts."""
        return super().prompt_weights(x, degradation, overrides) or self._run(x, None)[1]

    def prompt_vectors(self) -> dict[str, Tensor]:
        """Return the degradation-specific prompts of each tap, the input of a loss of prompts.

        Returns:
            (T, D) for PIP's prompts, (num_prompts, D S S) for PromptIR's, by the names of the tapped modules.
        """
        taps: Any = self.taps
        return {level: tap.vectors() for level, tap in zip(self.levels, taps, strict=True)}

    def with_prompts(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Complete weights of the plain network by this network's prompts.

        Other weights are returned unchanged.
        """
        if any(name.startswith('taps.') for name in weights):
            return dict(weights)
        own = {name: value for name, value in self.state_dict().items() if not name.startswith('network.')}
        return {**{f'network.{name}': value for name, value in weights.items()}, **own}

    def train(self, mode: bool = True) -> 'PromptedNetwork':
        """Set training or evaluation mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.freeze_network:
            self.network.eval()
        return self

    def _check(self, x: Tensor) -> None:
        """Check nothing: the network itself may pad."""

    def _run(self, x: Tensor, context: PromptContext | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the network's output, and the weights of PromptIR's prompts by level."""
        running = _Pass(self, x, context)
        token = _PASS.set(running)
        try:
            return self.network(x), running.weights
        finally:
            _PASS.reset(token)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights of this network, or of the plain network without changing the prompts."""
        own = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        named = self.with_prompts({name.removeprefix(prefix): value for name, value in own.items()})
        state_dict.update({prefix + name: value for name, value in named.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass
class _Pass:
    """State of a forward pass of a PromptedNetwork for the hooks in its network.

    The hooks fill `weights` with the weights of PromptIR's prompts, by level.
    """

    net: PromptedNetwork
    image: Tensor
    context: PromptContext | None
    weights: dict[str, Tensor] = field(default_factory=dict)


_PASS: ContextVar[_Pass | None] = ContextVar('pass of a PromptedNetwork', default=None)


class _Modulate:
    """The forward hook of a tapped module.

    It holds no module but finds the prompts through the running pass, so that copies of the network (averaged weights,
    replicas on other devices, unpickled networks) use their own prompts.
    """

    def __init__(self, number: int, module: str, given: TapPoint) -> None:
        self.number, self.level, self.given = number, module, given

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        running = _PASS.get()
        if running is None:
            # A network that recomputes features in the backward pass would recompute them without prompts.
            raise RuntimeError(
                f"PromptedNetwork: '{self.level}' was called outside the forward pass. Call the PromptedNetwork, "
                'not its network, and disable gradient checkpointing in the network (`use_checkpoint: false`).'
            )
        height, width = running.image.shape[-2:]
        x = output
        if self.given.tokens:
            x = to_image(x, *self.given.size(height, width, running.net.size_multiple, x.shape[1]))
        tap: Any = running.net.taps[self.number]
        if running.context is None:
            running.weights[self.level] = tap.prompt.weights(x)
            x = tap(x)
        else:
            x = tap(x, running.context.weights[self.level], running.context.strength[self.level])
        x = to_tokens(x) if self.given.tokens else x
        # Keep the network's memory layout: a convolution's last digits depend on it.
        return x if x.stride() == output.stride() else torch.empty_like(output).copy_(x)


@dataclass(frozen=True)
class _Tap:
    """A tap, with the settings of its prompt."""

    module: str
    given: TapPoint
    width: int
    size: int


def _find(found: Survey, taps: object, interaction: str) -> list[_Tap]:
    """Return the taps of the options, in the order in which the network calls them.

    Raises:
        OptionError: they are not taps of the network, or a prompt cannot be built; lists all problems.
    """
    if not isinstance(taps, Sequence) or isinstance(taps, str) or not taps:
        raise argument_error(
            'PromptedNetwork',
            'taps',
            f'taps is {taps!r}; must be a list of modules, such as {[*found.taps][-2:]}, each a name or '
            '{module: name, prompt_dim: 64, prompt_size: 64}.',
        )
    points, seen = [], set()
    problems: list[Problem] = []
    for number, tap in enumerate(taps):
        where = ('taps', number)
        options = {'module': tap} if isinstance(tap, str) else tap
        if not isinstance(options, Mapping):
            problems.append(problem(where, f'must be {{module: name}}, not {tap!r}.'))
            continue
        problems += unknown_keys(where, options, TAP_KEYS)
        module = options.get('module')
        wrong = found.problem(module)
        if wrong or module in seen:
            problems.append(problem((*where, 'module'), wrong or f'{module!r} is in the list twice.'))
            continue
        seen.add(module)
        given = found.taps[str(module)]
        width: Any = options.get('prompt_dim', default_width(given.channels, interaction))
        size: Any = options.get('prompt_size', max(PROMPT_REACH // given.stride, LEAST_PROMPT_SIZE))
        problems += check_prompt(where, given.channels, width, size, interaction)
        points.append(_Tap(str(module), given, width, size))
    raise_problems(problems, 'PromptedNetwork')
    order = list(found.taps)
    return sorted(points, key=lambda point: order.index(point.module))


def _build(options: Mapping[str, Any]) -> tuple[nn.Module, Survey]:
    """Build the network of the options, and survey the outputs of its modules.

    Raises:
        OptionError: it cannot be built or run, or already has such prompts.
    """
    kind = options['type']
    try:
        network = build(ARCH_REGISTRY, options)
    except Exception as error:  # any error means that these options build no network
        message = f'network: {kind} cannot be built: {str(error) or type(error).__name__}'
        raise argument_error('PromptedNetwork', 'network', message) from error
    traits = traits_of(network, options)
    if traits.takes_degradation or isinstance(network, PromptedNetwork):
        message = f'network.type: {kind} already has such prompts. Use a network without prompts.'
        raise argument_error('PromptedNetwork', ('network', 'type'), message)
    side = traits.declared_multiple or 16 * (traits.window_size or 1)
    try:
        return network, survey(network, IMAGE_CHANNELS, side * -(-64 // side))
    except ValueError as error:
        raise argument_error('PromptedNetwork', 'network', f'network: {kind} {error}') from error


def _check_network(options: object) -> list[Problem]:
    """Return problems with the type and the argument names of a network."""
    if not isinstance(options, Mapping) or 'type' not in options:
        message = f'must be options with a type, e.g. {{type: SwinIR, upscale: 1}}, not {options!r}.'
        return [problem('network', message)]
    return check_call('network', 'network', options, ARCH_REGISTRY)
