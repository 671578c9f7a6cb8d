"""Taps: places in any network where a prompt modulates the features, and the modules that do it.

Shapes: B batch, C feature channels, H W feature size, N = H W tokens, T degradations, D prompt channels, S prompt size.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from promptir_basicsr.archs.layers.arguments import check_whole_numbers, is_whole
from promptir_basicsr.archs.layers.prompts import INTERACTIONS, PromptGenBlock, PromptInPrompt, PromptToFeature
from promptir_basicsr.archs.layers.restormer import TransformerBlock
from promptir_basicsr.core.errors import raise_problems
from promptir_basicsr.core.messages import did_you_mean, first_few, unknown
from promptir_basicsr.core.problems import Keys, Problem, keys, problem

PROMPTS = ('pip', 'promptir')
"""PIP's prompts are selected by the degradation, PromptIR's by the features."""

TAP_INTERACTIONS = (*INTERACTIONS, 'promptir')
"""Interactions of `PromptToFeature`, and the block of PromptIR."""

HEADS = 4  # of the attention between features and prompt
MOST_SHOWN = 16  # maximum number of taps in a message


@dataclass(frozen=True)
class TapPoint:
    """Output of a module of a network.

    Attributes:
        channels: C.
        stride: ratio of the sides of the image to those of the features.
        tokens: the features are (B, N, C), pixels row by row, instead of (B, C, H, W).
    """

    channels: int
    stride: int
    tokens: bool = False

    def __str__(self) -> str:
        return f'{self.channels} channels, stride {self.stride}{", tokens" if self.tokens else ""}'

    def size(self, height: int, width: int, size_multiple: int, tokens: int) -> tuple[int, int]:
        """Return height and width of N tokens of an image that the network may have padded to multiples.

        Raises:
            ValueError: the number of tokens matches neither the image nor the padded image.
        """
        padded = [-(-side // size_multiple) * size_multiple for side in (height, width)]
        for image in ((height, width), padded):
            rows, columns = (-(-side // self.stride) for side in image)
            if rows * columns == tokens:
                return rows, columns
        raise ValueError(
            f'{tokens} tokens of an image of {height}x{width} (HxW): height and width of the features are unknown. '
            f'Pad the image to multiples of {size_multiple}, or tap a module whose features are (B, C, H, W).'
        )


@dataclass(frozen=True)
class Survey:
    """Outputs of all modules in a forward pass of a network.

    Attributes:
        taps: module -> its output, in the order in which the network calls them.
        others: module -> why it cannot be tapped.
        stride: the least common multiple of the strides of all features.
    """

    taps: Mapping[str, TapPoint]
    others: Mapping[str, str]
    stride: int

    def problem(self, module: object) -> str:
        """Return why a module cannot be tapped, and which can; empty if it can."""
        name = str(module)
        if name in self.taps:
            return ''
        known = name in self.others
        wrong = f"'{name}' {self.others[name]}." if known else f"the network has no module '{name}'."
        hint = '' if known else did_you_mean(name, [*self.taps, *self.others])
        # Parts of the network first, then their parts.
        names = sorted(self.taps, key=lambda name: name.count('.'))
        shown = first_few((f'{name} ({self.taps[name]})' for name in names), most=MOST_SHOWN)
        return f'{wrong}{hint} Taps: {shown}.'


def survey(network: nn.Module, channels: int, side: int) -> Survey:
    """Run a copy of a network on an empty image and record the outputs of its modules.

    The run is on the meta device, or on the CPU if that fails. A second image distinguishes tokens from other
    features with three dimensions.

    Args:
        network: maps (B, channels, H, W) to the same shape; not changed.
        side: H of the images; W is two and three times as large.

    Raises:
        ValueError: the network cannot be run, or does not preserve the shape of its input.

    Examples:
        >>> from promptir_basicsr.archs import survey
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1))
        >>> {name: str(point) for name, point in survey(network, channels=3, side=8).taps.items()}
        {'0': '8 channels, stride 1', '1': '3 channels, stride 1'}
    """
    images = [(2, channels, side, width * side) for width in (2, 3)]
    run = _dry_run(network, images[0])
    other = _dry_run(network, images[1]) if any(len(shape) == 3 for calls in run.values() for shape in calls) else {}
    (output,) = run.pop('')
    if output != images[0]:
        raise ValueError(f'returns {output} for an image {images[0]}; it must preserve the shape. Set its scale to 1.')
    taps, strides = {}, [1]
    for name, calls in run.items():
        points = [_point(shape, images[0]) for shape in calls]
        if any(point and point.tokens for point in points):
            points = [
                point if point in (_point(shape, images[1]) for shape in other[name]) else None for point in points
            ]
        strides += [point.stride for point in points if point]
        if len(points) == 1 and points[0]:
            taps[name] = points[0]
    others = {
        name: _why_not(run.get(name, []), images[0]) for name, _ in network.named_modules() if name and name not in taps
    }
    return Survey(taps, others, math.lcm(*strides))


def _dry_run(network: nn.Module, image: tuple[int, ...]) -> dict[str, list[tuple[int, ...]]]:
    """Return the output shapes of each module, per call, in the order of completion; '' is the network.

    Outputs that are not tensors have the shape ().
    """
    try:
        return _shapes(network, image, 'meta')
    except Exception:  # meta tensors do not support everything; the run on the CPU decides
        try:
            return _shapes(network, image, 'cpu')
        except Exception as error:
            raise ValueError(f'cannot be run on an image {image}: {str(error) or type(error).__name__}') from error


def _shapes(network: nn.Module, image: tuple[int, ...], device: str) -> dict[str, list[tuple[int, ...]]]:
    probe = copy.deepcopy(network).to(device).eval()
    given: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str, output: object) -> None:
        given.setdefault(name, []).append(tuple(output.shape) if isinstance(output, Tensor) else ())

    for name, module in probe.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with torch.no_grad():
        probe(torch.zeros(image, device=device))
    return given


def _point(found: tuple[int, ...], image: tuple[int, ...]) -> TapPoint | None:
    """Return the tap point of shapes that scale with the image; None for other shapes."""
    batch, _, height, width = image
    if len(found) not in (3, 4) or found[0] != batch or 0 in found:
        return None
    tokens = len(found) == 3
    stride = math.isqrt(height * width // found[1]) if tokens else height // found[2]
    rows, columns = (height // stride, width // stride) if stride else (0, 0)
    if (height, width) != (rows * stride, columns * stride):
        return None
    if tokens:
        return TapPoint(found[2], stride, tokens=True) if found[1] == rows * columns else None
    return TapPoint(found[1], stride) if found[2:] == (rows, columns) else None


def _why_not(found: Sequence[tuple[int, ...]], image: tuple[int, ...]) -> str:
    if not found:
        return 'is not called itself; at most its parts are'
    if len(found) > 1:
        return f'is called {len(found)} times in a pass; a tap must be called once'
    if not found[0]:
        return 'does not return a tensor'
    return f'returns {found[0]} for an image {image}; a tap must return (B, C, H, W), or tokens (B, H W, C)'


class PromptTap(nn.Module):
    """A prompt and its interaction with the features of one place.

    Args:
        channels: C of the features.
        prompts: 'pip' (selected by the degradation) or 'promptir' (blind).
        count: T degradations for 'pip', prompts in the bank for 'promptir'.
        prompt_dim: D.
        prompt_size: S.
        interaction: one of TAP_INTERACTIONS.
        residual: x + alpha modulated(x), alpha learned and initially 0, instead of modulated(x).

    Examples:
        >>> from promptir_basicsr.archs import PromptTap
        >>> tap = PromptTap(8, 'promptir', count=5, prompt_dim=8, prompt_size=4, interaction='promptir', residual=True)
        >>> features = torch.rand(1, 8, 6, 6)
        >>> torch.equal(tap(features), features)  # until it is trained
        True
    """

    def __init__(
        self,
        channels: int,
        prompts: str,
        count: int,
        prompt_dim: int,
        prompt_size: int,
        interaction: str,
        residual: bool,
    ) -> None:
        super().__init__()
        if prompts == 'pip':
            self.prompt: nn.Module = PromptInPrompt(prompt_dim, count, prompt_size)
        else:
            self.prompt = PromptGenBlock(prompt_dim, count, prompt_size, feature_dim=channels)
        if interaction == 'promptir':
            self.interact: nn.Module = MixBlock(channels, prompt_dim)
        else:
            self.interact = PromptToFeature(channels, prompt_dim, interaction, HEADS)
        self.alpha = nn.Parameter(torch.zeros(1)) if residual else None

    def forward(self, x: Tensor, *told: Any) -> Tensor:
        """Modulate features.

        Args:
            x: (B, C, H, W).
            told: for PIP's prompts weights (B, T) and a strength, as for `PromptInPrompt`; for PromptIR's nothing.

        Returns:
            (B, C, H, W), of the same dtype.
        """
        y = self.interact(x, self.prompt(x, *told))
        return (y if self.alpha is None else x + self.alpha * y).to(x.dtype)

    def vectors(self) -> Tensor:
        """Return the degradation-specific prompts: (T, D) for PIP, (N, D S S) for the N prompts of PromptIR."""
        names = {PromptInPrompt: 'detask_prompt_param', PromptGenBlock: 'prompt_param'}
        return self.prompt.get_parameter(names[type(self.prompt)])[0].flatten(1)


class MixBlock(nn.Module):
    """Mix features and prompt by a Transformer block and reduce them to the features' channels, as PromptIR does."""

    def __init__(self, channels: int, prompt_dim: int) -> None:
        super().__init__()
        width = channels + prompt_dim
        self.block = TransformerBlock(width, HEADS, ffn_expansion_factor=2.66, bias=False, layer_norm_type='WithBias')
        self.reduce = nn.Conv2d(width, channels, 1, bias=False)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """x: (B, C, H, W), prompt: (B, D, H, W). Returns (B, C, H, W)."""
        return self.reduce(self.block(torch.cat([x, prompt], dim=1)))


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """Reshape (B, N, C), row by row, to (B, C, H, W)."""
    return rearrange(tokens, 'b (h w) c -> b c h w', h=height, w=width)


