"""Fixtures shared by the tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny
import torch

from calibrate.calibration import calibrate
from calibrate.common.settings import Sampling
from calibrate.deploy.finished import Calibration
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.models.converted import cache_directory
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import TokenSequence

# Deadlines measure the machine; the tests' own time limit is that of the suite.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache with the models that are at hand, and with no results of earlier runs."""
    own, users = tmp_path_factory.mktemp("cache"), cache_directory().resolve()
    for kept in ("models", "wheels"):
        with suppress(OSError):  # where there can be none, the tests that need one say so
            (users / kept).mkdir(parents=True, exist_ok=True)
        (own / kept).symlink_to(users / kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CALIBRATE_CACHE", str(own))
        yield


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def loaded() -> LoadedModel:
    """A random three-block Llama."""
    return tiny.loaded()


@pytest.fixture
def sequences() -> list[TokenSequence]:
    """Twelve sequences of different lengths, each a prompt and a reply."""
    rng = random.Random(0)
    made = []
    for _ in range(12):
        start, reply = rng.randint(1, 6), rng.randint(2, 12)
        ids = tuple(rng.randrange(5, len(tiny.VOCABULARY)) for _ in range(start + reply))
        made.append(TokenSequence(ids, start))
    return made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, where there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data of ../shared is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a calibration of a random GPT-2 that takes a second and succeeds."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(tiny.prompts(100)))
    return {
        "concept": tiny.concept(60),
        "tokenizer": tiny.tokenizer(),
        "prompts": prompts,
        "layer": "search",  # blocks of random weights add up to little
        "ce_budget": 0.4,
        "min_gain": 0.0,  # these tests ask how it works, not how much it brings
        "trials": 4,
        "teacher": "none",
        "audit": None,
        "guard": None,
        "sampling": Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12),
    }


@dataclass(frozen=True)
class Finished:
    """A finished calibration and the directory it was written to."""

    result: Calibration
    directory: Path


@pytest.fixture(scope="session")
def finished(tiny_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One finished calibration that many tests look at."""
    directory = tmp_path_factory.mktemp("finished") / "bright"
    result = calibrate(tiny.model("gpt2"), out=directory, **tiny_options)
    return Finished(result, directory)


@pytest.fixture
def parts(loaded: LoadedModel, sequences: list[TokenSequence]) -> tuple[UnsteeredRun, Site, Site]:
    """A run over own text, and two sites at different blocks."""
    torch.manual_seed(4)
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=True), [0])
    values = torch.randn(3, loaded.hidden_size)
    one = Site((SteeringVector(values[0], 0, 5.0), SteeringVector(values[1], 1, 6.0)))
    other = Site((SteeringVector(values[2], 1, 6.0),))
    return run, one, other
