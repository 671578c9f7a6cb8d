"""Where images come from: a source lists names and reads one of them."""

import importlib.resources
import os
from pathlib import Path

import cv2
import numpy as np

IMAGE_EXTENSIONS = ('png', 'jpg', 'jpeg', 'bmp', 'tif', 'tiff', 'webp', 'ppm', 'pgm')
SKIMAGE = 'skimage://'

_READ = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION


class ImageError(RuntimeError):
    """An image that cannot be used; the message names it."""


def resolve(path: str, dataroot: str | None = None) -> Path:
    """The folder or file meant by an option.

    `~` is the home folder, a relative path lies under `dataroot`, and `skimage://` is the folder of photographs that
    scikit-image installs.
    """
    if path.startswith(SKIMAGE):
        with importlib.resources.as_file(importlib.resources.files('skimage') / 'data') as folder:
            return Path(folder) / path[len(SKIMAGE) :]
    return Path(dataroot or '.').expanduser() / Path(path).expanduser()


class FolderSource:
    """Image files below a folder. Names are relative paths with forward slashes."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def names(self) -> list[str]:
        """All image files below the folder, sorted; hidden files and folders are left out."""
        found = []
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith('.') and not _leads_back(folder, name)]
            prefix = os.path.relpath(folder, self.root).replace(os.sep, '/')
            prefix = '' if prefix == '.' else prefix + '/'
            found += [
                prefix + name
                for name in files
                if not name.startswith('.') and os.path.splitext(name)[1][1:].lower() in IMAGE_EXTENSIONS
            ]
        return sorted(found)

    def where(self, name: str) -> str:
        """The path to show for a name."""
        return str(self.root / name)

    def read(self, name: str) -> np.ndarray:
        """The image called `name`, see `decode`."""
        path = self.where(name)
        try:
            with open(path, 'rb') as file:
                content = file.read()
        except OSError as error:
            raise ImageError(f'{path}: cannot be read ({error.strerror}).') from error
        return decode(content, path)


def _leads_back(folder: str, name: str) -> bool:
    """Whether a subfolder is a link to the folder it lies in, or to one above: following it would never end."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and Path(folder).resolve().is_relative_to(Path(path).resolve())


def decode(content: bytes, where: str) -> np.ndarray:
    """Image file -> (H, W, 3) RGB, uint8 [0, 255] or uint16 [0, 65535].

    Grey becomes three equal channels, a palette its colours, an alpha channel is dropped, EXIF orientation is ignored
    (both images of a pair are taken as stored, as the published pipelines do). TIFF is the exception: OpenCV turns it
    by its own orientation tag and multiplies the colours by a separate (unassociated) 8-bit alpha channel.

    Raises:
        ImageError: not an image, or one beyond OpenCV's limits; names `where`.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), _READ) if content else None
    except cv2.error as error:  # more pixels than OpenCV allows
        raise ImageError(f'{where}: OpenCV refuses the image ({error.err}).') from error
    if image is None:
        size = f'{len(content):,} bytes' if content else 'empty file'
        raise ImageError(f'{where}: not a readable image ({size}). Replace the file or take it out of the list.')
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f'{where}: pixels of type {image.dtype}; 8-bit and 16-bit integers can be read.')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
