"""One gateway: its configuration, tokenizer, dispatcher, keys and counters, put together.

Knows how a parsed request becomes a generation; no routes and no sockets of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from lamella_contract import forms
from lamella_contract.config import GatewayConfig
from lamella_contract.errors import InvalidConfig
from lamella_contract.names import stage_role
from lamella_contract.wire import Sampling

from .answer import Answer
from .dispatch import Dispatcher, MakeLink
from .errors import context_exceeded, invalid, not_found, unavailable
from .generate import Generation
from .keys import ApiKeys
from .link import Link, LinkKeys
from .metrics import Metrics
from .openai_requests import ChatRequest, CompletionRequest, Options
from .openai_responses import ResponseWriter
from .rate import RateMeter
from .text import TextCodec

COMPLETION_MAX_TOKENS = 16  # OpenAI's own default for text completions
LONG_TEXT_CHARACTERS = 8_192  # tokenizing more takes milliseconds: a thread does it

_log = logging.getLogger(__name__)


class Gateway:
    """Must be made inside a running event loop; `close` ends it."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.keys = ApiKeys.load(config.api_keys_file)
        self.created_s = int(time.time())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        loop = asyncio.get_running_loop()
        keys, context = load_keys(config), self._context

        def maker(index: int, address: str) -> MakeLink:
            return lambda news: Link(
                index,
                address,
                role=config.name,
                model_hash=config.model_hash_bytes(),
                keys=keys,
                news=news,
                context=context,
                loop=loop,
            )

        self.dispatcher = Dispatcher(
            [maker(index, address) for index, address in enumerate(config.replicas)],
            request_deadline_s=config.request_deadline_s,
            max_queued_tokens=config.max_queued_tokens,
            eos_token_ids=config.eos_token_ids,
            metrics=self.metrics,
        )
        self.rate = RateMeter(loop, lambda: self.dispatcher.generated_tokens)
        self.codec = asyncio.create_task(self._load_codec())
        self.metrics.live.set_function(lambda: float(len(self.dispatcher)))
        for link in self.dispatcher.links:
            self.metrics.ready.labels(link.address).set_function(partial(_ready, link, loop))

    def close(self) -> None:
        """Cancel what is live at the replicas and close the links."""
        self.rate.stop()
        self.codec.cancel()
        self.dispatcher.shut()
        self._context.term()

    def not_ready_reason(self) -> str:
        """Why a request would not be served now; "" when one would."""
        if not self.codec.done():
            return "the tokenizer is being loaded"
        return self.dispatcher.not_ready_reason()

    async def generation(
        self, request: ChatRequest | CompletionRequest, arrived_s: float
    ) -> Generation:
        """Tokenize, check the limits, and hand the request to the dispatcher; `ApiError`."""
        self._check_model(request.model)
        codec = await self._codec_in_time()
        prompt_ids = await self._prompt_ids(codec, request)
        chat = isinstance(request, ChatRequest)
        options = request.options
        sampling = self._sampling(options, prompt_ids, chat)
        request_id = secrets.token_bytes(16)
        ticket = self.dispatcher.open(request_id, prompt_ids, sampling)
        self.metrics.prompt_tokens.inc(len(prompt_ids))
        writer = ResponseWriter(
            "chat" if chat else "text",
            request_id=request_id.hex(),
            model=self.config.served_name,
            created_s=int(time.time()),
            include_usage=options.include_usage,
        )
        answer = Answer(codec.detokenizer(prompt_ids), options.stop, len(prompt_ids))
        return Generation(
            self.dispatcher, ticket, answer, writer, self.metrics, arrived_s, request_id.hex()
        )

    def status(self) -> dict[str, object]:
        """What /status says; whatever a replica's status carries is passed on."""
        now_s = asyncio.get_running_loop().time()
        reason = self.not_ready_reason()
        pipelines = []
        for link in self.dispatcher.links:
            told = {} if link.status is None else forms.to_plain(link.status)
            assert isinstance(told, dict)
            known = {"ready": link.ready(now_s), "reason": link.reason(now_s)}
            pipelines.append(told | known | {"address": link.address, "connected": link.connected})
        return {
            "model": self.config.served_name,
            "gateway": self.config.name,
            "ready": not reason,
            "reason": reason,
            "uptime_s": int(time.time()) - self.created_s,
            "max_model_len": self.config.max_model_len,
            "live_requests": len(self.dispatcher),
            "generated_tokens": self.dispatcher.generated_tokens,
            "tokens_per_s": round(self.rate.per_s(), 1),
            "pipelines": pipelines,
        }

    async def _load_codec(self) -> TextCodec:
        began_s = time.monotonic()
        config = self.config
        codec = await _in_daemon_thread(
            lambda: TextCodec.load(config.tokenizer_path, eos_token_ids=config.eos_token_ids)
        )
        spent_s = round(time.monotonic() - began_s, 2)
        _log.info("the tokenizer is loaded", extra={"seconds": spent_s})
        return codec

    async def _codec_in_time(self) -> TextCodec:
        try:
            # shielded: a request's deadline must not stop the load that others wait for
            return await asyncio.wait_for(
                asyncio.shield(self.codec), self.config.request_deadline_s
            )
        except TimeoutError:
            raise unavailable("the tokenizer is being loaded") from None

    def _check_model(self, model: str | None) -> None:
        if model is None:
            raise invalid("model", "Missing required parameter: 'model'.")
        if model != self.config.served_name:
            raise not_found(
                f"The model '{model}' does not exist here; this server serves "
                f"'{self.config.served_name}'.",
                code="model_not_found",
                param="model",
            )

    async def _prompt_ids(
        self, codec: TextCodec, request: ChatRequest | CompletionRequest
    ) -> tuple[int, ...]:
        if isinstance(request, ChatRequest):
            size = sum(len(message.content) for message in request.messages)
            encode = partial(codec.chat_ids, request.messages)
        elif isinstance(request.prompt, str):
            size = len(request.prompt)
            encode = partial(codec.prompt_ids, request.prompt)
        else:
            return self._checked_ids(request.prompt)
        return encode() if size <= LONG_TEXT_CHARACTERS else await asyncio.to_thread(encode)

    def _checked_ids(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        limit = self.config.vocab_size
        for token_id in ids:
            if not 0 <= token_id < limit:
                raise invalid("prompt", f"Token id {token_id} is not below {limit}, or negative.")
        return ids

    def _sampling(self, options: Options, prompt_ids: tuple[int, ...], chat: bool) -> Sampling:
        param = "messages" if chat else "prompt"
        if not prompt_ids:
            raise invalid(param, "The prompt is empty: there is no token to go on from.")
        room = self.config.max_model_len - len(prompt_ids)
        asked = options.max_tokens
        if room < 1 or (asked or 0) > room:
            raise context_exceeded(len(prompt_ids), asked or 0, self.config.max_model_len, param)
        default = room if chat else min(COMPLETION_MAX_TOKENS, room)
        return Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            repetition_penalty=options.repetition_penalty,
            # minted once and journalled with the request: a replay draws the same tokens
            seed=secrets.randbits(64) if options.seed is None else options.seed,
            max_tokens=default if asked is None else asked,
            ignore_eos=options.ignore_eos,
        )


