"""The gateway's routes.

Knows HTTP and which part of the service answers what; each answer is made elsewhere. Whatever a
handler raises leaves as OpenAI's error form.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib import resources

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lamella_contract import names

from .errors import ApiError, not_found, too_large, unavailable
from .generate import StreamedAnswer, WholeAnswer
from .openai_requests import (
    ChatRequest,
    CompletionRequest,
    decode_json,
    parse_chat,
    parse_completion,
)
from .openai_responses import model_fields
from .service import Gateway

_log = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's number for a client that hung up before the answer

Parse = Callable[[object], ChatRequest | CompletionRequest]
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def create_app(gateway: Gateway) -> ASGIApp:
    """The ASGI application of ``gateway``."""
    routes = [
        Route("/v1/chat/completions", _generate(gateway, parse_chat), methods=["POST"]),
        Route("/v1/completions", _generate(gateway, parse_completion), methods=["POST"]),
        *_model_routes(gateway),
        *_state_routes(gateway),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_bug,
        },
    )
    return Around(app, gateway, frozenset(route.path for route in routes))


class Around:
    """Counts requests by route and status; a gateway that leaves closes its connections."""

    def __init__(self, app: ASGIApp, gateway: Gateway, paths: frozenset[str]) -> None:
        self._app = app
        self._gateway = gateway
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        code = CLIENT_GONE

        async def observed(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                if self._gateway.leaving:
                    # the next request is to make a connection, and so to find another gateway
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            # paths that are not ours would make as many series as someone cares to invent
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._gateway.metrics.requests.labels(path, str(code)).inc()


def _generate(gateway: Gateway, parse: Parse) -> Endpoint:
    async def endpoint(request: Request) -> ASGIApp:
        arrived_s = asyncio.get_running_loop().time()
        gateway.keys.check(request.headers.get("authorization"))
        if gateway.dispatcher.draining:
            raise unavailable("this gateway is shutting down")
        body = await _body(request, gateway.config.max_body_bytes)
        parsed = parse(decode_json(body))
        generation = await gateway.generation(parsed, arrived_s)
        return (StreamedAnswer if parsed.options.stream else WholeAnswer)(generation)

    return endpoint


def _model_routes(gateway: Gateway) -> list[Route]:
    config = gateway.config
    fields = model_fields(config.served_name, gateway.created_s, config.max_model_len)

    async def models(request: Request) -> Response:
        gateway.keys.check(request.headers.get("authorization"))
        return _json({"object": "list", "data": [fields]})

    async def model(request: Request) -> Response:
        gateway.keys.check(request.headers.get("authorization"))
        asked = request.path_params["model"]
        if asked != config.served_name:
            raise not_found(f"The model '{asked}' does not exist here.", code="model_not_found")
        return _json(fields)

    return [Route("/v1/models", models), Route("/v1/models/{model:path}", model)]


def _state_routes(gateway: Gateway) -> list[Route]:
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    async def alive(request: Request) -> Response:
        return Response(b"ok\n", media_type="text/plain")

    def answer(reason: str) -> Response:
        if reason:
            return _json({"status": "unready", "reason": reason}, 503)
        return _json({"status": "ok"})

    async def accepts(request: Request) -> Response:
        return answer(gateway.not_accepting_reason())

    async def serves(request: Request) -> Response:
        return answer(gateway.not_ready_reason())

    async def status(request: Request) -> Response:
        return _json(gateway.status())

    async def metrics(request: Request) -> Response:
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4")

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    return [
        Route("/", index),
        Route(names.PATH_SERVING, serves),
        Route(names.PATH_READY, accepts),
        Route(names.PATH_HEALTH, alive),
        Route(names.PATH_STATUS, status),
        Route(names.PATH_METRICS, metrics),
    ]


async def _body(request: Request, limit: int) -> bytes:
    """The whole body; `ApiError` 413 as soon as it is known to be over ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _json(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _error_response(error: ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers())


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _error_response(not_found(f"No such path: {request.method} {request.url.path}"))
    message = f"{error.detail}: {request.method} {request.url.path}"
    response = _error_response(ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # nobody reads it; it ends the request


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error, extra={"path": request.url.path})
    return _error_response(
        ApiError(500, "The gateway failed on this request.", type="server_error", code="internal")
    )
