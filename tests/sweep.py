"""What an architecture does when it is steered and measured, against an oracle written by hand.

The oracle is a forward hook of five lines and full forward passes of one row without a cache: for
ΔCE their log-softmax, for replies a loop that runs everything again for every token.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import get_args

import small_architectures
import tiny
import torch

from calibrate.common.errors import CalibrateError, CalibrateWarning
from calibrate.common.settings import Sampling
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Request, sample_all
from calibrate.engine.loading import load_model
from calibrate.engine.sampling import draw, noise_key
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.hooks import Positions
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.steering import steered_rows
from calibrate.models.tokens import Prompt, TokenSequence

EXACT = 1e-4  # relative, of what a float32 pass may be off
SHARED = tuple(range(6, 15))  # what all texts and prompts begin with
ENDS = (2, 7, 11)  # tokens that end a reply, so that some leave early
GREEDY = Sampling(temperature=1e-5, top_p=1.0, max_new_tokens=6)
SAMPLED = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=6)
POSITIONS = get_args(Positions)


@dataclass(frozen=True)
class Swept:
    """What was found of one architecture.

    verdict: "exact", "fall-back", "refused" or "wrong". hook, rise, alone: how far, relatively, the
    steered logits and ΔCE are off the oracle's, and ΔCE in batches off that of row by row.
    replies: whether all replies are the oracle's. fallbacks: what it goes without, and why.
    """

    architecture: str
    class_name: str
    verdict: str
    hook: float | None = None
    rise: float | None = None
    alone: float | None = None
    replies: bool | None = None
    logit_rule: str = ""
    fallbacks: dict[str, str] = field(default_factory=dict)
    reason: str = ""


def sweep(architecture: str) -> Swept:
    """Build, load, steer, measure and compare one architecture.

    Raises: NotBuilt; and whatever the code under test raises beside a CalibrateError.
    """
    made = small_architectures.build(architecture)
    found = Swept(architecture, type(made).__name__, "refused")
    made.generation_config.eos_token_id = list(ENDS)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", CalibrateWarning)
            loaded = load_model(made, tiny.tokenizer())
            with preserving_model_state(loaded):
                return _measured(found, loaded)
    except CalibrateError as error:
        return replace(found, reason=str(error))


def _measured(found: Swept, loaded: LoadedModel) -> Swept:
    report = loaded.capabilities.report()
    hook, rise, alone = hook_error(loaded), rise_error(loaded), batch_error(loaded)
    without = {
        name.replace("_", " "): each.reason
        for name, each in vars(report).items()
        if getattr(each, "reason", None)
    }
    same = True
    for site in sites(loaded):
        try:
            same &= all(replies_agree(loaded, site, sampling) for sampling in (GREEDY, SAMPLED))
        except CalibrateError as error:
            without[f"positions {site.positions}"] = str(error)
    right = max(hook, rise, alone) < EXACT and same
    verdict = ("fall-back" if without else "exact") if right else "wrong"
    cap = "" if report.softcap is None else f", capped at {report.softcap:g}"
    return replace(
        found,
        verdict=verdict,
        hook=hook,
        rise=rise,
        alone=alone,
        replies=same,
        logit_rule=f"{report.logit_scale:g} × raw{cap}",
        fallbacks=without,
    )


def sites(loaded: LoadedModel) -> list[Site]:
    """The second block, and the first and the last together, at all positions and at the last."""
    last = loaded.num_layers - 1
    groups = [[min(1, last)], [0, last]] if last else [[0]]
    return [
        Site(tuple(vector_at(loaded, layer) for layer in layers), positions)
        for layers in groups
        for positions in POSITIONS
    ]


def vector_at(loaded: LoadedModel, layer: int) -> SteeringVector:
    """A vector of half the residual stream's size after a block."""
    seen: list[torch.Tensor] = []
    block = loaded.blocks[layer]
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(_first(out)))
    loaded.model(input_ids=torch.tensor([SHARED]), use_cache=False)
    handle.remove()
    drawn = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(5 + layer))
    size = seen[0].norm(dim=-1).median()
    return SteeringVector(0.5 * drawn / drawn.norm() * size, layer, float(size))


