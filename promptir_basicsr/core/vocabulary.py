"""Constants that all subpackages share."""

from typing import Literal, get_args

DEGRADATION_TYPES = ('denoise', 'derain', 'dehaze', 'deblur', 'lowlight')
"""The vocabulary of degradations; the position is the label (the class ids of PIP's released program)."""

Precision = Literal['fp32', 'tf32', 'bf16', 'fp16']
PRECISIONS = get_args(Precision)

Kernels = Literal['triton']
KERNELS = get_args(Kernels)
"""Kernels of Transformer blocks other than torch's own."""

Formulation = Literal['fast', 'plain']
FORMULATIONS = get_args(Formulation)

Checkpointing = Literal['none', 'gate', 'block']
CHECKPOINTING = get_args(Checkpointing)

Statistics = Literal['tile', 'reduced', 'tiles']
STATISTICS = get_args(Statistics)

StopSignal = Literal['SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU']
STOP_SIGNALS = get_args(StopSignal)
"""Signals for `logger.stop_signals`: Slurm sends the one set by `--signal` before the job's time limit."""

STORAGES = ('original', 'lossless', 'raw')

VERIFIED_IMAGES = 100
"""Default number of images of each database that are compared."""

LAYOUT_ENDINGS = {'basicsr': ('.pth', '.pt'), 'official': ('.ckpt', '.pkl'), 'safetensors': ('.safetensors',)}
"""Layouts that can be written, and their file extensions."""

EXPORT_FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}
"""Export formats, and their file extensions."""

COMPARISON_FORMATS = ('markdown', 'latex', 'csv', 'html')

EXPORT_SIZES = ((1, 64, 64), (2, 96, 128), (1, 200, 152), (3, 37, 61))
"""(B, H, W) of the images that an exported file is tested with."""

PICTURE_FORMATS = {
    'png': 'PNG',
    'jpg': 'JPEG',
    'jpeg': 'JPEG',
    'tif': 'TIFF',
    'tiff': 'TIFF',
    'webp': 'WEBP',
    'bmp': 'BMP',
    'ppm': 'PPM',
    'pgm': 'PPM',
    'pnm': 'PPM',
}
"""Formats that can be written, by file extension."""

MAX_PIXELS = 178_956_970
"""Default limit of pixels of an image; the same as Pillow's."""

EXPLAIN_DEFAULTS = {'images': 8, 'size': 256, 'untrained': 19, 'permutations': 999, 'seed': 0}
"""Default sizes of `basicsr explain`, see `explain.Settings`."""
