"""What `calibrate laws` has measured at a site, kept: an interrupted run goes on with the next.

Each result is named by all that went into it, so that another judge or more blocks measure only
what is new. Presence is kept where a probe reads it: who is asked may answer otherwise next time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from calibrate.common.record import Section
from calibrate.engine.site import Site
from calibrate.judging.guard import put
from calibrate.laws.bench import Bench
from calibrate.laws.curves import BlockCurves, block_curves
from calibrate.laws.panels import AccuracyCurve, PresenceCurve
from calibrate.models.cache import CacheFormat, load_or_compute
from calibrate.search.law_panels import ReadingBench, measure_accuracy
from calibrate.texts.guard import Guard

FILE = "measured.json"

Kept = TypeVar("Kept", bound=Section)


def _format(kind: str, section: type[Kept]) -> CacheFormat[Kept]:
    """How one section is stored."""

    def files(made: Kept) -> Mapping[str, bytes]:
        return {FILE: made.model_dump_json().encode()}

    def load(folder: Path) -> Kept:
        return section.model_validate_json((folder / FILE).read_bytes())

    return CacheFormat[Kept](kind, files, FILE, load)


CURVES = _format("law curves", BlockCurves)
PRESENCE = _format("presence curve", PresenceCurve)
ACCURACY = _format("accuracy curve", AccuracyCurve)


def curves_once(bench: Bench, site: Site, resamples: Sequence[Site] = ()) -> BlockCurves:
    """`block_curves`, or what it measured before."""
    corpus, settings = bench.run.corpus, bench.settings
    request = [
        [_facts(each) for each in (site, *resamples)],
        [[sequence.ids, sequence.start] for sequence in corpus.sequences],
        corpus.self_sampled,
        bench.concept_tokens,
        [settings.ce_budget, settings.confidence, settings.seed, settings.normalize],
    ]
    make = partial(block_curves, bench, site, resamples)
    return load_or_compute(bench.loaded, CURVES, request, make)


def presence_once(reading: ReadingBench, site: Site, unit: float) -> PresenceCurve:
    """`reading.curve`, or what it measured before; unit: α_B, above 0."""
    make = partial(reading.curve, site, unit)
    if reading.probe is None:
        return make()
    request = [
        _facts(site),
        unit,
        {name: _hash(content) for name, content in reading.probe.files().items()},
        [prompt.ids for prompt in reading.prompts],
        asdict(reading.settings.sampling),
        reading.settings.seed,
    ]
    return load_or_compute(reading.loaded, PRESENCE, request, make)


def accuracy_once(bench: Bench, site: Site, guard: Guard, unit: float) -> AccuracyCurve:
    """`measure_accuracy`, or what it measured before; unit: α_B, above 0."""
    loaded, settings = bench.loaded, bench.settings
    request = [_facts(site), unit, guard.name, put(loaded, guard), settings.confidence]
    make = partial(measure_accuracy, loaded, site, guard, unit, settings)
    return load_or_compute(loaded, ACCURACY, request, make)


def _facts(site: Site) -> list[Any]:
    """All that steering there depends on."""
    vectors = [
        [each.layer, each.residual_norm, each.n_sinks, _hash(each.values.numpy().tobytes())]
        for each in site.vectors
    ]
    return [site.positions, vectors]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
