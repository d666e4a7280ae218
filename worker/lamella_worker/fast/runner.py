"""FastRunner: the layers of one stage, hand-written for the common dense decoder families.

Knows no socket, no scheduler and no modelling code of transformers (only a config object). It is
one of the runners that a stage can have (see model.py): `supports` says whether the family is in
the table (table.py), `FastRunner.build` reads a slice, `step` computes a batch on it.

A stage with layer 0 embeds token ids; the stage with the last layer gives logits for the rows that
ask for them; between stages goes the residual stream `hidden` [tokens, hidden size].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lamella_contract.errors import EngineError, InvalidConfig, UnsupportedFamily
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.fast.config import Config
from lamella_worker.fast.ends import Ends, read_ends
from lamella_worker.fast.int8 import Int8Linear, choose_product
from lamella_worker.fast.layers import DecoderLayer, Norm, StepContext, make_norm
from lamella_worker.fast.linear import MakeLinear, fewest_rows, make_linear
from lamella_worker.fast.rope import Rope, make_rope
from lamella_worker.fast.spec import DecoderSpec
from lamella_worker.fast.table import spec_of
from lamella_worker.fast.weights import (
    FINAL_NORM,
    TensorReader,
    needed_tensors,
    read_layer,
    read_norm,
)
from lamella_worker.paging.attention import AttentionBackend, AttentionSpec
from lamella_worker.paging.attention_choice import choose_attention
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.cache import KVShape, PagedPool, rows_tensor


def supports(config: Config) -> bool:
    """True when every feature of this transformers config is one that the fast runner computes."""
    try:
        spec_of(config)
    except UnsupportedFamily:
        return False
    return True


def tensor_names(config: Config, first_layer: int, last_layer: int) -> list[str]:
    """The checkpoint tensors that `build` will read for `[first_layer, last_layer)`."""
    return needed_tensors(spec_of(config), first_layer, last_layer)


class FastRunner:
    """Layers `[first_layer, last_layer)` of a decoder (the SliceRunner protocol of model.py)."""

    def __init__(
        self,
        config: Config,
        spec: DecoderSpec,
        layers: Sequence[DecoderLayer],
        first_layer: int,
        *,
        ends: Ends,
        final_norm: Norm | None,
        dtype: torch.dtype,
        device: torch.device,
        least_rows: int = 1,
    ) -> None:
        self._config = config
        self._spec = spec
        self._layers = tuple(layers)
        self._first_layer = first_layer
        self._embed, self._head = ends.embed, ends.head
        self._final_norm = final_norm
        self.dtype = dtype
        self.device = device
        self._fewest_rows = least_rows
        self._pool: PagedPool | None = None
        self._backend: AttentionBackend | None = None
        self._ropes: dict[str, Rope] = {}

    @classmethod
    def build(
        cls,
        config: Config,
        first_layer: int,
        last_layer: int,
        reader: TensorReader,
        dtype: torch.dtype,
        device: torch.device | str,
        quantization: str = "none",
    ) -> "FastRunner":
        """Read and lay out a slice, layer by layer. Raises UnsupportedFamily, MissingTensor.

        With `quantization` "int8" the weights of all products are quantised as they are read (the
        embedding's table and the norms are none); InvalidConfig on other devices than a CPU.
        """
        spec = spec_of(config)
        if not 0 <= first_layer < last_layer <= spec.layers:
            raise InvalidConfig(
                f"layers [{first_layer}, {last_layer}); wanted within [0, {spec.layers})"
            )
        device = torch.device(device)
        int8 = quantization == "int8"
        if int8 and device.type != "cpu":
            raise InvalidConfig(f"quantization: got 'int8' on {device}, want a CPU or none")
        # Kernels are tried before the weights take their memory.
        least_rows = 1 if int8 else fewest_rows(dtype, device.type)
        if int8:
            choose_product()
        make: MakeLinear = Int8Linear if int8 else make_linear
        with torch.inference_mode():
            # The ends first: what making a head takes for a while is free again for the layers.
            ends = read_ends(
                reader,
                spec,
                is_first=first_layer == 0,
                is_last=last_layer == spec.layers,
                dtype=dtype,
                device=device,
                int8=int8,
            )
            final_norm = None
            if last_layer == spec.layers:
                weights = read_norm(reader, FINAL_NORM, spec.norm, dtype, device)
                final_norm = make_norm(weights, spec.norm, spec.hidden)
            layers = [
                DecoderLayer(
                    spec, layer, read_layer(reader, spec, layer, dtype, device, make, apart=int8)
                )
                for layer in range(first_layer, last_layer)
            ]
        return cls(
            config,
            spec,
            layers,
            first_layer,
            ends=ends,
            final_norm=final_norm,
            dtype=dtype,
            device=device,
            least_rows=least_rows,
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of this stage's pages; 0 before setup_caches."""
        return 0 if self._pool is None else self._pool.kv_bytes

    @property
    def pool(self) -> PagedPool:
        """The pages, once there are any."""
        if self._pool is None:
            raise EngineError("no caches; wanted setup_caches before the first step")
        return self._pool

    def setup_caches(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_sequences: int,
        max_model_len: int,
        attention: AttentionBackend | None = None,
    ) -> None:
        """Allocate pages, fix the rotation's frequencies, choose the attention.

        `attention` None takes the fastest on this machine.
        """
        spec = self._spec
        shape = KVShape(spec.kv_heads, spec.head_dim, spec.head_dim)
        owned = range(self._first_layer, self._first_layer + len(self._layers))
        layers = dict.fromkeys(owned, shape)
        with torch.inference_mode():
            self._pool = PagedPool(num_blocks, block_size, layers, self.dtype, self.device)
            kinds = {kind for layer in owned if (kind := spec.ropes[layer]) is not None}
            self._ropes = {
                kind: make_rope(self._config, kind or None, spec.rotary_dim, max_model_len).to(
                    self.device
                )
                for kind in kinds
            }
            geometry = AttentionSpec(
                spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim, spec.scale
            )
            self._backend = attention or choose_attention(geometry, self.dtype, self.device)

    def reset_caches(self) -> None:
        """Forget every sequence."""
        with torch.inference_mode():
            self.pool.reset()

    def release(self, slot: int) -> None:
        """Nothing is kept per sequence beside the pages."""

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy pages, block by block."""
        self.pool.copy(sources, blocks)

    @torch.inference_mode()
    def step(self, batch: StepBatch, inputs: Bundle) -> Bundle:
        """Compute one batch.

        Takes `token_ids` int64 [tokens] on the first stage, else `hidden` [tokens, hidden size];
        gives `hidden`, or on the last stage `logits` float32 [sampled, vocabulary].
        """
        pool, backend = self.pool, self._backend
        assert backend is not None
        hidden = self._enter(batch, inputs)
        if batch.tokens < self._fewest_rows:
            hidden = F.pad(hidden, (0, 0, 0, self._fewest_rows - batch.tokens))
        positions = rows_tensor(batch.positions, self.device)
        step = StepContext(
            pool=pool,
            backend=backend,
            tokens=batch.tokens,
            plan=AttentionPlan(batch, self.device),
            cache_rows=rows_tensor(batch.cache_rows, self.device),
            angles={k: rope.angles(positions, self.dtype) for k, rope in self._ropes.items()},
        )
        for layer in self._layers:
            hidden = layer(hidden, step)
        return self._leave(batch, hidden)

    def _enter(self, batch: StepBatch, inputs: Bundle) -> torch.Tensor:
        """The residual stream before the first owned layer, [tokens, hidden size]."""
        name = "hidden" if self._embed is None else "token_ids"
        given = inputs.get(name)
        if given is None or given.shape[0] != batch.tokens:
            got = "nothing" if given is None else f"{given.shape[0]} rows"
            raise EngineError(f"{name}: got {got}; wanted {batch.tokens} rows")
        if self._embed is None:
            return given.to(device=self.device, dtype=self.dtype)
        hidden = self._embed(given.to(device=self.device, dtype=torch.int64))
        if self._spec.embed_scale == 1.0:
            return hidden
        # Rounded to the model's dtype first, as the families that scale do (Gemma).
        return hidden.mul_(torch.tensor(self._spec.embed_scale, dtype=self.dtype))

    def _leave(self, batch: StepBatch, hidden: torch.Tensor) -> Bundle:
        if self._head is None or self._final_norm is None:
            return {"hidden": hidden[: batch.tokens]}
        rows = batch.sample_rows
        if len(rows) == 0:
            empty = torch.empty(0, self._spec.vocab, dtype=torch.float32, device=self.device)
            return {"logits": empty}
        if len(rows) != batch.tokens:
            hidden = hidden.index_select(0, rows_tensor(rows, self.device))
            if len(rows) < self._fewest_rows:
                hidden = F.pad(hidden, (0, 0, 0, self._fewest_rows - len(rows)))
        logits = self._head(self._final_norm(hidden))[: len(rows)]
        if self._spec.logit_scale != 1.0:
            logits = logits.mul_(self._spec.logit_scale)
        if self._spec.logit_softcap is not None:
            cap = self._spec.logit_softcap
            logits = logits.div_(cap).tanh_().mul_(cap)
        return {"logits": logits.float()}
