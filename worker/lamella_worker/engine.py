"""`TorchDynamicShardInferenceEngine`: the engine of one stage, the class of the seed document.

It knows no network, no scheduler and no other stage. The stage's loop loads its slice with
`load_stage` and drives the batched `step` (engine_stage.py). The seed's own calls are here: they
find a shard by name, keep one session per request, and compute it as a batch on the same path.

The names in `__all__` are looked up in this module when they are used, so that tests of the seed
can put others in their place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamella_contract.errors import EngineError, OutOfMemory
from lamella_worker import engine_text, sampling
from lamella_worker.downloader import ShardDownloader
from lamella_worker.engine_checkpoints import CheckpointCalls
from lamella_worker.engine_flights import SingleFlight
from lamella_worker.engine_infer import Answer, infer, start_of
from lamella_worker.engine_inputs import check_input
from lamella_worker.engine_models import ShardReader, open_slice, source_opener
from lamella_worker.engine_sessions import Input
from lamella_worker.engine_stage import StageCalls
from lamella_worker.engine_text import TextTools, load_model_config
from lamella_worker.engine_text import resolve_tokenizer as _resolve_tokenizer
from lamella_worker.model import ShardedGeneralModel
from lamella_worker.oom import is_out_of_memory
from lamella_worker.shard import Shard
from lamella_worker.state import ShardInferenceState

__all__ = [
    "Shard",
    "ShardDownloader",
    "ShardInferenceState",
    "ShardedGeneralModel",
    "TorchDynamicShardInferenceEngine",
    "_resolve_tokenizer",
    "load_model_config",
    "sampling",
    "torch",
]

_log = logging.getLogger(__name__)


class _ShardMoved(Exception):
    """Another call loaded another shard between finding ours and computing on it."""


class TorchDynamicShardInferenceEngine(StageCalls, CheckpointCalls):
    """One slice of one model on one device. Use the asynchronous calls from one event loop."""

    def __init__(self, shard_downloader: Any, *, device: str | None = None) -> None:
        super().__init__(shard_downloader, device=device)
        self._flights = SingleFlight()
        self._texts: dict[str, TextTools] = {}

    # -- text ----------------------------------------------------------------------------------

    async def encode(self, shard: Shard, prompt: str) -> NDArray[np.int64]:
        """Token ids int64 [1, n] of a prompt; loads no weights.

        Raises InvalidInput for an empty prompt, InputTooLong for one that the model cannot hold,
        and whatever the tokenizer raises.
        """
        tools = await self._text_tools(shard)
        return await self._on_thread(engine_text.encode, tools, prompt)

    async def decode(self, shard: Shard, tokens: NDArray[Any]) -> str:
        """Text of ids [n] or [1, n]; InvalidInput (a ValueError) for ids that do not exist."""
        tools = await self._text_tools(shard)
        return await self._on_thread(engine_text.decode, tools, tokens)

    async def _text_tools(self, shard: Shard) -> TextTools:
        if self.tokenizer is not None and self.current_shard in (None, shard):
            return TextTools(self.tokenizer, self.model_config)
        held = self.current_shard
        if self.tokenizer is not None and held is not None and held.model_id == shard.model_id:
            return TextTools(self.tokenizer, self.model_config)
        tools = self._texts.get(shard.model_id)
        if tools is None:
            directory = await self._directory_of(shard)
            config = await self._on_thread(load_model_config, directory)
            tools = TextTools(await _resolve_tokenizer(directory), config)
            self._texts = {shard.model_id: tools}  # one: tokenizers are tens of megabytes
        return tools

    # -- tensors -------------------------------------------------------------------------------

    async def sample(
        self, input_logits: NDArray[Any], temp: float = 0.6, top_k: int | None = 35
    ) -> NDArray[np.int64]:
        """One id per row of logits [batch, vocab]; needs no model. See `sampling.sample`."""
        return await self._on_thread(self._sample, input_logits, temp, top_k)

    def _sample(self, logits: Any, temp: float, top_k: int | None) -> NDArray[np.int64]:
        rows = torch.as_tensor(np.asarray(logits, np.float32))
        if rows.ndim == 3:  # [batch, tokens, vocab]: the last position decides
            rows = rows[:, -1]
        return np.asarray(sampling.sample(rows, temp=temp, top_k=top_k, generator=self.rng))

    async def infer_tensor(
        self,
        request_id: str,
        shard: Shard,
        input_data: NDArray[Any],
        inference_state: Mapping[str, Any] | ShardInferenceState | None = None,
    ) -> Answer:
        """Compute the next tokens of a request on this shard.

        A first stage takes token ids [batch, n], a later one hidden states [batch, n, hidden]. A
        last stage gives float32 logits [batch, vocab] of the last position, others float32 hidden
        states [batch, n, hidden] after their last layer; with it comes the state, a small dict that
        goes along to the next stage, and from the last back to the first. Without a state the
        request goes on where it stands here; position 0 starts it afresh.

        (None, None) means that memory ran out and the model was freed: send an error, not this.
        Raises InvalidInput (a ValueError) before any compute, SessionLost, and the model's errors.
        """
        data = check_input(shard, input_data, None)
        start = start_of(shard, inference_state, data.shape[1])
        while True:
            try:
                await self.ensure_shard(shard)
            except OutOfMemory:  # counted and logged where it happened
                return None, None
            try:
                return await self._on_thread(self._infer, request_id, shard, data, start)
            except _ShardMoved:
                continue

    def _infer(self, request_id: str, shard: Shard, data: Input, start: int | None) -> Answer:
        with self._lock:
            if not self._holds(shard):
                raise _ShardMoved
            return infer(
                self, request_id, shard, check_input(shard, data, self.model_config), start
            )

    # -- shards --------------------------------------------------------------------------------

    async def ensure_shard(self, shard: Shard) -> None:
        """Have `shard` loaded. Callers at the same time share one load; a failed one is retried
        by the next call.

        What was loaded before stays until the new shard's files, configuration and tokenizer are
        there; then it is freed (two slices would not fit) and the weights are read. Raises
        ModelError, EngineError or OutOfMemory.
        """
        if not self._holds(shard):
            await self._flights.fly(shard, lambda: self._switch(shard))

    async def _switch(self, shard: Shard) -> None:
        if self._holds(shard):
            return
        directory = await self._directory_of(shard)
        config = await self._on_thread(load_model_config, directory)
        tokenizer = await _resolve_tokenizer(directory)
        await self._on_thread(self._load, shard, directory, config, tokenizer)

    async def _directory_of(self, shard: Shard) -> Path:
        found = await self.shard_downloader.ensure_shard(shard)
        if not isinstance(found, str | os.PathLike):
            raise EngineError(f"the downloader gave {found!r} for {shard}, wanted a folder's path")
        return Path(found)

    def _load(self, shard: Shard, directory: Path, config: dict[str, Any], tokenizer: Any) -> None:
        with self._lock:
            if self.model_instance is not None:
                self.clear_model()
            reader = ShardReader(source_opener(self.shard_downloader, directory, "", None))
            try:
                loaded = open_slice(
                    ShardedGeneralModel,
                    reader,
                    config,
                    shard.layers,
                    dtype=config["torch_dtype"],
                    device=self.device,
                )
            except Exception as error:  # out of memory has no type of its own on most devices
                reader.close()
                if not is_out_of_memory(error):
                    raise
                reason = str(error) or type(error).__name__
            else:
                self._publish(loaded, shard, directory)
                self.tokenizer = tokenizer
                return
            self._out_of_memory(reason)
        raise OutOfMemory(f"{self.device} has no memory for {shard}: {reason}")
