"""Chooses what runs a stage's slice, and gives it the face that the engine drives.

Knows the three runners and no step: fast.py (hand-written, common dense families), packed.py (the
library's code, all rows at once), sequential.py (the library's code, one sequence at a time). All
of them are a `SliceRunner`. The engine (engine.py) owns one `ShardedGeneralModel`.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import torch

from lamella_checkpoint.cuts import forbidden_cuts, num_layers, text_config
from lamella_checkpoint.quantization import FAMILIES
from lamella_contract.errors import ForbiddenCut, InvalidConfig, UnsupportedFamily
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.hf.family_table import PACKED
from lamella_worker.hf.text_only import language_model
from lamella_worker.readers import TensorReader, trim_heap

log = logging.getLogger(__name__)

RunnerKind = Literal["fast", "packed", "sequential"]
KINDS: tuple[str, ...] = ("auto", "fast", "packed", "sequential")
_ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
SEED_BLOCK = 16  # tokens per page when the seed's `setup_caches` decides


class SliceRunner(Protocol):
    """Runs the layers of one stage. Rows are packed; a slot's pages are named by the batch only."""

    def setup_caches(
        self, *, num_blocks: int, block_size: int, max_sequences: int, max_model_len: int
    ) -> None:
        """Reserve pages for `num_blocks` blocks; frequencies are those of `max_model_len`."""

    def reset_caches(self) -> None:
        """Forget every sequence."""

    def step(self, batch: StepBatch, inputs: Bundle) -> Bundle:
        """Compute one step: the bundle of the stage before in, that for the next stage out.

        A segment with `start == 0` starts its slot afresh.
        """

    def release(self, slot: int) -> None:
        """Drop the state that a slot keeps beside the pages."""

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy pages, block by block; see `PagedPool.copy`."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the pages."""


def choose(config: Any, wanted: str = "auto") -> RunnerKind:
    """Which runner serves a model; `wanted` other than "auto" decides.

    Raises UnsupportedFamily when the fast runner is wanted for a family that it does not know.
    """
    if wanted not in KINDS:
        raise InvalidConfig(f"runner={wanted!r}, wanted one of {', '.join(KINDS)}")
    if wanted in ("auto", "fast"):
        from lamella_worker.fast.runner import supports

        if supports(config):
            return "fast"
        if wanted == "fast":
            raise UnsupportedFamily(
                f"model_type={config.model_type!r}: the fast runner does not know it; "
                "wanted runner auto, packed or sequential"
            )
    if wanted == "auto":
        text = text_config(config)
        others = set(getattr(text, "layer_types", None) or ()) - _ATTENTIONS
        return "packed" if text.model_type in PACKED and not others else "sequential"
    return cast(RunnerKind, wanted)


def build_runner(
    config: Any,
    first: int,
    last: int,
    reader: TensorReader,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    runner: str = "auto",
    quantization: str = "none",
) -> SliceRunner:
    """Load layers `[first, last)` into the runner that suits the model.

    Raises ForbiddenCut where the family may not be cut, UnsupportedFamily for a `quantization`
    that the family's runner does not have, and what the runners raise.
    """
    check_cuts(config, first, last)
    config, reader = language_model(config, reader)
    kind = choose(config, runner)
    if quantization != "none" and kind != "fast":
        raise _unquantized(config, quantization, kind)
    log.info(
        "runner chosen",
        extra={"family": config.model_type, "runner": kind, "first": first, "last": last},
    )
    built = _build(kind, config, first, last, reader, dtype, device, quantization)
    trim_heap()
    return built


def _build(
    kind: RunnerKind,
    config: Any,
    first: int,
    last: int,
    reader: TensorReader,
    dtype: torch.dtype,
    device: torch.device | str,
    quantization: str,
) -> SliceRunner:
    # The library's modelling code is imported only when it is needed: it takes seconds.
    if kind == "fast":
        from lamella_worker.fast.runner import FastRunner

        return FastRunner.build(config, first, last, reader, dtype, device, quantization)
    from lamella_worker.hf.slice import build_slice

    if kind == "packed":
        from lamella_worker.hf.packed import ATTENTION_NAME, PackedRunner

        piece = build_slice(
            config, first, last, reader, dtype=dtype, device=device, attention=ATTENTION_NAME
        )
        return PackedRunner(piece)
    from lamella_worker.hf.sequential import SequentialRunner

    return SequentialRunner(build_slice(config, first, last, reader, dtype=dtype, device=device))


def _unquantized(config: Any, quantization: str, kind: RunnerKind) -> UnsupportedFamily:
    return UnsupportedFamily(
        f"quantization: got {quantization!r} for {config.model_type}, which the {kind} runner "
        f"serves; want none, or the fast runner's families: {', '.join(FAMILIES)}"
    )


def check_cuts(config: Any, first: int, last: int) -> None:
    """Raise ForbiddenCut when a stage may not begin at `first`, or the next one at `last`."""
    forbidden = forbidden_cuts(config)
    for index in (first, last):
        if index in forbidden:
            raise ForbiddenCut(
                f"a stage begins at layer {index}, wanted elsewhere: {forbidden[index]}"
            )


class ShardedGeneralModel:
    """One slice of one model, as the engine sees it.

    `runner` computes steps. `model` is the face that the seed document names (`setup_caches`,
    `reset_caches`); here it is this object itself.
    """

    def __init__(
        self,
        config: Any,
        layers: range,
        reader: TensorReader,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        runner: str = "auto",
        quantization: str = "none",
    ) -> None:
        """Load the layers `layers` (half-open) of the model that `config` describes."""
        self.config = config
        self.num_layers = num_layers(text_config(config))
        self.layers = layers
        self.dtype = dtype
        self.device = torch.device(device)
        self.runner = build_runner(
            config,
            layers.start,
            layers.stop,
            reader,
            dtype=dtype,
            device=device,
            runner=runner,
            quantization=quantization,
        )
        self.max_generated_tokens = 0  # set by setup_caches
        self._released = False

    @property
    def model(self) -> "ShardedGeneralModel":
        """The object with `setup_caches` and `reset_caches`."""
        return self

    @property
    def is_first(self) -> bool:
        """True when the slice starts with the embedding."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """True when the slice ends with the head."""
        return self.layers.stop == self.num_layers

    def setup_caches(
        self, *, batch_size: int, dtype: torch.dtype, decoder_max_seq_len: int
    ) -> None:
        """Reserve pages for `batch_size` sequences of `decoder_max_seq_len` tokens each.

        `dtype` must be the model's: pages hold what its layers compute.
        """
        if dtype != self.dtype:
            raise InvalidConfig(f"dtype={dtype}, wanted the model's {self.dtype}")
        per_sequence = -(-decoder_max_seq_len // SEED_BLOCK)
        self.runner.setup_caches(
            num_blocks=batch_size * per_sequence,
            block_size=SEED_BLOCK,
            max_sequences=batch_size,
            max_model_len=decoder_max_seq_len,
        )
        self.max_generated_tokens = decoder_max_seq_len

    def reset_caches(self) -> None:
        """Forget every sequence."""
        self.runner.reset_caches()

    def generate(
        self, batch: StepBatch, inputs: Bundle
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """One step: (hidden [tokens, ...], None) on a stage with a successor, else (None, logits).

        Logits are float32 [sampled, vocabulary]; None when no segment asks for any. Families that
        send more than the hidden states between stages go through `runner.step`.
        """
        output = self.runner.step(batch, inputs)
        if self.is_last:
            return None, output.get("logits")
        return output["hidden"], None
