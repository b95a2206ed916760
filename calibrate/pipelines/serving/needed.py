"""What a server needs beside the rest: FastAPI, uvicorn and Prometheus' client."""

from __future__ import annotations

from importlib.util import find_spec

from calibrate.common.errors import InputError

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def require_serving() -> None:
    """Raise InputError if the extra dependencies are not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"a server needs {', '.join(missing)}: pip install 'steering-calibrate[serve]'"
        )
