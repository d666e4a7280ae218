"""Where a family's layers may be cut apart, and why not elsewhere.

Knows configs, no tensors. Most decoders hand one hidden state from layer to layer and may be cut
anywhere; the families in `TRAITS` are the exceptions. The inspector writes the answer into the
profile, the planner obeys it, and a manual cut elsewhere is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# A rule says, for a text config, at which layers no stage may start, each with the reason.
CutRule = Callable[[Any], Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class FamilyTraits:
    """What is special about cutting the family ``model_type``.

    ``forbidden_cuts(config)`` maps the index of a layer that no stage may start at (1 .. n-1) to
    the reason, one sentence for the user.
    """

    model_type: str
    forbidden_cuts: CutRule


def num_layers(config: Any) -> int:
    """Decoder layers of a text config, under whichever name the family uses."""
    fields: tuple[str, ...] = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if config.model_type == "longcat_flash":  # two attentions per layer, counted as two by HF
        fields = ("num_layers",)
    for field in fields:
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    raise AttributeError("the config names no number of layers")


def text_config(config: Any) -> Any:
    """The config of the language model inside a multimodal one; the config itself otherwise."""
    getter = getattr(config, "get_text_config", None)
    return config if getter is None else getter(decoder=True)


def allowed_cuts(config: Any) -> tuple[int, ...]:
    """Layer indexes, ascending, at which a stage may start (0 left out: it always may)."""
    forbidden = forbidden_cuts(config)
    layers = num_layers(text_config(config))
    return tuple(index for index in range(1, layers) if index not in forbidden)


def forbidden_cuts(config: Any) -> Mapping[int, str]:
    """Layer indexes at which no stage may start, with the reason for each."""
    text = text_config(config)
    traits = TRAITS.get(text.model_type)
    return {} if traits is None else traits.forbidden_cuts(text)


def cut_reason(config: Any) -> str:
    """One sentence on why some cuts are forbidden; empty when all are allowed."""
    return "; ".join(dict.fromkeys(forbidden_cuts(config).values()))


def _shared_kv(config: Any) -> Mapping[int, str]:
    """The last ``num_kv_shared_layers`` reuse the keys and values of earlier layers.

    The donors are the last layer of each attention type before the sharing begins, so a stage may
    not start between the first donor and the last user.
    """
    layers, shared = num_layers(config), getattr(config, "num_kv_shared_layers", 0) or 0
    if shared <= 0:
        return {}
    first_user = layers - shared
    kinds = list(config.layer_types)
    users = set(kinds[first_user:])
    donors = [
        max(index for index in range(first_user) if kinds[index] == kind)
        for kind in users
        if kind in kinds[:first_user]
    ]
    first_donor = min(donors, default=first_user)
    reason = (
        f"layers {first_user} to {layers - 1} of {config.model_type} reuse the keys and values of "
        f"layers from {first_donor} on, so they stay on one stage"
    )
    return dict.fromkeys(range(first_donor + 1, layers), reason)


def _nowhere(config: Any) -> Mapping[int, str]:
    """The layers are run several times over, as a loop: no cut leaves a straight line."""
    reason = f"{config.model_type} runs its layers in a loop, so all of them stay on one stage"
    return dict.fromkeys(range(1, num_layers(config)), reason)


TRAITS: Mapping[str, FamilyTraits] = {
    traits.model_type: traits
    for traits in (
        FamilyTraits("gemma3n_text", _shared_kv),
        FamilyTraits("gemma4_text", _shared_kv),
        FamilyTraits("gemma4_unified_text", _shared_kv),
        FamilyTraits("hrm_text", _nowhere),
    )
}
