"""How many threads torch works with."""

from __future__ import annotations

import os

import psutil
import torch

WATCHED = 0.2  # seconds for which the load of the machine is measured


def use_idle_cores() -> int:
    """Let torch work with as many threads as cores are idle now, and return how many.

    The threads of one operation wait for each other, so that a core which another process holds
    slows all of them down: on two busy cores two threads take longer than one. Where
    OMP_NUM_THREADS says how many there shall be, nothing changes.
    """
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return most
    idle = (psutil.cpu_count() or 1) * (1 - psutil.cpu_percent(interval=WATCHED) / 100)
    torch.set_num_threads(max(1, min(most, round(idle))))
    return torch.get_num_threads()
