"""As many threads as there are idle cores."""

from __future__ import annotations

import psutil
import pytest
import torch

from calibrate.engine.threads import use_idle_cores


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores, and torch's own choice put back."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("busy", "threads"), [(0, 4), (24, 3), (50, 2), (99, 1), (100, 1)])
def test_busy_cores_are_left_alone(four_cores, monkeypatch, busy, threads):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy)
    assert use_idle_cores() == threads == torch.get_num_threads()


def test_more_idle_cores_than_torch_was_given_change_nothing(four_cores, monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0)
    assert use_idle_cores() == 2


def test_the_users_own_number_stands(four_cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 100)
    assert use_idle_cores() == 4
