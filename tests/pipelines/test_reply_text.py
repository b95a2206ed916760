"""What is sent of a reply, piece by piece, is the reply, and is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.pipelines.serving.reply_text import Piece, ReplyText


class Letters:
    """A tokenizer whose tokens are given texts."""

    def __init__(self, words):
        self.words = words

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.words[i] for i in ids).encode().decode("utf-8", "replace")


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode("utf-8", "replace")


def pieces(tokenizer, n, **options):
    text = ReplyText(tokenizer, **options)
    sent = [text.add([token]) for token in n]
    return text, [*sent, text.finish()]


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_reply_up_to_a_stop(said, stops):
    text, sent = pieces(Bytes(), said.encode(), stops=stops, verbatim=True)
    cut = min((said.find(stop) for stop in stops if stop in said), default=len(said))
    assert "".join(piece.answer for piece in sent) == said[:cut]
    assert text.stopped == any(stop in said for stop in stops)


def test_no_half_character_is_sent():
    _, sent = pieces(Bytes(), "é ö".encode(), verbatim=True)
    assert [piece.answer for piece in sent] == ["", "é", " ", "", "ö", ""]


def test_a_conversations_reply_has_no_white_space_around_it():
    tokenizer = Letters([" ", "\n", "Well", " then", "\n", " "])
    _, sent = pieces(tokenizer, range(6))
    assert "".join(piece.answer for piece in sent) == "Well then"


def test_a_stop_that_comes_in_parts_is_never_seen():
    tokenizer = Letters(["one", "\n", "Us", "er", ": two"])
    text, sent = pieces(tokenizer, range(5), stops=["\nUser:"])
    assert "".join(piece.answer for piece in sent) == "one"
    assert text.stopped


@pytest.mark.parametrize("opened", ["", "</think>"])
def test_a_thought_is_sent_apart(opened):
    words = ["<th", "ink>", "so", " then", "</", "think>", "\n", "Yes", "."]
    ids = range(len(words)) if not opened else range(2, len(words))
    text, sent = pieces(Letters(words), ids, opened=opened)
    assert text.whole == Piece("so then", "Yes.")
    assert all("think" not in piece.thought + piece.answer for piece in sent)
    assert "".join(piece.thought for piece in sent) == "so then"


def test_what_only_looks_like_a_thought_is_sent():
    text, _ = pieces(Letters(["<", "3", " you"]), range(3))
    assert text.whole == Piece("", "<3 you")
