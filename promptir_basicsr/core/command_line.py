"""The command lines of all verbs. Standard library only: `basicsr VERB --help` does not wait for torch."""

import argparse
import os
from collections.abc import Callable
from typing import NoReturn

from promptir_basicsr.core.messages import printable
from promptir_basicsr.core.vocabulary import (
    COMPARISON_FORMATS,
    EXPLAIN_DEFAULTS,
    EXPORT_FORMATS,
    EXPORT_SIZES,
    KERNELS,
    LAYOUT_ENDINGS,
    MAX_PIXELS,
    PICTURE_FORMATS,
    PRECISIONS,
    STORAGES,
    VERIFIED_IMAGES,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def argument_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb's arguments."""
    parser = _Parser(prog=f'basicsr {verb}', description=_DESCRIPTIONS.get(verb))
    _PARTS[verb](parser)
    return parser


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='of several processes')
    parser.add_argument('--auto_resume', action='store_true', help='continue from the newest training state')
    parser.add_argument('--debug', action='store_true', help='short periods, name with the prefix debug_')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    _force_yml(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML) of a training or a test')
    _force_yml(parser)
    parser.add_argument('--fast', action='store_true', help='read the beginnings of the images, do not decode them')
    parser.add_argument(
        '--workers',
        type=_count(0),
        metavar='N',
        default=cores(),
        help='processes that read images; default: %(default)s',
    )
    parser.add_argument(
        '--processes', type=_count(1), metavar='N', default=1, help='processes that will train together; default: 1'
    )
    parser.add_argument(
        '--allow-counts', action='store_true', help='another number of images than expected_images is no error'
    )
    parser.add_argument('--json', action='store_true', help='print one JSON document')


