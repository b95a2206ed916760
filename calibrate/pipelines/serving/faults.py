"""What is answered when something goes wrong: a status, and the reason in the protocol's words."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from calibrate.common.errors import InputError
from calibrate.pipelines.serving import answers
from calibrate.pipelines.serving.catalogue import UnknownModel
from calibrate.pipelines.serving.listening import Gone
from calibrate.pipelines.serving.scheduler import Full, Stopped

CLIENT_GONE = 499  # nginx's number for it; nobody reads the answer
STATUSES: dict[type[Exception], tuple[int, str]] = {  # the first that fits
    UnknownModel: (404, "invalid_request_error"),
    InputError: (400, "invalid_request_error"),
    Full: (429, "rate_limit_error"),
    Stopped: (503, "server_error"),
    Gone: (CLIENT_GONE, "client_closed_request"),
    Exception: (500, "server_error"),
}


async def answered(_request: Request, error: Exception) -> Response:
    """An error as an answer."""
    status, facts = error_facts(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    return JSONResponse(facts, status, headers=headers)


async def as_http(_request: Request, error: Exception) -> Response:
    """An error that has a status already."""
    assert isinstance(error, HTTPException)
    facts = answers.error(str(error.detail), "invalid_request_error")
    return JSONResponse(facts, error.status_code)


def error_facts(error: Exception) -> tuple[int, dict[str, Any]]:
    """Its status, and what is said of it."""
    status, kind = next(found for each, found in STATUSES.items() if isinstance(error, each))
    message = str(error) if status != 500 else f"{type(error).__name__} while replying"
    return status, answers.error(message, kind)
