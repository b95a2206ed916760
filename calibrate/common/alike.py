"""Near copies: texts that share most of their words and word pairs, and so say the same.

A truncation, a filled-in template or a text with a word changed is no new evidence: where one of
two near copies is learned from and the other tested on, the test measures memory. Near copies
therefore form a group, and so do the near copies of near copies.

    likeness = shared words and pairs / words and pairs of the shorter text

Where words are not set apart by spaces, as in Chinese or Thai, and for emoji, every character
counts as a word. The share was chosen by measurement (`docs/architecture.md`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

NEAR_COPY = 0.75  # share of the shorter text's words and pairs that near copies have in common
MAX_TIMES = 1024  # repetitions of a word in one text that are counted
FEW_WORDS = 3  # shorter texts match longer ones by chance, so they must begin them

# Scripts that set no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
VARIANTS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # say in which style an emoji is drawn


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation; characters where there are none.

    A text of punctuation alone has its characters for words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded.translate(_APART).split() or [c for c in folded if not c.isspace()]


def near_copies(
    texts: Sequence[str], joined: Sequence[Hashable] | None = None, share: float = NEAR_COPY
) -> tuple[int, ...]:
    """The group number of each text; near copies have the same.

    joined: texts with the same value here share a group too; None for no such texts.
    share: what near copies have in common, of the shorter one's words and pairs.
    """
    if not texts:
        return ()
    split = [words(text) for text in texts]
    ids = _numbered(word for text_words in split for word in text_words)
    word_ids = np.split(ids, np.cumsum([len(text_words) for text_words in split])[:-1])
    single = _Index.of(word_ids)
    pairs = _Index.of([of_text[:-1] * (len(ids) + 1) + of_text[1:] for of_text in word_ids])
    sizes = single.sizes + pairs.sizes
    groups = _numbered(range(len(texts)) if joined is None else joined)
    first_row: dict[tuple[str, ...], int] = {}
    for row, text_words in enumerate(split):
        _join(groups, row, first_row.setdefault(tuple(text_words), row))
        needed = share * np.minimum(sizes, sizes[row])
        common = pairs.shared(row)
        # Common pairs are quick to count, and rule out most texts even if all words were shared.
        at_most = common + np.minimum(single.sizes, single.sizes[row])
        near = (common > 0) & (at_most >= needed) & (groups != groups[row])
        if near.any():
            near &= common + single.shared(row) >= needed
        for other in np.flatnonzero(near):
            if _comparable(text_words, split[other]):
                _join(groups, row, int(other))
    return tuple(int(group) for group in groups)


def _comparable(one: Sequence[str], other: Sequence[str]) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) >= FEW_WORDS or long[: len(short)] == short


def _join(groups: np.ndarray, one: int, other: int) -> None:
    if groups[one] != groups[other]:
        groups[groups == groups[other]] = groups[one]


@dataclass(frozen=True, eq=False)
class _Index:
    """Which texts have which features.

    of_text: each text's feature numbers; repetitions of a word are different features.
    having: the texts that have each feature, concatenated by feature. starts: where in `having`
        each feature's texts begin, and the end. sizes: number of features of each text.
    """

    of_text: list[np.ndarray]
    having: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, coded: Sequence[np.ndarray]) -> _Index:
        features_of = [_repeats_apart(codes) for codes in coded]
        sizes = np.array([len(features) for features in features_of], dtype=int)
        _, features = np.unique(np.concatenate(features_of), return_inverse=True)
        texts = np.repeat(np.arange(len(coded)), sizes)
        starts = np.concatenate([[0], np.cumsum(np.bincount(features))])
        return cls(
            np.split(features, np.cumsum(sizes)[:-1]),
            texts[np.argsort(features, kind="stable")],
            starts,
            sizes,
        )

    def shared(self, text: int) -> np.ndarray:
        """How many of a text's features every text has, (n_texts,)."""
        begin, end = self.starts[self.of_text[text]], self.starts[self.of_text[text] + 1]
        parts = [self.having[first:last] for first, last in zip(begin, end, strict=True)]
        if not parts:
            return np.zeros(len(self.sizes), dtype=int)
        return np.bincount(np.concatenate(parts), minlength=len(self.sizes))


def _repeats_apart(codes: np.ndarray) -> np.ndarray:
    """Give every repetition its own number, so that "no no no" is not all in "no, it rains".

    No more than MAX_TIMES of a word or pair, since texts are compared feature by feature.
    """
    ordered = np.sort(codes)
    repeats = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    numbers: np.ndarray = (ordered * MAX_TIMES + repeats)[repeats < MAX_TIMES]
    return numbers


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=int)


class _Apart(dict[int, str]):
    """For `str.translate`: sets unspaced characters and emoji apart, and drops punctuation."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in VARIANTS:
            self[code] = ""
        elif UNSPACED.match(character) or category in ("So", "Sk"):
            self[code] = f" {character} "
        else:
            self[code] = character if category[0] in "LNM" else " "
        return self[code]


_APART = _Apart()
