"""A contiguous slice of a Hugging Face model: built without weights, cut, filled, and run.

Knows no batch, page or slot: the runners (packed.py, sequential.py) give it rows and a cache. The
model is built on the meta device with the library's own code; layers outside the slice become
stand-ins (layout.py), and only the slice's tensors are read (weights.py).

The received hidden states replace the *input of the first owned layer*, by a hook. They must not
go in as `inputs_embeds`: several families scale those or add positions to them again.
"""

import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging
from transformers.utils.generic import ContextManagers

from lamella_contract.errors import InvalidConfig, UnsupportedFamily
from lamella_worker.batch import Bundle
from lamella_worker.hf.bundles import Boundary, boundary_of
from lamella_worker.hf.layout import Layout, cut, find_layout
from lamella_worker.hf.weights import Renamings, load_weights
from lamella_worker.readers import TensorReader

log = logging.getLogger(__name__)

_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "layer_past")


class HfSlice:
    """Layers `[first, last)` of a causal language model, with what stands before and after them.

    `model` is the whole model object, mostly stand-ins; `decoder` the module that runs the layers.
    """

    def __init__(self, model: Any, layout: Layout, first: int, last: int) -> None:
        self.model, self.layout, self.first, self.last = model, layout, first, last
        self.decoder = model.get_submodule(layout.decoder)
        self.config = self.decoder.config
        self.boundary: Boundary = boundary_of(self.config.model_type)
        self.num_layers = layout.num_layers
        self.layers = model.get_submodule(layout.layers_path) if layout.layers else ()
        self._received: Bundle = {}
        self._sent: Bundle = {}
        self._parameters = {
            id(m): set(inspect.signature(inspect.unwrap(type(m).forward)).parameters)
            for m in (self.model, self.decoder)
        }
        self._install_hooks()

    @property
    def is_first(self) -> bool:
        return self.first == 0

    @property
    def is_last(self) -> bool:
        return self.last == self.num_layers

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        parameter: torch.Tensor = next(self.model.parameters())
        return parameter.device

    def forward(
        self,
        inputs: Bundle,
        positions: torch.Tensor,
        logit_rows: torch.Tensor | None,
        **extra: Any,
    ) -> Bundle:
        """Run the slice over rows `[tokens]`; the bundle that leaves it.

        `positions` int64 [tokens]. `logit_rows` int64 [wanted] asks the last stage for the logits
        of those rows (float32 [wanted, vocabulary]); None asks for none. `extra` goes to the model
        (`cache`, `use_cache`).
        """
        self._received, self._sent = inputs, {}
        wants_logits = self.is_last and logit_rows is not None
        module = self.model if wants_logits else self.decoder
        arguments = self._arguments(module, inputs, positions, extra)
        if wants_logits:
            if "logits_to_keep" in self._parameters[id(module)]:
                arguments["logits_to_keep"] = logit_rows
            output = module(**arguments)
            logits = output.logits[0].float()  # [wanted, vocabulary] or [tokens, vocabulary]
            assert logit_rows is not None
            if logits.shape[0] != logit_rows.shape[0]:
                logits = logits[logit_rows]
            return {"logits": logits}
        module(**arguments)
        if self.is_last:
            return {}
        return self._leave(inputs)

    def probe_bundle(self, ids: torch.Tensor) -> Bundle:
        """Zeros of the shapes that the stage before sends, for `ids` [tokens]."""
        tokens, width = ids.shape[0], int(self.config.hidden_size)
        streams = self.boundary.streams(self.config)
        shape = (tokens, streams, width) if streams else (tokens, width)
        bundle = {"hidden": torch.zeros(shape, dtype=self.dtype, device=self.device)}
        if self.boundary.token_ids:
            bundle["token_ids"] = ids
        for name, _ in self.boundary.outputs:
            bundle[name] = torch.zeros(tokens, 1, dtype=torch.int64, device=self.device)
        return bundle

    def _arguments(
        self, module: Any, inputs: Bundle, positions: torch.Tensor, extra: dict[str, Any]
    ) -> dict[str, Any]:
        names = self._parameters[id(module)]
        arguments: dict[str, Any] = {"use_cache": False}
        if "position_ids" in names:
            arguments["position_ids"] = positions.unsqueeze(0)  # [1, tokens]
        ids = inputs.get("token_ids")
        if ids is not None:
            arguments["input_ids"] = ids.unsqueeze(0)  # [1, tokens]
        else:
            width = int(self.config.hidden_size)
            shape = (1, positions.shape[0], width)
            arguments["inputs_embeds"] = torch.zeros(shape, dtype=self.dtype, device=self.device)
        for name, value in extra.items():
            if name == "cache":
                name = next((n for n in _CACHE_ARGUMENTS if n in names), "cache")
            arguments[name] = value
        return arguments

    def _leave(self, inputs: Bundle) -> Bundle:
        sent = dict(self._sent)
        axis = self.boundary.tokens_axis
        hidden = sent["hidden"].movedim(axis, 1)[:, :]
        # [1, tokens, ...] or [streams, 1, tokens, ...] -> [tokens, ...]
        hidden = hidden.squeeze(0) if axis == 1 else sent["hidden"].squeeze(1).transpose(0, 1)
        sent["hidden"] = hidden.contiguous()
        if self.boundary.token_ids:
            sent["token_ids"] = inputs["token_ids"]
        for name, value in inputs.items():
            layer = name.rpartition(".")[2]
            if layer.isdigit() and int(layer) >= self.last:
                sent[name] = value
        return sent

    def _enter(self) -> torch.Tensor:
        hidden = self._received["hidden"].to(device=self.device, dtype=self.dtype)
        if self.boundary.tokens_axis == 1:
            return hidden.unsqueeze(0)
        return hidden.transpose(0, 1).unsqueeze(1)  # [streams, 1, tokens, hidden]

    def _widened(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Chosen positions `[tokens, k]` padded to one width, so that sequences can be packed.

        A repeated position chooses nothing new.
        """
        width = int(self.config.index_topk) if name == "topk_indices" else value.shape[-1]
        missing = width - value.shape[-1]
        if missing <= 0:
            return value
        return torch.cat([value, value[:, :1].expand(-1, missing)], dim=-1)

    def _install_hooks(self) -> None:
        for index, layer in enumerate(self.layers):
            if index >= self.first and (index == self.first or self.boundary.per_layer):
                own = layer if index < self.last else self.layers[self.first]
                forward = _forward_parameters(own)
                layer.register_forward_pre_hook(self._before(index, forward), with_kwargs=True)
        if not self.is_last:
            assert self.layers, "a family without a straight line of layers has one stage"
            self.layers[self.last - 1].register_forward_hook(self._after())

    def _before(self, index: int, parameters: list[str]) -> Callable[..., Any]:
        """Hook on a layer's arguments: put received ones in, take those for later stages out."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = {**dict(zip(parameters, args, strict=False)), **kwargs}
            for name in self.boundary.per_layer:
                key = f"{name}.{index}"
                if index >= self.last:
                    if key not in self._received and bound.get(name) is not None:
                        self._sent[key] = bound[name][0]
                elif key in self._received:
                    bound[name] = self._received[key].unsqueeze(0)
            if index == self.first and self.first > 0:
                bound[parameters[0]] = self._enter()
                for sent, taken in self.boundary.outputs:
                    if sent in self._received:
                        bound[taken] = self._received[sent].unsqueeze(0)
            count = len(args)
            return tuple(bound.pop(name) for name in parameters[:count]), bound

        return hook

    def _after(self) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, tuple):
                self._sent["hidden"] = output[0]
                for (name, _), value in zip(self.boundary.outputs, output[1:], strict=False):
                    if value is not None:
                        self._sent[name] = self._widened(name, value[0])
            else:
                self._sent["hidden"] = output

        return hook


