"""Whether the fast runner can compute a configuration, and what it is.

Knows no tensor and no modelling code: only a transformers config object. Anything that the table
of families (families.py) does not know is refused here (`UnsupportedFamily`), and a general
runner serves it instead. Conservative on purpose: a feature that is not known is never ignored.
"""

from lamella_contract.errors import UnsupportedFamily
from lamella_worker.fast.config import PARTIAL_ROTATION, Config, refuse_if
from lamella_worker.fast.families import FAMILIES
from lamella_worker.fast.rope import KNOWN_ROPE_TYPES, rope_parameters
from lamella_worker.fast.spec import DecoderSpec


def spec_of(config: Config) -> DecoderSpec:
    """The decoder that a config describes. Raises UnsupportedFamily for what the table lacks."""
    family = getattr(config, "model_type", None)
    make = FAMILIES.get(str(family))
    if make is None:
        raise UnsupportedFamily(f"model_type={family!r}; the fast runner has {sorted(FAMILIES)}")
    _check_common(config)
    try:
        spec = make(config)
    except AttributeError as e:
        # Another version of transformers: a field that the table reads is not there.
        raise UnsupportedFamily(f"{family}: {e}; wanted a field that the table knows") from e
    _check_rope(config, spec)
    wrong = [w for w in spec.windows if w is not None and w < 1]
    refuse_if(bool(wrong), config, "sliding_window")
    refuse_if(spec.heads % spec.kv_heads != 0, config, "num_key_value_heads")
    refuse_if(len(spec.windows) != spec.layers or len(spec.ropes) != spec.layers, config, "layers")
    return spec


def _check_common(config: Config) -> None:
    refuse_if(getattr(config, "quantization_config", None) is not None, config, "quantization")
    bidirectional = getattr(config, "use_bidirectional_attention", None)
    refuse_if(bool(bidirectional), config, "use_bidirectional_attention")
    refuse_if(bool(getattr(config, "is_heterogeneous", False)), config, "per-layer settings")
    refuse_if(bool(getattr(config, "is_encoder_decoder", False)), config, "is_encoder_decoder")
    refuse_if(getattr(config, "is_causal", True) is False, config, "is_causal")


def _check_rope(config: Config, spec: DecoderSpec) -> None:
    for kind in {k for k in spec.ropes if k is not None}:
        parameters = rope_parameters(config, kind or None)
        rope_type = parameters.get("rope_type", "default")
        refuse_if(rope_type not in KNOWN_ROPE_TYPES, config, f"rope_type {rope_type!r}")
        refuse_if("rope_theta" not in parameters, config, "rope_theta")
        partial = parameters.get("partial_rotary_factor") or 1.0
        unread = partial != 1.0 and config.model_type not in PARTIAL_ROTATION
        refuse_if(unread, config, f"partial_rotary_factor {partial}")
        refuse_if(int(spec.head_dim * partial) % 2 != 0, config, "odd rotary width")
