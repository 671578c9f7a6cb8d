"""All-in-one image restoration for BasicSR.

Importing this package prepares BasicSR for the installed torch and registers the networks, the dataset, the losses, the
metrics and the model with BasicSR's registries. It prints nothing, creates no logger and draws no random number. In the
package's own commands it does so once a verb needs it: `basicsr --help` does not wait for torch.
"""

import importlib
import sys
from pathlib import PurePath

from promptir_basicsr.core.version import __version__

__all__ = ['__version__', 'activate']


def activate() -> None:
    """Prepare BasicSR and register what this package adds to it. Harmless when called again.

    Raises:
        HostError: BasicSR cannot be imported; the message says what to type.
    """
    importlib.import_module('promptir_basicsr.core.compat').import_host()
    for room in ('archs', 'data', 'losses', 'metrics', 'models'):
        importlib.import_module(f'promptir_basicsr.{room}')
    importlib.import_module('promptir_basicsr.host').adapt()


_COMMANDS = {'promptir_basicsr', 'promptir_basicsr.cli', 'promptir_basicsr.install_basicsr'}


def _is_command(words: list[str]) -> bool:
    """Whether an interpreter that was started with these words runs `basicsr`, `python -m promptir_basicsr` or such."""
    words = words[1:]
    while words:
        word = words.pop(0)
        if word in ('-m', '-c'):
            return word == '-m' and not _COMMANDS.isdisjoint(words[:1])
        if word in ('-W', '-X'):
            words = words[1:]
        elif not word.startswith('-'):
            program = PurePath(word.replace('\\', '/'))
            return program.stem == 'basicsr' and program.suffix in ('', '.exe')
    return False


if not _is_command(sys.orig_argv):
    activate()