def to_tokens(x: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B, N, C), row by row."""
    return rearrange(x, 'b c h w -> b (h w) c')


def check_kinds(prompts: object, interaction: object) -> list[Problem]:
    """Return problems with the kinds of prompts and interaction; None selects the default interaction."""
    problems = [] if prompts in PROMPTS else [unknown('prompts', 'kind', prompts, PROMPTS)]
    if interaction is not None and interaction not in TAP_INTERACTIONS:
        problems.append(unknown('interaction', 'interaction', interaction, TAP_INTERACTIONS))
    return problems


def check_prompt(
    where: str | Keys, channels: int, prompt_dim: object, prompt_size: object, interaction: str
) -> list[Problem]:
    """Return problems with the width and size of a prompt of either kind for features of C channels."""
    problems: list[Problem] = []
    where = keys(where)
    if not is_whole(prompt_size, least=2):
        message = f'{prompt_size!r} is not a whole number of at least 2.'
        problems.append(problem((*where, 'prompt_size'), message))
    least, multiple, beside = _rule(channels, interaction)
    if beside % 2:
        message = (
            f"'{interaction}' mixes features and prompt in {HEADS} heads, which needs an even number of channels, not "
            f"{channels}. Use another interaction, such as 'topm'."
        )
        problems.append(problem((*where, 'interaction'), message))
    elif not (isinstance(prompt_dim, int) and is_whole(prompt_dim, least) and (prompt_dim + beside) % multiple == 0):
        near = default_width(channels, interaction)
        together = f'together with the {channels} channels of the features ' if beside else ''
        message = (
            f"{prompt_dim!r}; for interaction '{interaction}' it must be a whole number of at least {least} that is "
            f'{together}a multiple of {multiple}, such as {near}.'
        )
        problems.append(problem((*where, 'prompt_dim'), message))
    return problems


def check_prompts(
    network: str, channels: Sequence[int], prompt_dims: Sequence[int], prompt_sizes: Sequence[int], interaction: str
) -> None:
    """Raise OptionError unless features with these channels per level can have these prompts."""
    check_whole_numbers(network, 'prompt_dims', prompt_dims, len(channels))
    check_whole_numbers(network, 'prompt_sizes', prompt_sizes, len(channels))
    problems = []
    for level, (width, dim, size) in enumerate(zip(channels, prompt_dims, prompt_sizes, strict=True)):
        arguments: dict[str | int, Keys] = {
            'prompt_dim': ('prompt_dims', level),
            'prompt_size': ('prompt_sizes', level),
            'interaction': ('interaction',),
        }
        for found in check_prompt(f'level{level + 1}', width, dim, size, interaction):
            problems.append(replace(found, path=arguments[found.path[-1]], shown=None))
    raise_problems(problems, network)


def default_width(channels: int, interaction: str) -> int:
    """Return the smallest D of at least C that the interaction allows, so that no prompt channel is unused."""
    least, multiple, beside = _rule(channels, interaction)
    width = max(channels, least)
    return width + -(width + beside) % multiple


def _rule(channels: int, interaction: str) -> tuple[int, int, int]:
    """Return the smallest D, and the number that divides D + the third number."""
    if interaction in ('topm', 'cross'):  # three channels per head, so that a selection is possible; else two
        return (3 if interaction == 'topm' else 2) * HEADS, HEADS, 0
    if interaction == 'gate':
        return 4, 2, 0
    return 4, HEADS, channels
