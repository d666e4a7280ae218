"""One gateway: its configuration, tokenizer, dispatcher, keys and counters, put together.

Knows how a parsed request becomes a generation; no routes and no sockets of its own.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from hashlib import blake2b

import zmq

from lamella_contract.config import GatewayConfig
from lamella_contract.errors import LamellaError
from lamella_contract.names import object_name
from lamella_contract.wire import NO_SALT, Sampling

from .answer import Answer
from .codec import CodecLoader
from .discover import Discovery, Resolve, look_up
from .dispatch import Dispatcher
from .errors import context_exceeded, invalid, not_found, unavailable
from .generate import Generation
from .keys import ApiKeys
from .link import Link
from .link_keys import load_keys
from .metrics import Metrics
from .openai_requests import ChatRequest, CompletionRequest, Options
from .openai_responses import ResponseWriter
from .rate import RateMeter
from .text import TextCodec

COMPLETION_MAX_TOKENS = 16  # OpenAI's own default for text completions
LONG_TEXT_CHARACTERS = 8_192  # tokenizing more takes milliseconds: a thread does it
MAX_INSTANCE = 200  # characters; ZeroMQ takes identities of at most 255 bytes


class Gateway:
    """Must be made inside a running event loop; `close` ends it."""

    def __init__(self, config: GatewayConfig, *, resolve: Resolve = look_up) -> None:
        self.config = config
        self.metrics = Metrics()
        self.keys = ApiKeys.load(config.api_keys_file)
        self.created_s = int(time.time())
        self.leaving = False  # asked to end: others are to send their requests elsewhere
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        loop = asyncio.get_running_loop()
        make_link = partial(
            Link,
            identity=identity(config),
            model_hash=config.model_hash_bytes(),
            keys=load_keys(config),
            context=self._context,
            loop=loop,
        )
        self.dispatcher = Dispatcher(
            lambda address, news: make_link(address, news=news),
            request_deadline_s=config.request_deadline_s,
            max_queued_tokens=config.max_queued_tokens,
            eos_token_ids=config.eos_token_ids,
            metrics=self.metrics,
        )
        links = self.dispatcher.links
        for address in config.replicas:
            links.add(address)
        self._discovery: asyncio.Task[None] | None = None
        if config.discover:
            discovery = Discovery(config.discover, links, resolve)
            self._discovery = asyncio.create_task(discovery.run())
        self.rate = RateMeter(loop, lambda: self.dispatcher.generated_tokens)
        self._waiting = 0  # requests that wait for the tokenizer
        self._loader = CodecLoader(config)
        self.codec = asyncio.create_task(self._loader.load())

    def close(self) -> None:
        """Cancel what is live at the replicas and close the links."""
        self.rate.stop()
        self.codec.cancel()
        if self._discovery is not None:
            self._discovery.cancel()
        self.dispatcher.shut()
        self._context.term()

    def not_accepting_reason(self) -> str:
        """Why a request should not be sent here now; "" when it would be taken in and held."""
        if self.leaving or self.dispatcher.draining:
            return "this gateway is shutting down"
        return "" if self.codec.done() else self._loader.reason

    def not_ready_reason(self) -> str:
        """Why a request would not be served now; "" when one would."""
        return self.not_accepting_reason() or self.dispatcher.not_ready_reason()

    def live(self) -> int:
        """Requests that have no answer yet."""
        return len(self.dispatcher) + self._waiting

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
        ticket = self.dispatcher.open(request_id, prompt_ids, sampling, _salt(options.cache_salt))
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
        return {
            "model": self.config.served_name,
            "gateway": identity(self.config),
            "ready": not reason,
            "reason": reason,
            "uptime_s": int(time.time()) - self.created_s,
            "max_model_len": self.config.max_model_len,
            "live_requests": len(self.dispatcher),
            "generated_tokens": self.dispatcher.generated_tokens,
            "tokens_per_s": round(self.rate.per_s(), 1),
            "pipelines": self.dispatcher.links.status(now_s),
        }

    async def _codec_in_time(self) -> TextCodec:
        self._waiting += 1
        try:
            # shielded: a request's deadline must not stop the load that others wait for
            return await asyncio.wait_for(
                asyncio.shield(self.codec), self.config.request_deadline_s
            )
        except TimeoutError:
            raise unavailable(self._loader.reason) from None
        except LamellaError as reason:  # it ends the process, too
            raise unavailable(str(reason)) from reason
        finally:
            self._waiting -= 1

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


def _salt(text: str | None) -> bytes:
    if not text:
        return NO_SALT
    return blake2b(text.encode(errors="surrogatepass"), digest_size=len(NO_SALT)).digest()


def identity(config: GatewayConfig) -> str:
    """What this gateway calls itself at stage 0: ``gateway-0``, or ``gateway-0/<instance>``."""
    if not config.instance:
        return config.name
    return f"{config.name}/{object_name(config.instance, limit=MAX_INSTANCE)}"