def _first(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def oracle(loaded: LoadedModel, ids: Sequence[int], site: Site | None, first: int) -> torch.Tensor:
    """Logits (positions, vocabulary) of one full pass; `first` is the first position steered."""
    with ExitStack() as stack:
        if site is not None:
            where = torch.arange(len(ids))[:, None] >= (0 if site.positions == "all" else first)
            for vector in site.vectors:
                hook = tiny.hand_written_hook(loaded.blocks[vector.layer], vector.values * where)
                stack.enter_context(hook)
        return loaded.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def hook_error(loaded: LoadedModel) -> float:
    """How far our steering of a pass is off the hand-written hook's."""
    worst = 0.0
    ids = [*SHARED, 20, 30, 9]
    for site in sites(loaded):
        with steered_rows(loaded.blocks, [site.steering(1.0)]):
            ours = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        worst = max(worst, _off(ours, oracle(loaded, ids, site, len(ids) - 1)[-1]))
        plain = oracle(loaded, ids, None, 0)[-1]
        assert _off(plain, oracle(loaded, ids, site, len(ids) - 1)[-1]) > 100 * EXACT
    return worst


def texts() -> list[TokenSequence]:
    """Texts of several lengths, longer than the small windows, that begin alike."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randint(6, 40, (n,), generator=generator).tolist() for n in (4, 12, 7, 16)]
    return [TokenSequence((*SHARED, *rest), len(SHARED) + 1) for rest in drawn]


def rise_error(loaded: LoadedModel) -> float:
    """How far ΔCE is off the oracle's, text by text, on text of its own and of others."""
    worst = 0.0
    for site in sites(loaded):
        for own in (True, False):
            corpus = Corpus(tuple(texts()), own)
            run = run_unsteered(loaded, corpus, [site.first])
            ours = torch.tensor(delta_ce(loaded, run, site, 1.0).sums)
            expected = torch.stack([_rise(loaded, text, site, own) for text in texts()])
            worst = max(worst, _off(ours, expected))
    return worst


def _rise(loaded: LoadedModel, text: TokenSequence, site: Site, own: bool) -> torch.Tensor:
    scored = slice(text.start - 1, -1)
    before, after = (
        torch.log_softmax(oracle(loaded, text.ids, each, text.start - 1).double(), -1)[scored]
        for each in (None, site)
    )
    if own:
        return (before.exp() * (before - after)).sum()
    labels = torch.tensor(text.ids[text.start :])[:, None]
    return (before - after).gather(1, labels).sum()


def batch_error(loaded: LoadedModel) -> float:
    """How far ΔCE of texts in batches is off that of texts one by one."""
    site, corpus = sites(loaded)[0], Corpus(tuple(texts()), True)
    found = []
    for one in (loaded, replace(loaded, batch_tokens=1)):
        run = run_unsteered(one, corpus, [site.first])
        found.append(torch.tensor(delta_ce(one, run, site, 1.0).sums))
    return _off(*found)


def replies_agree(loaded: LoadedModel, site: Site, sampling: Sampling) -> bool:
    """Whether replies to several prompts in one batch, half of them steered, are the oracle's."""
    prompts = [Prompt(f"prompt {n}", (*SHARED, *(30 - k for k in range(n)))) for n in (1, 4, 9)]
    requests = [Request(prompts), Request(prompts, steering=site.steering(1.0))]
    found = sample_all(loaded, requests, sampling, seed=0)
    return all(
        list(said.sequence.ids[len(prompt.ids) :]) == _reply(loaded, prompt, each, sampling)
        for each, replies in zip((None, site), found, strict=True)
        for prompt, said in zip(prompts, replies, strict=True)
    )


def _reply(loaded: LoadedModel, prompt: Prompt, site: Site | None, sampling: Sampling) -> list[int]:
    """A reply by running everything again for every token; greedy where that is what is asked."""
    key = torch.tensor([noise_key(0, prompt.text, 0)])
    said: list[int] = []
    for step in range(sampling.max_new_tokens):
        logits = oracle(loaded, (*prompt.ids, *said), site, len(prompt.ids) - 1)[-1:]
        chosen = logits.argmax(-1) if sampling is GREEDY else draw(logits, sampling, key, step)
        said.append(int(chosen))
        if said[-1] in ENDS:
            break
    return said


def _off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
