"""The fingerprint of a calibration: a hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from calibrate.common.settings import Settings
from calibrate.judging.choice import Lesson
from calibrate.models.configuration import configuration
from calibrate.models.model import LoadedModel
from calibrate.models.steering import require_unsteered
from calibrate.texts.concept import Concept
from calibrate.texts.guard import Guard


def fingerprint_of(
    loaded: LoadedModel,
    weights: str | None,
    concept: Concept,
    prompts: Sequence[str],
    corpus: Mapping[str, Sequence[str]] | None,
    judges: Sequence[str | None],
    lesson: Lesson | None,
    guard: Guard | None,
    settings: Settings,
) -> str:
    """Hash of everything the result depends on.

    weights: their hash, None where no process holds all of them. judges: their names, and hashes of
    what they are beside these.
    Raises: InputError where the model is being steered, which its configuration does not say.
    """
    require_unsteered(loaded.model)
    parts = [
        [asdict(loaded.identity), configuration(loaded), weights],
        dict(loaded.rendering.kwargs),
        [concept.name, concept.data_sha256, _groups(concept)],
        list(prompts),
        corpus,
        [*judges, lesson and asdict(lesson)],
        guard and guard.sha256,
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _groups(concept: Concept) -> list[tuple[str, str, str]]:
    """The group of each text, by which texts are split, in any order."""
    texts = [*concept.texts.positives, *concept.texts.negatives]
    return sorted((text.prompt or "", text.text, text.key) for text in texts)


def fingerprint_from(fingerprint: str, start: str) -> str:
    """The fingerprint of a calibration that begins with an earlier one, given that one's."""
    return hashlib.sha256(f"{fingerprint} from {start}".encode()).hexdigest()


def fingerprint_at(fingerprint: str, *budgets: float) -> str:
    """The fingerprint of another budget of a calibration, nats per token.

    budgets: it is the last; those before it would have been shipped first.
    """
    tried = ", ".join(map(repr, budgets))
    return hashlib.sha256(f"{fingerprint} at {tried}".encode()).hexdigest()


def fingerprint_picked(fingerprint: str, budget: float) -> str:
    """The fingerprint of another budget picked from a calibration, nats per token.

    Not that of a calibration that goes on to this budget: a pick is verified at it whatever smaller
    ones buy, at a strength that a frontier may have named.
    """
    return hashlib.sha256(f"{fingerprint} picked at {budget!r}".encode()).hexdigest()
