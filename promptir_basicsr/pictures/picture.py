"""Definition of `Picture`, an image with its metadata, and the supported file formats.

H height, W width. An image is (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha, uint8 or
uint16, upright.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import PIL.features

from promptir_basicsr.core.messages import did_you_mean
from promptir_basicsr.core.vocabulary import PICTURE_FORMATS

_CONVERT = 'Convert them to PNG or TIFF first.'
_RAW = '3fr arw cr2 cr3 crw dng erf iiq kdc mef mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f'
_OPTIONAL = {  # kinds of files, their extensions, whether they can be read here, and how to get there
    'HEIC': (
        ('heic', 'heif', 'hif'),
        importlib.util.find_spec('pillow_heif') is not None,
        "pip install 'promptir_basicsr[heif]'",
    ),
    'AVIF': (('avif',), PIL.features.check('avif'), 'pip install --upgrade pillow'),
}

EXTENSIONS = (
    *PICTURE_FORMATS,
    *('gif', 'jpe', 'jfif', 'mpo', 'apng', 'pbm', 'dib'),
    *(extension for extensions, here, _ in _OPTIONAL.values() if here for extension in extensions),
)
"""Extensions of files that count as images in a folder, for restoring, uploads and training."""

UNREAD = {
    **dict.fromkeys(_RAW.split(), ('camera RAW', _CONVERT)),
    **dict.fromkeys(('jp2', 'j2k', 'jpx'), ('JPEG 2000', _CONVERT)),
    **{'jxl': ('JPEG XL', _CONVERT), 'psd': ('Photoshop', _CONVERT), 'exr': ('OpenEXR', _CONVERT)},
    **{
        extension: (kind, f'To read them: {install}')
        for kind, (extensions, here, install) in _OPTIONAL.items()
        if not here
        for extension in extensions
    },
}
"""Extensions of unsupported image formats: their kind, and what to do."""


class PictureError(ValueError):
    """An image that cannot be read or written; the message names the file."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and the metadata of its file.

    Attributes:
        image: see the docstring of this module.
        format: of the file, one of the values of PICTURE_FORMATS; PNG for formats that can only be read.
        profile: ICC profile.
        exif: EXIF block of an upright image, without a thumbnail.
        xmp: XMP packet of an upright image.
        dpi: pixels per inch, across and down.
        chunks: kind and content of other chunks of a PNG that describe the image.
        notes: messages for users about what was changed.

    Examples:
        >>> from promptir_basicsr.pictures import read_picture
        >>> picture = read_picture('photo.jpg')
        >>> brighter = picture.with_image(picture.image // 2 + 128)  # the same profile and EXIF
        >>> brighter.format
        'JPEG'
    """

    image: np.ndarray
    format: str = 'PNG'
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def has_alpha(self) -> bool:
        return self.image.ndim == 3 and self.image.shape[2] in (2, 4)

    @property
    def has_colours(self) -> bool:
        return self.image.ndim == 3 and self.image.shape[2] >= 3

    def with_image(self, image: np.ndarray) -> 'Picture':
        """Replace the pixels. Conversion from colour to grey is noted and removes the RGB profile."""
        changed = replace(self, image=image)
        if changed.has_colours or not self.has_colours:
            return changed
        note = 'converted to grey' + (', without its colour profile' if self.profile else '')
        return replace(changed, profile=None, notes=(*self.notes, note))


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Return the format of a file extension; None if not in PICTURE_FORMATS."""
    return PICTURE_FORMATS.get(extension_of(path))


def extension_of(path: str | os.PathLike[str]) -> str:
    """Return the extension in lower case, without the dot."""
    return os.path.splitext(os.fspath(path))[1][1:].lower()


def unread_pictures(names: Iterable[str]) -> list[str]:
    """Return a message for each unsupported kind of image among files: the count, and what to do."""
    kinds: Counter[tuple[str, str]] = Counter()
    for name in names:
        kinds.update([UNREAD[extension]] if (extension := extension_of(name)) in UNREAD else [])
    return [f'{count:,} {kind} file{"s" * (count > 1)} skipped. {advice}' for (kind, advice), count in kinds.items()]


def format_problems(where: str, extension: str) -> list[str]:
    """Return the problem of an extension that is not in PICTURE_FORMATS."""
    if extension in PICTURE_FORMATS:
        return []
    hint = did_you_mean(extension, PICTURE_FORMATS)
    return [f"{where}: '{extension}' cannot be written.{hint} Allowed: {', '.join(PICTURE_FORMATS)}."]