def _in_daemon_thread(function: Callable[[], TextCodec]) -> asyncio.Future[TextCodec]:
    """As `asyncio.to_thread`, in a thread that the process need not wait for when it ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[TextCodec] = loop.create_future()

    def settle(result: TextCodec | None, error: Exception | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:  # a thread's edge: told to whoever awaits the future
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="tokenizer", daemon=True).start()
    return future


def load_keys(config: GatewayConfig) -> LinkKeys:
    """This gateway's CURVE pair from its file, and stage 0's public key; `InvalidConfig`."""
    try:
        document = json.loads(Path(config.key_file).read_text(encoding="utf-8"))
        public, secret = document["public"].encode("ascii"), document["secret"].encode("ascii")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise InvalidConfig(
            f"key_file: got {config.key_file!r}, want a readable JSON file with 'public' and "
            f"'secret' ({reason})"
        ) from reason
    keys = LinkKeys(public, secret, config.peer_key(stage_role(0)).encode("ascii"))
    if {len(keys.public), len(keys.secret), len(keys.server)} != {40}:
        raise InvalidConfig(f"key_file: {config.key_file!r} or peer_keys: want z85 keys of 40")
    return keys


def _ready(link: Link, loop: asyncio.AbstractEventLoop) -> float:
    return float(link.ready(loop.time()))
