"""Numbers of blocks in every form that users give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibrate.common.blocks import check_blocks
from calibrate.common.errors import InputError


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (3, 3),
        ("3", 3),
        (np.array(3), 3),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        ("8-10", (8, 9, 10)),
        ("8 - 10", (8, 9, 10)),
        (" 8, 10 ", (8, 10)),
        ("8,10-11", (8, 10, 11)),
        ([10, 8, 8], (8, 10)),
        (range(8, 10), (8, 9)),
        (np.array([8, 10]), (8, 10)),
        (torch.tensor([8, 10]), (8, 10)),
    ],
)
def test_a_block_or_several_are_read(given, found):
    assert check_blocks("layer must be blocks", given) == found


@pytest.mark.parametrize(
    "given",
    [
        "", "a", "-1", "10-8", "8--10", "1.5", b"1", [], [1.5], [True], [[1, 2]], {0: 0.5, 1: 0.5},
        np.array([1.5]), torch.tensor([[1, 2]]), None, 1.0, 10**9, "0-999999999",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_was_given(given):
    with pytest.raises(InputError, match="layer must be blocks, got "):
        check_blocks("layer must be blocks", given)
