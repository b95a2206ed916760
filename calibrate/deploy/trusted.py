"""The judges that a config names, made again where its word may be taken for it.

A name can have any function run, and a server asked that the key is then sent to. What was made by
this process may do both. A config in a directory of the user's may, but the key goes only to the
address in the user's own OPENAI_BASE_URL. One from a repository is somebody else's, and may do
neither, nor load a sentence encoder that it names, since those name classes to import.
"""

from __future__ import annotations

import os

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.hub import SUMS_FILE
from calibrate.common.errors import InputError
from calibrate.engine.loading import is_hub_id
from calibrate.judging.asked import TEACHER
from calibrate.judging.panel import judge_again
from calibrate.models.model import LoadedModel
from calibrate.texts.concept import Texts
from probes import Probe, Reader
from probes.judges import Judge


def reader_again(
    name: str,
    config: SteeringConfig,
    loaded: LoadedModel,
    probe: Probe | None,
    texts: Texts | None = None,
) -> Reader:
    """One of the calibration's judges; the probe as it was fitted, before any grades.

    texts: the "probe" split of its concept, where that is at hand.
    Raises: InputError if its name is not enough to make it, or not to be trusted.
    """
    if name == "probe" and probe is not None:
        return Reader(probe.as_fitted.on(loaded), config.concept.name, name)
    return Reader(_trusted_judge(name, config, loaded, texts), config.concept.name, name)


def _trusted_judge(
    name: str, config: SteeringConfig, loaded: LoadedModel, texts: Texts | None
) -> Judge:
    """A judge made again from its name, if that is to be trusted."""
    place = config.origin.place
    if place == "repository" and not _is_harmless(name):
        raise InputError(
            f"judge {name!r} is named by a repository, which may have no code run here, no server "
            f"asked and no file read; where you trust it, copy its files but {SUMS_FILE} to a "
            "directory, without provenance.repository in steering.json, and name that"
        )
    url, own = config.settings.judge_url or "", os.environ.get("OPENAI_BASE_URL") or ""
    would_send = name.startswith("openai:") and url and os.environ.get("OPENAI_API_KEY")
    if place == "directory" and would_send and url.rstrip("/") != own.rstrip("/"):
        raise InputError(
            f"judge {name!r} must be asked at an address of yours, since OPENAI_API_KEY is sent "
            f"there, and the config names {url}; set OPENAI_BASE_URL to it, or unset the key"
        )
    concept = config.concept
    sha256, settings = concept.data_sha256, config.settings
    return judge_again(loaded, name, concept.name, sha256, settings, texts)


def _is_harmless(name: str) -> bool:
    """Whether making a judge of this name only loads weights, as those of the Hub are loaded."""
    kind, _, model = name.partition(":")
    if kind == "question":
        return model in ("", TEACHER) or ("/" in model and is_hub_id(model))
    return name in ("probe", "embedding")
