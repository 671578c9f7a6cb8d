"""Read many images once, in several processes, and keep what a check needs of them."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import cv2
import PIL.Image
from tqdm import tqdm

from promptir_basicsr.data.duplicate_util import fingerprint
from promptir_basicsr.data.image_util import EncodedImage, ImageError, read_header
from promptir_basicsr.data.storage_util import FolderSource, Source

_CHUNK = 32  # images a request to a worker
_HEAD = 4096  # bytes that the size of almost every image stands in


class Wanted(NamedTuple):
    """An image to read: of which source, its name, and whether to take its fingerprint."""

    source: int
    name: str
    fingerprint: bool


class ImageFacts(NamedTuple):
    """What reading an image came to.

    Attributes:
        size: height and width; None where they could not be read.
        problem: why the image cannot be used; '' where it can.
        fingerprint: see `duplicate_util`; None where not asked for.
    """

    size: tuple[int, int] | None
    problem: str = ''
    fingerprint: bytes | None = None


def inspect_images(
    sources: Sequence[Source], wanted: Sequence[Wanted], decode: bool = True, workers: int = 0, progress: bool = False
) -> list[ImageFacts]:
    """Facts of images, in the order asked for.

    Memory is that of one decoded image a worker, and of the facts.

    Args:
        decode: decode the pixels; otherwise only read the beginning of each file: its size, and whether it begins
            like an image.
        workers: processes; 0 or 1 for this one.
        progress: show a bar on standard error where that is a terminal.

    Raises:
        ImageError: a worker died, as it does where memory runs out; says between which images.
    """
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # what is wrong with an image is told once, in the report
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
    # Forked workers start at once; where there is no fork, they get the sources by pickle.
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
                    f'a worker process died at or after the images {places[0]} to {places[1]}. Most often memory ran '
                    'out: take fewer workers (--workers 1 names the image where one is the cause).'
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
    """Height and width, from the first bytes of a file where they tell.

    Raises:
        ImageError: the file does not begin like an image.
    """
    if not isinstance(source, FolderSource):
        return source.open(name).size
    path = source.where(name)
    try:
        with open(path, 'rb') as file:
            header = read_header(file.read(_HEAD))
            if header is not None:
                return header.height, header.width
            file.seek(0)
            if os.fstat(file.fileno()).st_size:
                with PIL.Image.open(file) as image:  # reads no pixels
                    return image.height, image.width
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        pass  # Pillow knows fewer kinds of files than OpenCV, which has the last word
    encoded: EncodedImage = source.open(name)
    return encoded.size
