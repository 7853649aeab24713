"""What a request is refused with, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

_TYPES = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: HTTP status.
        message: What was found, what was expected, and what to try.
        code: One word for programs.
        param: The field of the request that it is about.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that is not as the API says: status 400."""
    return ApiError(400, message, code, param)
