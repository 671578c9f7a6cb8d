"""Images of results: input, restored and target side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from promptir_basicsr.core.arrays import to_bytes

_GAP = 4
_TEXT = 16


def side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """Join float images of equal size side by side, with a white gap: (H, W', C) uint8."""
    gap = np.full((images[0].shape[0], _GAP, images[0].shape[2]), 255, np.uint8)
    parts = [part for image in images for part in (gap, to_bytes(image))]
    return np.concatenate(parts[1:], axis=1)


@dataclass
class ContactRow:
    """A row of a contact sheet: title, images, and a caption below each image."""

    title: str
    images: Sequence[np.ndarray]
    captions: Sequence[str]


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Shrink an image (H, W, C) to half its size at most, and crop its centre to `side` x `side` pixels at most.

    At half its size it still shows noise, rain and blur, and usually the whole subject.
    """
    scale = max(0.5, min(1.0, side / min(image.shape[:2])))
    if scale < 1:
        size = tuple(round(scale * length) for length in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    height, width = (min(side, length) for length in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def contact_sheet(rows: Sequence[ContactRow], side: int = 256) -> np.ndarray:
    """Sheet with one row of images per task, each as a `thumbnail` of `side` pixels: (H, W, 3) RGB uint8."""
    font = ImageFont.load_default(_TEXT)
    columns = max(len(row.images) for row in rows)
    height = side + 2 * (_TEXT + _GAP) + _GAP
    sheet = Image.new('RGB', (columns * (side + _GAP) + _GAP, len(rows) * height + _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height + _GAP
        draw.text((_GAP, top), row.title, fill='black', font=font)
        for column, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            left = column * (side + _GAP) + _GAP
            pixels = to_bytes(thumbnail(image, side))
            sheet.paste(Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))), (left, top + _TEXT + _GAP))
            draw.text((left, top + _TEXT + _GAP + side), caption, fill='black', font=font)
    return np.asarray(sheet)
