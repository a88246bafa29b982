"""Failures as OpenAI-shaped answers."""

from __future__ import annotations

from starlette.responses import JSONResponse


class RequestRefused(Exception):
    """The request cannot be served; `status` and `code` go to the client with the message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_body(status: int, code: str, message: str) -> dict[str, object]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code}}


def error_response(error: RequestRefused) -> JSONResponse:
    return JSONResponse(error_body(error.status, error.code, str(error)), status_code=error.status)
