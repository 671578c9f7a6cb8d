"""Failures of a run: convert any exception to a message with advice and an exit status."""

import errno
import logging
import os
import re
import shutil
import traceback

import torch
from torch import distributed
from torch.utils.data._utils.signal_handling import _error_if_any_worker_fails

from promptir_basicsr.core.errors import (
    ImageError,
    OptionError,
    OutOfMemory,
    ProcessDied,
    RunError,
    SaveError,
    WorkerDied,
)
from promptir_basicsr.core.files import in_units
from promptir_basicsr.core.messages import first_few, printable
from promptir_basicsr.host.distributed import dead_processes
from promptir_basicsr.runtime.memory import is_out_of_memory

logger = logging.getLogger('basicsr')

_KILLED = re.compile(
    r'DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: ([^.]*)|exited unexpectedly)'
)
_DISCONNECTED = re.compile(
    'Connection (closed|reset) by peer|Broken pipe|Connection refused|remote process exited'
    '|NCCL communicator was aborted'
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
KNOWN = (OptionError, ImageError, SaveError, RunError)
"""Errors whose messages already contain the cause and the fix."""


def explained(error: Exception, doing: str) -> Exception:
    """The error to end a run with: a known error, or one that explains another exception.

    Args:
        doing: 'training' or 'validation'.
    """
    if isinstance(error, KNOWN):
        return error
    for cause in (*_dead_workers(), *_causes(error)):
        found = _worker(cause) or _memory(cause, doing) or _disk(cause) or _process(cause)
        found = found or (cause if isinstance(cause, KNOWN) else None)
        if found is not None:
            return found
    first_line = printable(str(error).strip().partition('\n')[0])
    what = f'{type(error).__name__}: {first_line}' if first_line else type(error).__name__
    return RunError(f'{what} ended the {doing}. {_keep_traceback(error)}')


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def _dead_workers() -> list[BaseException]:
    """torch's error about killed workers, which may first appear as a pipe error."""
    try:
        _error_if_any_worker_fails()
    except RuntimeError as error:
        return [error]
    return []


def _worker(error: BaseException) -> Exception | None:
    text = str(error)
    match = _KILLED.search(text) if isinstance(error, RuntimeError) else None
    if match is None and not _waited_for_worker(error):
        return None
    how = f'was killed by signal {match[2]}' if match is not None and match[2] else 'ended without an error message'
    which = f' (pid {match[1]})' if match is not None else ''
    room = ''
    if os.path.isdir('/dev/shm'):
        room = f' /dev/shm, through which workers pass images, has {in_units(shutil.disk_usage("/dev/shm").free)} free.'
    return WorkerDied(
        f'A worker process of the data loader{which} {how}. Most likely the machine ran out of memory, or a '
        f'file changed while it was read.{room} Lower num_worker_per_gpu or batch_size_per_gpu; '
        'num_worker_per_gpu: 0 loads images without workers.'
    )


def _waited_for_worker(error: BaseException) -> bool:
    """Whether the error is the closed pipe of a worker, before torch notices that the worker ended."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, EOFError | ConnectionError) and any(frame.name == '_try_get_data' for frame in frames)


def _process(error: BaseException) -> Exception | None:
    """Explain a gloo or NCCL error about the connection to a process that ended."""
    if not distributed.is_initialized() or not _DISCONNECTED.search(str(error)):
        return None
    gone = dead_processes()
    which = f'Process {first_few(gone)} of this training' if gone else 'Another process of this training'
    return ProcessDied(
        f'{which} has ended or lost its connection. See its output for the reason. The last checkpoint is complete: '
        'start all processes again with --auto_resume.'
    )


def _memory(error: BaseException, doing: str) -> Exception | None:
    if not is_out_of_memory(error):
        return None
    where = 'The GPU' if isinstance(error, torch.OutOfMemoryError) else 'The machine'
    if doing == 'validation':
        advice = 'Set `val: {tile: auto}` or a number of pixels, so that images are restored in tiles.'
    else:
        advice = (
            'Lower gt_size or batch_size_per_gpu, or set `train: {accumulate: N}` or `activation_checkpointing: block`.'
        )
    return OutOfMemory(f'{where} does not have enough memory for the {doing}. {advice}')


def _disk(error: BaseException) -> Exception | None:
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return None
    where = f"'{printable(str(error.filename))}'" if error.filename else 'A file'
    return SaveError(f'{where} could not be written: {error.strerror}.')


def _keep_traceback(error: Exception) -> str:
    """Write the traceback to the log file if there is one; return a sentence about where it is."""
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    text = ''.join(traceback.format_exception(error))
    for handler in files:
        handler.handle(logging.LogRecord(logger.name, logging.ERROR, __file__, 0, text, None, None))
    if files:
        return f'The traceback is in {printable(files[0].baseFilename)}.'
    return f'The traceback: {printable(text)}'
