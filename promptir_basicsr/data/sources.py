"""Where images come from: a source lists names and opens one of them."""

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
    """One image of a source, opened; what is not asked for is not decoded."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def pixels(self) -> np.ndarray:
        """The whole image: (H, W, 3) RGB, uint8 or uint16. Not to be written to."""

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """An area of it: the very pixels of the whole. Not to be written to."""


class BorderCut:
    """A stored image without its border of some pixels at each side."""

    def __init__(self, image: StoredImage, border: int) -> None:
        self._image, self._border = image, border

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return without_border(self._image.size, self._border)

    def pixels(self) -> np.ndarray:
        """The whole of it. Not to be written to."""
        return self.crop(0, 0, *self.size)

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """An area of it. Not to be written to."""
        return self._image.crop(top + self._border, left + self._border, height, width)


class Source(Protocol):
    """A place that holds images: a folder or an LMDB. Names are relative paths with forward slashes.

    A source travels to worker processes, by fork or by pickle; it opens files there, not before.

    Attributes:
        root: the folder, also of an LMDB.
        max_pixels: images with more are refused.
        unread: sentences about pictures of kinds that are not read, once `names` has listed the folder.
    """

    root: Path
    max_pixels: int
    unread: list[str]

    def names(self) -> list[str]:
        """All images, sorted."""

    def where(self, name: str) -> str:
        """The path to show for a name."""

    def open(self, name: str) -> StoredImage:
        """The image called `name`.

        Raises:
            ImageError: it is not there or damaged; the message names it.
        """


def resolve(path: str, dataroot: str | None = None) -> Path:
    """The folder or file meant by an option.

    `~` is the home folder, a relative path lies under `dataroot`, and `skimage://` is the folder of photographs that
    scikit-image installs.
    """
    if path.startswith(SKIMAGE):
        with importlib.resources.as_file(importlib.resources.files('skimage') / 'data') as folder:
            return Path(folder) / path[len(SKIMAGE) :]
    return Path(os.path.expanduser(dataroot or '.')) / os.path.expanduser(path)


def open_source(path: Path) -> Source:
    """The folder, or the LMDB where the path ends in `.lmdb`.

    Raises:
        ValueError: there is nothing that can be read; says what was found and how to mend it.
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
        """All image files below the folder, sorted; hidden files and folders are left out."""
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
        """The path to show for a name."""
        return self._prefix + name

    def open(self, name: str) -> EncodedImage:
        """The image called `name`; its file is read, not yet decoded."""
        path = self.where(name)
        try:
            with open_regular(path) as file:
                return EncodedImage(file.read(), path, self.max_pixels)
        except OSError as error:
            raise ImageError(f'{path}: cannot be read ({error.strerror}).') from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether a subfolder is a link to the folder it lies in, or to one above: following it would never end."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and Path(folder).resolve().is_relative_to(Path(path).resolve())
