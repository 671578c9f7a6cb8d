"""Multi-GPU and multi-process training: torchrun or Slurm, GPUs or CPUs."""

import datetime
import functools
import hashlib
import json
import logging
import os
import random
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import options as host_options
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from promptir_basicsr.core.errors import OptionError
from promptir_basicsr.core.messages import first_few

TIMEOUT = 1800.0
"""Default number of seconds that a process waits for the others. NCCL's own 10 minutes are short for processes that
compile or restore the largest images of a validation."""
COUNTERS = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS'}
_PORT = 29500
_NEEDED = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NODELIST'),
}
_START = {
    'pytorch': 'torchrun --nproc_per_node=N -m promptir_basicsr train -opt FILE --launcher pytorch',
    'slurm': 'srun --ntasks=N --kill-on-bad-exit=1 basicsr train -opt FILE --launcher slurm',
}


def adapt() -> None:
    """BasicSR always requires a CUDA device and NCCL, and passes `dist_params` only to Slurm's processes."""
    host_options.init_dist = _started
    wrap_on_cpu()


def wrap_on_cpu() -> None:
    """Let `BaseModel.model_to_device` work without a CUDA device."""
    host = BaseModel.model_to_device
    if hasattr(host, '__wrapped__'):
        return

    @functools.wraps(host)
    def model_to_device(self: BaseModel, net: torch.nn.Module) -> torch.nn.Module:
        if not self.opt['dist'] or self.device.type != 'cpu':
            return host(self, net)
        unused = self.opt.get('find_unused_parameters', False)
        return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    BaseModel.model_to_device = model_to_device


def start_processes(launcher: str, num_gpu: int | str, params: Mapping[str, Any] | None = None) -> None:
    """Initialise the process group of a run, one process per GPU. Does nothing without a launcher.

    Args:
        launcher: 'none', 'pytorch' for torchrun, 'slurm' for srun.
        num_gpu: the option; 0 for processes on CPUs.
        params: the option `dist_params`: `backend`, default NCCL for GPUs and gloo for CPUs; `timeout` in seconds;
            `port` of the first node under Slurm, default MASTER_PORT or 29500.

    Raises:
        OptionError: torchrun has started more processes than there are GPUs.
    """
    if launcher == 'none' or distributed.is_initialized():
        return
    options = dict(params or {})
    port, timeout = options.pop('port', None), options.pop('timeout', None) or TIMEOUT
    if launcher == 'slurm':
        _set_addresses(port)
    on_gpus = num_gpu != 0 and torch.cuda.is_available()
    backend = options.pop('backend', None) or 'nccl'
    if on_gpus:
        torch.cuda.set_device(_gpu(launcher))
    if 'nccl' in backend and not (on_gpus and distributed.is_nccl_available()):
        backend = 'gloo'
    # From depthwise convolutions, whose single channel has a meaningless stride. Each process would print it.
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    # Loader workers that are forked while NCCL or gloo threads run may hang.
    if torch.multiprocessing.get_start_method(allow_none=True) is None:
        torch.multiprocessing.set_start_method('spawn')
    patience = datetime.timedelta(seconds=float(timeout))
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS') or 0) > 0:
        store, rank, processes = next(distributed.rendezvous('env://', timeout=patience))
        options.update(store=new_part(store, rank, processes, patience), rank=rank, world_size=processes)
    distributed.init_process_group(backend, timeout=patience, **options)


def new_part(
    store: distributed.Store, rank: int, processes: int, patience: datetime.timedelta
) -> distributed.PrefixStore:
    """A part of a store that all processes agree on and that no earlier process has written to.

    torchrun's store outlives a restart, and processes would read the addresses of processes that ended
    (pytorch#135712). Its restart count does not help, because each machine has its own.

    Raises:
        OptionError: other processes did not start in time.
    """
    store = distributed.PrefixStore('promptir_basicsr', store)
    own = uuid.uuid4().hex
    if rank:
        # Names of ended processes get no answer, or an answer that nobody reads.
        store.set(f'here/{rank}', own)
        store.wait([f'answer/{own}'], patience)
        name = store.get(f'answer/{own}').decode()
        store.set(f'met/{name}/{rank}', own)
        return distributed.PrefixStore(name, store)
    absent, end = set(range(1, processes)), time.monotonic() + patience.total_seconds()
    while absent:
        for other in sorted(absent):
            if store.check([f'met/{own}/{other}']):
                absent.discard(other)
            elif store.check([f'here/{other}']):
                store.set(f'answer/{store.get(f"here/{other}").decode()}', own)
        if time.monotonic() > end:
            missing = ', '.join(map(str, sorted(absent)))
            raise OptionError(f'dist_params.timeout: waited {patience.total_seconds():g} s for process {missing}.')
        time.sleep(0.05)
    return distributed.PrefixStore(own, store)


