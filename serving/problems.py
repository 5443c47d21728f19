"""Problem details (RFC 9457): the one form in which the service says no, and the mask over what went wrong inside."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE: Final = "application/problem+json"
_log = structlog.get_logger("volspike.serving")


class Problem(Exception):
    """An answer that is not a 2xx; raised anywhere below a route and rendered once, here.

    Parameters
    ----------
    status
        HTTP status code.
    detail
        What was wrong, what is allowed and what to do next. It goes to the client: no paths, no internals.
    fields
        Further members of the body.
    retry_after_s
        Whole seconds after which trying again makes sense; becomes the ``Retry-After`` header.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        fields: Mapping[str, object] | None = None,
        *,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = dict(fields or {})
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    def response(self) -> Response:
        """Render as ``application/problem+json``."""
        # A prediction's own "status" (stale, missing, …) keeps its name here as in a 200 and in a batch. RFC 9457 3.1
        # tells generic clients to ignore a "status" that is not a number; they have the HTTP code.
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.fields,
        }
        return Response(msgspec.json.encode(body), self.status, self.headers, MEDIA_TYPE)


async def on_problem(_: Request, error: Exception) -> Response:
    """Render a :class:`Problem`."""
    if not isinstance(error, Problem):
        raise error
    return error.response()


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Render what the router raises (404, 405) as a problem."""
    if not isinstance(error, HTTPException):
        raise error
    details = {
        404: f"{request.url.path} is not a route of this service; see GET /version and the README",
        405: f"{request.method} is not allowed here; allowed: {(error.headers or {}).get('Allow', 'see the README')}",
    }
    return Problem(
        error.status_code, details.get(error.status_code, error.detail), headers=error.headers
    ).response()


class Mask:
    """ASGI middleware: an unforeseen error becomes a 500 with an id, and only the log says what it was."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 500 in the place of an error that nobody foresaw."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            error_id = uuid.uuid4().hex
            _log.exception("unforeseen error", error_id=error_id, method=scope.get("method"), path=scope.get("path"))
            if started or scope["type"] != "http":
                raise
            problem = Problem(
                500, "Something went wrong inside; the log names it by error_id.", {"error_id": error_id}
            )
            await problem.response()(scope, receive, send)
