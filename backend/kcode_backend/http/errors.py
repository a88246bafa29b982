"""Failures as OpenAI-shaped answers."""

from __future__ import annotations

from starlette.responses import JSONResponse


class RequestRefused(Exception):
    """The request cannot be served; everything goes to the client. `param` is the field of the body that is wrong."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def error_response(error: RequestRefused) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status)
