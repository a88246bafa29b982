"""What every request passes: the idle clock, the key, the refusal of browsers, and the shape of failures."""

from __future__ import annotations

import hmac
import logging

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kcode_backend.http.errors import RequestRefused, error_response
from kcode_backend.http.slot import Slot

log = logging.getLogger(__name__)


class Gate:
    """Middleware: counts requests for the idle clock, checks the key, refuses browsers, shapes every failure."""

    def __init__(self, app: ASGIApp, slot: Slot, api_key: str | None) -> None:
        self._app = app
        self._slot = slot
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        if refusal:
            await error_response(refusal)(scope, receive, send)
            return
        # Asking for the health is no use of the model: it must not keep an idle engine alive.
        counts = scope["path"] != "/health"
        if counts:
            self._slot.begin()
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            log.info("%s %s: the client went away before it had said everything", scope["method"], scope["path"])
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                failure = RequestRefused(500, "internal_error", "the server failed; its log has the details")
                await error_response(failure)(scope, receive, send)
        finally:
            if counts:
                self._slot.end()

    def _refusal(self, request: Request) -> RequestRefused | None:
        if self._api_key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._api_key.encode()):
                return RequestRefused(
                    401, "invalid_api_key", "the Authorization header has to be 'Bearer KEY' with the key of --api-key"
                )
        elif "origin" in request.headers:
            # Without a key any web page could talk to a server on the loopback address.
            return RequestRefused(403, "browser_refused", "requests from web pages need a server started with --api-key")
        return None
