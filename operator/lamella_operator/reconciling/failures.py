"""What the API server says when it does not do what it was asked.

Knows no model. ``status`` 0 is an API server that gave no answer in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lamella_contract.errors import LamellaError

RETRIED = frozenset({0, 408, 429, 500, 502, 503, 504})
"""Statuses after which the same request is worth sending again."""


class ApiError(LamellaError):
    """A request was refused, or got no answer; ``status``, ``reason`` and ``message`` say why.

    ``retry_after_s`` is what the server asked for (None: nothing).
    """

    kind: ClassVar[str] = "api"

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.retry_after_s = retry_after_s

    @property
    def unreachable(self) -> bool:
        """Whether the API server is away or overloaded, rather than of another opinion."""
        return self.status in RETRIED

    @property
    def already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"


class Forbidden(ApiError):
    """403: no permission, or (``over_quota``) more than a quota or a LimitRange allows."""

    @property
    def over_quota(self) -> bool:
        return "exceeded quota" in self.message


class NotFound(ApiError):
    """404: there is no such object, or no such kind."""


class Conflict(ApiError):
    """409: it exists already, or it is not the object (or version) that was meant."""


class Expired(ApiError):
    """410: the version or page that was asked for is gone; begin again."""


_BY_STATUS: dict[int, type[ApiError]] = {403: Forbidden, 404: NotFound, 409: Conflict, 410: Expired}


def from_answer(
    status: int, document: object, text: str, retry_after_s: float | None = None
) -> ApiError:
    """The error of a refused request; ``document`` is its body as JSON, if it is JSON."""
    found: Mapping[str, Any] = document if isinstance(document, dict) else {}
    details = found.get("details")
    details = details if isinstance(details, dict) else {}
    if retry_after_s is None and isinstance(details.get("retryAfterSeconds"), int):
        retry_after_s = float(details["retryAfterSeconds"])
    return _BY_STATUS.get(status, ApiError)(
        status,
        str(found.get("reason") or ""),
        str(found.get("message") or text[:500]),
        details=details,
        retry_after_s=retry_after_s,
    )
