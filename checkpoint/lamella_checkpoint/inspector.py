"""Reads a model's config and headers into the profile that the planner works from.

Knows sources, headers and transformers' config classes; reads no tensor and needs no torch. Runs in
the command line (`lamella plan`), in an operator's inspector, and before a pipeline starts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lamella_checkpoint import cuts, quantization
from lamella_checkpoint.caches import layer_caches
from lamella_checkpoint.families import Place, places
from lamella_checkpoint.headers import FLOAT_NAMES, TensorInfo, parsed_json, read_headers
from lamella_checkpoint.source import Source
from lamella_contract import names
from lamella_contract.errors import (
    CorruptModel,
    MissingTensor,
    ModelNotFound,
    UnsupportedFamily,
    shown,
)
from lamella_contract.profile import LayerProfile, ModelProfile

log = logging.getLogger(__name__)

_DEFAULT_CONTEXT = 2048  # for a config that names no maximum (alibi models)


def inspect(source: Source, *, dtype: str | None = None, stored: str = "none") -> ModelProfile:
    """The profile of the model in ``source`` as it is served in ``dtype``, quantized as ``stored``.

    ``dtype`` None takes the config's own, or else that of most bytes in the files. Raises
    `ModelNotFound` without a config or weights, `CorruptModel`, `MissingTensor` when a whole layer
    or the embedding is in no file, `UnsupportedFamily` for what cannot be served.
    """
    config = read_config(source)
    text = cuts.text_config(config)
    headers = read_headers(source)
    chosen = dtype or _dtype_of(config, text, headers)
    if chosen not in names.DTYPES:
        raise UnsupportedFamily(
            f"{source.uri}: dtype: got {shown(chosen)}, want one of {', '.join(names.DTYPES)}"
        )
    quantization.check_family(source.uri, str(text.model_type), stored)
    layers = decoder_layers(text)
    looped = layers > 1 and not cuts.allowed_cuts(config)
    placed = places(headers, layers, looped=looped)
    weights = _weigh(headers, placed, layers, names.DTYPE_BYTES[chosen], stored)
    tied = _tied(config, placed)
    head_bytes = weights["table_as_head"] if tied else weights["head"]
    _check_complete(source, placed, 1 if looped else layers)
    caches = layer_caches(text, layers, names.DTYPE_BYTES[chosen])
    return ModelProfile(
        uri=source.uri,
        commit=source.commit,
        family=str(config.model_type),
        dtype=chosen,
        hidden_size=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        max_model_len=max_model_len(text),
        layers=tuple(
            LayerProfile(
                weight_bytes=weights[index],
                kv_bytes_per_token=cache.kv_bytes_per_token,
                state_bytes_per_sequence=cache.state_bytes_per_sequence,
                kind=cache.kind,
            )
            for index, cache in enumerate(caches)
        ),
        embedding_bytes=weights["embedding"],
        head_bytes=head_bytes,
        final_bytes=weights["final"],
        tied=tied and stored != quantization.INT8,
        boundary_bytes_per_token=_boundary_bytes(text, names.DTYPE_BYTES[chosen]),
        allowed_cuts=tuple(cut for cut in cuts.allowed_cuts(config) if cut < layers),
        cut_reason=cuts.cut_reason(config),
        eos_token_ids=eos_token_ids(
            small_json(source, names.GENERATION_CONFIG_FILE),
            small_json(source, names.MODEL_CONFIG_FILE),
        ),
        quantization=stored,
    )


def eos_token_ids(*documents: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: the first document that names any wins; () when none does."""
    for document in documents:
        text_config = document.get("text_config")
        inner = text_config if isinstance(text_config, dict) else {}
        for value in (document.get("eos_token_id"), inner.get("eos_token_id")):
            ids = value if isinstance(value, list) else [value]
            found = tuple(dict.fromkeys(i for i in ids if type(i) is int and i >= 0))
            if found:
                return found
    return ()


def small_json(source: Source, name: str) -> Mapping[str, Any]:
    """A JSON object among the model's files; empty when there is no such file."""
    if name not in source.list():
        return {}
    document = parsed_json(source.read_text(name), name)
    if not isinstance(document, dict):
        raise CorruptModel(f"{name}: got {shown(document)}, want an object")
    return document


