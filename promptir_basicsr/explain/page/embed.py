"""Embedded content of a page: images as data URIs, drawings as SVG elements."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from promptir_basicsr.core.arrays import to_bytes

LARGEST_SVG = 1 << 20
"""Bytes; larger drawings, such as a cloud of many points, are slow in browsers, so the page has them as PNG."""

_WEBP_SIDE = 16383  # longest side of the format
_REFERENCE = re.compile(r'url\(\s*[\'"]?#([^)\'"]+)[\'"]?\s*\)')


def picture_uri(image: np.ndarray, lossless: bool = True) -> str:
    """Data URI of an image, (H, W, 3) RGB, float [0, 1] or uint8: lossless WebP or PNG, or JPEG of quality 95."""
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
    """A figure as SVG markup and '', or as '' and the data URI of its PNG if the SVG is missing or too large.

    Args:
        prefix: of all ids in the drawing, which makes them unique in the page.

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
    """An SVG file as an element of an HTML page, with unique ids and scoped style rules.

    Scripts and external references are not removed: the page's Content-Security-Policy blocks them.

    Raises:
        ElementTree.ParseError: the text is not XML.
    """
    root, own = ElementTree.fromstring(text), f'{prefix}svg'
    for element in root.iter():
        for child in list(element):
            if _local(child.tag) == 'metadata':
                element.remove(child)
        # In HTML, SVG elements have no prefixes and need no namespace declarations.
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _renamed(value, name, prefix) for name, value in attributes.items()})
        if element.tag == 'style':  # a rule for `*` applies to this drawing, not to the page
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
    """Local name: `path` of `{http://www.w3.org/2000/svg}path`; comments have no name."""
    return name.rpartition('}')[2] if isinstance(name, str) else 'metadata'


def _uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode("ascii")}'
