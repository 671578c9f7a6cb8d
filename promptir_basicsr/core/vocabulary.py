"""The words that all rooms share."""

from typing import Literal, get_args

DEGRADATION_TYPES = ('denoise', 'derain', 'dehaze', 'deblur', 'lowlight')
"""The vocabulary of degradations; the position is the label (the class ids of PIP's released program)."""

Precision = Literal['fp32', 'tf32', 'bf16', 'fp16']
PRECISIONS = get_args(Precision)

Kernels = Literal['triton']
KERNELS = get_args(Kernels)
"""Kernels of Transformer blocks beside torch's own."""

Formulation = Literal['fast', 'plain']
FORMULATIONS = get_args(Formulation)

Checkpointing = Literal['none', 'gate', 'block']
CHECKPOINTING = get_args(Checkpointing)

Statistics = Literal['tile', 'reduced', 'tiles']
STATISTICS = get_args(Statistics)

StopSignal = Literal['SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU']
STOP_SIGNALS = get_args(StopSignal)
"""What `logger.stop_signals` may name: Slurm sends the one that `--signal` asks for before it takes the machine."""

STORAGES = ('original', 'lossless', 'raw')

VERIFIED_IMAGES = 100
"""Images of each database that are compared where no number is given."""

LAYOUT_ENDINGS = {'basicsr': ('.pth', '.pt'), 'official': ('.ckpt', '.pkl'), 'safetensors': ('.safetensors',)}
"""Layouts that can be written, and the endings of their files."""

EXPORT_FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}
"""What can be written, and how the files are called."""

COMPARISON_FORMATS = ('markdown', 'latex', 'csv', 'html')

EXPORT_SIZES = ((1, 64, 64), (2, 96, 128), (1, 200, 152), (3, 37, 61))
"""(B, H, W) of the images that a file is tried with."""

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
"""Formats that are written, by the extension of a file."""

MAX_PIXELS = 178_956_970
"""Of an image that is read, unless more are allowed; Pillow's own limit."""

EXPLAIN_DEFAULTS = {'images': 8, 'size': 256, 'untrained': 19, 'permutations': 999, 'seed': 0}
"""How much `basicsr explain` looks at, see `explain.Settings`."""
