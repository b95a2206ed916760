"""Check a model's parts in one tiny pass, before anything is measured on it.

Its blocks must run once each, in order, and put out the residual stream. Its logits must be the
unembedding's output, scaled and soft-capped: logits = cap · tanh(scale · raw / cap). Scale and cap
are measured: numbers of every size replace the unembedding's output, and the rule is fitted to the
logits that result. (Capping before scaling is the same family, with other numbers.)
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from calibrate.common.errors import ModelError
from calibrate.models.hooks import captured, edited, hidden_of
from calibrate.models.model import LoadedModel, LogitRule

MAGNITUDES = (1.0, 10.0, 100.0, 1000.0)  # of raw logits, one a position; the last is beyond any cap
CURVED = (0.05, 0.6)  # shares of the cap between which the slope is read off
EXACT = 1e-5  # how far, relatively, the fitted rule may be off
HALF_EXACT = 0.02


def ordinary_ids(loaded: LoadedModel, n: int) -> list[int]:
    """Return `n` different token ids from the middle of the vocabulary, none of them special."""
    words = min(loaded.embedding_rows, len(loaded.tokenizer))
    special = {*loaded.tokenizer.all_special_ids, *_marks(loaded.model.config)}
    plain = [i for i in range(words // 4, words) if i not in special] or list(range(words))
    return [plain[place * len(plain) // n] for place in range(n)]


def _marks(config: Any) -> set[int]:
    """Ids that stand for pictures, sound and the like."""
    return {v for k, v in config.to_dict().items() if k.endswith("token_id") and type(v) is int}


def proved(loaded: LoadedModel) -> LoadedModel:
    """Check a model's parts, and return it with its logit rule.

    To be called inside `preserving_model_state`.
    Raises: ModelError if the blocks do not put out the residual stream, or the rule is unknown.
    """
    ids = torch.tensor([ordinary_ids(loaded, len(MAGNITUDES))], device=loaded.device)
    ran: list[tuple[int, Any]] = []
    raw: list[torch.Tensor] = []

    def probe(out: torch.Tensor) -> torch.Tensor:
        raw.append(_probe(loaded, out))
        return raw[-1]

    with ExitStack() as stack:
        stack.enter_context(captured(loaded.blocks, lambda layer, out: ran.append((layer, out))))
        stack.enter_context(edited(loaded.unembedding, probe))
        logits = loaded.model(input_ids=ids, use_cache=False).logits
    _check_blocks(loaded, ran)
    rule = _fitted(loaded, raw, logits)
    return replace(loaded, logit_scale=rule.scale, softcap=rule.softcap)


def _check_blocks(loaded: LoadedModel, ran: list[tuple[int, Any]]) -> None:
    order = [layer for layer, _ in ran]
    if order != list(range(loaded.num_layers)):
        raise ModelError(
            f"the blocks of {loaded.name} must run once a pass, in order, and its "
            f"{loaded.num_layers} run as {_listed(order)}: {_way_out(loaded, order)}"
        )
    wanted = (1, len(MAGNITUDES), loaded.hidden_size)
    for layer, output in ran:
        hidden = hidden_of(output)
        shape = tuple(hidden.shape) if isinstance(hidden, torch.Tensor) else type(hidden).__name__
        if shape != wanted:
            raise ModelError(
                f"a block must put out one residual stream, {wanted} for {len(MAGNITUDES)} tokens, "
                f"and block {layer} of {loaded.name} puts out {shape}: steering such a model is "
                "not defined here"
            )


def _listed(order: list[int]) -> str:
    return ", ".join(map(str, order[:8])) + (", …" if len(order) > 8 else "") or "none"


def _way_out(loaded: LoadedModel, order: list[int]) -> str:
    if len(order) > loaded.num_layers:
        return "steering a model that runs its blocks again and again is not defined here"
    return "they are not the decoder blocks; name those with --blocks PATH"


def _probe(loaded: LoadedModel, out: torch.Tensor) -> torch.Tensor:
    """Raw logits of every magnitude, in the shape of the unembedding's own."""
    if out.dim() != 3 or out.shape[1] != len(MAGNITUDES):
        raise _unknown(
            loaded,
            f"for {len(MAGNITUDES)} tokens the output embedding puts out the shape "
            f"{tuple(out.shape)}",
        )
    rows = torch.tensor(MAGNITUDES)[:, None] * torch.linspace(-1, 1, out.shape[-1])
    return rows[None].to(out)


def _fitted(loaded: LoadedModel, raw: list[torch.Tensor], logits: torch.Tensor) -> LogitRule:
    if len(raw) != 1:
        raise _unknown(loaded, f"its output embedding runs {len(raw)} times a pass")
    x, y = raw[0].cpu().double()[0], logits.cpu().double()[0]
    if x.shape != y.shape:
        raise _unknown(loaded, f"{x.shape[-1]} raw logits become {y.shape[-1]}")
    exact = EXACT if logits.dtype == loaded.dtype == torch.float32 else HALF_EXACT
    scale = _simplest(float((x * y).sum() / (x * x).sum()), exact)
    for rule in (LogitRule(scale), _capped(x, y, exact)):
        gaps = (rule.of(x) - y).norm(dim=-1) / y.norm(dim=-1)
        if gaps.max() < exact:
            return rule
    ends = ", ".join(f"{value:g} becomes {y[row, -1]:.4g}" for row, value in enumerate(MAGNITUDES))
    raise _unknown(loaded, f"of what the output embedding puts out, {ends}")


def _capped(x: torch.Tensor, y: torch.Tensor, exact: float) -> LogitRule:
    """The soft-capped rule that fits best."""
    cap = float(y.abs().max())
    share = (y / cap).clamp(-1, 1)
    curved = (share.abs() > CURVED[0]) & (share.abs() < CURVED[1])
    slopes = torch.atanh(share[curved]) * cap / x[curved]
    scale = float(slopes.median()) if len(slopes) else 0.0
    return LogitRule(_simplest(scale, exact), _simplest(cap, exact))


def _simplest(value: float, exact: float) -> float:
    """The number of few digits, or the inverse of one, that a measured value approximates."""
    for digits in range(1, 7):
        short = float(f"{value:.{digits}g}")
        inverse = 1 / float(f"{1 / value:.{digits}g}") if value else short
        for candidate in (short, inverse):
            if abs(candidate - value) <= 0.1 * exact * abs(value):
                return candidate
    return value


def _unknown(loaded: LoadedModel, seen: str) -> ModelError:
    return ModelError(
        f"logit rule unknown: the logits of {loaded.name} must be those of its output embedding, "
        f"scaled or soft-capped, but {seen}"
    )
