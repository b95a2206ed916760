"""Concepts: texts that express something, texts that do not, and the prompts to steer on.

A concept comes from a built-in pack, a file, a pair of files, or lists in memory. Its texts are
split into three disjoint parts by a hash of their content, so neither the seed nor the order of a
file moves a text from one part to another:

    vector     makes the steering vector
    probe      trains the probe that measures presence
    held_out   tests the probe

Matched pairs, texts of one group, and near copies (`calibrate.common.alike`) share a part.

Prompts are split the same way: the unsteered replies to `probe` prompts train the probe,
`search` prompts serve the pilot and the study, `verify` prompts only the final verification.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrate.common.alike import near_copies
from calibrate.common.errors import ConceptError, did_you_mean
from calibrate.common.names import is_name
from calibrate.texts.chat_entries import plain_text
from calibrate.texts.dealing import deal, sha256
from calibrate.texts.rows import brief, shown
from calibrate.texts.text_files import Entry, read_asked, read_labelled, read_unlabelled

TEXT_SHARES = {"vector": 0.4, "probe": 0.4, "held_out": 0.2}
PROMPT_SHARES = {"probe": 0.3, "search": 0.3, "verify": 0.4}
CORPUS_SHARES = {"search": 0.5, "verify": 0.5}
MIN_CORPUS = 16  # so that each half keeps at least eight sequences
MAX_CORPUS = 4096  # texts of a corpus that are considered; the token limit leaves far fewer
MIN_TEXTS = 12  # of each label, so that every split keeps at least two
MIN_PROMPTS = 24  # so that verification keeps about ten
SAME = 0.9  # similarity from which prompts, or texts of a corpus, count as the same

PACKS = Path(__file__).parent / "concepts"


@dataclass(frozen=True)
class Text:
    """A text that does or does not express a concept.

    prompt: what it replies to, or None for a text that stands alone.
    group: texts of one group (a matched pair) always share a split.
    """

    text: str
    prompt: str | None = None
    group: str = ""

    @property
    def key(self) -> str:
        """Texts with the same key share a split: its group, or prompt and text."""
        return self.group or f"{self.prompt}\n{self.text}"


@dataclass(frozen=True)
class Texts:
    """Positive and negative texts."""

    positives: tuple[Text, ...]
    negatives: tuple[Text, ...]


@dataclass(frozen=True)
class Concept:
    """What to steer towards (or away from), and the texts that show it.

    name: what to call it.
    texts: all of them; `split` divides them.

    >>> concept = calibrate.Concept.from_texts("joy", positives, negatives)
    >>> list(concept.split())
    ['vector', 'probe', 'held_out']
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
        return sha256("\n".join(sorted(lines)))

    def split(self) -> dict[str, Texts]:
        """Return the texts of each split: vector, probe and held_out."""
        texts = [*self.texts.positives, *self.texts.negatives]
        n_positive = len(self.texts.positives)
        positive = [index < n_positive for index in range(len(texts))]
        parts = deal([text.key for text in texts], positive, TEXT_SHARES)
        return {
            name: Texts(
                tuple(texts[index] for index in part if positive[index]),
                tuple(texts[index] for index in part if not positive[index]),
            )
            for name, part in parts.items()
        }

    @classmethod
    def from_texts(
        cls, name: str, positives: Iterable[str | Text], negatives: Iterable[str | Text]
    ) -> Concept:
        """Make a concept from texts in memory.

        Near copies are put into one group, and so are near copies of near copies.
        Raises: ConceptError if a label has fewer than MIN_TEXTS different texts, a text is empty,
            repeated, or has both labels, or the name is more than one line.
        """
        texts = _as_texts(name, "positive", positives), _as_texts(name, "negative", negatives)
        _check(name, *texts)
        grouped = _grouped([*texts[0], *texts[1]])
        sides = grouped[: len(texts[0])], grouped[len(texts[0]) :]
        for label, side in zip(("positive", "negative"), sides, strict=True):
            keys = [text.key for text in side]
            _check_count(f"concept {name!r} needs", f"{label} texts", keys, MIN_TEXTS)
        return cls(name, Texts(*sides))


def built_in_concepts() -> tuple[str, ...]:
    """Names of the concepts that come with the project."""
    return tuple(sorted(pack.stem for pack in PACKS.glob("*.jsonl")))


def read_concept(
    concept: str | Path | Concept,
    positives: str | Path | None = None,
    negatives: str | Path | None = None,
) -> Concept:
    """Return the concept that `--concept` (and `--positives`, `--negatives`) names.

    concept: a built-in name; a .jsonl, .json, .csv or .tsv file of labelled texts or matched pairs
        (`texts.text_files` says which fields); with `positives` and `negatives`, any name.
    positives, negatives: such files without labels, or files with one text a line.
    Raises: ConceptError naming the file, the line and the rule it breaks.
    """
    if isinstance(concept, Concept):
        return concept
    if positives or negatives:
        if not (positives and negatives):
            raise ConceptError("--positives and --negatives go together, got only one of them")
        sides = read_unlabelled(positives, True), read_unlabelled(negatives, False)
        return Concept.from_texts(str(concept), *(map(_as_text, side) for side in sides))
    name = str(concept)
    if name in built_in_concepts():
        return _read_labelled(name, PACKS / f"{name}.jsonl")
    path = Path(concept)
    if not _holds(path.is_file):
        kind = "a directory" if _holds(path.is_dir) else brief(name)
        raise ConceptError(
            f"concept must be a built-in name ({', '.join(built_in_concepts())}) or a .jsonl, "
            f".json, .csv or .tsv file, got {kind}{did_you_mean(name, built_in_concepts())}"
        )
    return _read_labelled(path.stem, path)