def read_config(source: Source) -> Any:
    """The model's config as its transformers class, defaults filled in; no torch is needed.

    Raises `ModelNotFound` without a config.json, `CorruptModel` when it makes no sense,
    `UnsupportedFamily` for a model type that transformers does not know, for encoder-decoders and
    for quantized checkpoints.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if names.MODEL_CONFIG_FILE not in source.list():
        raise ModelNotFound(f"{source.uri} holds no {names.MODEL_CONFIG_FILE}")
    file = names.MODEL_CONFIG_FILE
    document = parsed_json(source.read_text(file), file)
    if not isinstance(document, dict):
        raise CorruptModel(f"{file}: got {shown(document)}, want an object")
    family = document.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise UnsupportedFamily(
            f"{source.uri}: model_type: got {shown(family)}, want one that transformers knows"
        )
    _refuse_quantized(source, document)
    try:
        config = CONFIG_MAPPING[family].from_dict(document)
    except Exception as error:  # config classes raise whatever their validation likes
        raise CorruptModel(f"{file}: {type(error).__name__}: {error}") from error
    _refuse_config(source, config)
    return config


def _refuse_config(source: Source, config: Any) -> None:
    """Families that are no decoders; what is doubtful is left to the workers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family, text = config.model_type, cuts.text_config(config)
    causal = {family, text.model_type} & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    planned = bool(getattr(text, "base_model_pp_plan", None))
    encoder = getattr(text, "is_decoder", None) is False and not planned
    if not causal or encoder or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedFamily(
            f"{source.uri}: {family} is no causal language model (decoder only), so it cannot be "
            "served"
        )


def _refuse_quantized(source: Source, document: Mapping[str, Any]) -> None:
    """Slices are read as they will be computed with: no dequantizing."""
    quantized = document.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedFamily(
            f"{source.uri}: its weights are quantized ({shown(method)}), want bfloat16, float16 "
            "or float32 weights"
        )


def decoder_layers(text: Any) -> int:
    """Decoder layers that stages are cut between."""
    if text.model_type == "longcat_flash":  # its num_hidden_layers counts attentions, two a layer
        return int(text.num_layers)
    try:
        return cuts.num_layers(text)
    except AttributeError:
        raise UnsupportedFamily(f"config.json of {text.model_type} names no layers") from None


def max_model_len(text: Any) -> int:
    """Positions that the model was made for."""
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"):
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return _DEFAULT_CONTEXT


def _dtype_of(config: Any, text: Any, headers: Mapping[str, TensorInfo]) -> str:
    """The dtype to serve in: what the config says, else what most bytes of the files have."""
    for holder in (config, text):
        stated = getattr(holder, "dtype", None)
        if stated is not None:
            return str(stated).removeprefix("torch.")
    counts: Counter[str] = Counter()
    for info in headers.values():
        counts[info.dtype] += info.nbytes
    most = counts.most_common(1)[0][0] if counts else "BF16"
    return FLOAT_NAMES.get(most, most)


def _weigh(
    headers: Mapping[str, TensorInfo],
    placed: Mapping[str, Place],
    layers: int,
    item_bytes: int,
    stored: str,
) -> dict[str | int, int]:
    """Bytes by layer index and by "embedding", "final", "head"; "table_as_head" is what a tied
    head weighs, a copy of the largest single embedding."""
    weights: dict[str | int, int] = dict.fromkeys(range(layers), 0)
    weights |= {"embedding": 0, "table_as_head": 0, "final": 0, "head": 0}
    int8 = stored == quantization.INT8
    for name, info in headers.items():
        place = placed[name]
        if place.part == "ignored":
            continue
        nbytes = as_head = info.elements * item_bytes
        if int8 and quantization.is_matrix(info):
            as_head = quantization.matrix_bytes(info.shape)
            nbytes = nbytes if place.part == "embedding" else as_head
        weights[place.layer if place.part == "layer" else place.part] += nbytes
        if place.part == "embedding":
            weights["table_as_head"] = max(weights["table_as_head"], as_head)
    return weights


def _tied(config: Any, placed: Mapping[str, Place]) -> bool:
    """Whether the head is the embedding's table: the config says so and the files hold no head."""
    has_head = any(place.part == "head" for place in placed.values())
    text = cuts.text_config(config)
    stated = getattr(config, "tie_word_embeddings", None)
    if stated is None:
        stated = getattr(text, "tie_word_embeddings", False)
    return bool(stated) or not has_head


def _check_complete(source: Source, placed: Mapping[str, Place], layers: int) -> None:
    """Every layer has tensors, and so has the embedding."""
    present = {place.layer for place in placed.values() if place.part == "layer"}
    absent = sorted(set(range(layers)) - present)
    if absent:
        raise MissingTensor(
            f"{source.uri}: config.json says {layers} layers and the files hold no tensor of "
            f"layer {absent[0]}" + (f" and {len(absent) - 1} others" if len(absent) > 1 else "")
        )
    if not any(place.part == "embedding" for place in placed.values()):
        raise MissingTensor(f"{source.uri}: the files hold no token embedding")


def _boundary_bytes(text: Any, item_bytes: int) -> int:
    """Bytes per token that cross a cut: the hidden state, times the streams where there are more.

    Hyper-connections (deepseek_v4, hy_v4) and AltUp (gemma3n) carry several residual streams;
    gemma3n and gemma4 also carry each later layer's own inputs.
    """
    streams = getattr(text, "hc_mult", None) or getattr(text, "altup_num_inputs", None) or 1
    rows = getattr(text, "hidden_size_per_layer_input", None) or 0
    return (int(text.hidden_size) * int(streams) + rows * cuts.num_layers(text)) * item_bytes
