"""All-in-one image restoration for BasicSR.

Importing this package prepares BasicSR for the installed torch and registers the networks, the dataset, the losses, the
metrics and the models with BasicSR's registries. It prints nothing, creates no logger and draws no random number. The
package's own commands do this only when a verb needs it: `basicsr --help` does not wait for torch.
"""

import importlib
import sys
from pathlib import PurePath

from promptir_basicsr.core.version import __version__

__all__ = ['__version__', 'activate']


def activate() -> None:
    """Prepare BasicSR and register this package's classes with it. Calling it again has no effect.

    Raises:
        HostError: BasicSR cannot be imported; the message names the command that installs it.
    """
    importlib.import_module('promptir_basicsr.core.compat').import_host()
    for room in ('archs', 'data', 'losses', 'metrics', 'models'):
        importlib.import_module(f'promptir_basicsr.{room}')
    importlib.import_module('promptir_basicsr.host').adapt()


_COMMANDS = {'promptir_basicsr', 'promptir_basicsr.cli', 'promptir_basicsr.install_basicsr'}


def _is_command(words: list[str]) -> bool:
    """Whether an interpreter started with these words runs a command of this package, such as `basicsr`."""
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
