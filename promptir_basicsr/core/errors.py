"""Errors that end a command, and their exit statuses."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence

from promptir_basicsr.core.problems import Keys, Problem, as_problem, keys, problem

_INSTALLED_AS = {'sklearn': 'scikit-learn'}


class OptionError(ValueError):
    """One or more mistakes in options or arguments; the message has a line for each.

    Args:
        problems: one or several; text is a problem without a place in the options.
        show: formats the line of a problem, for example with the line in the option file.

    Attributes:
        problems: the mistakes.

    Examples:
        >>> from promptir_basicsr.degradations import Degrade
        >>> from promptir_basicsr.options import OptionError
        >>> try:
        ...     Degrade({'type': 'gausian_noise', 'sigma': 25})
        ... except OptionError as error:
        ...     print(str(error).split(' Allowed')[0])
        degrade: unknown degradation 'gausian_noise'. Did you mean 'gaussian_noise'?
    """

    def __init__(self, problems: str | Problem | Iterable[str | Problem], show: Callable[[Problem], str] = str) -> None:
        problems = [problems] if isinstance(problems, str | Problem) else problems
        self.problems = [as_problem(each) for each in problems]
        self.lines = [show(each) for each in self.problems]
        super().__init__('\n'.join(self.lines))


def raise_problems(problems: Sequence[str | Problem], owner: str = '') -> None:
    """Raise OptionError if there are problems, which the class `owner` found in its arguments."""
    if problems:
        raise OptionError(as_problem(each).said_by(owner) if owner else each for each in problems)


def argument_error(owner: str, argument: str | Keys, message: str, *others: str) -> OptionError:
    """Return an error about one or several arguments of a class built from options; the message names them."""
    return OptionError(problem('', message, keys(argument), *map(keys, others)).said_by(owner))


def problems_of(where: str | Keys, error: Exception) -> list[Problem]:
    """Convert an error about the options at a place to problems; errors without problems yield one per line."""
    if isinstance(error, OptionError):
        return [each.below(where) for each in error.problems]
    return [problem(where, line) for line in (str(error) or type(error).__name__).splitlines()]


class ImageError(RuntimeError):
    """An image that cannot be used; the message names it.

    torch re-raises errors of workers with the worker's traceback in the message, which is removed here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition('ImageError: ')[2].strip() if 'Traceback' in message else message)


NOT_SAVED = 4
"""Exit status of a run that stopped because a file could not be written."""


class SaveError(OSError):
    """A file could not be written; an existing file at its path is unchanged."""


STOPPED = 3
"""Exit status of a training that was stopped by a signal; `--auto_resume` continues it."""


class Stopped(SystemExit):
    """A signal stopped the training, and its state is saved; the exit status is STOPPED."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class RunError(RuntimeError):
    """A run failed; the message states the reason and what to do.

    Attributes:
        status: exit status of the command.
    """

    status = 8


class SickTraining(RunError):
    """Too many consecutive steps were not finite."""

    status = 5


class WorkerDied(RunError):
    """A worker process of a data loader was killed."""

    status = 6


class OutOfMemory(RunError):
    """The GPU or the machine ran out of memory."""

    status = 7


class ProcessDied(RunError):
    """Another process of the training ended unexpectedly."""

    status = 9


def need_extra(what: str, modules: Iterable[str], extra: str) -> None:
    """Raise OptionError with the install command if modules of an extra of this package are missing."""
    absent = [_INSTALLED_AS.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise OptionError(f"{what} needs {' and '.join(absent)}: pip install 'promptir_basicsr[{extra}]'")
