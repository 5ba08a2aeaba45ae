"""Every error as ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from serve_app.api.caller import caller, request_id
from serve_app.errors import FlashHeadError, InternalError, MalformedInput, OutOfRange, Unauthorized
from serve_app.metrics import REFUSED_REQUESTS, Recorder

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


class Problems:
    """Answers errors: every one is worded, logged and counted here.

    Args:
        recorder: is told the code of each.
        retry_after_s: what a retryable error that does not say so itself asks a client to wait.
    """

    def __init__(self, recorder: Recorder, retry_after_s: int) -> None:
        self._recorder = recorder
        self._retry_after_s = retry_after_s

    def answer(self, connection: HTTPConnection, error: FlashHeadError) -> JSONResponse:
        """The answer to an error; retryable ones say when to come back."""
        self._tell(connection, error.status, error.code, str(error), None if _expected(error) else error)
        headers = {}
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = 'Bearer realm="flashhead"'
        if error.retryable:
            headers["Retry-After"] = str(error.retry_after_s or self._retry_after_s)
        return ProblemResponse(error.problem(), error.status, headers)

    def not_understood(self, connection: HTTPConnection, error: HTTPException) -> JSONResponse:
        """The answer to a request that has no route, or that the framework could not read."""
        codes = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "http_error")
        self._tell(connection, error.status_code, code, str(error.detail), None)
        body = {
            "type": "about:blank",
            "title": "Request not understood",
            "status": error.status_code,
            "detail": str(error.detail),
            "code": code,
        }
        return ProblemResponse(body, error.status_code, error.headers)

    def _tell(
        self, connection: HTTPConnection, status: int, code: str, why: str, defect: Exception | None
    ) -> None:
        self._recorder.record(REFUSED_REQUESTS, 1, code=code)
        fields = {"request_id": request_id(connection), "caller": caller(connection).name, "code": code}
        words = (connection.scope.get("method", "websocket"), connection.url.path, status, code, why)
        level = logging.INFO if defect is None else logging.ERROR
        logger.log(level, "refused %s %s: %d %s: %s", *words, extra=fields, exc_info=defect)


def _expected(error: FlashHeadError) -> bool:
    """Whether an error is part of service, as opposed to a defect."""
    return error.status < 500 or error.retryable


def add_handlers(app: FastAPI, problems: Problems) -> None:
    """Make every error of ``app`` a problem document."""

    async def flashhead(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, FlashHeadError)
        return problems.answer(request, error)

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return problems.answer(request, _validation_error(error.errors()[0]))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, FlashHeadError):
            return problems.answer(request, error.__cause__)
        return problems.not_understood(request, error)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        defect = InternalError("the server failed on this request; its log says how")
        defect.__cause__ = error
        return problems.answer(request, defect)

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
