"""Image sources, folders or LMDBs: they list names and open images."""

import importlib.resources
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.core.files import open_regular
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.data.images import EncodedImage, without_border
from promptir_basicsr.data.lmdb.reader import LmdbSource
from promptir_basicsr.pictures.picture import EXTENSIONS, extension_of, unread_pictures

SKIMAGE = 'skimage://'


class StoredImage(Protocol):
    """An opened image of a source, which decodes only what is requested."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def pixels(self) -> np.ndarray:
        """The whole image: (H, W, 3) RGB, uint8 or uint16. Read only."""

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """An area of the image, with the same pixels as in the whole image. Read only."""


class BorderCut:
    """A stored image without a border of some pixels at each side."""

    def __init__(self, image: StoredImage, border: int) -> None:
        self._image, self._border = image, border

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return without_border(self._image.size, self._border)

    def pixels(self) -> np.ndarray:
        """The whole image without the border. Read only."""
        return self.crop(0, 0, *self.size)

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """An area of the image without the border. Read only."""
        return self._image.crop(top + self._border, left + self._border, height, width)


class Source(Protocol):
    """A source of images: a folder or an LMDB. Names are relative paths with forward slashes.

    A source is passed to worker processes by fork or by pickle, and opens files only there.

    Attributes:
        root: the folder, also of an LMDB.
        max_pixels: images with more pixels are refused.
        unread: messages about unsupported image formats, after `names` has listed the folder.
    """

    root: Path
    max_pixels: int
    unread: list[str]

    def names(self) -> list[str]:
        """All images, sorted."""

    def where(self, name: str) -> str:
        """The path of a name, for messages."""

    def open(self, name: str) -> StoredImage:
        """Open the image `name`.

        Raises:
            ImageError: the image is missing or damaged; the message names it.
        """


def resolve(path: str, dataroot: str | None = None) -> Path:
    """Resolve a path of an option to a folder or file.

    `~` is the home folder, relative paths start at `dataroot`, and `skimage://` is the folder of photographs that
    scikit-image installs.
    """
    if path.startswith(SKIMAGE):
        with importlib.resources.as_file(importlib.resources.files('skimage') / 'data') as folder:
            return Path(folder) / path[len(SKIMAGE) :]
    return Path(os.path.expanduser(dataroot or '.')) / os.path.expanduser(path)


def open_source(path: Path) -> Source:
    """Open a folder, or an LMDB if the path ends in `.lmdb`.

    Raises:
        ValueError: the path cannot be read; the message says what was found and how to fix it.
    """
    if path.suffix == '.lmdb':
        return LmdbSource(path)
    if not os.path.isdir(path):
        nearest = next((f" ('{parent.resolve()}' does)" for parent in path.parents if os.path.isdir(parent)), '')
        found = 'is a file' if os.path.exists(path) else f'does not exist{nearest}'
        raise ValueError(f"the folder '{path}' {found}.")
    return FolderSource(path)


class FolderSource:
    """Image files below a folder. Names are relative paths with forward slashes."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root, self.max_pixels = Path(root), MAX_PIXELS
        self.unread: list[str] = []
        self._prefix = os.path.join(self.root, '')

    def names(self) -> list[str]:
        """All image files below the folder, sorted; hidden files and folders are skipped."""
        found: list[str] = []
        others: list[str] = []
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith('.') and not _leads_back(folder, name)]
            prefix = os.path.relpath(folder, self.root).replace(os.sep, '/')
            prefix = '' if prefix == '.' else prefix + '/'
            for name in files:
                if not name.startswith('.'):
                    (found if extension_of(name) in EXTENSIONS else others).append(prefix + name)
        self.unread = [f"'{self.root}': {line}" for line in unread_pictures(others)]
        return sorted(found)

    def where(self, name: str) -> str:
        """The path of a name, for messages."""
        return self._prefix + name

    def open(self, name: str) -> EncodedImage:
        """Read the file of the image `name`, without decoding it."""
        path = self.where(name)
        try:
            with open_regular(path) as file:
                return EncodedImage(file.read(), path, self.max_pixels)
        except OSError as error:
            raise ImageError(f'{path}: cannot be read ({error.strerror}).') from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether a subfolder links to its own folder or a parent of it; following such a link would never end."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and Path(folder).resolve().is_relative_to(Path(path).resolve())
