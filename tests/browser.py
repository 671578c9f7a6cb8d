"""A real browser for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


@dataclass
class Watched:
    """A page, and what went wrong in it.

    Attributes:
        page: playwright's.
        problems: errors and warnings of the console, exceptions, requests that failed or left this machine.
    """

    page: object
    problems: list[str] = field(default_factory=list)


@contextmanager
def browser_page(width: int = 1280, height: int = 900) -> Iterator[Watched]:
    """An empty page in headless Chromium. Without a browser the test is skipped, but not under CI."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        (pytest.fail if os.environ.get('CI') else pytest.skip)(f'no browser: {", ".join(BROWSERS)}')
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])
        watched = Watched(page := browser.new_page(viewport={'width': width, 'height': height}))
        note = watched.problems.append
        page.on('console', lambda said: said.type in ('error', 'warning') and note(f'{said.type}: {said.text}'))
        page.on('pageerror', lambda error: note(f'exception: {error}'))
        page.on('requestfailed', lambda request: note(f'failed: {request.url}'))
        page.on('request', lambda request: _local(request.url) or note(f'asked for: {request.url}'))
        yield watched
        browser.close()


def _local(url: str) -> bool:
    return url.startswith(('file:', 'data:', 'blob:', 'about:', 'http://127.0.0.1', 'http://localhost', 'ws://127.'))