def _prepare(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('-opt', metavar='FILE', help='option file (YAML)')
    what.add_argument('--protocol', metavar='NAME', help='a published protocol, without an option file')
    parser.add_argument('--dataroot', metavar='DIR', help='where the folders of --protocol start')
    parser.add_argument(
        '--out', type=_output, required=True, metavar='DIR', help='folder for the databases and their options'
    )
    parser.add_argument(
        '--storage',
        choices=STORAGES,
        default='original',
        help='of training images: the files as they are (default), PNG, or pixels',
    )
    parser.add_argument('--workers', type=int, metavar='N', help='images at a time (default: number of cores)')
    parser.add_argument('--overwrite', action='store_true', help='replace databases of other content')
    parser.add_argument(
        '--verify',
        nargs='?',
        const=str(VERIFIED_IMAGES),
        metavar='N',
        help=f'compare N images of each database with their sources (default {VERIFIED_IMAGES}), or all',
    )
    parser.add_argument('--force_yml', '--set', nargs='+', metavar='KEY=VALUE', help='replace options of FILE')


def _restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', nargs='+', metavar='INPUT', help='files, folders, patterns in quotes')
    parser.add_argument(
        '-o', '--out', type=_output, required=True, metavar='OUT', help='folder; for a single file also a file'
    )
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
    how.add_argument('--kernels', choices=KERNELS, help="of PromptIR and PIP on NVIDIA GPUs; default: torch's own")
    how.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1; default: %(default)s')
    how.add_argument('--batch', type=int, default=1, metavar='N', help='pictures of equal size at once; default: 1')
    files = parser.add_argument_group('files')
    files.add_argument('-r', '--recursive', action='store_true', help='folders below folders, too')
    files.add_argument('--suffix', default='', metavar='TEXT', help='goes behind the names of files')
    files.add_argument(
        '--format', type=_format, metavar='EXT', help=f'{", ".join(PICTURE_FORMATS)}; default: as the input'
    )
    files.add_argument(
        '--max-pixels',
        type=_count(1),
        metavar='N',
        default=MAX_PIXELS,
        help='pictures with more are not read; default: %(default)s',
    )
    there = files.add_mutually_exclusive_group()
    there.add_argument('--overwrite', action='store_true', help='replace files that are there (never an input)')
    there.add_argument('--skip-existing', action='store_true', help='leave out what is there, e.g. to go on')
    files.add_argument('--dry-run', action='store_true', help='tell what would be done')


def _convert(parser: argparse.ArgumentParser) -> None:
    endings = ', '.join(f'{layout} {" ".join(endings)}' for layout, endings in LAYOUT_ENDINGS.items())
    parser.add_argument('input', metavar='IN', help='.pth, .pt, .ckpt or .safetensors')
    parser.add_argument('output', type=_output, metavar='OUT', nargs='?', help='the file to write')
    parser.add_argument('--to', choices=LAYOUT_ENDINGS, help=f'layout; default: by the ending of OUT ({endings})')
    parser.add_argument('--key', metavar='NAME', help='which weights of IN, and these alone; default: params_ema first')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, where it is not told from IN')
    parser.add_argument('--half', action='store_true', help='write float16: half the size, rounded')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')


def _export(parser: argparse.ArgumentParser) -> None:
    endings = ', '.join(f'{ending} {kind}' for kind, ending in EXPORT_FORMATS.items())
    parser.add_argument('weights', metavar='WEIGHTS', help='.pth, .pt, .ckpt or .safetensors')
    parser.add_argument('output', type=_output, metavar='OUT', help='the file to write')
    parser.add_argument('--to', choices=EXPORT_FORMATS, help=f'format; default: by the ending of OUT ({endings})')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, where it is not told from WEIGHTS')
    parser.add_argument('--key', metavar='NAME', help='which weights of WEIGHTS; default: params_ema first')
    parser.add_argument(
        '--sizes',
        nargs='+',
        metavar='HxW',
        default=['x'.join(map(str, size)) for size in EXPORT_SIZES],
        help='images that the file is tried with, HxW or BxHxW; default: %(default)s',
    )
    parser.add_argument('--fixed', metavar='HxW', help='take one image of this size only')
    parser.add_argument('--labels', action='store_true', help='ask for the degradation, not the sensor in the network')
    parser.add_argument('--opset', type=int, metavar='N', help='of ONNX; default: that of PyTorch')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file of a training or a test')
    parser.add_argument(
        '--weights', metavar='FILE', help='weights of the network; default: path.pretrain_network_g of the option file'
    )
    parser.add_argument('--out', type=_output, metavar='DIR', help='folder for the files; default: explain/NAME')
    parser.add_argument('--overwrite', action='store_true', help='replace what this command has written there before')
    for name, what in (
        ('images', 'images of each task, at most'),
        ('size', 'longest side of an image; larger ones are cut'),
        ('untrained', 'networks with random weights to compare with'),
        ('permutations', 'of the tasks among the images'),
        ('seed', 'of everything random'),
    ):
        help_text = f'{what}; default: %(default)s'
        parser.add_argument(f'--{name}', type=int, metavar='N', default=EXPLAIN_DEFAULTS[name], help=help_text)
    parser.add_argument('--device', default='auto', help='such as cpu or cuda:0; default: a GPU where there is one')
    parser.add_argument('--no-page', action='store_true', help='no HTML page')
    parser.add_argument('--force_yml', '--set', nargs='+', metavar='KEY=VALUE', help='replace options of FILE')


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--weights', metavar='FILE', help='weights of a trained network')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, where weights do not tell theirs')
    parser.add_argument('--key', metavar='NAME', help='which weights of the file; default: params_ema, then params')
    parser.add_argument('--tile', type=_any_tile, default='auto', metavar='auto|none|N', help='side of tiles in pixels')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='default: %(default)s')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1; default: %(default)s')
    parser.add_argument(
        '--examples', metavar='DIR', help='pictures to choose from; default: degraded photographs of scikit-image'
    )
    parser.add_argument(
        '--max-megapixels', type=float, default=16, metavar='N', help='larger pictures are refused; default: 16'
    )
    parser.add_argument(
        '--host', default='127.0.0.1', help='0.0.0.0 lets others on the network in; default: %(default)s, this machine'
    )
    parser.add_argument('--port', type=int, default=7860, help='default: %(default)s')
    parser.add_argument('--no-browser', action='store_true', help='do not open the page')


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run or results.json; NAME=RUN names it')
    parser.add_argument('--metric', nargs='+', metavar='NAME', help='metrics to show; default: all that the runs share')
    parser.add_argument('--published', metavar='PROTOCOL', help='rows that papers print, e.g. 3d')
    parser.add_argument(
        '--seeds', action='store_true', help='one row for runs that differ by their seed, with deviation'
    )
    parser.add_argument('--anyway', action='store_true', help='also where numbers are not comparable, with the reasons')
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        '--format', choices=COMPARISON_FORMATS, default='markdown', help='of the table; default: %(default)s'
    )
    for name in COMPARISON_FORMATS:
        form.add_argument(f'--{name}', dest='format', action='store_const', const=name, help=argparse.SUPPRESS)
    parser.add_argument('-o', '--out', type=_output, metavar='FILE', help='write the table to a file')
    parser.add_argument('--curves', type=_output, metavar='PATH', help='draw learning curves: PATH.png and PATH.svg')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def _measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'restored', metavar='RESTORED', help='folder of restored images; with --protocol, one a task in it'
    )
    parser.add_argument('--target', metavar='CLEAN', help='folder of the clear images')
    parser.add_argument(
        '--pairing', nargs='+', metavar='RULE', help='name of a rule, or a template for RESTORED and one for CLEAN'
    )
    parser.add_argument('--crop-multiple', type=_count(1), metavar='N', help='cut both at the centre to multiples of N')
    parser.add_argument('--protocol', metavar='NAME', help='targets, pairs and cuts of a published protocol')
    parser.add_argument('--dataroot', metavar='DIR', help='where the folders of --protocol start')
    parser.add_argument(
        '--metrics', nargs='+', metavar='NAME', default=['psnr', 'ssim'], help='default: psnr ssim, those of the papers'
    )
    parser.add_argument('--name', metavar='NAME', help='of the row in `basicsr compare`; default: name of the folder')
    parser.add_argument('-o', '--out', type=_output, metavar='FILE', help='write results.json for `basicsr compare`')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def _publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('run', metavar='RUN', help='name of a run in experiments/, folder of a run, or weights')
    parser.add_argument('-o', '--out', type=_output, required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--name', metavar='NAME', help='of the model; default: name of the run')
    parser.add_argument('--license', metavar='ID', help='of the weights, as the Hub knows it, e.g. cc-by-4.0')
    parser.add_argument(
        '--results', metavar='RUN', help='table of the card: folder of a test or results.json; default: that of the run'
    )
    parser.add_argument('--image', metavar='FILE', help='picture of the card; default: contact_sheet.png of the run')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, where weights do not tell theirs')
    parser.add_argument('--key', metavar='NAME', help='which weights of the file; default: params_ema, then params')
    parser.add_argument('--overwrite', action='store_true', help='replace files in DIR')


def _options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--list', action='store_true', help='name them, with a line on each (default)')
    what.add_argument('--copy', metavar='NAME', help='copy one of them, to change it')
    parser.add_argument('-o', '--out', type=_output, metavar='FILE', help='the copy; default: NAME in this folder')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def _force_yml(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--force_yml',
        '--set',
        nargs='+',
        metavar='KEY=VALUE',
        help='replace options, e.g. train:total_iter=1000 name=trial',
    )


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least {least}')
        return int(text)

    return count


def _output(path: str) -> str:
    """Where results go; joined to a name, an empty path would be the current folder."""
    if not path:
        raise argparse.ArgumentTypeError('is empty; the current folder is .')
    return path


def _tile(text: str) -> int | str | None:
    if text in ('auto', 'none'):
        return None if text == 'none' else text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is none of auto, none and a whole number of pixels')
    return int(text)


def _any_tile(text: str) -> int | str | None:
    """Others are refused together with what else is wrong."""
    return None if text == 'none' else int(text) if text.isdecimal() else text


def _format(text: str) -> str:
    return text.lower().removeprefix('.')


_DESCRIPTIONS = {
    'check': 'Tell whether training would be right. Nothing is written to disk.',
    'prepare': 'Store the images of an option file in LMDBs, and options that read them.',
    'restore': 'Restore pictures of any size.',
    'convert': 'Bring weights into another layout. Without OUT: tell what a file holds, write nothing.',
    'export': 'Write a network as ONNX or as a graph of PyTorch, checked against the network.',
    'explain': 'Show what the prompts of a network have learned.',
    'compare': 'Put the results of runs side by side, as a table for a paper.',
    'measure': 'Measure restored images, whoever has made them, by the metrics of the papers.',
    'options': 'The option files that come with this package; `-opt NAME` finds them by name.',
    'publish': 'Write weights as a folder that others can load: safetensors, configuration, model card.',
    'demo': 'Serve a page to try a network. Pictures stay on this machine, and are removed when it ends.',
}
_PARTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    'train': _training,
    'test': _training,
    'check': _check,
    'prepare': _prepare,
    'restore': _restore,
    'convert': _convert,
    'export': _export,
    'explain': _explain,
    'demo': _demo,
    'compare': _compare,
    'measure': _measure,
    'publish': _publish,
    'options': _options,
}
