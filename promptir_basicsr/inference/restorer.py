"""Restore pictures: the verb `basicsr restore`, and the same on arrays and tensors. `docs/restore.md` tells how."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from promptir_basicsr.checkpoints import build, read_checkpoint
from promptir_basicsr.data.image_util import to_float
from promptir_basicsr.models.inference_util import Settings, restore_images, size_multiple_of
from promptir_basicsr.models.precision_util import PRECISIONS, device_problems
from promptir_basicsr.option_util import OptionError, check_count
from promptir_basicsr.pictures.file_util import Picture, PictureError, read_picture, write_picture
from promptir_basicsr.pictures.format_util import FORMATS, format_problems
from promptir_basicsr.restoring.plan_util import Plan, plan_restoration
from promptir_basicsr.restoring.run_util import Reporter, measure_sources, restore_files

__all__ = ['Picture', 'PictureError', 'Restorer', 'main', 'read_picture', 'restore', 'write_picture']

Image = TypeVar('Image', np.ndarray, Tensor)

_PROBE = 16  # pixels
_LEAST, _MOST = -1.0, 2.0  # of float images; beyond, they are of another range


class Restorer:
    """A network that restores pictures of any size.

    Args:
        weights: file of the weights; see `docs/weights.md`.
        network: `type` and arguments of the network, or an option file. Default: recognised from the file.
        device: 'auto' (a GPU where there is one), 'cpu', 'cuda', 'cuda:1'.
        settings: tiles, ensemble, precision.
        key: which weights of the file, such as 'params_ema'.

    Attributes:
        net: the network, in evaluation mode.
        checkpoint: what the file tells.

    Raises:
        OptionError: the file, the network or the device cannot be used.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        network: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        device: str | torch.device = 'auto',
        settings: Settings | None = None,
        key: str | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.device = find_device(device)
        problems = device_problems('precision', self.settings.precision, self.device)
        if problems:
            raise OptionError(problems)
        self.checkpoint = read_checkpoint(weights, network, key)
        self.net = build(self.checkpoint, self.device)
        self._check_output(os.fspath(weights))

    def restore(
        self,
        image: Image,
        degradation: Any = None,
        strength: Any = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Image:
        """Restore an image, or a batch of tensors.

        Args:
            image: array (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha, uint8, uint16
                or float in [0, 1]; or tensor (3, H, W) or (B, 3, H, W), RGB, float in [0, 1], on any device.
            degradation, strength: as of the networks that take labels.
            progress: called as progress(done, total) after each pass of the network.

        Returns:
            The same kind, size, type and device. Arrays are clipped and rounded to their type, tensors are not. Grey
            is the mean of the three colours, alpha is untouched.

        Raises:
            ValueError: the image or what is said of it is not understood, or the network gives no finite numbers.
        """
        self._check_told(degradation, strength)
        if isinstance(image, Tensor):
            return self._tensor(image, degradation, strength, progress)
        return self._arrays([image], degradation, strength, progress)[0]

    def restore_batch(
        self,
        images: Sequence[np.ndarray],
        degradation: Any = None,
        strength: Any = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[np.ndarray]:
        """Restore arrays of one size together, each as of `restore`."""
        self._check_told(degradation, strength)
        return self._arrays(images, degradation, strength, progress)

    def check_labels(self, degradation: Any = None, strength: Any = 1.0) -> None:
        """Whether the network understands what it is told of all images; found without restoring one.

        Raises:
            ValueError: it does not, or has to be told something.
        """
        self._check_told(degradation, strength)
        net: Any = self.net
        if getattr(net, 'takes_degradation', False) and hasattr(net, 'prompt_context'):
            side = size_multiple_of(net)
            with torch.no_grad():
                net.prompt_context(torch.zeros(1, 3, side, side, device=self.device), degradation, strength)

    def _check_output(self, path: str) -> None:
        """A network that enlarges, or tells degradations apart, would give nonsense without a word."""
        net: Any = self.net
        side = -(-_PROBE // size_multiple_of(net)) * size_multiple_of(net)
        x = torch.zeros(1, 3, side, side, device=self.device)
        try:
            with torch.no_grad():
                y = net(x, 0) if getattr(net, 'takes_degradation', False) else net(x)
        except (RuntimeError, ValueError):  # some networks want larger images; the first picture will tell
            return
        if not isinstance(y, Tensor) or y.shape != x.shape:
            made = f'an output of {tuple(y.shape)}' if isinstance(y, Tensor) else f'a {type(y).__name__}'
            told = f'{type(net).__name__} makes {made} of an image of {tuple(x.shape)}'
            raise OptionError([f"'{path}': {told}. Networks that keep the size of an image restore it."])

    def _check_told(self, degradation: Any, strength: Any) -> None:
        """Networks ignore what they do not take, and know no more than that labels are missing."""
        net: Any = self.net
        kind = type(net).__name__
        if not getattr(net, 'takes_degradation', False):
            if degradation is not None or strength != 1:
                raise ValueError(f'{kind} is blind: it takes neither labels nor a strength. Leave them out.')
        elif degradation is None and getattr(net, 'sensor', None) is None:
            raise ValueError(
                f'{kind} is told the degradation of an image, and these weights have no sensor to find it. '
                f'Give a label or a mixture of: {", ".join(labels_of(net))}.'
            )

    def _tensor(self, image: Tensor, degradation: Any, strength: Any, progress: Any) -> Tensor:
        if not image.is_floating_point() or image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.numel():
            raise ValueError(
                f'restore: a tensor of shape {tuple(image.shape)} and type {image.dtype}; give (3, H, W) or '
                '(B, 3, H, W), RGB, float in [0, 1].'
            )
        _check_range(float(image.min()), float(image.max()))
        whole = image.float() if image.ndim == 4 else image.float()[None]
        restored = self._run(whole, degradation, strength, progress).reshape(image.shape)
        return restored.to(image.device, image.dtype)

    def _arrays(self, images: Sequence[np.ndarray], degradation: Any, strength: Any, progress: Any) -> list[np.ndarray]:
        x = torch.stack([_to_tensor(image) for image in images])
        restored = self._run(x, degradation, strength, progress).cpu().numpy()
        return [_like(image, one) for image, one in zip(images, restored, strict=True)]

    def _run(self, x: Tensor, degradation: Any, strength: Any, progress: Any) -> Tensor:
        restored = restore_images(self.net, x, self.settings, degradation, strength, progress)
        if not torch.isfinite(restored).all():
            hint = '' if self.settings.precision == 'fp32' else ' fp32 has a wider range.'
            raise ValueError(f'{type(self.net).__name__} gave values that are not finite.{hint}')
        return restored


def restore(
    image: Image, weights: str | os.PathLike[str], degradation: Any = None, strength: Any = 1.0, **options: Any
) -> Image:
    """Restore one image; for several, build a `Restorer` once.

    Args:
        image, degradation, strength: as of `Restorer.restore`.
        weights, options: as of `Restorer`.
    """
    return Restorer(weights, **options).restore(image, degradation, strength)


def find_device(device: str | torch.device) -> torch.device:
    """The device of a name, 'auto' for a GPU where there is one.

    Raises:
        OptionError: there is none of that name.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise OptionError([f"device: '{device}' is none. Allowed: auto, cpu, cuda, cuda:N."]) from error
    count = torch.cuda.device_count()
    if found.type == 'cuda' and (not torch.cuda.is_available() or (found.index or 0) >= count):
        raise OptionError([f"device: '{device}' is not there; GPUs that PyTorch can use: {count}. Take auto or cpu."])
    return found


def labels_of(net: Any) -> list[str]:
    """The labels that a network takes: names, or ids where they are not known."""
    names = getattr(net, 'degradations', None)
    return list(names) if names else [str(number) for number in range(getattr(net, 'num_degradations', 0))]


def _to_tensor(image: np.ndarray) -> Tensor:
    """An array of any kind -> (3, H, W), RGB, float32."""
    image = np.asarray(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or not image.size or image.shape[2:] == (1,):
        raise ValueError(f'restore: an array of shape {image.shape}; give (H, W), (H, W, 2), (H, W, 3) or (H, W, 4).')
    if image.dtype in (np.uint8, np.uint16):
        image = to_float(image)
    elif np.issubdtype(image.dtype, np.floating):
        _check_range(float(image.min()), float(image.max()))
    else:
        raise ValueError(f'restore: an array of type {image.dtype}; give uint8, uint16 or float in [0, 1].')
    colours = image[..., :3] if channels >= 3 else np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1), dtype=np.float32))


def _check_range(least: float, most: float) -> None:
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError('restore: the image has values that are not finite (NaN or infinity).')
    if least < _LEAST or most > _MOST:
        raise ValueError(f'restore: the values go from {least:g} to {most:g}; float images are in [0, 1].')


def _like(image: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """(3, H, W) -> the shape and type of the image it was made from, with its alpha."""
    image = np.asarray(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    colours = np.clip(restored.transpose(1, 2, 0), 0, 1)
    if channels <= 2:
        colours = colours.mean(axis=2, keepdims=True)
    if np.issubdtype(image.dtype, np.integer):
        colours = np.rint(colours * np.float32(np.iinfo(image.dtype).max))
    colours = colours.astype(image.dtype)
    if channels in (2, 4):
        colours = np.concatenate([colours, image[..., -1:]], axis=2)
    return np.ascontiguousarray(colours.reshape(image.shape))


def main() -> int:
    """The verb `basicsr restore`.

    Returns:
        Exit status: 0; 1 where a picture could not be restored; 130 after Ctrl-C.

    Raises:
        OptionError: mistakes in the arguments; nothing has been written then.
    """
    args = argument_parser().parse_args()
    for stream in (sys.stdout, sys.stderr):  # names of files may be anything
        getattr(stream, 'reconfigure', lambda **_: None)(errors='backslashreplace')
    problems = _problems(args)
    made: list[Any] = []
    for understand in (_labels, _settings, _plan):
        try:
            made.append(understand(args))
        except OptionError as error:
            problems += error.problems
    if problems:
        raise OptionError(problems)
    labels, settings, plan = made
    restorer = Restorer(args.weights, args.opt, args.device, settings, args.key)
    try:
        restorer.check_labels(labels, args.strength)
    except ValueError as error:
        raise OptionError([f'--labels: {line}' for line in str(error).splitlines()]) from error
    least = size_multiple_of(restorer.net)
    if isinstance(args.tile, int) and args.tile < least:
        raise OptionError([f'--tile: {args.tile}; the network wants tiles of multiples of {least}. Take 128 or more.'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of decoders; what matters is in the report
        sizes = measure_sources(plan)
        reporter = Reporter(plan, sizes)
        reporter.tell_network(restorer)
        if args.dry_run:
            reporter.tell_plan()
            return 0
        with reporter:
            outcome = restore_files(restorer, plan, reporter, sizes, labels, args.strength, args.batch, args.overwrite)
    return reporter.tell_outcome(outcome)


def _problems(args: argparse.Namespace) -> list[str]:
    """Mistakes in single arguments."""
    problems = check_count('--batch', args.batch)
    if args.format:
        problems += format_problems('--format', args.format)
    if not args.weights:
        problems.append(
            '--weights: is missing: the file of a trained network. docs/weights.md tells where there are some and how '
            'to train them; `basicsr train -opt options/demo.yml` trains a small one in minutes.'
        )
    return problems


def _labels(args: argparse.Namespace) -> Any:
    return parse_labels(args.labels)


def _plan(args: argparse.Namespace) -> Plan:
    extension = args.format if args.format in FORMATS else None  # others are told elsewhere
    return plan_restoration(
        args.input, args.out, args.recursive, args.suffix, extension, args.overwrite, args.skip_existing
    )


def _settings(args: argparse.Namespace) -> Settings:
    try:
        return Settings(
            tile=args.tile,
            overlap=args.overlap,
            statistics=args.statistics,
            ensemble=args.ensemble,
            precision=args.precision,
        )
    except OptionError as error:
        raise OptionError(f'--{problem}' for problem in error.problems) from error


def parse_labels(text: str | None) -> Any:
    """`derain`, `derain:0.5,denoise:0.5`, or `blind` for None: the sensor, or a network that takes none.

    Raises:
        OptionError: it is none of these.
    """
    if text is None or text.strip() == 'blind':
        return None
    labels: dict[str | int, float] = {}
    for part in text.split(','):
        name, _, weight = (piece.strip() for piece in part.partition(':'))
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            value = float('nan')
        key = int(name) if name.isdecimal() else name
        if not name or key in labels or not 0 <= value < float('inf'):
            told = 'Give a label, or a mixture like derain:0.7,dehaze:0.3, with each label once.'
            raise OptionError([f"--labels: '{text}' is not understood. {told}"])
        labels[key] = value
    return next(iter(labels)) if len(labels) == 1 and ':' not in text else labels


def argument_parser() -> argparse.ArgumentParser:
    """The command line of `basicsr restore`."""
    parser = argparse.ArgumentParser(prog='basicsr restore', description='Restore pictures of any size.')
    parser.add_argument('input', nargs='+', metavar='INPUT', help='files, folders, patterns in quotes')
    parser.add_argument('-o', '--out', required=True, metavar='OUT', help='folder; for a single file also a file')
    network = parser.add_argument_group('the network')
    network.add_argument('--weights', metavar='FILE', help='weights of a trained network')
    network.add_argument('-opt', metavar='FILE', help='option file with network_g, where weights do not tell theirs')
    network.add_argument('--key', metavar='NAME', help='which weights of the file; default: params_ema, then params')
    network.add_argument(
        '--labels', metavar='LABELS', help='degradation, or a mixture like derain:0.7,dehaze:0.3, or blind (a sensor)'
    )
    network.add_argument('--strength', type=float, default=1.0, metavar='X', help='of the prompts; default: 1')
    how = parser.add_argument_group('how it is computed')
    how.add_argument('--ensemble', action='store_true', help='mean of the 8 flips and rotations; 8 times the time')
    how.add_argument(
        '--tile', type=_tile, default='auto', metavar='auto|none|N', help='side of the tiles of large pictures'
    )
    how.add_argument('--overlap', type=int, default=32, metavar='N', help='of tiles, pixels; default: %(default)s')
    how.add_argument(
        '--statistics', default='tiles', metavar='KIND', help='what tiles know of the whole; docs/tiles.md'
    )
    how.add_argument('--precision', choices=PRECISIONS, default='fp32', help='default: %(default)s')
    how.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1; default: %(default)s')
    how.add_argument('--batch', type=int, default=1, metavar='N', help='pictures of equal size at once; default: 1')
    files = parser.add_argument_group('files')
    files.add_argument('-r', '--recursive', action='store_true', help='folders below folders, too')
    files.add_argument('--suffix', default='', metavar='TEXT', help='goes behind the names of files')
    files.add_argument('--format', type=_format, metavar='EXT', help=f'{", ".join(FORMATS)}; default: as the input')
    there = files.add_mutually_exclusive_group()
    there.add_argument('--overwrite', action='store_true', help='replace files that are there (never an input)')
    there.add_argument('--skip-existing', action='store_true', help='leave out what is there, e.g. to go on')
    files.add_argument('--dry-run', action='store_true', help='tell what would be done')
    return parser


def _format(text: str) -> str:
    return text.lower().removeprefix('.')


def _tile(text: str) -> int | str | None:
    if text in ('auto', 'none'):
        return None if text == 'none' else text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is none of auto, none and a whole number of pixels')
    return int(text)
