"""What crosses a cut, per family: most send the hidden states alone.

Knows names of layer arguments, no tensor. slice.py reads it to fill and to apply the bundle
between two stages.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Boundary:
    """The named tensors that one family sends from stage to stage.

    `token_ids`: later stages need the ids too (a layer looks something up by id).
    `per_layer`: layer arguments that only stage 0 can compute, sent for each layer still to come
    as `<name>.<layer>`. `outputs`: values that a layer returns after the hidden states, with the
    argument of the next layer that takes each. `tokens_axis`: the axis of the hidden states that
    counts tokens, as the model sees them (batch first).
    """

    token_ids: bool = False
    per_layer: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    tokens_axis: int = 1
    streams_field: str = ""  # config field that counts residual streams, when there are several

    def streams(self, config: object) -> int:
        """Residual streams that cross a cut; 0 when the hidden states are [tokens, hidden]."""
        return int(getattr(config, self.streams_field)) if self.streams_field else 0


_BOUNDARIES: dict[str, Boundary] = {
    "gemma3n_text": Boundary(
        per_layer=("per_layer_input",), tokens_axis=2, streams_field="altup_num_inputs"
    ),
    "gemma4_text": Boundary(token_ids=True, per_layer=("per_layer_input",)),
    "gemma4_unified_text": Boundary(token_ids=True, per_layer=("per_layer_input",)),
    "deepseek_v4": Boundary(token_ids=True, streams_field="hc_mult"),
    "glm_moe_dsa": Boundary(outputs=(("topk_indices", "prev_topk_indices"),)),
    "hy_v4": Boundary(outputs=(("topk_indices", "prev_topk_indices"),), streams_field="hc_mult"),
}


def boundary_of(model_type: str) -> Boundary:
    """The boundary of a family, by the `model_type` of its text config."""
    return _BOUNDARIES.get(model_type, Boundary())
