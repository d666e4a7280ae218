"""Gets a gateway its tokenizer: where its files are, how long they are asked for, why not yet.

Knows model sources and `TextCodec`; no requests. A folder is read as it is. A model on a hub is
asked for its small files until they come: a hub that is down for a while must not end gateways
whose pipelines serve. What no waiting mends (no such model, no access) is raised.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from lamella_contract.config import GatewayConfig
from lamella_contract.errors import (
    DownloadStalled,
    HubUnreachable,
    InvalidConfig,
    RateLimited,
)

from .text import TextCodec
from .threads import in_daemon_thread

MAY_PASS = (HubUnreachable, DownloadStalled, RateLimited)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_log = logging.getLogger(__name__)


class CodecLoader:
    """``reason`` says why there is no tokenizer yet."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        folder: Callable[[GatewayConfig], str] | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._folder = folder or tokenizer_folder
        self._pause = pause
        self.reason = "the tokenizer is being loaded"

    async def load(self) -> TextCodec:
        """The codec; `LamellaError` when there will be none."""
        began_s, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                codec = await in_daemon_thread(self._load, "tokenizer")
            except MAY_PASS as reason:
                self.reason = f"the tokenizer cannot be fetched: {reason}"
                _log.warning("no tokenizer yet", extra={"why": str(reason), "pause_s": pause_s})
                await self._pause(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                spent_s = round(time.monotonic() - began_s, 2)
                _log.info("the tokenizer is loaded", extra={"seconds": spent_s})
                return codec

    def _load(self) -> TextCodec:
        folder = self._folder(self._config)
        return TextCodec.load(folder, eos_token_ids=self._config.eos_token_ids)


def tokenizer_folder(config: GatewayConfig) -> str:
    """The folder with the tokenizer's files; fetched first where the model is on a hub."""
    if config.tokenizer_path:
        return config.tokenizer_path
    # imported here: a folder needs no HTTP client
    from lamella_checkpoint.source import open_source

    source = open_source(
        config.model_uri,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        token=_token(config.hub_token_file),
    )
    try:
        return str(source.metadata_folder())
    finally:
        source.close()


def _token(path: str) -> str | None:
    """Read at each try: a Secret that was mended is seen without a restart."""
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as reason:
        raise InvalidConfig(f"hub_token_file: cannot read {path!r}: {reason}") from reason
