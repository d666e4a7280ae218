"""Which part of the pipeline a tensor belongs to, read off its name.

Knows names, no tensors and no code of any family. Decoder layers stand in a numbered list
(``model.layers.3.…``, ``transformer.h.3.…``); of what stands outside the list, embeddings are the
first stage's, and the last norm and the head are the last stage's. Planning needs no more; a stage
itself asks transformers which tensors its modules load.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["embedding", "layer", "final", "head", "ignored"]

# The name of a numbered list of decoder layers, with everything before it.
_LAYER = re.compile(
    r"^(?P<prefix>(?:.*?\.)??)(?P<list>layers|layer|h|blocks|block|decoder_layers)"
    r"\.(?P<index>\d+)\."
)
# Towers and helpers that a text model never loads.
_ASIDE = re.compile(
    r"(^|\.)(vision|visual|image|img|audio|speech|video|talker|code2wav|token2wav|multi_modal"
    r"|multimodal|mm_|vq|encoder\.|embed_vision|embed_audio|mtp|draft|aligner|merger|connector"
    r"|perceiver|resampler|whisper)"
)
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|\.attention\.bias)$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|lm_head_proj|unembed)\.")
_EMBEDDING = re.compile(
    r"(^|\.)(embed|wte|wpe|tok_embeddings|word_embeddings|position_embedding|token_embed"
    r"|embeddings?\.|project_in|per_layer_model_projection|per_layer_projection_norm"
    r"|altup_projections|pre_ln)"
)
# Outside the list and after it although the name says nothing of an end.
_FINAL = re.compile(r"(^|\.)(altup_unembed|project_out)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs; ``layer`` is its index when ``part`` is "layer", else -1."""

    part: Part
    layer: int = -1


def places(names: Iterable[str], num_layers: int, *, looped: bool = False) -> Mapping[str, Place]:
    """The place of every tensor of a model with ``num_layers`` decoder layers.

    Several numbered lists (a vision tower beside the decoder) are told apart: towers by their
    names, and of what remains the list that covers most layers is the decoder. Tensors of layers
    beyond ``num_layers`` (multi-token prediction heads) are ignored. A ``looped`` model runs its
    lists over and over on one stage: all their tensors count as layer 0's.
    """
    listed = list(names)
    decoder = _decoder_prefix(listed, num_layers)
    found = {name: _place(name, decoder, num_layers) for name in listed}
    if looped:
        found |= {name: Place("layer", 0) for name in listed if _LAYER.match(name)}
    return found


def slice_names(names: Iterable[str], num_layers: int, layers: range) -> tuple[str, ...]:
    """The tensors that a stage with these layers reads, as far as names tell (for progress).

    The first stage adds the embedding, the last one final norm and head, or the embedding as head.
    """
    placed = places(names, num_layers)
    parts = {"embedding"} if layers.start == 0 else set()
    if layers.stop == num_layers:
        has_head = any(place.part == "head" for place in placed.values())
        parts |= {"final", "head" if has_head else "embedding"}
    return tuple(
        name
        for name, place in placed.items()
        if place.part in parts or (place.part == "layer" and place.layer in layers)
    )


def _place(name: str, decoder: str | None, num_layers: int) -> Place:
    if _BUFFER.search(name):
        return Place("ignored")
    match = _LAYER.match(name)
    if match is not None:
        index = int(match["index"])
        inside = match["prefix"] + match["list"] == decoder and index < num_layers
        return Place("layer", index) if inside else Place("ignored")
    if _ASIDE.search(name):
        return Place("ignored")
    if _HEAD.search(name):
        return Place("head")
    if _FINAL.search(name):
        return Place("final")
    if _EMBEDDING.search(name):
        return Place("embedding")
    return Place("final")


def _decoder_prefix(names: Iterable[str], num_layers: int) -> str | None:
    """``model.layers``, ``transformer.h``, …: the numbered list that holds the decoder."""
    seen: dict[str, set[int]] = {}
    sizes: Counter[str] = Counter()
    for name in names:
        match = _LAYER.match(name)
        if match is None or _ASIDE.search(match["prefix"]):
            continue
        path = match["prefix"] + match["list"]
        seen.setdefault(path, set()).add(int(match["index"]))
        sizes[path] += 1
    if not seen:
        return None
    wanted = set(range(num_layers))
    return max(seen, key=lambda path: (len(seen[path] & wanted), sizes[path], path))
