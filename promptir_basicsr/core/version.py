"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version('promptir_basicsr')
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = '0+source'
