"""Picture files made byte by byte or by libraries that the package does not use for them."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import skimage.data
from PIL import Image

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Of the colour types of PNG."""


def photograph(height: int = 37, width: int = 50, channels: int = 3, depth: int = 8) -> np.ndarray:
    """A piece of a photograph: (H, W) for one channel, else (H, W, channels); the last of 2 or 4 is alpha."""
    colours = skimage.data.astronaut()[20 : 20 + height, 150 : 150 + width].astype(np.uint16)
    fine = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint16)  # low bytes, and alpha
    whole = np.dstack([colours, fine[..., 3]]) * 256 + fine if depth == 16 else np.dstack([colours, fine[..., 3]])
    chosen = {1: [1], 2: [1, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    image = whole[..., chosen].astype(np.uint16 if depth == 16 else np.uint8)
    return np.ascontiguousarray(image[..., 0] if channels == 1 else image)


def by_pillow(image: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(content, kind, **options)
    return content.getvalue()


def by_opencv(image: np.ndarray, extension: str, *options: int) -> bytes:
    order = [0] if image.ndim == 2 else [2, 1, 0, 3][: image.shape[2]]
    pixels = image if image.ndim == 2 else image[..., order]
    return cv2.imencode(extension, pixels, options)[1].tobytes()


def opencv_pixels(content: bytes) -> np.ndarray:
    """RGB as it is stored."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def png(image: np.ndarray, *chunks: tuple[bytes, bytes], colours: int | None = None, bits: int | None = None) -> bytes:
    """A PNG without filters. `bits` below 8 packs the values of a grey or palette image."""
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if colours is None else colours
    bits = bits or 8 * image.itemsize
    rows = []
    for row in image:
        if bits < 8:
            values = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()
            rows.append(np.packbits(values).tobytes())
        else:
            rows.append(row.astype('>u2' if bits == 16 else 'u1').tobytes())
    head = struct.pack('>IIBBBBB', width, height, bits, colours, 0, 0, 0)
    body = zlib.compress(b''.join(b'\0' + row for row in rows))
    parts = [(b'IHDR', head), *chunks, (b'IDAT', body), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def exif(orientation: int, order: str = '<', **more: Any) -> bytes:
    """An EXIF block by Pillow: orientation, camera, sizes, and a makers' note."""
    block = Image.Exif()
    block.endian = order
    block[0x0112] = orientation
    block[0x010F] = 'Makers of cameras'
    block[0x8769] = {0xA002: 50, 0xA003: 37, 0x927C: b'NOTE\0\1\2\3 with offsets', 0x9003: '2020:02:03 04:05:06'}
    for tag, value in more.items():
        block[int(tag[1:])] = value
    return block.tobytes().removeprefix(b'Exif\0\0')


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow turns it; its turning of every pixel's number is applied to the pixels."""
    height, width = image.shape[:2]
    numbers = Image.fromarray(np.arange(height * width, dtype=np.int32).reshape(height, width))
    way = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    order = np.asarray(numbers.transpose(way) if way is not None else numbers)
    return image.reshape(height * width, *image.shape[2:])[order]


def cmyk_profile() -> bytes:
    """A small ICC profile of four inks: paper is white, black is black, cyan is a dark blue."""
    inks = {(0, 0, 0, 0): (255, 128, 128), (1, 0, 0, 0): (60, 128, 90)}
    table = bytearray()
    for number in range(16):
        ink = tuple(number >> shift & 1 for shift in (3, 2, 1, 0))
        light = 255 - 60 * sum(ink[:3])
        table += bytes(inks.get(ink, (0, 128, 128) if ink[3] else (light, 128, 128)))
    straight = bytes(range(256))
    matrix = b''.join(struct.pack('>i', 65536 * (row == column)) for row in range(3) for column in range(3))
    look_up = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + matrix + straight * 4 + bytes(table) + straight * 3
    tags = {
        b'desc': b'desc\0\0\0\0' + struct.pack('>I', 5) + b'inks\0' + bytes(78),
        b'cprt': b'text\0\0\0\0nobody\0',
        b'wtpt': b'XYZ \0\0\0\0' + struct.pack('>iii', 63190, 65536, 54061),
        b'A2B0': look_up,
    }
    place, entries, body = 128 + 4 + 12 * len(tags), b'', b''
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        entries += name + struct.pack('>II', place + len(body), len(content))
        body += content
    whole = struct.pack('>I', len(tags)) + entries + body
    head = struct.pack('>I', 128 + len(whole)) + b'lcms' + struct.pack('>I', 0x02400000) + b'prtrCMYKLab '
    head += struct.pack('>6H', 2020, 1, 1, 0, 0, 0) + b'acsp' + bytes(28) + struct.pack('>iii', 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + whole
