"""Argument parsers of all commands. Standard library only, so `basicsr VERB --help` does not wait for torch."""

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
    """Return the argument parser of a command."""
    parser = _Parser(prog=f'basicsr {verb}', description=_DESCRIPTIONS.get(verb))
    _PARTS[verb](parser)
    return parser


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML)')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='launcher of distributed training'
    )
    parser.add_argument('--auto_resume', action='store_true', help='resume from the newest training state')
    parser.add_argument('--debug', action='store_true', help='short intervals; adds the prefix debug_ to the name')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    _force_yml(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML) of a training or a test')
    _force_yml(parser)
    parser.add_argument('--fast', action='store_true', help='read only the headers of images, do not decode them')
    parser.add_argument(
        '--workers',
        type=_count(0),
        metavar='N',
        default=cores(),
        help='worker processes; default: %(default)s',
    )
    parser.add_argument(
        '--processes', type=_count(1), metavar='N', default=1, help='number of training processes; default: 1'
    )
    parser.add_argument(
        '--allow-counts', action='store_true', help='accept other numbers of images than expected_images'
    )
    parser.add_argument('--json', action='store_true', help='print one JSON document')


def _prepare(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('-opt', metavar='FILE', help='option file (YAML)')
    what.add_argument('--protocol', metavar='NAME', help='published protocol, instead of an option file')
    parser.add_argument('--dataroot', metavar='DIR', help='folder that the paths of --protocol start from')
    parser.add_argument(
        '--out', type=_output, required=True, metavar='DIR', help='folder for the databases and their option file'
    )
    parser.add_argument(
        '--storage',
        choices=STORAGES,
        default='original',
        help='format of training images: the original files (default), PNG, or pixels',
    )
    parser.add_argument('--workers', type=int, metavar='N', help='worker processes; default: number of cores')
    parser.add_argument('--overwrite', action='store_true', help='replace databases with different content')
    parser.add_argument(
        '--verify',
        nargs='?',
        const=str(VERIFIED_IMAGES),
        metavar='N',
        help=f'compare N images (default {VERIFIED_IMAGES}), or all, of each database with their sources',
    )
    parser.add_argument('--force_yml', '--set', nargs='+', metavar='KEY=VALUE', help='replace options of FILE')


def _restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('input', nargs='+', metavar='INPUT', help='files, folders, or quoted patterns')
    parser.add_argument(
        '-o', '--out', type=_output, required=True, metavar='OUT', help='output folder, or file for a single input'
    )
    network = parser.add_argument_group('the network')
    network.add_argument('--weights', metavar='FILE', help='weights of a trained network')
    network.add_argument('-opt', metavar='FILE', help='option file with network_g, if the weights do not identify it')
    network.add_argument(
        '--key', metavar='NAME', help='which weights of the file to use; default: params_ema, then params'
    )
    network.add_argument(
        '--labels',
        metavar='LABELS',
        help='degradation, mixture such as derain:0.7,dehaze:0.3, or blind (use the sensor)',
    )
    network.add_argument('--strength', type=float, default=1.0, metavar='X', help='strength of the prompts; default: 1')
    how = parser.add_argument_group('inference')
    how.add_argument('--ensemble', action='store_true', help='average over 8 flips and rotations; 8 times slower')
    how.add_argument(
        '--tile', type=_tile, default='auto', metavar='auto|none|N', help='side of the tiles of large images in pixels'
    )
    how.add_argument(
        '--overlap', type=int, default=32, metavar='N', help='overlap of tiles in pixels; default: %(default)s'
    )
    how.add_argument(
        '--statistics',
        default='tiles',
        metavar='KIND',
        help='whole-image statistics for tiles, see docs/tiles.md; default: %(default)s',
    )
    how.add_argument('--precision', choices=PRECISIONS, default='fp32', help='default: %(default)s')
    how.add_argument(
        '--kernels', choices=KERNELS, help="kernels of PromptIR and PIP on NVIDIA GPUs; default: torch's own"
    )
    how.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1; default: %(default)s')
    how.add_argument(
        '--batch', type=int, default=1, metavar='N', help='batch size for images of equal size; default: 1'
    )
    files = parser.add_argument_group('files')
    files.add_argument('-r', '--recursive', action='store_true', help='include subfolders')
    files.add_argument('--suffix', default='', metavar='TEXT', help='suffix of output names')
    files.add_argument(
        '--format', type=_format, metavar='EXT', help=f'{", ".join(PICTURE_FORMATS)}; default: same as the input'
    )
    files.add_argument(
        '--max-pixels',
        type=_count(1),
        metavar='N',
        default=MAX_PIXELS,
        help='skip larger images; default: %(default)s',
    )
    there = files.add_mutually_exclusive_group()
    there.add_argument('--overwrite', action='store_true', help='replace existing files (never an input)')
    there.add_argument('--skip-existing', action='store_true', help='skip existing outputs, e.g. to continue')
    files.add_argument('--dry-run', action='store_true', help='print what would be done')


def _convert(parser: argparse.ArgumentParser) -> None:
    endings = ', '.join(f'{layout} {" ".join(endings)}' for layout, endings in LAYOUT_ENDINGS.items())
    parser.add_argument('input', metavar='IN', help='.pth, .pt, .ckpt or .safetensors')
    parser.add_argument('output', type=_output, metavar='OUT', nargs='?', help='the file to write')
    parser.add_argument('--to', choices=LAYOUT_ENDINGS, help=f'layout; default: by the extension of OUT ({endings})')
    parser.add_argument('--key', metavar='NAME', help='write only these weights of IN; default: params_ema first')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, if IN does not identify it')
    parser.add_argument('--half', action='store_true', help='write float16: half the size, rounded weights')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')


def _export(parser: argparse.ArgumentParser) -> None:
    endings = ', '.join(f'{ending} {kind}' for kind, ending in EXPORT_FORMATS.items())
    parser.add_argument('weights', metavar='WEIGHTS', help='.pth, .pt, .ckpt or .safetensors')
    parser.add_argument('output', type=_output, metavar='OUT', help='the file to write')
    parser.add_argument('--to', choices=EXPORT_FORMATS, help=f'format; default: by the extension of OUT ({endings})')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, if WEIGHTS does not identify it')
    parser.add_argument('--key', metavar='NAME', help='which weights of WEIGHTS to use; default: params_ema first')
    parser.add_argument(
        '--sizes',
        nargs='+',
        metavar='HxW',
        default=['x'.join(map(str, size)) for size in EXPORT_SIZES],
        help='image sizes to test the exported file with, HxW or BxHxW; default: %(default)s',
    )
    parser.add_argument('--fixed', metavar='HxW', help='export for a single image of this fixed size')
    parser.add_argument(
        '--labels', action='store_true', help='make the degradation an input instead of using the sensor'
    )
    parser.add_argument('--opset', type=int, metavar='N', help='ONNX opset; default: that of PyTorch')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file of a training or a test')
    parser.add_argument(
        '--weights', metavar='FILE', help='weights of the network; default: path.pretrain_network_g of the option file'
    )
    parser.add_argument('--out', type=_output, metavar='DIR', help='folder for the files; default: explain/NAME')
    parser.add_argument('--overwrite', action='store_true', help='replace earlier output of this command')
    for name, what in (
        ('images', 'maximum number of images per task'),
        ('size', 'longest side of an image; larger images are cropped'),
        ('untrained', 'networks with random weights to compare with'),
        ('permutations', 'permutations of the tasks among the images'),
        ('seed', 'random seed'),
    ):
        help_text = f'{what}; default: %(default)s'
        parser.add_argument(f'--{name}', type=int, metavar='N', default=EXPLAIN_DEFAULTS[name], help=help_text)
    parser.add_argument('--device', default='auto', help='such as cpu or cuda:0; default: a GPU if available')
    parser.add_argument('--no-page', action='store_true', help='do not write an HTML page')
    parser.add_argument('--force_yml', '--set', nargs='+', metavar='KEY=VALUE', help='replace options of FILE')


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--weights', metavar='FILE', help='weights of a trained network')
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, if the weights do not identify it')
    parser.add_argument(
        '--key', metavar='NAME', help='which weights of the file to use; default: params_ema, then params'
    )
    parser.add_argument('--tile', type=_any_tile, default='auto', metavar='auto|none|N', help='side of tiles in pixels')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='default: %(default)s')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1; default: %(default)s')
    parser.add_argument(
        '--examples', metavar='DIR', help='folder of example images; default: degraded photographs of scikit-image'
    )
    parser.add_argument(
        '--max-megapixels', type=float, default=16, metavar='N', help='reject larger images; default: 16'
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='0.0.0.0 allows access from the network; default: %(default)s, this machine only',
    )
    parser.add_argument('--port', type=int, default=7860, help='port; default: %(default)s')
    parser.add_argument('--no-browser', action='store_true', help='do not open the page')


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'runs', nargs='+', metavar='RUN', help='folder of a run or results.json; NAME=RUN sets its name'
    )
    parser.add_argument('--metric', nargs='+', metavar='NAME', help='metrics to show; default: all that the runs share')
    parser.add_argument('--published', metavar='PROTOCOL', help='add rows published in papers, e.g. 3d')
    parser.add_argument(
        '--seeds', action='store_true', help='merge runs that differ only in their seed into one row, with deviation'
    )
    parser.add_argument(
        '--anyway', action='store_true', help='compare even if numbers are not comparable, and note the reasons'
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        '--format', choices=COMPARISON_FORMATS, default='markdown', help='format of the table; default: %(default)s'
    )
    for name in COMPARISON_FORMATS:
        form.add_argument(f'--{name}', dest='format', action='store_const', const=name, help=argparse.SUPPRESS)
    parser.add_argument('-o', '--out', type=_output, metavar='FILE', help='write the table to a file')
    parser.add_argument('--curves', type=_output, metavar='PATH', help='draw learning curves: PATH.png and PATH.svg')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def _measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'restored', metavar='RESTORED', help='folder of restored images; with --protocol, with a subfolder per task'
    )
    parser.add_argument('--target', metavar='CLEAN', help='folder of ground truth images')
    parser.add_argument(
        '--pairing', nargs='+', metavar='RULE', help='name of a rule, or two templates: for RESTORED and for CLEAN'
    )
    parser.add_argument(
        '--crop-multiple', type=_count(1), metavar='N', help='crop both at the centre to multiples of N'
    )
    parser.add_argument('--protocol', metavar='NAME', help='use targets, pairs and crops of a published protocol')
    parser.add_argument('--dataroot', metavar='DIR', help='folder that the paths of --protocol start from')
    parser.add_argument(
        '--metrics', nargs='+', metavar='NAME', default=['psnr', 'ssim'], help='default: psnr ssim, as in the papers'
    )
    parser.add_argument(
        '--name', metavar='NAME', help='name of the row in `basicsr compare`; default: name of the folder'
    )
    parser.add_argument('-o', '--out', type=_output, metavar='FILE', help='write results.json for `basicsr compare`')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def _publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('run', metavar='RUN', help='name of a run in experiments/, folder of a run, or weights')
    parser.add_argument('-o', '--out', type=_output, required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--name', metavar='NAME', help='name of the model; default: name of the run')
    parser.add_argument(
        '--license', metavar='ID', help='license of the weights, as an identifier of the Hub, e.g. cc-by-4.0'
    )
    parser.add_argument(
        '--results',
        metavar='RUN',
        help="results for the model card: folder of a test or results.json; default: the run's",
    )
    parser.add_argument('--image', metavar='FILE', help="image of the model card; default: the run's contact_sheet.png")
    parser.add_argument('-opt', metavar='FILE', help='option file with network_g, if the weights do not identify it')
    parser.add_argument(
        '--key', metavar='NAME', help='which weights of the file to use; default: params_ema, then params'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files in DIR')


def _options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--list', action='store_true', help='list them with a line on each (default)')
    what.add_argument('--copy', metavar='NAME', help='copy one of them to edit it')
    parser.add_argument(
        '-o', '--out', type=_output, metavar='FILE', help='path of the copy; default: NAME in the current folder'
    )
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
    """Check an output path; an empty path, joined to a name, would be the current folder."""
    if not path:
        raise argparse.ArgumentTypeError('is empty; use . for the current folder')
    return path


def _tile(text: str) -> int | str | None:
    if text in ('auto', 'none'):
        return None if text == 'none' else text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is neither auto, none nor a whole number of pixels')
    return int(text)


def _any_tile(text: str) -> int | str | None:
    """Other values are rejected later, together with all other mistakes."""
    return None if text == 'none' else int(text) if text.isdecimal() else text


def _format(text: str) -> str:
    return text.lower().removeprefix('.')


_DESCRIPTIONS = {
    'check': 'Check an option file and its data before training. Nothing is written to disk.',
    'prepare': 'Store the images of an option file in LMDBs, and write an option file that reads them.',
    'restore': 'Restore images of any size.',
    'convert': 'Convert weights to another layout. Without OUT: print what a file contains and write nothing.',
    'export': 'Export a network as ONNX or as a graph of PyTorch, and verify the file against the network.',
    'explain': 'Show what the prompts of a network have learned.',
    'compare': 'Compare the results of runs in a table for a paper.',
    'measure': 'Measure restored images of any program with the metrics of the papers.',
    'options': 'List or copy the option files of this package; `-opt NAME` finds them by name.',
    'publish': 'Write weights as a folder that others can load: safetensors, configuration, model card.',
    'demo': 'Serve a web page to try a network. Images stay on this machine and are removed when the server stops.',
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
