"""Makes a stage's engine ready: reads its slice, reserves its pages, and says how far it is.

Knows the engine's one call for that, and which errors another try may not meet. While a hub is away
the stage stays, says why, and tries again: its place in the ring is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from lamella_contract.config import StageConfig
from lamella_contract.errors import (
    DownloadStalled,
    HubUnreachable,
    InvalidConfig,
    OutOfMemory,
    RateLimited,
)
from lamella_worker.downloader import ShardDownloader
from lamella_worker.engine import TorchDynamicShardInferenceEngine
from lamella_worker.process import room
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.stage import StageEngine

log = logging.getLogger(__name__)

LoadEngine = Callable[[StageConfig, Telemetry], StageEngine]
"""Makes a stage's engine ready: reads its slice and reserves its pages."""

TRANSIENT = (HubUnreachable, DownloadStalled, RateLimited)
"""Model errors that another try may not meet."""

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0


def load_at_last(
    config: StageConfig,
    telemetry: Telemetry,
    load: LoadEngine,
    pause: Callable[[float], None] = time.sleep,
) -> StageEngine:
    """`load`, tried again for as long as what hinders it may pass; `pause` is for tests."""
    delay_s = FIRST_RETRY_S
    while True:
        try:
            engine = load(config, telemetry)
        except TRANSIENT as error:
            telemetry.trouble = str(error)
            extra = {"error": str(error), "delay_s": delay_s}
            log.warning("the model could not be read; it will be tried again", extra=extra)
        else:
            telemetry.trouble = ""
            return engine
        pause(delay_s)
        delay_s = min(LONGEST_RETRY_S, 2 * delay_s)


def load_engine(config: StageConfig, telemetry: Telemetry) -> StageEngine:
    """Read this stage's slice; progress shows in `telemetry` all the while.

    Raises ModelError, and OutOfMemory with both numbers: on a GPU before anything is read.
    """
    began_s = time.monotonic()

    def on_progress(done: int, total: int, read: int) -> None:
        load = telemetry.load
        load.bytes_done, load.bytes_total, load.bytes_read = done, total, read
        elapsed_s = time.monotonic() - began_s
        load.bytes_per_s = done / elapsed_s if elapsed_s > 0 else 0.0

    downloader = ShardDownloader(
        cache_dir=config.cache_dir or None, token=read_token(config.hub_token_file)
    )
    if config.device.startswith("cuda"):
        check_device(config, downloader)
    engine = TorchDynamicShardInferenceEngine(downloader)
    try:
        engine.load_stage(config, on_progress)
    except OutOfMemory as error:
        free = room.free_bytes(config.device)
        raise OutOfMemory(
            f"{room.shortage(config, telemetry.load.bytes_total, free)} ({error})"
        ) from error
    telemetry.load.bytes_total = telemetry.load.bytes_done  # what was announced was a forecast
    telemetry.memory = engine.memory()
    log.info("slice loaded", extra={"seconds": round(time.monotonic() - began_s, 2)})
    return engine


def check_device(
    config: StageConfig,
    downloader: ShardDownloader,
    free_bytes: Callable[[str], int] = room.free_bytes,
) -> None:
    """OutOfMemory when slice and pages are larger than what is free; reads headers alone."""
    pipeline = config.pipeline
    place, commit = pipeline.model_uri, pipeline.commit
    if pipeline.model_path:
        place, commit = pipeline.model_path, ""
    source = downloader.open(place, commit)
    try:
        needed = room.needed_bytes(config, source)
    finally:
        source.close()
    room.check_room(config, needed, free_bytes(config.device))


def read_token(path: str) -> str | None:
    """The hub's token from its file; None when no file is named."""
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise InvalidConfig(f"hub_token_file={path!r}: {error}") from error
