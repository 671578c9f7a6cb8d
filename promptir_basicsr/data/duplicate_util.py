"""The same photograph in two sets, whatever file it was saved to.

An image is known by its fingerprint: a 256-bit difference hash (is each of 16 x 16 areas brighter than its left
neighbour?), which finds candidates, and a grey thumbnail of 32 x 32, which confirms them. Both come from area averages
of the whole image, so compression and scaling hardly touch them, while another framing changes them at once.
"""

import cv2
import numpy as np

from promptir_basicsr.data.image_util import to_float

HASH_SIDE, THUMBNAIL_SIDE = 16, 32
HASH_BYTES = HASH_SIDE * HASH_SIDE // 8
FINGERPRINT_BYTES = HASH_BYTES + THUMBNAIL_SIDE * THUMBNAIL_SIDE

_MARGIN = 1.0  # grey levels; below, a difference is noise of the compression and not of the photograph
_MOST_BITS = 48  # of 256 that copies may differ in; JPEG at quality 75 flips up to 26, unrelated photographs about 100
_LEAST_CORRELATION = 0.9  # of thumbnails; copies reach 0.99, neighbouring areas of one photograph 0.5
_LEAST_DETAIL = 1.0  # grey levels of contrast; below, a thumbnail is as good as flat and tells nothing
_BLUR = 2  # cells of a thumbnail to each side; what is left of it after blurring is detail
_ROWS = 4096  # compared at once


def fingerprint(image: np.ndarray) -> bytes:
    """(H, W, 3) RGB, uint8 or uint16 -> FINGERPRINT_BYTES bytes: the hash, then the thumbnail."""
    grey = cv2.cvtColor(to_float(image), cv2.COLOR_RGB2GRAY) * 255
    areas = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    bits = np.packbits(np.diff(areas, axis=1) > _MARGIN)
    thumbnail = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return bits.tobytes() + np.rint(thumbnail).astype(np.uint8).tobytes()


def find_duplicates(first: list[bytes], second: list[bytes]) -> list[tuple[int, int]]:
    """Positions of the same photograph in two lists of fingerprints, sorted by the second, then the first.

    Found are copies at the same framing (to within some 1 % of the side): recompressed, scaled, of another bit depth,
    a little brighter or darker. Not found are crops, flips and rotations; nor images without detail (an empty sky, a
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


def _unpack(fingerprints: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Bits as signs (N, 256), and details of the thumbnails (N, 784) of length 1; zero where there are none."""
    table = np.frombuffer(b''.join(fingerprints), np.uint8).reshape(len(fingerprints), FINGERPRINT_BYTES)
    signs = np.unpackbits(table[:, :HASH_BYTES], axis=1).astype(np.float32) * 2 - 1
    inner = THUMBNAIL_SIDE - 2 * _BLUR
    details = np.empty((len(table), inner * inner), np.float32)
    for row, content in zip(details, table[:, HASH_BYTES:], strict=True):
        thumbnail = content.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE).astype(np.float32)
        # Without the border, where a mere slope of brightness looks like detail.
        detail = (thumbnail - cv2.blur(thumbnail, (2 * _BLUR + 1,) * 2))[_BLUR:-_BLUR, _BLUR:-_BLUR]
        contrast = float(np.sqrt(np.mean(detail**2)))
        row[:] = detail.ravel() / (contrast * inner) if contrast >= _LEAST_DETAIL else 0
    return signs, details
