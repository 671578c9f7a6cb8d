"""All-in-one image restoration for BasicSR.

Importing this package prepares BasicSR for the installed torch and registers the networks, the dataset, the losses, the
metrics and the model with BasicSR's registries. It prints nothing, creates no logger and draws no random number.
"""

from importlib.metadata import PackageNotFoundError, version

from promptir_basicsr import host

try:
    __version__ = version('promptir_basicsr')
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = '0+source'

host.prepare()

from promptir_basicsr import archs, data, losses, metrics, models  # noqa: E402  (BasicSR must be prepared first)

__all__ = ['__version__', 'archs', 'data', 'host', 'losses', 'metrics', 'models']
