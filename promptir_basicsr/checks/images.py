"""Read the images of a check in several processes, and find duplicates.

An image is identified by its fingerprint: a 256-bit difference hash (is each of 16 x 16 areas brighter than its left
neighbour?) finds candidates, and a grey thumbnail of 32 x 32 confirms them. Both are computed from area averages of
the whole image. Compression and scaling hardly change them; another framing does.
"""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from promptir_basicsr.core.arrays import to_float
from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.core.files import open_regular
from promptir_basicsr.data.images import check_size, measured, read_header
from promptir_basicsr.data.sources import FolderSource, Source

_CHUNK = 32  # images per request to a worker
_HEAD = 4096  # bytes that contain the size of almost every image

HASH_SIDE, THUMBNAIL_SIDE = 16, 32
HASH_BYTES = HASH_SIDE * HASH_SIDE // 8
LEAST_LIKENESS = 0.2  # of a pair; docs/check.md has the figures of benchmarks/likeness.py
FINGERPRINT_BYTES = HASH_BYTES + THUMBNAIL_SIDE * THUMBNAIL_SIDE

_MARGIN = 1.0  # grey levels; smaller differences are compression noise
_MOST_BITS = 48  # of 256 that copies may differ in; JPEG at quality 75 flips up to 26, unrelated photographs about 100
_LEAST_CORRELATION = 0.9  # of thumbnails; copies reach 0.99, neighbouring areas of one photograph 0.5
_LEAST_DETAIL = 1.0  # grey levels of contrast; below, a thumbnail is too flat to confirm a copy
_LEAST_STRUCTURE = 0.25  # grey levels of contrast; below, the content of an image is unknown
_REDUCED = 32 * THUMBNAIL_SIDE  # pixels of a side; a larger image is first reduced, as integers
_BLUR = 2  # cells of a thumbnail to each side; detail is the difference to the blurred thumbnail
_ROWS = 4096  # compared at once


class Wanted(NamedTuple):
    """An image to read: its source, its name, and whether to compute its fingerprint."""

    source: int
    name: str
    fingerprint: bool


class ImageFacts(NamedTuple):
    """The result of reading an image.

    Attributes:
        size: height and width; None if they could not be read.
        problem: why the image cannot be used; '' if it can.
        fingerprint: see `fingerprint`; None if not requested.
    """

    size: tuple[int, int] | None
    problem: str = ''
    fingerprint: bytes | None = None


def inspect_images(
    sources: Sequence[Source], wanted: Sequence[Wanted], decode: bool = True, workers: int = 0, progress: bool = False
) -> list[ImageFacts]:
    """Read images, and return their facts in the requested order.

    Memory use is one decoded image per worker, plus the facts.

    Args:
        decode: decode the pixels; otherwise only read the header of each file, with its size.
        workers: processes; 0 or 1 for the current process.
        progress: show a progress bar on standard error if that is a terminal.

    Raises:
        ImageError: a worker died, for example out of memory; the message names the images.
    """
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # the report lists damaged images once
    facts = _in_processes(sources, wanted, decode, workers) if workers > 1 else _here(sources, wanted, decode)
    verb = 'decoding' if decode else 'reading headers'
    try:
        return list(tqdm(facts, verb, len(wanted), unit=' images', file=sys.stderr, disable=None if progress else True))
    finally:
        logging.setLogLevel(level)


def _here(sources: Sequence[Source], wanted: Sequence[Wanted], decode: bool) -> Iterator[ImageFacts]:
    return (inspect_image(sources[image.source], image, decode) for image in wanted)


def _in_processes(
    sources: Sequence[Source], wanted: Sequence[Wanted], decode: bool, workers: int
) -> Iterator[ImageFacts]:
    # Forked workers start at once; without fork, they get the sources by pickle.
    fork = 'fork' in multiprocessing.get_all_start_methods() and sys.platform != 'darwin'
    context = multiprocessing.get_context('fork' if fork else 'spawn')
    chunks = deque(wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK))
    waiting: deque[tuple[Sequence[Wanted], Future[list[ImageFacts]]]] = deque()
    with ProcessPoolExecutor(min(workers, len(chunks)) or 1, context, _start_worker, (list(sources), decode)) as pool:
        while chunks or waiting:
            while chunks and len(waiting) < 4 * workers:
                chunk = chunks.popleft()
                waiting.append((chunk, pool.submit(_inspect_chunk, chunk)))
            chunk, future = waiting.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool as error:
                places = [sources[image.source].where(image.name) for image in (chunk[0], chunk[-1])]
                raise ImageError(
                    f'a worker process died at or after the images {places[0]} to {places[1]}. It most likely ran out '
                    'of memory: use fewer workers (--workers 1 names the image if one is the cause).'
                ) from error


_SOURCES: list[Source] = []
_DECODE = [True]