def _forward_parameters(layer: Any) -> list[str]:
    forward = inspect.unwrap(type(layer).forward)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return [p.name for p in parameters if p.kind in kinds]


def model_class(config: Any) -> Any:
    """The causal language model class of a config; UnsupportedFamily when there is none."""
    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UnsupportedFamily(
            f"model_type {config.model_type!r}: transformers has no causal language model for it"
        ) from None


def build_slice(
    config: Any,
    first: int,
    last: int,
    reader: TensorReader,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    attention: str | None = None,
) -> HfSlice:
    """Build layers `[first, last)` of the model that `config` describes and load their weights.

    `attention` names a function registered with transformers; None lets the family choose.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    cls = model_class(config)
    config = copy.deepcopy(config)
    config.dtype = dtype  # modules read it while they are made
    if attention is not None:
        config._attn_implementation = attention
    with ContextManagers(cls.get_init_context(dtype, False, None, False)):
        model = cls(config)
    layout = find_layout(model)
    if not 0 <= first < last <= layout.num_layers:
        raise InvalidConfig(
            f"layers [{first}, {last}) of a model with {layout.num_layers}, "
            "wanted 0 <= first < last <= layers"
        )
    renamings = Renamings.of(model, dtype)
    cut(model, layout, first, last, dtype)
    load_weights(model, renamings, reader, dtype)
    model.to(device)
    model.requires_grad_(False)
    model.eval()
    return HfSlice(model, layout, first, last)
