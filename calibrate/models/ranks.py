"""Processes that hold one model together, by tensor parallelism or FSDP: ranks, as torch says.

Every pass needs all of them, so all run the same calibration, step by step on the same values.
What they could find different, the first finds and tells the others: what stands in the output
directory, the time, which tokens are drawn, and what a judge replies that is asked. Only the first
writes to the output directory; the others have one of their own, which goes with them.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

Value = TypeVar("Value")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """The processes that hold a model, seen from one of them; by default it is alone.

    rank: its place, from 0. size: how many there are. device: where tensors go that are sent.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """The processes that hold this model."""
        together = distributed.is_available() and distributed.is_initialized()
        if not together or not any(isinstance(each, DTensor) for each in model.parameters()):
            return cls()
        backend = distributed.get_backend()
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def alone(self) -> bool:
        """Whether one process holds the whole model."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, asks and draws."""
        return self.rank == 0

    def told(self, value: Value) -> Value:
        """The first process's value, of what JSON can say.

        >>> from calibrate.models.ranks import Ranks
        >>> Ranks().told(0.5)
        0.5
        """
        if self.alone:
            return value
        told: Value = json.loads(self._sent(json.dumps(value).encode() if self.first else b""))
        return told

    def clock(self) -> float:
        """The first process's time, in seconds."""
        return self.told(time.perf_counter())

    def told_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first process's token ids; of the same shape everywhere."""
        if self.alone:
            return tokens
        sent = tokens.to(self.device, copy=True).contiguous()
        distributed.broadcast(sent, 0)
        return sent.to(tokens.device)

    def directory(self, out: str | Path | None, names: Sequence[str]) -> str | Path | None:
        """Where this process may write: `out` on the first, a copy of these files on the others."""
        if self.alone or out is None:
            return out
        own = Path(out) if self.first else Path(tempfile.mkdtemp(prefix="calibrate-rank-"))
        if not self.first:
            atexit.register(shutil.rmtree, own, ignore_errors=True)
        for name in self.told([name for name in names if (own / name).is_file()]):
            content = self._sent((own / name).read_bytes() if self.first else b"")
            if not self.first:
                (own / name).parent.mkdir(parents=True, exist_ok=True)
                (own / name).write_bytes(content)
        return own

    def _sent(self, content: bytes) -> bytes:
        """The first process's bytes; the others' are ignored."""
        length = torch.tensor([len(content)], device=self.device)
        distributed.broadcast(length, 0)
        held = np.frombuffer(content, dtype=np.uint8).copy() if self.first else None
        sent = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        if held is not None and len(held):
            sent.copy_(torch.from_numpy(held))
        if len(sent):
            distributed.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()


def sharding(model: nn.Module, part: nn.Module) -> FSDPModule | None:
    """What shards the weights of a part, by FSDP, and can bring them together; None if nothing."""
    holders = [
        module
        for module in model.modules()
        if isinstance(module, FSDPModule) and any(each is part for each in module.modules())
    ]
    return holders[-1] if holders else None
