"""Stop a training by a signal, after the current iteration is finished and saved."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

ALWAYS = ('SIGTERM', 'SIGINT')
_REPEAT = 5.0  # seconds in which torchrun may forward a signal that the terminal has sent to all processes already


class StopSignals:
    """Handles the signals that stop a training. A second signal ends the process at once.

    Attributes:
        asked: name of the received signal, or None.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._repeat = 0.0
        self._time = 0.0

    def install(self, names: Iterable[str], together: bool = False) -> None:
        """Install the signal handlers; only possible in Python's main thread.

        Args:
            names: such as SIGTERM; signals unknown to the system are ignored.
            together: several processes train, and one signal may reach each of them twice.
        """
        self._repeat = _REPEAT if together else 0.0
        if threading.current_thread() is not threading.main_thread():
            return
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and number not in self._before:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _: object) -> None:
        if os.getpid() != self._process:  # a data loader worker that was forked from this process
            ignore_once(number, None)
            return
        if self.asked is None:
            self.asked, self._time = signal.Signals(number).name, time.monotonic()
            # Not by a logger, which may be writing a line.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _told(self.asked))
        elif time.monotonic() - self._time >= self._repeat:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _told(name: str) -> bytes:
    return f'\n{name}: stopping after this iteration is saved; a second signal ends the training at once.\n'.encode()


def ignore_once(number: int, _: object) -> None:
    """Handler for data loader workers: Ctrl-C and Slurm signal them too, but training still needs them."""
    signal.signal(number, signal.SIG_DFL)