def read_prompts(path: str | Path | None = None) -> tuple[str, ...]:
    """Return the neutral prompts: the built-in ones, or those of a file.

    Raises: ConceptError if fewer than MIN_PROMPTS differ, or one is repeated.
    """
    path = path or PACKS / "prompts.txt"
    prompts = read_asked(path)
    _check_repeats(prompts, f"the prompts in {shown(path)}")
    keys = _keys(prompts)
    _check_count(f"{shown(path)} must hold", "prompts", keys, MIN_PROMPTS)
    return tuple(prompts)


def split_prompts(prompts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the prompts of each split: probe, search and verify."""
    return _split(prompts, PROMPT_SHARES)


def read_corpus(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return a corpus file's texts for the search and for the verification.

    A large file is cut to the MAX_CORPUS texts with the lowest hashes.
    Raises: ConceptError if there are fewer than MIN_CORPUS different ones.
    """
    texts = sorted(set(read_lines(path)), key=sha256)[:MAX_CORPUS]
    _check_count(f"{shown(path)} must hold", "texts", _keys(texts), MIN_CORPUS)
    return _split(texts, CORPUS_SHARES)


def read_lines(path: str | Path) -> tuple[str, ...]:
    """Return the texts of a file, one a line or one a row, labels ignored."""
    return tuple(entry.text for entry in read_unlabelled(path))


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # the name is too long for a path
        return False


def _read_labelled(name: str, path: Path) -> Concept:
    entries = read_labelled(path)
    sides = ([_as_text(e) for e in entries if e.positive is label] for label in (True, False))
    return Concept.from_texts(name, *sides)


def _as_text(entry: Entry) -> Text:
    return Text(entry.text, entry.prompt, entry.group or (sha256(entry.pair) if entry.pair else ""))


def _as_texts(name: str, label: str, texts: Iterable[str | Text]) -> tuple[Text, ...]:
    if isinstance(texts, str):
        raise ConceptError(f"concept {name!r} must have a list of {label} texts, got one text")
    checked = tuple(text if isinstance(text, Text) else Text(text) for text in texts)
    for number, text in enumerate(checked, start=1):
        place = f"{label} text {number} of concept {name!r}"
        given = {"text": text.text, "prompt": text.prompt, "group": text.group or None}
        for what, value in given.items():
            if what == "text" or value is not None:
                plain_text(place, value, what)
    return checked


def _check(name: str, positives: Sequence[Text], negatives: Sequence[Text]) -> None:
    if not is_name(name):
        raise ConceptError(
            f"a concept's name must be one line of plain characters, got {name!r}; choose another"
        )
    if {text.text for text in positives} == {text.text for text in negatives} != set():
        raise ConceptError(
            f"concept {name!r} must have negatives that differ from its positives, got "
            "the same texts (their steering vector would be zero)"
        )
    _check_repeats(
        [(text.prompt, text.text) for text in (*positives, *negatives)],
        f"the texts of concept {name!r}",
    )


def _check_count(rule: str, what: str, keys: Sequence[str], least: int) -> None:
    """Require `least` different keys; near copies share one."""
    different, total = len(set(keys)), len(keys)
    if different < least:
        copies = f" ({total} in all: near copies count once)" if different < total else ""
        raise ConceptError(f"{rule} at least {least} different {what}, got {different}{copies}")


def _check_repeats(items: Iterable[Any], what: str) -> None:
    repeated = [item for item, count in Counter(items).items() if count > 1]
    if repeated:
        example = repeated[0] if isinstance(repeated[0], str) else repeated[0][-1]
        raise ConceptError(
            f"{what} must differ from each other, got {len(repeated)} more than once, for "
            f"example {example[:60]!r}; remove the copies"
        )


def _grouped(texts: Sequence[Text]) -> tuple[Text, ...]:
    """Merge the groups of texts that are near copies of each other."""
    old = [text.key for text in texts]
    new = _joined(old, near_copies([text.text for text in texts], old))
    return tuple(
        text if before == after else replace(text, group=after)
        for text, before, after in zip(texts, old, new, strict=True)
    )


def _keys(texts: Sequence[str]) -> list[str]:
    """Keys by which prompts, or texts of a corpus, are split.

    Only nearly identical ones share a key, since one word can change what a prompt asks.
    """
    return _joined(texts, near_copies(texts, share=SAME))


def _joined(keys: Sequence[str], groups: Sequence[int]) -> list[str]:
    """For each item, the smallest key in its group, which does not depend on the order."""
    smallest: dict[int, str] = {}
    for key, group in zip(keys, groups, strict=True):
        smallest[group] = min(key, smallest.get(group, key))
    return [smallest[group] for group in groups]


def _split(texts: Sequence[str], shares: dict[str, float]) -> dict[str, tuple[str, ...]]:
    parts = deal(_keys(texts), [True] * len(texts), shares)
    return {name: tuple(texts[index] for index in part) for name, part in parts.items()}
