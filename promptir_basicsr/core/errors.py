"""Every error that ends a command, with its exit status."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence

from promptir_basicsr.core.problems import Keys, Problem, as_problem, keys, problem

_INSTALLED_AS = {'sklearn': 'scikit-learn'}


class OptionError(ValueError):
    """One or more mistakes in options or arguments; the text has a line for each.

    Args:
        problems: one or several; a sentence is a problem without a place in the options.
        show: makes the line of a problem, such as one with the line in the option file.

    Attributes:
        problems: the mistakes.
    """

    def __init__(self, problems: str | Problem | Iterable[str | Problem], show: Callable[[Problem], str] = str) -> None:
        problems = [problems] if isinstance(problems, str | Problem) else problems
        self.problems = [as_problem(each) for each in problems]
        self.lines = [show(each) for each in self.problems]
        super().__init__('\n'.join(self.lines))


def raise_problems(problems: Sequence[str | Problem], owner: str = '') -> None:
    """Raise OptionError where there are problems, which the class `owner` has found in its arguments."""
    if problems:
        raise OptionError(as_problem(each).said_by(owner) if owner else each for each in problems)


def argument_error(owner: str, argument: str | Keys, message: str, *others: str) -> OptionError:
    """A wrong argument of a class that options build, or several that do not go together; the message names them."""
    return OptionError(problem('', message, keys(argument), *map(keys, others)).said_by(owner))


def problems_of(where: str | Keys, error: Exception) -> list[Problem]:
    """What an error says of the options at a place: its own problems, or of another error a problem for each line."""
    if isinstance(error, OptionError):
        return [each.below(where) for each in error.problems]
    return [problem(where, line) for line in (str(error) or type(error).__name__).splitlines()]


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


class RunError(RuntimeError):
    """A run has ended before its time; the message says why, and what to do.

    Attributes:
        status: exit status of the command.
    """

    status = 8


class SickTraining(RunError):
    """Too many steps in a row were not finite."""

    status = 5


class WorkerDied(RunError):
    """A worker process of a data loader was killed."""

    status = 6


class OutOfMemory(RunError):
    """There was not enough memory, of the GPU or of the machine."""

    status = 7


class ProcessDied(RunError):
    """Another process of the training has ended before its time."""

    status = 9


def need_extra(what: str, modules: Iterable[str], extra: str) -> None:
    """Raise OptionError where modules of one of this package's extras are not installed; says how to get them."""
    absent = [_INSTALLED_AS.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise OptionError(f"{what} needs {' and '.join(absent)}: pip install 'promptir_basicsr[{extra}]'")
