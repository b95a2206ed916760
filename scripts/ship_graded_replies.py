"""Write graded replies into the concept packs, and what they say of scales.

    python scripts/ship_graded_replies.py

The train part, which readers graded, a teacher, or both, and the second judge's part; nothing of
the tune and test parts.
`written.json` is how a probe that learned from written texts alone scores such replies, over four
concepts on smollm2. Five minutes on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from graded_replies import Reply, replies

from calibrate import load_model
from calibrate.common.settings import Settings
from calibrate.judging.graded_replies import FOLDER
from calibrate.judging.panel import written_examples
from calibrate.models.model import LoadedModel
from calibrate.texts.concept import built_in_concepts, read_concept, read_prompts
from calibrate.texts.replies import sample_unsteered
from probes import GradedText, fit_written_probe
from probes.graded import graded_lines
from probes.scale import AS_FITTED, fit_platt, log_odds
from probes.student import CERTAIN

MODEL = "smollm2"
FOR_SCALE = ("depression", "humorous", "joy", "optimistic")  # whose replies have a yes often enough


def main() -> None:
    for part, folder in (("train", FOLDER), ("second", FOLDER / "second")):
        folder.mkdir(exist_ok=True)
        for concept in built_in_concepts():
            texts = [shipped(one) for one in replies(part, concept) if is_graded(one)]
            (folder / f"{concept}.jsonl").write_text(graded_lines(texts), encoding="utf-8")
    write_scale()


def is_graded(reply: Reply) -> bool:
    return bool(reply.text.strip()) and (reply.grade is not None or reply.taught is not None)


def shipped(reply: Reply) -> GradedText:
    taught = None if reply.taught is None else round(reply.taught, 3)
    return GradedText(reply.text, grade=reply.grade, group=reply.prompt, taught=taught)


def write_scale() -> None:
    """What the score of a probe that learned from written texts says of readers' yes."""
    loaded, scores, yes = load_model(MODEL), [], []
    own = sample_unsteered(loaded, read_prompts(), Settings(), ("probe",)).first_replies("probe")
    for concept in FOR_SCALE:
        read = [one for one in replies("train", concept) if counts(one)]
        scores += score(loaded, concept, [one.text for one in own], [one.text for one in read])
        yes += [(one.grade or 0) >= 1 for one in read]
    scale = fit_platt(np.array(scores), np.array(yes))
    assert scale is not None
    (FOLDER / "written.json").write_text(json.dumps(asdict(scale)) + "\n", encoding="utf-8")


def counts(reply: Reply) -> bool:
    """Whether the scale is fitted to it: without those at the band, concepts weigh alike."""
    return reply.model == MODEL and reply.grade is not None and not reply.at_band


def score(
    loaded: LoadedModel, concept: str, own: Sequence[str], texts: Sequence[str]
) -> list[float]:
    """Scores, in standard deviations of plain replies."""
    splits = read_concept(concept).split()
    examples, held_out = (written_examples(splits[split]) for split in ("probe", "held_out"))
    probe = fit_written_probe(concept, examples, held_out, own, loaded, AS_FITTED)
    return [float(one) for one in log_odds(probe.score(texts, loaded), CERTAIN)]


if __name__ == "__main__":
    main()
