"""Refusals by what would help, so that one budget says which others are worth a try.

Steering does more of everything with more strength. So after `TooLittle` only larger budgets may
ship, after `TooMuch` only smaller ones, after `Neither` none; any other `Infeasible` says nothing
of other budgets.
"""

from __future__ import annotations

from calibrate.common.errors import Infeasible

MORE, LESS = "allow more with --ce-budget", "allow less with --ce-budget"  # as advice


class TooLittle(Infeasible):
    """Presence changes by less than was asked, or cannot be told to: more strength may help."""


class TooMuch(Infeasible):
    """Steering does harm, and more strength would do more of it: less may help."""


class Neither(TooLittle, TooMuch):
    """Less strength brings too little, or nothing that counts, and more does harm."""
