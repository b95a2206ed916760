"""Concepts: texts that express something and texts that do not, and the prompts to try it on.

A concept comes from a built-in pack, a JSONL file, a pair of files, or lists in memory. Its
texts are split once and for all into three disjoint parts, by the hash of what they say, so
that neither the seed nor the order of a file moves a text from one part to another:

    vector     makes the steering vector
    probe      trains the probe that measures presence
    held_out   tests the probe

Prompts are split the same way: the unsteered replies to `probe` prompts train the probe,
`search` prompts serve the pilot and the study, `verify` prompts only the final verification.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from calibrate.errors import ConceptError, did_you_mean

TEXT_SHARES = {"vector": 0.4, "probe": 0.4, "held_out": 0.2}
PROMPT_SHARES = {"probe": 0.3, "search": 0.3, "verify": 0.4}
CORPUS_SHARES = {"search": 0.5, "verify": 0.5}
MIN_CORPUS = 16  # so that each half keeps at least eight sequences
MIN_TEXTS = 12  # of each label, so that every split keeps at least two
MIN_PROMPTS = 24  # so that verification keeps about ten

PACKS = Path(__file__).parent / "concepts"

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """A text that does or does not express a concept.

    prompt: what it replies to, or None for a text that stands alone.
    group: texts of one group (a matched pair) always share a split.
    """

    text: str
    prompt: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Texts:
    """Positive and negative texts."""

    positives: tuple[Text, ...]
    negatives: tuple[Text, ...]


@dataclass(frozen=True)
class Concept:
    """What to steer towards (or away from), and the texts that show it.

    name: what to call it.
    texts: everything there is; `split` cuts it up.
    """

    name: str
    texts: Texts

    @property
    def data_sha256(self) -> str:
        """Hash of the texts and their labels, in any order."""
        lines = [
            json.dumps([label, text.prompt, text.text], ensure_ascii=False)
            for label, texts in (("+", self.texts.positives), ("-", self.texts.negatives))
            for text in texts
        ]
        return _sha256("\n".join(sorted(lines)))

    def split(self) -> dict[str, Texts]:
        """Return the texts of each split: vector, probe and held_out."""
        positives = _split_by_group(self.texts.positives)
        negatives = _split_by_group(self.texts.negatives)
        return {name: Texts(positives[name], negatives[name]) for name in TEXT_SHARES}

    @classmethod
    def from_texts(
        cls, name: str, positives: Iterable[str | Text], negatives: Iterable[str | Text]
    ) -> Concept:
        """Make a concept from texts in memory.

        Raises: ConceptError if a label has fewer than MIN_TEXTS texts, or a text is empty,
            repeated, or stands under both labels.
        """
        concept = cls(name, Texts(_as_texts(positives), _as_texts(negatives)))
        _check(concept)
        return concept


def built_in_concepts() -> tuple[str, ...]:
    """Names of the concepts that come with the project."""
    return tuple(sorted(pack.stem for pack in PACKS.glob("*.jsonl")))


def read_concept(
    concept: str | Path | Concept,
    positives: str | Path | None = None,
    negatives: str | Path | None = None,
) -> Concept:
    """Return a concept from what `--concept` accepts.

    concept: a built-in name; a JSONL file whose lines have `text` and `label` (`positive` or
        `negative`), or `positive` and `negative` for a matched pair, and perhaps `prompt`;
        with `positives` and `negatives`, any name.
    positives, negatives: files with one text a line (.txt) or one object with `text` (.jsonl).
    Raises: ConceptError naming the file, the line and the rule it breaks.
    """
    if isinstance(concept, Concept):
        return concept
    if positives or negatives:
        if not (positives and negatives):
            raise ConceptError("--positives and --negatives go together, got only one of them")
        return Concept.from_texts(str(concept), read_lines(positives), read_lines(negatives))
    name = str(concept)
    if name in built_in_concepts():
        return _read_labelled(name, PACKS / f"{name}.jsonl")
    path = Path(concept)
    if not path.is_file():
        raise ConceptError(
            f"concept must be a built-in name ({', '.join(built_in_concepts())}) or a JSONL "
            f"file, got {name!r}{did_you_mean(name, built_in_concepts())}"
        )
    return _read_labelled(path.stem, path)


def read_prompts(path: str | Path | None = None) -> tuple[str, ...]:
    """Return the neutral prompts: the built-in ones, or one a line from a file.

    Raises: ConceptError if there are fewer than MIN_PROMPTS, or one is repeated.
    """
    path = path or PACKS / "prompts.txt"
    prompts = read_lines(path)
    if len(prompts) < MIN_PROMPTS:
        raise ConceptError(f"{path} must hold at least {MIN_PROMPTS} prompts, got {len(prompts)}")
    _check_repeats(prompts, f"the prompts in {path}")
    return prompts


def split_prompts(prompts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the prompts of each split: probe, search and verify."""
    return _split([(prompt, prompt) for prompt in prompts], PROMPT_SHARES)