def check_agreement(options: Mapping[str, Any]) -> None:
    """Compare the options of all processes, because different options could make them wait for each other forever.

    Raises:
        OptionError: they differ, because machines have different files or got different arguments.
    """
    if not distributed.is_initialized():
        return
    text = json.dumps(options, sort_keys=True, default=str)
    found: list[Any] = [None] * distributed.get_world_size()
    own = hashlib.sha256(text.encode()).hexdigest(), socket.gethostname(), os.getpid()
    distributed.all_gather_object(found, own)
    _MET[:] = [(host, pid) for _, host, pid in found]
    others = [rank for rank, (digest, *_) in enumerate(found) if digest != found[0][0]]
    if others:
        named = first_few(f'{rank} on {found[rank][1]}' for rank in others)
        raise OptionError(
            f'-opt: the options of process {named} differ from those of process 0 on {found[0][1]}. Start all '
            'processes with the same option file and arguments.'
        )


_MET: list[tuple[str, int]] = []


def dead_processes(patience: float = 2.0) -> list[str]:
    """Other processes of this host that have ended, as `1 (pid 4711)`; those of other hosts are not visible.

    Args:
        patience: seconds to wait for one; its connections end before the process does.
    """
    end = time.monotonic() + patience
    while True:
        here = [(rank, pid) for rank, (host, pid) in enumerate(_MET) if host == socket.gethostname()]
        gone = [f'{rank} (pid {pid})' for rank, pid in here if _is_gone(pid)]
        if gone or time.monotonic() > end:
            return gone
        time.sleep(0.05)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # process of another user, or a system without /proc
        return False
    return state == 'Z'


def end_processes() -> None:
    """Destroy the process group after a successful run. A failed process must not wait for the others."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def leave(status: int) -> None:
    """End this process after a failed run of several processes; does nothing for a single process.

    It does not wait for the other processes. An ordinary exit would destroy running threads of the process group, which
    aborts the process (SIGABRT) and loses its exit status.
    """
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)


def launch_problems(launcher: str) -> list[str]:
    """Problems of how the processes of this run were started."""
    lacking = [name for name in _NEEDED.get(launcher, ()) if name not in os.environ]
    if lacking:
        return [
            f'--launcher {launcher}: this process was not started by {_START[launcher].split()[0]}, {lacking[0]} is '
            f'not in its environment. Run: {_START[launcher]}'
        ]
    number = os.environ.get('WORLD_SIZE', '1')
    if launcher == 'none' and 'TORCHELASTIC_RUN_ID' in os.environ and number != '1':
        return [
            f'--launcher: missing. torchrun has started {number} processes, which would train independently and write '
            'the same files. Add `--launcher pytorch`.'
        ]
    return []


def processes_of(launcher: str) -> int:
    """Number of processes of the training."""
    name = COUNTERS.get(launcher)
    return int(os.environ.get(name, 1)) if name else 1


def restarted() -> bool:
    """Whether torchrun has restarted this process after a failure, as `--max-restarts` allows."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT') or 0) > 0


def common_seed() -> int:
    """A random seed that all processes share; BasicSR draws one per process, so samples of an epoch would repeat."""
    seed = [random.randint(1, 10000)]
    if distributed.is_initialized():
        distributed.broadcast_object_list(seed)
    return seed[0]


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `node[07-09,12]-ib,login` -> `node07-ib`."""
    inside = re.sub(r'\[([^\],-]+)[^\]]*\]', r'\1', nodes)
    return inside.partition(',')[0]


def _started(*_: Any, **__: Any) -> None:
    """Replacement of BasicSR's `init_dist`; the process group exists before its parser runs."""


def _set_addresses(port: int | None) -> None:
    """Set torch's environment variables from Slurm's."""
    given = os.environ
    given['RANK'], given['WORLD_SIZE'] = given['SLURM_PROCID'], given['SLURM_NTASKS']
    given['LOCAL_RANK'] = given['SLURM_LOCALID']
    given['MASTER_ADDR'] = first_host(given.get('SLURM_STEP_NODELIST') or given['SLURM_NODELIST'])
    given['MASTER_PORT'] = str(port or given.get('MASTER_PORT') or _PORT)


def _gpu(launcher: str) -> int:
    """The number of this process's GPU.

    Raises:
        OptionError: torchrun has started more processes than there are GPUs.
    """
    place, there = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
    if launcher == 'pytorch' and int(os.environ['LOCAL_WORLD_SIZE']) > there:
        raise OptionError(
            f'torchrun --nproc_per_node={os.environ["LOCAL_WORLD_SIZE"]}: this machine has {there} GPUs, and each '
            f'runs one process. Set --nproc_per_node={there}, or `num_gpu: 0` for the CPU.'
        )
    return place % there  # Slurm may expose to a process only its own GPU
