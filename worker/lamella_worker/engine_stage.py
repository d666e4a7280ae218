"""The engine's calls that a stage's loop makes: load a slice, compute steps, forget sequences.

It knows no frame and no schedule. Out of memory in `step` is not the seed's: scratch is freed, the
step is tried in halves, and else only its requests fail; weights and pages stay.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from lamella_contract.config import StageConfig
from lamella_contract.errors import EngineError, InvalidConfig, OutOfMemory
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.engine_base import EngineBase
from lamella_worker.engine_models import Progress, ShardReader, open_slice, source_opener
from lamella_worker.engine_step import step_or_halves
from lamella_worker.engine_text import load_model_config
from lamella_worker.model import ShardedGeneralModel
from lamella_worker.oom import is_out_of_memory
from lamella_worker.shard import Shard

_log = logging.getLogger("lamella_worker.engine")


class StageCalls(EngineBase):
    """What worker processes use. Not to be mixed with the seed's calls on one engine."""

    def load_stage(self, config: StageConfig, on_progress: Progress | None = None) -> None:
        """Load the stage's slice and reserve its pages; blocks until both are done.

        Raises ModelError for files that cannot be used and OutOfMemory when slice or pages do not
        fit, with both named.
        """
        pipeline = config.pipeline
        layers = range(*pipeline.layer_range(config.stage))
        self.device = self._determine_device(config.device)
        place, commit = pipeline.model_uri, pipeline.commit
        if pipeline.model_path:
            place, commit = pipeline.model_path, ""
        reader = ShardReader(source_opener(self.shard_downloader, place, commit, on_progress))
        with self._lock:
            self.clear_model()
            doing = f"the weights of layers {layers.start}-{layers.stop - 1}"
            try:
                reader.announce(pipeline.num_layers, layers)
                loaded = open_slice(
                    ShardedGeneralModel,
                    reader,
                    load_model_config(reader.source.metadata_folder()),
                    layers,
                    dtype=getattr(torch, pipeline.dtype),
                    device=self.device,
                    runner=pipeline.runner,
                    quantization=pipeline.quantization,
                )
                _check_layers(loaded.model.num_layers, pipeline.num_layers)
                doing = f"{pipeline.num_blocks} pages of {pipeline.block_size} tokens"
                loaded.model.runner.setup_caches(
                    num_blocks=pipeline.num_blocks,
                    block_size=pipeline.block_size,
                    max_sequences=pipeline.max_sequences,
                    max_model_len=pipeline.max_model_len,
                )
            except Exception as error:  # out of memory has no type of its own on most devices
                if not is_out_of_memory(error):
                    raise
                self.out_of_memory_count += 1
                raise OutOfMemory(f"{self.device} has no memory for {doing}: {error}") from error
            shard = Shard.of(pipeline.name, layers, pipeline.num_layers)
            self._publish(loaded, shard, reader.source.metadata_folder())
            self.cache_initialized = True

    def step(self, batch: StepBatch, bundle: Bundle) -> Bundle:
        """Compute one step's rows; see batch.py for the bundles.

        Raises OutOfMemory (weights and pages kept) and EngineError.
        """
        model = self.model_instance
        if model is None:
            raise EngineError("no slice is loaded: call load_stage before step")
        try:
            return step_or_halves(model.runner, batch, bundle, self.device)
        except OutOfMemory:
            self.out_of_memory_count += 1
            raise

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy what is in the first cache blocks to the second, on every layer."""
        if self.model_instance is not None:
            with torch.inference_mode():
                self.model_instance.runner.copy_blocks(sources, blocks)

    @property
    def rewindable(self) -> bool:
        """Whether pages hold all there is of a sequence, so that it goes on from any position."""
        model = self.model_instance
        return model is not None and not getattr(model.runner, "state_kinds", None)

    def release(self, slot: int) -> None:
        """A sequence is done: drop what its slot keeps beside the pages."""
        if self.model_instance is not None:
            self.model_instance.runner.release(slot)

    def reset(self) -> None:
        """Drop every sequence; weights and pages stay reserved."""
        if self.model_instance is not None:
            self.model_instance.runner.reset_caches()

    def memory(self) -> dict[str, int]:
        """Bytes of the weights, of the pages, and of the process (`resident_bytes`)."""
        found = {
            "weight_bytes": self._slice.reader.bytes_needed if self._slice is not None else 0,
            "kv_bytes": getattr(getattr(self.model_instance, "runner", None), "kv_bytes", 0),
            "resident_bytes": _resident_bytes(),
        }
        if self.device.type == "cuda":
            found["device_bytes"] = int(torch.cuda.memory_allocated(self.device))
        return {name: value if isinstance(value, int) else 0 for name, value in found.items()}


def _check_layers(found: int, wanted: int) -> None:
    if found != wanted:
        raise InvalidConfig(f"num_layers={wanted}, the model has {found}")


def _resident_bytes() -> int:
    """What the process holds in memory; 0 where there is no /proc."""
    try:
        fields = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    line = next((f for f in fields if f.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(line.split()[1]) * 1024
