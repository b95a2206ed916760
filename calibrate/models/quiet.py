"""Keep what transformers prints while it loads a model off the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from logging import Handler, LogRecord

from tqdm.auto import tqdm
from transformers.utils import logging


@contextmanager
def load_report() -> Iterator[list[str]]:
    """Keep what transformers logs while it loads weights, instead of showing it."""
    logger, messages = logging.get_logger("transformers.modeling_utils"), list[str]()
    level, propagates = logger.level, logger.propagate
    handler = _Keeper(messages)
    logger.addHandler(handler)
    logger.setLevel("WARNING")
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


class _Keeper(Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: LogRecord) -> None:
        self._kept.append(record.getMessage())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and warnings off the terminal; errors still raise."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    drawn = tqdm.__init__
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tqdm.__init__ = partialmethod(drawn, disable=True)  # the GGUF reader draws its bar directly
    try:
        yield
    finally:
        tqdm.__init__ = drawn
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
