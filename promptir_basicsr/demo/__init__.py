"""Web demo: a page to try a network in the browser."""

from promptir_basicsr.demo.app import build_page

__all__ = ['build_page']
