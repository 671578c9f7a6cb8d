"""Every error that ends a command, with its exit status."""

import importlib.util
from collections.abc import Iterable

_INSTALLED_AS = {'sklearn': 'scikit-learn'}


class OptionError(ValueError):
    """One or more mistakes in the options, a line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__('\n'.join(self.problems))


class MachineProblem(str):
    """A problem that this machine has with the options; they may be right for the one that trains."""


class ImageError(RuntimeError):
    """An image that cannot be used; the message names it.

    torch raises an error of a worker once more, with the worker's traceback in its message: that is cut off here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition('ImageError: ')[2].strip() if 'Traceback' in message else message)


NOT_SAVED = 4
"""Exit status of a run that ends because a file could not be written."""


class SaveError(OSError):
    """A file could not be written; what stood at its place is untouched."""


STOPPED = 3
"""Exit status of a training that a signal has stopped, and that `--auto_resume` continues."""


class Stopped(SystemExit):
    """A signal has ended the training, and its state is saved; the code is STOPPED."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


SICK = 5
"""Exit status of a training that has ended because of steps that were not finite."""


class SickTraining(RuntimeError):
    """Too many steps in a row were left out."""


def need_extra(what: str, modules: Iterable[str], extra: str) -> None:
    """Raise OptionError where modules of one of this package's extras are not installed; says how to get them."""
    absent = [_INSTALLED_AS.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise OptionError([f"{what} needs {' and '.join(absent)}: pip install 'promptir_basicsr[{extra}]'"])
