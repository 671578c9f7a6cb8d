"""Stop a training by a signal: what it is doing is finished and saved first."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import basicsr.data

STOPPED = 3
"""Exit status of a training that a signal has stopped, and that `--auto_resume` continues."""
ALWAYS = ('SIGTERM', 'SIGINT')
FURTHER = ('SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU')
"""What `logger.stop_signals` may name: Slurm sends the one that `--signal` asks for before it takes the machine."""
_REPEAT = 5.0  # seconds, on a busy machine, in which torchrun passes on what the terminal has sent to all already

_host_worker_init: Callable[..., None] = basicsr.data.worker_init_fn


class Stopped(SystemExit):
    """A signal has ended the training, and its state is saved; the code is STOPPED."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopSignals:
    """Notices the signals that stop a training. A second one ends the process at once.

    Attributes:
        asked: name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._repeat = 0.0
        self._time = 0.0

    def install(self, names: Iterable[str], together: bool = False) -> None:
        """Begin to notice signals. Only Python's main thread can.

        Args:
            names: such as SIGTERM; those that the system does not know are passed over.
            together: several processes train; one signal may reach each of them twice.
        """
        self._repeat = _REPEAT if together else 0.0
        if threading.current_thread() is not threading.main_thread():
            return
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and number not in self._before:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Let the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _: object) -> None:
        if os.getpid() != self._process:  # a worker of the data loader that was forked from this process
            ignore_once(number, None)
            return
        if self.asked is None:
            self.asked, self._time = signal.Signals(number).name, time.monotonic()
            # Not by a logger: it may be in the middle of a line.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _told(self.asked))
        elif time.monotonic() - self._time >= self._repeat:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _told(name: str) -> bytes:
    return f'\n{name}: the iteration is finished and saved first; a second signal ends the training at once.\n'.encode()


def ignore_once(number: int, _: object) -> None:
    """Handler in the workers of a data loader: Ctrl-C and Slurm signal them as well, and training still needs them."""
    signal.signal(number, signal.SIG_DFL)


def worker_init_fn(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """BasicSR's, in a process that outlives the first signal, unless its own parent sends it."""
    _host_worker_init(worker_id, num_workers, rank, seed)
    for name in (*ALWAYS, *FURTHER):
        if name != 'SIGTERM' and hasattr(signal, name):
            signal.signal(getattr(signal, name), ignore_once)
    # The parent ends its workers by SIGTERM and waits for them. Only this call tells who has sent it; macOS lacks it.
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    others = 0
    while others < 2:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        others += 1 if sender != os.getppid() else 2
    os._exit(0)


def adapt() -> None:
    """BasicSR dies of a signal wherever it is, its workers before it, and loses what it did since the last state."""
    basicsr.data.worker_init_fn = worker_init_fn
