"""Every error as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from serve_app.errors import FlashHeadError, InternalError, MalformedInput, OutOfRange, Unauthorized

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ECHO = 200
"""Longest piece of a client's own value that is sent back to it, in characters."""


class ProblemResponse(JSONResponse):
    """A problem document in ASCII: what a client sent may hold what no other encoding can carry."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """The JSON, everything beyond ASCII escaped."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")


def problem(error: FlashHeadError, default_retry_after_s: int) -> JSONResponse:
    """The answer to an error; retryable ones say when to come back."""
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="flashhead"'
    if error.retryable:
        headers["Retry-After"] = str(error.retry_after_s or default_retry_after_s)
    return ProblemResponse(error.problem(), error.status, headers)


def add_handlers(app: FastAPI, retry_after_s: int) -> None:
    """Make every error of ``app`` a problem document."""

    async def flashhead(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, FlashHeadError)
        if error.status >= 500 and not error.retryable:
            logger.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
        else:
            logger.info("%s %s: %d %s", request.method, request.url.path, error.status, error.code)
        return problem(error, retry_after_s)

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return problem(_validation_error(error.errors()[0]), retry_after_s)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, FlashHeadError):
            return problem(error.__cause__, retry_after_s)
        return _http_problem(error)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(InternalError("the server failed on this request; its log says how"), retry_after_s)

    app.add_exception_handler(FlashHeadError, flashhead)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _validation_error(detail: dict[str, Any]) -> FlashHeadError:
    field = str(detail["loc"][-1])
    if detail["type"] == "missing":
        return MalformedInput(f"the form field {field!r} is missing", code="missing_field", value=field)
    value = str(detail.get("input"))[:MAX_ECHO]
    accepted = detail.get("ctx", {})
    return OutOfRange(
        f"{field}={value!r}: {detail['msg']}",
        code=f"{field}_out_of_range",
        value=value,
        accepted={key: str(bound) for key, bound in accepted.items()} or detail["msg"],
    )


def _http_problem(error: HTTPException) -> JSONResponse:
    code = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed"}.get(
        error.status_code, "http_error"
    )
    body = {
        "type": "about:blank",
        "title": "Request not understood",
        "status": error.status_code,
        "detail": str(error.detail),
        "code": code,
    }
    return ProblemResponse(body, error.status_code, error.headers)
