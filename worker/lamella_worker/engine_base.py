"""What every call of the engine shares: its attributes, its device, its cache, its memory.

It knows no shard's source and no text. engine.py adds the seed's calls, engine_stage.py those of
the stage's loop, engine_checkpoints.py saving and loading.

Model state is touched only under `_lock`, and computed only on the one thread of `executor`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from lamella_contract.errors import EngineError, InvalidConfig, OutOfMemory, shown
from lamella_worker.engine_errors import InputTooLong, InvalidInput
from lamella_worker.engine_models import LoadedSlice
from lamella_worker.engine_sessions import SessionTable
from lamella_worker.oom import device_name, is_out_of_memory, release_scratch
from lamella_worker.shard import Shard
from lamella_worker.state import ShardInferenceState

_log = logging.getLogger("lamella_worker.engine")
_T = TypeVar("_T")

ENV_DEVICE = "LAMELLA_DEVICE"
"""Environment variable that names the device (`cpu`, `cuda:1`, `mps`); "" or `auto` looks."""

SESSION_BUDGET_BYTES = 1 << 30
SESSION_SLOTS = 4  # sequences whose keys and values are kept at once, unless the caller says
FIRST_CACHE_TOKENS = 1024


class EngineBase:
    """One slice of one model on one device; see the seed's class in engine.py."""

    def __init__(self, shard_downloader: Any, *, device: str | None = None) -> None:
        self.shard_downloader = shard_downloader
        self.current_shard: Shard | None = None
        self.model_instance: Any = None
        self.current_request_id: str | None = None
        self.model_directory: Path | None = None
        self.model_config: dict[str, Any] | None = None
        self.inference_state: ShardInferenceState | None = None
        self.tokenizer: Any = None
        self.instance_id = str(uuid.uuid4())
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lamella-engine")
        self.out_of_memory_count = 0
        self.enable_cache = True
        self.cache_initialized = False
        self.device = self._determine_device(device)
        # On the CPU whatever the device: logits are sampled there.
        self.rng = torch.Generator(device="cpu")
        self.rng.seed()
        self.sessions = SessionTable(SESSION_BUDGET_BYTES)
        self._cache_length: int | None = None  # None: set up by someone who did not say
        self._cache_rows = 0
        self._slice: LoadedSlice | None = None  # what model_instance was made of, if by us
        self._lock = threading.RLock()

    def close(self) -> None:
        """Free the model and end the engine's thread."""
        self.clear_model()
        self.executor.shutdown()

    def _determine_device(self, wanted: str | None = None) -> torch.device:
        """`wanted`, else the environment's, else CUDA, else MPS, else CPU."""
        name = wanted or os.environ.get(ENV_DEVICE, "")
        if name and name != "auto":
            try:
                return torch.device(name)
            except RuntimeError as error:
                raise InvalidConfig(
                    f"device={shown(name)}, wanted auto, cpu, cuda, cuda:N or mps"
                ) from error
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available() and torch.backends.mps.is_built():
            return torch.device("mps")
        return torch.device("cpu")

    def setup_cache(self, batch_size: int = 1, total_response_length: int = 1024) -> None:
        """Reserve keys and values for `batch_size` sequences of `total_response_length` tokens.

        Nothing happens when the cache is off or large enough already; a larger wish makes it anew
        (sessions are computed again when they are next used). Raises InputTooLong past the model's
        context, EngineError with no model, and OutOfMemory after freeing the model.
        """
        if not self.enable_cache:
            return
        with self._lock:
            try:
                self._reserve(batch_size, total_response_length)
                return
            except Exception as error:  # out of memory has no type of its own on most devices
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            self._out_of_memory(reason)
        raise OutOfMemory(f"no memory for a cache of {batch_size} x {total_response_length} tokens")

    def _reserve(self, rows: int, length: int) -> None:
        """Make the model's cache at least that large."""
        if rows < 1 or length < 1:
            raise InvalidInput(f"batch_size={rows}, total_response_length={length}, wanted >= 1")
        if self.cache_initialized:
            known = self._cache_length
            if known is None or (length <= known and rows <= self._cache_rows):
                return
            rows, length = max(rows, self._cache_rows), max(length, known)
        model = self.model_instance
        if model is None:
            raise EngineError("no model is loaded: call ensure_shard before setup_cache")
        limit = self.max_tokens
        if limit is not None and length > limit:
            raise InputTooLong(f"a cache of {length} tokens was asked for, the model holds {limit}")
        # From here on the old cache is gone, whether or not the new one fits.
        self.cache_initialized = False
        self.sessions.forget_caches()
        model.model.setup_caches(
            batch_size=rows,
            dtype=(self.model_config or {}).get("torch_dtype", torch.float32),
            decoder_max_seq_len=length,
        )
        self.cache_initialized = True
        self._cache_length, self._cache_rows = length, rows
        kv_bytes = getattr(getattr(model, "runner", None), "kv_bytes", 0)
        self.sessions.new_cache(rows, kv_bytes // rows if isinstance(kv_bytes, int) else 0)

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that the model holds; None when its configuration does not say."""
        limit = (self.model_config or {}).get("max_seq_len")
        return limit if isinstance(limit, int) else None

    def clear_model(self) -> None:
        """Free the model, its cache and all sessions. Safe with nothing loaded, and twice.

        The out-of-memory count, the configuration and the tokenizer are kept.
        """
        with self._lock:
            model, self.model_instance = self.model_instance, None
            self.inference_state = None
            self.current_shard = None
            self.current_request_id = None
            self.cache_initialized = False
            self._cache_length, self._cache_rows = None, 0
            self.sessions.clear()
            if self._slice is not None:
                self._slice.reader.close()
                self._slice = None
            if model is not None:
                _reset_caches(model)
                del model
                gc.collect()  # modules refer to themselves in circles: no count reaches zero
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _out_of_memory(self, reason: str) -> None:
        """Memory ran out for good: count it, say so, free the model."""
        self.out_of_memory_count += 1
        _log.error(
            "Out of memory on %s",
            device_name(self.device),
            extra={"reason": reason, "count": self.out_of_memory_count},
        )
        self.clear_model()

    def _free_scratch(self) -> None:
        release_scratch(self.device)

    def _publish(self, loaded: LoadedSlice, shard: Shard, directory: Path) -> None:
        """Make a slice that is wholly loaded the engine's; nothing here can fail."""
        self._slice = loaded
        self.model_instance = loaded.model
        self.model_config = dict(loaded.config)
        self.model_directory = directory
        self.current_shard = shard

    def _holds(self, shard: Shard) -> bool:
        return self.model_instance is not None and self.current_shard == shard

    async def _on_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *args)


def _reset_caches(model: Any) -> None:
    try:
        model.model.reset_caches()
    except EngineError:  # no caches were ever set up: there is nothing to reset
        _log.debug("a model without caches was cleared")
