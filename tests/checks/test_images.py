"""Many images are read once, in this process or in several, with the same facts."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from promptir_basicsr.checks.images import ImageFacts, Wanted, fingerprint, image_size, inspect_images
from promptir_basicsr.core.errors import ImageError
from promptir_basicsr.data.images import decode
from promptir_basicsr.data.sources import FolderSource


def wanted(*names: str, source: int = 0, fingerprint: bool = False) -> list[Wanted]:
    return [Wanted(source, name, fingerprint) for name in names]


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_facts_come_in_the_order_asked_for(workers: int, write, photographs) -> None:
    """More images than a request to a worker holds, of two folders."""
    names = [f'{number}.png' for number in range(150)]
    for number, name in enumerate(names):
        write(f'a/{name}', photographs[number % 3][: 20 + number // 3, :30])
    write('b/only.jpg', photographs[1])
    sources = [FolderSource(write('a/empty.bmp').parent), FolderSource(write('b/wrong.webp').parent)]
    Path(sources[0].where('empty.bmp')).write_bytes(b'')
    Path(sources[1].where('wrong.webp')).write_text('no image')
    asked = wanted(*reversed(names), fingerprint=True) + wanted('wrong.webp', 'only.jpg', source=1)
    asked += wanted('empty.bmp', '7.png', 'not there.png')
    facts = inspect_images(sources, asked, workers=workers)
    for number, fact in enumerate(reversed(facts[:150])):
        assert fact == ImageFacts(
            (20 + number // 3, 30), '', fingerprint(photographs[number % 3][: 20 + number // 3, :30])
        )
    assert facts[150:] == [
        ImageFacts(None, 'not a readable image (8 bytes)'),
        ImageFacts((96, 96)),
        ImageFacts(None, 'not a readable image (empty file)'),
        ImageFacts((22, 30)),
        ImageFacts(None, 'cannot be read (No such file or directory)'),
    ]
    assert inspect_images(sources, [], workers=workers) == []


@pytest.mark.parametrize('extension', 'png jpg bmp tif webp ppm'.split())
def test_the_image_size_is_read_from_the_first_bytes_of_a_file(extension: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (123, 217, 3), np.uint8)
    content = cv2.imencode(f'.{extension}', image)[1].tobytes()
    (tmp_path / f'whole.{extension}').write_bytes(content)
    source = FolderSource(tmp_path)
    assert image_size(source, f'whole.{extension}') == (123, 217) == decode(content, 'x').shape[:2]
    if extension not in ('tif', 'webp'):  # one has its directory at the end, Pillow reads the other whole
        (tmp_path / f'cut.{extension}').write_bytes(content[:5000])
        assert inspect_images([source], wanted(f'cut.{extension}'), decode=False) == [ImageFacts((123, 217))]
    (fact,) = inspect_images([source], wanted(f'cut.{extension}'))
    assert fact.size is None


def test_a_header_after_the_first_bytes_is_found(tmp_path: Path) -> None:
    """Metadata of a camera can fill many kilobytes before the size."""
    content = cv2.imencode('.jpg', np.zeros((40, 50, 3), np.uint8))[1].tobytes()
    metadata = b'\xff\xe1\xff\xff' + bytes(65533)
    (tmp_path / 'camera.jpg').write_bytes(content[:2] + metadata * 3 + content[2:])
    assert image_size(FolderSource(tmp_path), 'camera.jpg') == (40, 50)


class Deadly(FolderSource):
    """A file that ends the process which reads it, as a decoder or the kernel may."""

    def open(self, name: str):
        if name == 'deadly.png':
            os._exit(9)
        return super().open(name)


def test_a_worker_that_dies_is_reported(write) -> None:
    source = Deadly(write('1.png').parent)
    write('deadly.png')
    with pytest.raises(ImageError) as raised:
        inspect_images([source], wanted('1.png', 'deadly.png', '1.png'), workers=2)
    assert re.match('a worker process died at or after the images .*1.png to .*1.png', str(raised.value))
