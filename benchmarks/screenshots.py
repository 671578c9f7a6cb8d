"""The screenshots of the docs: the page of `basicsr demo` and that of `basicsr explain`, in headless Chromium.

python -m benchmarks.screenshots --weights net_g_latest.pth [-opt FILE] [--explain explain/report.html]
"""

import argparse
import io
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import browser_page

IMAGES = Path(__file__).parents[1] / 'docs' / 'images'
LARGEST = 150_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.screenshots')
    parser.add_argument('--weights', required=True, help='of the network that the page restores with')
    parser.add_argument('-opt', help='option file with its network_g')
    parser.add_argument('--example', type=int, default=0, help='which of the examples is restored; default: 0')
    parser.add_argument('--explain', help='page of `basicsr explain`')
    args = parser.parse_args()
    for width, name in ((1280, 'web.jpg'), (390, 'web_phone.jpg')):
        with browser_page(width, 800) as watched:
            save(demo(watched.page, args), name)
    if args.explain:
        with browser_page(1280, 1500) as watched:
            save(explain(watched.page, Path(args.explain)), 'explain_page.jpg')


def demo(page: Any, args: argparse.Namespace) -> bytes:
    """The page with a restored example."""
    with socket.socket() as place:
        place.bind(('127.0.0.1', 0))
        port = str(place.getsockname()[1])
    command = [
        sys.executable,
        '-m',
        'promptir_basicsr',
        'demo',
        '--weights',
        args.weights,
        '--port',
        port,
        '--no-browser',
    ]
    command += ['-opt', args.opt] if args.opt else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        page.goto(f'http://127.0.0.1:{port}')
        page.locator('#examples button').nth(args.example).click()
        page.wait_for_function('document.querySelector("#picture img")?.naturalWidth > 0')
        page.locator('#restore').click()
        page.wait_for_selector('.prompt-weights', timeout=120_000)
        page.wait_for_function(
            '[...document.querySelectorAll("#comparison img")].every((image) => image.naturalWidth > 0)'
        )
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        return page.screenshot(full_page=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def explain(page: Any, path: Path) -> bytes:
    """The upper part of the page."""
    page.goto(path.resolve().as_uri())
    page.wait_for_timeout(1000)
    return page.screenshot()


def save(png: bytes, name: str) -> None:
    """As JPEG, with the highest quality that is small enough."""
    image = Image.open(io.BytesIO(png)).convert('RGB')
    for quality in range(92, 40, -4):
        stream = io.BytesIO()
        image.save(stream, 'JPEG', quality=quality, optimize=True)
        if stream.tell() < LARGEST:
            break
    (IMAGES / name).write_bytes(stream.getvalue())
    sys.stdout.write(f'{name}: {image.width}x{image.height}, quality {quality}, {stream.tell():,} bytes\n')


if __name__ == '__main__':
    main()
