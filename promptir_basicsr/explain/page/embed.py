"""What a page holds within itself: pictures as data URIs, drawings as SVG elements."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from promptir_basicsr.core.arrays import to_bytes

LARGEST_SVG = 1 << 20
"""Bytes; a drawing with more, such as a cloud of many points, is slow in a browser and stands in the page as PNG."""

_WEBP_SIDE = 16383  # the format knows no longer one
_REFERENCE = re.compile(r'url\(\s*[\'"]?#([^)\'"]+)[\'"]?\s*\)')


def picture_uri(image: np.ndarray, lossless: bool = True) -> str:
    """(H, W, 3) RGB, float [0, 1] or uint8 -> `data:image/...`, WebP or PNG without loss, or JPEG of quality 95."""
    picture = Image.fromarray(np.ascontiguousarray(image if image.dtype == np.uint8 else to_bytes(image)))
    stream = io.BytesIO()
    if not lossless:
        kind = 'jpeg'
        picture.save(stream, 'JPEG', quality=95, subsampling=0)
    elif max(picture.size) > _WEBP_SIDE:
        kind = 'png'
        picture.save(stream, 'PNG')
    else:
        kind = 'webp'
        picture.save(stream, 'WEBP', lossless=True, method=2, quality=50)  # more effort gains 2 %
    return _uri(f'image/{kind}', stream.getvalue())


def figure_markup(png: Path, svg: Path, prefix: str) -> tuple[str, str]:
    """A figure as markup and '', or as '' and the data URI of its PNG where there is no SVG of sensible size.

    Args:
        prefix: of all ids in the drawing, so that they are unique in the page.

    Raises:
        OSError: neither file can be read.
    """
    if svg.is_file() and svg.stat().st_size <= LARGEST_SVG:
        try:
            return inline_svg(svg.read_text(encoding='utf-8'), prefix), ''
        except (ElementTree.ParseError, UnicodeDecodeError):
            if not png.is_file():
                raise
    return '', _uri('image/png', png.read_bytes())


def inline_svg(text: str, prefix: str) -> str:
    """An SVG file as an element of an HTML page, with ids and rules of its own.

    What runs or loads something is left in it: the Content-Security-Policy of the page forbids both.

    Raises:
        ElementTree.ParseError: it is no XML.
    """
    root, own = ElementTree.fromstring(text), f'{prefix}svg'
    for element in root.iter():
        for child in list(element):
            if _local(child.tag) == 'metadata':
                element.remove(child)
        # In HTML, elements of SVG have no prefixes and need no declared namespaces.
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _renamed(value, name, prefix) for name, value in attributes.items()})
        if element.tag == 'style':  # a rule for `*` is meant for this drawing, not for the page
            element.text = f'#{own} {{ {_renamed(element.text or "", "", prefix)} }}'
    root.attrib['id'] = own
    return ElementTree.tostring(root, encoding='unicode')


def _renamed(value: str, name: str, prefix: str) -> str:
    if name == 'id':
        return prefix + value
    if name == 'href':
        return f'#{prefix}{value[1:]}' if value.startswith('#') else ''.join(value.split())
    return _REFERENCE.sub(rf'url(#{prefix}\1)', value)


def _local(name: object) -> str:
    """`path` of `{http://www.w3.org/2000/svg}path`; comments and the like have no name."""
    return name.rpartition('}')[2] if isinstance(name, str) else 'metadata'


def _uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'
