"""Where the weights of a model go: to one device, spread over several, or shared by processes."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.distributed import DistributedConfig

from calibrate.common.errors import CalibrateWarning, InputError, ModelError
from calibrate.models.unreadable import first_line

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's
WAITING = ("cpu", "disk")  # where accelerate keeps what does not fit a device


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go.

    device: the one device; None where they are spread. arguments: of `from_pretrained`. shared:
    whether processes share the model by tensor parallelism.
    """

    device: torch.device | None
    arguments: dict[str, Any] = field(default_factory=dict)
    shared: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU is what computes."""
        return not torch.cuda.is_available() if self.device is None else self.device.type == "cpu"


def place(
    device: str, device_map: str | Mapping[str, Any] | None, tensor_parallel: bool
) -> Placement:
    """Where a model goes that is loaded with these arguments of `load_model`.

    Raises: InputError for arguments that exclude each other, or a map there is not; ModelError for
        a device there is not.
    """
    if tensor_parallel:
        _require_processes()
        if device_map is not None:
            raise InputError(
                "give either --device-map, which spreads a model from one process, or "
                "--tensor-parallel, which shares it between several"
            )
    if device != "auto" and (tensor_parallel or device_map is not None):
        raise InputError(
            f"a model that is spread has no one --device, got {device!r}; leave it out"
        )
    if tensor_parallel:
        return Placement(None, _shared_by_processes(), shared=True)
    if device_map is None:
        return Placement(_resolve_device(device))
    if isinstance(device_map, str) and device_map not in MAPS:
        raise InputError(f"--device-map must be one of {', '.join(MAPS)}, got {device_map!r}")
    chosen = device_map if isinstance(device_map, str) else dict(device_map)
    return Placement(None, {"device_map": chosen})


def _require_processes() -> None:
    """Raise InputError unless this is one of several processes that torch started together."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise InputError(
            "--tensor-parallel needs two processes or more, started together: "
            "torchrun --nproc-per-node N --no-python calibrate …"
        )


def require_divisible(config: Any) -> None:
    """Refuse to share a model between more processes than its attention heads can be dealt to.

    config: the model's, of its text part.
    Raises: ModelError.
    """
    size = int(os.environ["WORLD_SIZE"])
    names = ("num_attention_heads", "num_key_value_heads")
    heads = [getattr(config, name, None) or 0 for name in names]
    dealt = math.gcd(*heads)
    if dealt % size:
        fitting = [str(n) for n in range(2, dealt + 1) if not dealt % n]
        start = f"start {' or '.join(fitting)} processes, or " if fitting else ""
        raise ModelError(
            f"--tensor-parallel deals attention heads to processes, so that {' and '.join(names)} "
            f"must be multiples of their number, got {heads[0]} and {heads[1]} for {size}; "
            f"{start}give --device-map auto"
        )


def _shared_by_processes() -> dict[str, Any]:
    """The model's own plan of tensor parallelism; older versions of transformers take it itself."""
    if "tp_plan" in inspect.signature(DistributedConfig).parameters:
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    return {"tp_plan": "auto"}


def _resolve_device(device: str) -> torch.device:
    """The device of that name.

    Raises: ModelError if there is none.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved).cpu()  # also rules out meta, which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device must be auto, cpu, cuda or mps, and present, got {device!r} "
            f"({first_line(error)}); --device-map spreads a model over several"
        ) from error
    return resolved


def warn_if_offloaded(model: Any, name: str) -> None:
    """Warn of weights that wait elsewhere for every pass, since that is many times slower."""
    places = getattr(model, "hf_device_map", {})
    computing = {str(each) for each in places.values()} - {*WAITING}
    elsewhere = {"disk"} | ({"cpu"} if computing else set())
    n_waiting = sum(str(each) in elsewhere for each in places.values())
    if n_waiting:
        warnings.warn(
            f"{n_waiting} of {len(places)} parts of {name} do not fit the devices and wait in "
            "memory or on disk, so that every pass brings them anew; the forecast of time counts "
            "that in. Use more devices, or --dtype bfloat16",
            CalibrateWarning,
            stacklevel=2,
        )
