"""The language model inside a model that also takes images or sound.

Knows names and configs, no tensor's value. Lamella serves text: no tower is built, and only the
language model's tensors are read, under the names that its own class has for them.
"""

import copy
import re
from typing import Any

from lamella_worker.readers import RenamedReader, TensorReader

# What a whole model's file calls its language model, and what the language model calls itself.
_NAMES = (
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^language_model\.model\."), "model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
)


def language_model(config: Any, reader: TensorReader) -> tuple[Any, TensorReader]:
    """Config and reader of the language model; both unchanged where the model is nothing else."""
    text = config.get_text_config(decoder=True)
    if text is config:
        return config, reader
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config, reader
    text = copy.deepcopy(text)
    text.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", False))
    return text, RenamedReader(reader, {renamed(name): name for name in reader.names})


def renamed(name: str) -> str:
    """The language model's own name for a stored tensor; the same name where it has no prefix."""
    for pattern, prefix in _NAMES:
        if pattern.match(name):
            return pattern.sub(prefix, name, count=1)
    return name