def read_corpus(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return a corpus file's texts for the search and for the verification.

    Raises: ConceptError if there are fewer than MIN_CORPUS different ones.
    """
    distinct = list(dict.fromkeys(read_lines(path)))
    if len(distinct) < MIN_CORPUS:
        raise ConceptError(
            f"{path} must hold at least {MIN_CORPUS} different texts, got {len(distinct)}"
        )
    return _split([(text, text) for text in distinct], CORPUS_SHARES)


def read_lines(path: str | Path) -> tuple[str, ...]:
    """Return the texts of a file: one a line, or in .jsonl the `text` (or `prompt`) of each."""
    lines = [line for line in _decoded(Path(path)).splitlines() if line.strip()]
    if Path(path).suffix != ".jsonl":
        texts = tuple(line.strip() for line in lines)
    else:
        rows = _json_rows(Path(path))
        texts = tuple(str(row.get("text") or row.get("prompt") or "") for _, row in rows)
    if not texts:
        raise ConceptError(f"{path} must hold at least one text, got an empty file")
    return texts


def _read_labelled(name: str, path: Path) -> Concept:
    positives: list[Text] = []
    negatives: list[Text] = []
    for number, row in _json_rows(path):
        prompt = row.get("prompt")
        if "positive" in row and "negative" in row:
            group = _sha256(f"{row['positive']}\n{row['negative']}")
            positives.append(Text(str(row["positive"]).strip(), prompt, group))
            negatives.append(Text(str(row["negative"]).strip(), prompt, group))
        elif row.get("label") in ("positive", "negative") and "text" in row:
            into = positives if row["label"] == "positive" else negatives
            into.append(Text(str(row["text"]).strip(), prompt))
        else:
            raise ConceptError(
                f"{path} line {number} must have text and label (positive or negative), or "
                f"positive and negative, got {json.dumps(row)[:80]}"
            )
    if not positives and not negatives:
        raise ConceptError(f"{path} must hold at least one text, got an empty file")
    return Concept.from_texts(name, positives, negatives)


def _json_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_decoded(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConceptError(
                f"{path} line {number} must be JSON, got {line[:60]!r} ({error.msg})"
            ) from error
        if not isinstance(row, dict):
            raise ConceptError(f"{path} line {number} must be a JSON object, got {line[:60]!r}")
        rows.append((number, row))
    return rows


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConceptError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConceptError(
            f"{path} must be UTF-8, got byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; convert it (iconv -t UTF-8)"
        ) from error


def _as_texts(texts: Iterable[str | Text]) -> tuple[Text, ...]:
    return tuple(text if isinstance(text, Text) else Text(text) for text in texts)


def _check(concept: Concept) -> None:
    positives = [text.text for text in concept.texts.positives]
    negatives = [text.text for text in concept.texts.negatives]
    for label, texts in (("positive", positives), ("negative", negatives)):
        if len(texts) < MIN_TEXTS:
            raise ConceptError(
                f"concept {concept.name!r} needs at least {MIN_TEXTS} {label} texts, "
                f"got {len(texts)}"
            )
        if any(not text.strip() for text in texts):
            raise ConceptError(f"concept {concept.name!r} has an empty {label} text; remove it")
    if set(positives) == set(negatives):
        raise ConceptError(
            f"concept {concept.name!r} must have negatives that differ from its positives, got "
            "the same texts (their steering vector would be zero)"
        )
    _check_repeats(
        [(text.prompt, text.text) for text in concept.texts.positives + concept.texts.negatives],
        f"the texts of concept {concept.name!r}",
    )


def _check_repeats(items: Iterable[Any], what: str) -> None:
    repeated = [item for item, count in Counter(items).items() if count > 1]
    if repeated:
        shown = repeated[0] if isinstance(repeated[0], str) else repeated[0][-1]
        raise ConceptError(
            f"{what} must differ from each other, got {len(repeated)} more than once, for "
            f"example {shown[:60]!r}; remove the copies"
        )


def _split_by_group(texts: Sequence[Text]) -> dict[str, tuple[Text, ...]]:
    keyed = [(text.group or f"{text.prompt}\n{text.text}", text) for text in texts]
    return _split(keyed, TEXT_SHARES)


def _split(keyed: Sequence[tuple[str, T]], shares: dict[str, float]) -> dict[str, tuple[T, ...]]:
    """Deal items out by the rank of their key's hash, in proportion to `shares`."""
    ranked = [item for _, item in sorted(keyed, key=lambda pair: _sha256(pair[0]))]
    parts: dict[str, tuple[T, ...]] = {}
    first, cumulative = 0, 0.0
    for name, share in shares.items():
        cumulative += share
        last = round(cumulative * len(ranked))
        parts[name] = tuple(ranked[first:last])
        first = last
    return parts


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
