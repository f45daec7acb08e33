"""The process group that torchrun's environment asks for, and the device of each of its processes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from tqdm.std import tqdm

from bae_lens.distributed.collectives import all_gather_objects, all_sum
from bae_lens.distributed.health import end_watching, watch_over_ranks
from bae_lens.distributed.ranks import rank

# Of all processes to come up.
_RENDEZVOUS = timedelta(minutes=10)
# Of one to wait for another, which may read text or be evaluated for hours; that it has died is noticed by
# other means, see ``health``.
_PATIENCE = timedelta(hours=24)
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_HINT = (
    "torchrun sets all of them: torchrun --nproc-per-node 2 -m bae_lens train CONFIG. Without it, unset "
    "WORLD_SIZE and RANK."
)


def start_process_group() -> None:
    """Initialize the process group of a process that torchrun has started, once; any other is left alone.

    Collectives on CPU tensors go by gloo and those on CUDA tensors by NCCL. The group ends with the process.
    Where the program has initialized a group itself, that one is used.

    Raises:
        ValueError: if the environment names several processes and does not say how they find each other, or
            this machine has fewer GPUs than processes.
    """
    if not dist.is_available() or dist.is_initialized() or n_launched() == 1:
        return
    from torch.distributed.rendezvous import rendezvous

    number, size = _read_environment(os.environ)
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(_own_cuda_index())
    store, _, _ = next(rendezvous("env://", number, size, timeout=_RENDEZVOUS))
    store.set_timeout(_RENDEZVOUS)
    backend = "cpu:gloo,cuda:nccl" if has_cuda and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_PATIENCE)
    atexit.register(_end)
    watch_over_ranks(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), number, size)
    _check_own_gpus(has_cuda)
    if has_cuda:
        # NCCL connects with its first collective, for which no rank is to wait long.
        all_sum(torch.zeros(1, device="cuda"))
    if number > 0:
        _hide_bars()


def own_device(device: str) -> str:
    """The device that a config's ``device`` means to this process: ``"cuda"`` is its own GPU.

    Raises:
        ValueError: if it is the GPU of another process.
    """
    if not (dist.is_available() and dist.is_initialized() and torch.device(device).type == "cuda"):
        return device
    index, own = torch.device(device).index, torch.cuda.current_device()
    if index in (None, own):
        return f"cuda:{own}"
    if "nccl" in dist.get_backend_config() and dist.get_world_size() > 1:
        raise ValueError(
            f"The device is {device!r}, and this process has GPU {own}. Say 'cuda': each takes its own."
        )
    return device


def n_launched() -> int:
    """Processes that were started together, as far as the environment says; 1 if it says nothing.

    Raises:
        ValueError: if what it says cannot be.
    """
    environment = os.environ
    size, number = (environment.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if size == "" and number in ("", "0"):
        return 1
    return _whole(environment, "WORLD_SIZE", 1)


def _read_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of this process, and of processes."""
    missing = [name for name in _NAMES if environment.get(name, "") == ""]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {environment.get('WORLD_SIZE')!r}, so that a process group is needed, but the "
            f"environment lacks {', '.join(missing)}. {_HINT}"
        )
    size, number = _whole(environment, "WORLD_SIZE", 1), _whole(environment, "RANK", 0)
    _whole(environment, "LOCAL_RANK", 0)
    if number >= size:
        raise ValueError(f"RANK is {number}, but there are {size} processes (WORLD_SIZE). {_HINT}")
    if _whole(environment, "MASTER_PORT", 1) > 65535:
        raise ValueError(
            f"MASTER_PORT is {environment['MASTER_PORT']!r}, which is no port. {_HINT}"
        )
    return number, size


def _whole(environment: Mapping[str, str], name: str, least: int) -> int:
    value = environment.get(name, "")
    if not value.isdecimal() or int(value) < least:
        raise ValueError(
            f"The environment variable {name} must be a whole number of at least {least}; got {value!r}. "
            f"{_HINT}"
        )
    return int(value)


def _own_cuda_index() -> int:
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number < there:
        return number
    if there == 1:
        # SLURM may show each process its own GPU only. If it is the same one, that is found out below.
        return 0
    raise ValueError(
        f"This is process {number} of its machine, counted from 0, and the machine has {there} GPUs. Start as "
        "many processes as there are GPUs: --nproc-per-node."
    )


def _check_own_gpus(has_cuda: bool) -> None:
    own = None
    if has_cuda:
        own = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    every = all_gather_objects(own)
    if own is not None and every.count(own) > 1:
        others = [str(r) for r, gpu in enumerate(every) if gpu == own and r != rank()]
        raise ValueError(
            f"Process {rank()} has the same GPU as {', '.join(others)}, where NCCL needs one for each. Start as "
            "many processes as there are GPUs (--nproc-per-node), or hide them: CUDA_VISIBLE_DEVICES=''."
        )


def _hide_bars() -> None:
    """No progress bars from now on: rank 0's are enough."""
    show = tqdm.__init__

    @wraps(show)
    def hide(self: Any, *args: Any, **kwargs: Any) -> None:
        show(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = hide


def _end() -> None:
    is_well = end_watching()
    # After a failure NCCL might wait for ranks that are gone; the operating system does not.
    if is_well and dist.is_initialized():
        dist.destroy_process_group()
