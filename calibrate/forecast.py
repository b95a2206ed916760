"""What a calibration will cost, before it starts: token-forwards by stage.

A forecast sizes progress bars and the time left; it need not be exact. Pilots and trials are
counted at the depth of the candidate blocks, since only the blocks after them run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibrate.concept import Concept, split_prompts
from calibrate.judging import OVERSTEERED_PROMPTS, PURPOSE_PROMPTS, SHOTS
from calibrate.replies import MAX_CORPUS_TOKENS, VERIFY_COMPLETIONS
from calibrate.tokens import encode_prompt
from calibrate.vector import encode
from calibrate.verify import LADDER

if TYPE_CHECKING:
    from calibrate.model import LoadedModel
    from calibrate.settings import Settings

PILOT_PASSES = 4  # the ±ε pair, and as a rule two strengths
PROBE_COPIES = 2  # written and replied texts come back as degenerate ones


def forecast_tokens(
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    layers: Sequence[int],
    settings: Settings,
    has_corpus: bool,
) -> dict[str, int]:
    """Return the token-forwards expected of each stage, by its name.

    Raises: InputError if a text or a prompt does not fit the model's context.
    """
    counts = {split: len(texts) for split, texts in split_prompts(prompts).items()}
    lengths = [len(encode_prompt(loaded, prompt).ids) for prompt in prompts]
    asked = sum(lengths) / len(lengths)
    said = settings.sampling.max_new_tokens
    texts = {
        name: sum(len(encode(loaded, text).ids) for text in part.positives + part.negatives)
        for name, part in concept.split().items()
    }
    after = sum(1 - (layer + 1) / loaded.num_layers for layer in layers) / len(layers)
    corpus = {
        split: MAX_CORPUS_TOKENS if has_corpus else counts[split] * (asked + said)
        for split in ("search", "verify")
    }
    reply = asked + said
    steered = counts["search"] * (reply + said) + corpus["search"] * after
    judged = said + VERIFY_COMPLETIONS * said  # unsteered and steered replies are read
    fluency = reply
    controls = 2 * (reply + said)
    verify = counts["verify"] * (VERIFY_COMPLETIONS * reply + judged + fluency + controls)
    on_purpose = 2 * min(PURPOSE_PROMPTS, counts["probe"]) * (2 * reply + SHOTS * reply)
    oversteered = 2 * min(OVERSTEERED_PROMPTS, counts["probe"]) * reply
    examples = PROBE_COPIES * (texts["probe"] + counts["probe"] * said)
    return {
        "unsteered replies": round(reply * (sum(counts.values()) + counts["verify"])),
        "steering vectors": texts["vector"],
        "judges": round(on_purpose + oversteered + examples),
        "pilot": round(corpus["search"] * (1 + len(layers) * PILOT_PASSES * after)),
        "study": round(settings.trials * steered),
        "verification": round(corpus["verify"] * (1 + len(LADDER) * after) + verify),
    }
