"""Whether the arguments of a network make sense, and whether an image is one."""

from collections.abc import Sequence

from torch import Tensor

from promptir_basicsr.core.errors import argument_error


def check_backbone(
    network: str, dim: int, num_blocks: Sequence[int], heads: Sequence[int], ffn_expansion_factor: float
) -> None:
    """Refuse a four-level backbone that cannot be built, or that would have parameters without a gradient.

    Raises:
        OptionError: names the network and the argument, what was found, what is allowed.
    """
    if not is_whole(dim, least=8) or dim % 8:
        near = 8 * round(dim / 8) if is_whole(dim, least=8) else 48
        raise argument_error(network, 'dim', f'dim is {dim!r}; it must be a positive multiple of 8, such as {near}.')
    check_whole_numbers(network, 'num_blocks', num_blocks, length=4)
    check_whole_numbers(network, 'heads', heads, length=4)
    for level, count in enumerate(heads):
        width = dim * 2**level
        # One channel a head leaves softmax a single entry: queries, keys and temperature would never learn.
        allowed = [n for n in range(1, width) if width % n == 0]
        if count not in allowed:
            raise argument_error(
                network,
                ('heads', level),
                f'heads[{level}] is {count}, which does not split the {width} channels of level {level + 1} into equal '
                f'heads of two channels or more. It must be one of {allowed}.',
            )
    if not isinstance(ffn_expansion_factor, int | float) or not ffn_expansion_factor * dim >= 1:
        raise argument_error(
            network,
            'ffn_expansion_factor',
            f'ffn_expansion_factor is {ffn_expansion_factor!r}; it must be a number of at least {1 / dim:.3g}, so that '
            f'dim {dim} has a hidden channel. The paper has 2.66.',
        )


def check_ends(network: str, inp_channels: int, out_channels: int, num_refinement_blocks: int) -> None:
    """Refuse channels of the two images, or a refinement, that a backbone cannot be built with.

    Raises:
        OptionError: names the network and the argument, what was found, what is allowed.
    """
    if not is_whole(inp_channels, least=1):
        message = f'inp_channels is {inp_channels!r}; it must be an integer of at least 1 (RGB has 3).'
        raise argument_error(network, 'inp_channels', message)
    if inp_channels != out_channels:
        raise argument_error(
            network,
            'out_channels',
            f'out_channels is {out_channels!r} and inp_channels {inp_channels}; they must be equal, because the output '
            f'is added to the input. Set out_channels to {inp_channels}.',
            'inp_channels',
        )
    if not is_whole(num_refinement_blocks, least=0):
        raise argument_error(
            network,
            'num_refinement_blocks',
            f'num_refinement_blocks is {num_refinement_blocks!r}; it must be an integer of at least 0. '
            'The paper has 4.',
        )


def check_whole_numbers(network: str, name: str, values: Sequence[int], length: int) -> None:
    """Raise OptionError unless `values` is a list or tuple of `length` integers of at least 1."""
    found = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else None
    if found is None or len(found) != length or not all(is_whole(value, least=1) for value in found):
        message = f'{name} is {values!r}; it must be a list of {length} integers of at least 1, one a level.'
        raise argument_error(network, name, message)


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is an integer (no bool, which YAML makes of yes and no) of at least `least`."""
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
