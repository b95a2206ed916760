"""The command line: the only place that prints and exits."""

from calibrate.cli.commands import main

__all__ = ["main"]
