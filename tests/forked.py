"""`basicsr`, and functions of tests, in processes of their own that have the package imported from the start.

They are forks of a server, one of each test process, where a new Python would import for three seconds. Few tests start
a new Python as users do: those of the command itself, of imports, and of what the environment changes at a start.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

from promptir_basicsr import cli

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['promptir_basicsr.host.trainer', 'promptir_basicsr.inference', 'basicsr.test'])


class Fork:
    """A process of one thread and its own session that runs a function.

    Args:
        cwd: its current folder.
        env: its environment; that of the test where it is not given.
        out, err: files that what it says is appended to.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        cwd: Path,
        out: Path,
        err: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        place = str(cwd), dict(os.environ if env is None else env), str(out), str(err or out)
        method = multiprocessing.get_start_method()  # of the workers that it starts, as in any new Python
        self.process = CONTEXT.Process(target=_run, args=(method, *place, function, arguments))
        self.process.start()

    def wait(self, timeout: float = 240) -> int:
        """Its exit status, negative for a signal.

        Raises:
            TimeoutError: it did not end in time, and was killed.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f'process {self.process.pid} did not end within {timeout} s')
        return self.process.exitcode


def basicsr(*words: str, **place: Any) -> CompletedProcess[str]:
    """Run a verb to its end, in the current folder where no `cwd` is given; `env` as for Fork."""
    return called(cli.main, list(words), **place)


def called(
    function: Callable[..., Any],
    *arguments: Any,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> CompletedProcess[str]:
    """Run a function to its end; what it returns is the status."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / 'out', Path(folder) / 'err'
        fork = Fork(function, *arguments, cwd=cwd or Path.cwd(), out=out, err=err, env=env)
        status = fork.wait(timeout)
        said = [path.read_text(encoding='utf-8') for path in (out, err)]
    return CompletedProcess(list(map(str, arguments)), status, *said)


def _run(
    method: str,
    cwd: str,
    environment: dict[str, str],
    out: str,
    err: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.setsid()
    multiprocessing.set_start_method(method, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, stream in ((out, 1), (err, 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
