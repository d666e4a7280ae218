"""Errors as an OpenAI client knows them: a status, and ``{"error": {...}}`` in the body.

Does not know routes or sockets. Whatever goes wrong between a request's first byte and its last
becomes one `ApiError`: before the first byte of the answer it is a status code with the body, in
the middle of a stream it is one event with the same body.
"""

from __future__ import annotations

import math

import msgspec

from lamella_contract import errors as contract


class ApiError(Exception):
    """One refusal or failure, in OpenAI's words.

    ``param`` names the request's field, ``code`` is for programs, ``message`` for people.
    ``retry_after_s`` becomes the Retry-After header, rounded up to whole seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON document ``{"error": {message, type, param, code}}``."""
        fields = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": fields})

    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        found = {"content-type": "application/json"}
        if self.retry_after_s is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 413:
            found["connection"] = "close"  # or the server would read the rest, to throw it away
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def invalid(param: str | None, message: str, *, code: str | None = None) -> ApiError:
    """A field of the request is wrong: 400, naming it."""
    return ApiError(400, message, code=code, param=param)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def not_found(message: str, *, code: str = "not_found", param: str | None = None) -> ApiError:
    return ApiError(404, message, code=code, param=param)


def too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than the {limit_bytes} bytes that this server reads.",
        code="request_too_large",
    )


def context_exceeded(prompt_tokens: int, answer_tokens: int, limit: int, param: str) -> ApiError:
    """Prompt and answer do not fit the served context: 400 with the numbers."""
    asked = f" and {answer_tokens} for the answer were asked for" if answer_tokens else ""
    return ApiError(
        400,
        f"This model's context is {limit} tokens. The prompt has {prompt_tokens}{asked}; "
        f"prompt and answer together must fit. Shorten one of them.",
        code="context_length_exceeded",
        param=param,
    )


def overloaded(message: str, retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        message,
        type="rate_limit_error",
        code="overloaded",
        retry_after_s=retry_after_s,
    )


def unavailable(reason: str, retry_after_s: float = 1.0) -> ApiError:
    """No pipeline can serve the request now: 503 with why."""
    return ApiError(
        503,
        f"The model cannot serve now: {reason}",
        type="server_error",
        code="service_unavailable",
        retry_after_s=retry_after_s,
    )


def from_pipeline(kind: str, message: str) -> ApiError:
    """What stage 0 said of a request (`TokenEvent.error_kind` and ``error``), for the client."""
    error = contract.from_kind(kind, message)
    if isinstance(error, contract.Overloaded):
        return overloaded(message or str(error), error.retry_after_s)
    if isinstance(error, contract.PromptTooLong):
        return ApiError(400, message, code="context_length_exceeded")
    if isinstance(error, contract.RequestError):
        return ApiError(400, message)
    if isinstance(error, contract.PipelineError):
        return unavailable(message)
    return ApiError(500, message or "the model failed", type="server_error", code=kind or "error")
