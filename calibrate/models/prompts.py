"""From prompts, replies and plain texts to token ids."""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.common.errors import InputError
from calibrate.models.model import LoadedModel
from calibrate.models.rendering import render, template_of
from calibrate.models.thought import before_answer, opened_by
from calibrate.models.tokens import Prompt, TokenSequence, begun_alike


def encode_text(loaded: LoadedModel, text: str) -> TokenSequence:
    """Encode a plain text with the special tokens the tokenizer puts before it (a BOS, say).

    Raises: InputError if it does not fit the model's context, or has tokens the model lacks.
    """
    return _fitting(loaded, TokenSequence(_with_bos(loaded, text), start=1), text)


def encode_alone(loaded: LoadedModel, text: str) -> TokenSequence:
    """Encode a plain text; one of a single token after a BOS or EOS token, so that it is scored.

    That is where the tokenizer puts nothing before it by itself, and has one of the two.
    Raises: InputError as `encode_text` does.
    """
    sequence, start = encode_text(loaded, text), _start_token(loaded)
    if sequence.n_scored or start is None or not _bare(loaded, text):
        return sequence
    return _fitting(loaded, TokenSequence((start, *sequence.ids), start=1), text)


def encode_prompt(
    loaded: LoadedModel,
    prompt: str,
    *,
    system: str | None = None,
    history: Sequence[tuple[str, str]] = (),
) -> Prompt:
    """Encode a prompt so that the model's next token begins its reply.

    history: earlier (prompt, reply) turns.
    Raises: InputError if it is empty, does not fit the model's context, or cannot be rendered.
    """
    text = render(loaded.tokenizer, loaded.rendering, prompt, system=system, history=history)
    return _encoded(loaded, prompt, text)


def _encoded(loaded: LoadedModel, prompt: str, text: str) -> Prompt:
    """The tokens of a prompt's rendered text."""
    ids = _bare(loaded, text) if loaded.is_chat else _with_bos(loaded, text)
    if not ids:
        raise InputError(f"a prompt must have at least one token, got {prompt!r}; write one")
    encoded = Prompt(prompt, ids, opened_by(text))
    _fitting(loaded, encoded.followed_by(()), prompt)
    return encoded


def encode_reply(loaded: LoadedModel, prompt: str, reply: str) -> TokenSequence:
    """Encode a reply after its prompt; only the reply is scored.

    Before the reply stands what leads to the answer where a model thinks first: an empty thought
    where the prompt opens one, or the channel of the answer.
    """
    text = render(loaded.tokenizer, loaded.rendering, prompt)
    asked = _encoded(loaded, prompt, text)
    leading = before_answer(template_of(loaded.tokenizer) or "", text)
    before = _bare(loaded, leading) if leading else ()
    sequence = TokenSequence(
        (*asked.ids, *before, *_bare(loaded, reply)), start=len(asked.ids) + len(before)
    )
    return _fitting(loaded, sequence, reply)


def encode_continuations(
    loaded: LoadedModel, text: str, continuations: Sequence[str]
) -> tuple[TokenSequence, ...]:
    """Encode a plain text and ways to go on in the same line; only these are scored.

    A token may reach over the end of the text. All are scored from the first place on at which one
    of them differs from the text alone, and at least one token is not scored.
    """
    whole = [_with_bos(loaded, text + more) for more in continuations]
    start = max(1, begun_alike([_with_bos(loaded, text), *whole]))
    return tuple(_fitting(loaded, TokenSequence(ids, start), text) for ids in whole)


def encode_empty(loaded: LoadedModel) -> Prompt:
    """Encode the empty prompt: an empty chat turn, or a base model's BOS (or end) token.

    Raises: InputError if the tokenizer has neither, or the template refuses an empty turn.
    """
    if loaded.is_chat:
        try:
            return encode_prompt(loaded, "")
        except InputError as error:
            raise InputError(f"{error}; use --negatives contrastive") from error
    start = _start_token(loaded)
    if start is None:
        raise InputError(
            "sampling from an empty prompt needs a tokenizer with a BOS or EOS token, got "
            "neither; use --negatives contrastive"
        )
    return Prompt("", (start,))


def _start_token(loaded: LoadedModel) -> int | None:
    """What a text begins after: BOS, or else the end of another; None without either."""
    tokenizer = loaded.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if start is None else int(start)


def _with_bos(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    """Token ids of a plain text, with what the tokenizer puts before it."""
    ids = loaded.tokenizer(text)["input_ids"]
    return tuple(ids[: len(ids) - loaded.rendering.trailing[0]])


def _bare(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    """Token ids of the text alone, without special tokens."""
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(ids[: len(ids) - loaded.rendering.trailing[1]])


def _fitting(loaded: LoadedModel, sequence: TokenSequence, text: str) -> TokenSequence:
    if len(sequence.ids) > loaded.context_length:
        raise InputError(
            f"a text must fit the model's context of {loaded.context_length} tokens, got "
            f"{len(sequence.ids)}: {text[:60]!r}…; shorten it or split it"
        )
    loaded.check_ids(sequence.ids, text)
    return sequence
