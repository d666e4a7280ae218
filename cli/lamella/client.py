"""A small streaming client of the OpenAI API, as chat and bench need it.

Knows URLs and server-sent events; knows nothing of how the endpoint is made.
"""

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from lamella.errors import EndpointError

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Piece:
    """One streamed event: new text (may be ""), why it ended (may be ""), usage when it is told."""

    text: str
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def base_url(url: str) -> str:
    """The URL without a trailing slash or `/v1`; `:8000` and `host:8000` are taken too."""
    text = url.strip().rstrip("/")
    text = text.removesuffix("/v1").rstrip("/")
    if text.startswith(":"):
        text = f"127.0.0.1{text}"
    if not text:
        return DEFAULT_URL
    return text if "://" in text else f"http://{text}"


def headers(api_key: str) -> dict[str, str]:
    """The authorization header, or none."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def timeout() -> httpx.Timeout:
    """Quick to notice that nobody is there, patient with a model that thinks."""
    return httpx.Timeout(600.0, connect=_CONNECT_TIMEOUT_S)


def model_name(http: httpx.Client, url: str) -> str:
    """The first model that the endpoint lists. Raises EndpointError."""
    try:
        answer = http.get(f"{url}/v1/models")
        answer.raise_for_status()
        models = answer.json()["data"]
        return str(models[0]["id"])
    except httpx.HTTPStatusError as error:
        raise EndpointError(error_text(error.response.status_code, error.response.text)) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EndpointError(
            f"{url}: no answer ({error}); is it running? try `lamella status`"
        ) from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EndpointError(f"{url}/v1/models: got no model, want an OpenAI endpoint") from error


def error_text(status: int, body: str) -> str:
    """The message in an OpenAI error body, or the body's beginning."""
    message = _error_field(body, "message") or body.strip()[:200] or "no explanation"
    return f"HTTP {status}: {message}"


def error_code(body: str) -> str:
    """The machine's word in an OpenAI error body, "" when there is none."""
    return _error_field(body, "code")


def _error_field(body: str, field: str) -> str:
    try:
        return str(json.loads(body)["error"][field] or "")
    except (ValueError, KeyError, TypeError):
        return ""


def pieces(lines: Iterable[str]) -> Iterator[Piece]:
    """The pieces in the lines of a chat or completion stream. Raises EndpointError."""
    for line in lines:
        piece = parse_line(line)
        if piece is not None:
            yield piece


async def async_pieces(lines: AsyncIterator[str]) -> AsyncIterator[Piece]:
    """`pieces` for asyncio."""
    async for line in lines:
        piece = parse_line(line)
        if piece is not None:
            yield piece


def parse_line(line: str) -> Piece | None:
    """The piece in one line of a stream; None for comments, blanks and the end mark."""
    if not line.startswith("data:"):
        return None
    data = line[5:].strip()
    if data == "[DONE]":
        return None
    try:
        event = json.loads(data)
    except ValueError as error:
        raise EndpointError(f"stream: got {data[:80]!r}, want JSON") from error
    if "error" in event:
        said = event["error"]
        raise EndpointError(str(said.get("message", said) if isinstance(said, dict) else said))
    usage: Mapping[str, Any] = event.get("usage") or {}
    choices = event.get("choices") or [{}]
    text = choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""
    return Piece(
        text=text,
        finish=choices[0].get("finish_reason") or "",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
    )
