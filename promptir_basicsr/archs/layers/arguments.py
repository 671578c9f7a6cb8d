"""Checks of the arguments and input images of networks."""

from collections.abc import Sequence

from torch import Tensor

from promptir_basicsr.core.errors import OptionError, argument_error


def check_backbone(
    network: str, dim: int, num_blocks: Sequence[int], heads: Sequence[int], ffn_expansion_factor: float
) -> None:
    """Reject arguments of a four-level backbone that cannot be built or would have parameters without a gradient.

    Raises:
        OptionError: names the network and the argument, what was found, what is allowed.
    """
    if not is_whole(dim, least=8) or dim % 8:
        near = 8 * round(dim / 8) if is_whole(dim, least=8) else 48
        raise must_be(network, 'dim', dim, f'a positive multiple of 8, such as {near}.')
    check_whole_numbers(network, 'num_blocks', num_blocks, length=4)
    check_whole_numbers(network, 'heads', heads, length=4)
    for level, count in enumerate(heads):
        width = dim * 2**level
        # With one channel per head the softmax has one entry: queries, keys and temperature would never learn.
        allowed = [n for n in range(1, width) if width % n == 0]
        if count not in allowed:
            raise argument_error(
                network,
                ('heads', level),
                f'heads[{level}] is {count}, which does not split the {width} channels of level {level + 1} into equal '
                f'heads of two channels or more. It must be one of {allowed}.',
            )
    if not isinstance(ffn_expansion_factor, int | float) or not ffn_expansion_factor * dim >= 1:
        what = f'a number of at least {1 / dim:.3g}, so that dim {dim} has a hidden channel. The paper uses 2.66.'
        raise must_be(network, 'ffn_expansion_factor', ffn_expansion_factor, what)


def check_ends(network: str, inp_channels: int, out_channels: int, num_refinement_blocks: int) -> None:
    """Reject invalid image channels and numbers of refinement blocks of a backbone.

    Raises:
        OptionError: names the network and the argument, what was found, what is allowed.
    """
    check_whole(network, 'inp_channels', inp_channels, 1, ' (RGB has 3).')
    if inp_channels != out_channels:
        raise argument_error(
            network,
            'out_channels',
            f'out_channels is {out_channels!r} and inp_channels {inp_channels}; they must be equal, because the output '
            f'is added to the input. Set out_channels to {inp_channels}.',
            'inp_channels',
        )
    check_whole(network, 'num_refinement_blocks', num_refinement_blocks, 0, '. The paper uses 4.')


def must_be(network: str, name: str, value: object, what: str) -> OptionError:
    """Return the error for an argument with an invalid value."""
    return argument_error(network, name, f'{name} is {value!r}; it must be {what}')


def check_whole(network: str, name: str, value: object, least: int, hint: str = '.') -> None:
    """Raise OptionError unless `value` is an integer of at least `least`; the message ends with a hint."""
    if not is_whole(value, least):
        raise must_be(network, name, value, f'an integer of at least {least}{hint}')


def check_whole_numbers(network: str, name: str, values: Sequence[int], length: int) -> None:
    """Raise OptionError unless `values` is a list or tuple of `length` integers of at least 1."""
    found = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else None
    if found is None or len(found) != length or not all(is_whole(value, least=1) for value in found):
        raise must_be(network, name, values, f'a list of {length} integers of at least 1, one per level.')


def is_whole(value: object, least: int) -> bool:
    """Return whether `value` is an integer of at least `least`, not a bool (yes and no in YAML)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_image(network: str, x: Tensor, channels: int, size_multiple: int) -> None:
    """Raise ValueError unless x is (B, channels, H, W) with H and W divisible by size_multiple."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f'{network}: the input is {tuple(x.shape)}; it must be (B, {channels}, H, W).')
    height, width = x.shape[-2:]
    if height % size_multiple or width % size_multiple:
        padded = [-(-size // size_multiple) * size_multiple for size in (height, width)]
        raise ValueError(
            f'{network}: the input is {height}x{width} (HxW); both sides must be divisible by {size_multiple}. '
            f'Pad it to {padded[0]}x{padded[1]} and crop the output.'
        )
