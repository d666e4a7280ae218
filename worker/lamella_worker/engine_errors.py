"""Errors of the engine's own calls that are also what Python callers expect.

The seed asks for ValueError where the project's tree has typed errors; these are both.
"""

from __future__ import annotations

from lamella_contract.errors import EngineError, InvalidRequest, PromptTooLong


class InvalidInput(InvalidRequest, ValueError):
    """An argument has the wrong shape, type or range; nothing was computed."""


class InputTooLong(PromptTooLong, ValueError):
    """More tokens than the model can hold; nothing was cut off and nothing was computed."""


class SessionLost(EngineError):
    """A request's cached state was evicted: send it again from position 0."""
