"""What a picture is here, and the kinds of files that hold one.

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
"""Of files that are taken for pictures in a folder, whether they are restored, uploaded or trained with."""

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
"""Extensions of pictures that are not read: their kind, and what to do."""


class PictureError(ValueError):
    """A picture that cannot be read or written as it should be; the message names the file."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what its file says besides.

    Attributes:
        image: see the head of this module.
        format: of the file, one of the values of PICTURE_FORMATS; PNG for those that are only read.
        profile: ICC profile.
        exif: EXIF block of an upright picture, without a thumbnail.
        xmp: XMP packet of an upright picture.
        dpi: pixels per inch, across and down.
        chunks: kind and content of other chunks of a PNG that describe the picture.
        notes: what was changed, for people.
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
        """Another image in the same file. Colours that became grey are noted, and lose their RGB profile."""
        changed = replace(self, image=image)
        if changed.has_colours or not self.has_colours:
            return changed
        note = 'converted to grey' + (', without its colour profile' if self.profile else '')
        return replace(changed, profile=None, notes=(*self.notes, note))


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format that the extension of a file stands for; None for others than those of PICTURE_FORMATS."""
    return PICTURE_FORMATS.get(extension_of(path))


def extension_of(path: str | os.PathLike[str]) -> str:
    """In small letters and without the dot."""
    return os.path.splitext(os.fspath(path))[1][1:].lower()


def unread_pictures(names: Iterable[str]) -> list[str]:
    """A sentence for each kind of pictures among files that are not read: how many there are, and what to do."""
    kinds: Counter[tuple[str, str]] = Counter()
    for name in names:
        kinds.update([UNREAD[extension]] if (extension := extension_of(name)) in UNREAD else [])
    return [f'{count:,} {kind} file{"s" * (count > 1)} left out. {advice}' for (kind, advice), count in kinds.items()]


def format_problems(where: str, extension: str) -> list[str]:
    """Why an extension is none of PICTURE_FORMATS."""
    if extension in PICTURE_FORMATS:
        return []
    hint = did_you_mean(extension, PICTURE_FORMATS)
    return [f"{where}: '{extension}' cannot be written.{hint} Allowed: {', '.join(PICTURE_FORMATS)}."]