def _start_worker(sources: list[Source], decode: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    cv2.setNumThreads(0)  # threads do not survive a fork, and there are as many workers as cores
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # spawned workers do not inherit it
    _SOURCES[:], _DECODE[:] = sources, [decode]


def _inspect_chunk(chunk: Sequence[Wanted]) -> list[ImageFacts]:
    return list(_here(_SOURCES, chunk, _DECODE[0]))


def inspect_image(source: Source, wanted: Wanted, decode: bool = True) -> ImageFacts:
    """Facts of one image."""
    try:
        if not decode:
            return ImageFacts(image_size(source, wanted.name))
        pixels = source.open(wanted.name).pixels()
        return ImageFacts(pixels.shape[:2], '', fingerprint(pixels) if wanted.fingerprint else None)
    except ImageError as error:
        reason = str(error).removeprefix(f'{source.where(wanted.name)}: ')
        return ImageFacts(None, reason.partition('. ')[0].rstrip('.'))


def image_size(source: Source, name: str) -> tuple[int, int]:
    """Height and width, from the first bytes of a file if possible.

    Raises:
        ImageError: the file does not start like an image.
    """
    if not isinstance(source, FolderSource):
        return source.open(name).size
    path = source.where(name)
    try:
        with open_regular(path) as file:
            header = read_header(file.read(_HEAD))
            file.seek(0)
            size = (header.height, header.width) if header else measured(file)
    except OSError:  # opening it again reports the reason
        size = None
    if size is None:
        return source.open(name).size
    check_size(size, path, source.max_pixels)
    return size


def fingerprint(image: np.ndarray) -> bytes:
    """Fingerprint of an image, (H, W, 3) RGB, uint8 or uint16: FINGERPRINT_BYTES bytes, hash and thumbnail."""
    small = [min(side, _REDUCED) for side in (image.shape[1], image.shape[0])]
    if small != [image.shape[1], image.shape[0]]:
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(to_float(image), cv2.COLOR_RGB2GRAY) * 255
    areas = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    bits = np.packbits(np.diff(areas, axis=1) > _MARGIN)
    thumbnail = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return bits.tobytes() + np.rint(thumbnail).astype(np.uint8).tobytes()


def find_duplicates(first: list[bytes], second: list[bytes]) -> list[tuple[int, int]]:
    """Positions of the same photograph in two lists of fingerprints, sorted by the second, then the first.

    Finds copies with the same framing (to within about 1 % of the side): recompressed, scaled, of another bit depth,
    slightly brighter or darker. Does not find crops, flips and rotations, nor images without detail (an empty sky, a
    black frame), which look alike without being the same.
    """
    if not first or not second:
        return []
    first_bits, first_details = _unpack(first)
    second_bits, second_details = _unpack(second)
    found: list[tuple[int, int]] = []
    for start in range(0, len(first), _ROWS):
        # The product of two signs is 1 where bits agree and -1 where they differ.
        agreement = first_bits[start : start + _ROWS] @ second_bits.T
        rows, columns = np.nonzero(agreement >= HASH_BYTES * 8 - 2 * _MOST_BITS)
        for low in range(0, len(rows), _ROWS):
            one, other = rows[low : low + _ROWS] + start, columns[low : low + _ROWS]
            correlation = np.einsum('nd,nd->n', first_details[one], second_details[other])
            same = correlation >= _LEAST_CORRELATION
            found += zip(one[same].tolist(), other[same].tolist(), strict=True)
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def likeness(first: bytes, second: bytes) -> float:
    """Similarity of two images by their fingerprints, from 0 to 1: whether they have edges in the same places.

    This is the absolute correlation of two thumbnails after brightness and contrast are normalised in each area of
    5 x 5 cells. Haze, darkness, noise and weather change edges little; a negative has the edges of its image. It is 1
    if one of the images has no detail.
    """
    one, other = (_structure(fingerprint) for fingerprint in (first, second))
    if one is None or other is None:
        return 1.0
    return abs(float(np.corrcoef(one, other)[0, 1]))


def _structure(fingerprint: bytes) -> np.ndarray | None:
    """Details of a thumbnail, divided by their neighbourhood's contrast; None if there are no details."""
    thumbnail = np.frombuffer(fingerprint, np.uint8, offset=HASH_BYTES).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    detail = _detail(thumbnail)
    inner = (slice(_BLUR, -_BLUR),) * 2
    if float(np.sqrt(np.mean(detail[inner] ** 2))) < _LEAST_STRUCTURE:
        return None
    contrast = np.sqrt(cv2.blur(detail**2, (2 * _BLUR + 1,) * 2))
    return (detail / (contrast + 0.5))[inner].ravel()


def _detail(thumbnail: np.ndarray) -> np.ndarray:
    """A thumbnail minus its blurred version; at the border a slope looks like detail."""
    levels = thumbnail.astype(np.float32)
    return levels - cv2.blur(levels, (2 * _BLUR + 1,) * 2)


def _unpack(fingerprints: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Bits as signs (N, 256), and details of the thumbnails (N, 784) of length 1; zero without details."""
    table = np.frombuffer(b''.join(fingerprints), np.uint8).reshape(len(fingerprints), FINGERPRINT_BYTES)
    signs = np.unpackbits(table[:, :HASH_BYTES], axis=1).astype(np.float32) * 2 - 1
    inner = THUMBNAIL_SIDE - 2 * _BLUR
    details = np.empty((len(table), inner * inner), np.float32)
    for row, content in zip(details, table[:, HASH_BYTES:], strict=True):
        detail = _detail(content.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE))[_BLUR:-_BLUR, _BLUR:-_BLUR]
        contrast = float(np.sqrt(np.mean(detail**2)))
        row[:] = detail.ravel() / (contrast * inner) if contrast >= _LEAST_DETAIL else 0
    return signs, details
