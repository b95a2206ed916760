"""The default band of a built-in concept, and the judges that a calibration has there."""

from __future__ import annotations

from calibrate.common.errors import Infeasible
from calibrate.common.settings import Settings
from calibrate.engine.site import Site
from calibrate.judging.choice import Lesson
from calibrate.judging.panel import Panel, make_judges
from calibrate.judging.teaching import JudgeInputs
from calibrate.models.model import LoadedModel
from calibrate.search.sites import steered_band
from calibrate.texts.concept import read_concept
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import UnsteeredReplies


def band_of(loaded: LoadedModel, concept: str, settings: Settings) -> Site:
    """The band with the vectors of the concept's own texts."""
    vectors = concept_vectors(loaded, read_concept(concept).split()["vector"], settings)
    return Site(tuple(vectors[layer] for layer in steered_band(loaded.num_layers)))


def judges_at(
    loaded: LoadedModel,
    concept: str,
    replies: UnsteeredReplies,
    site: Site,
    settings: Settings,
    second: str | None = "embedding",
) -> Panel | None:
    """The judges of a calibration at a band; None where the probe cannot tell the concept."""
    splits = read_concept(concept).split()
    inputs = JudgeInputs(concept, splits, replies, Site(site.vectors[:1]))
    try:
        return make_judges(loaded, inputs, "auto", second, Lesson("graded"), settings)
    except Infeasible:
        return None
