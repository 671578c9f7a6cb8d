"""A page in the browser to try a network."""

from promptir_basicsr.demo.app import build_page

__all__ = ['build_page']
