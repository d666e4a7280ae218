"""Where a Hugging Face model keeps its decoder layers, and how a stage's slice is cut out of it.

Knows no weight, no cache and no step: it works on a model that lies on the meta device. slice.py
builds that model, calls `find_layout` and `cut`, and loads what is left.

The list of layers keeps its full length, so that `layer_idx` and the names of weights stay global;
a module outside the slice becomes a stand-in without parameters.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lamella_contract.errors import UnsupportedFamily

# Children of the decoder that are declared before the layers but are used after them. The plan
# (`base_model_pp_plan`) says so where a family has one; these have none.
_USED_AFTER = {
    "opt": ("final_layer_norm", "project_out"),
}
# Children declared after the layers that are used before them.
_USED_BEFORE = {
    "gemma3n_text": (
        "embed_tokens_per_layer",
        "per_layer_model_projection",
        "per_layer_projection_norm",
        "altup_projections",
    ),
    "gemma4_text": (
        "embed_tokens_per_layer",
        "per_layer_model_projection",
        "per_layer_projection_norm",
    ),
    "gemma4_unified_text": (
        "embed_tokens_per_layer",
        "per_layer_model_projection",
        "per_layer_projection_norm",
    ),
}

# Parts that serve images and sound only, though they stand among the decoder's children.
_FEATURES = {"phi4_multimodal": ("embed_tokens_extend",)}
# Families whose layers are no straight line: one stage runs all of the model.
_LOOPED = ("hrm_text",)


class Absent(nn.Module):
    """Stands where another stage's module stood: returns its first argument, owns nothing.

    Keeps the plain attributes of the module that it replaces (`layer_type` and the like), since
    the model's loop may read them.
    """

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        for name, value in vars(replaced).items():
            if name.startswith("_") or name == "training":
                continue
            if not isinstance(value, torch.Tensor | nn.Module):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class AbsentLayer(Absent):
    """A decoder layer of another stage; `extras` is how many values follow the hidden states."""

    def __init__(self, replaced: nn.Module, extras: int | None) -> None:
        super().__init__(replaced)
        self._extras = extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = super().forward(*args, **kwargs)
        return hidden if self._extras is None else (hidden, *([None] * self._extras))


class AbsentFeatures(Absent):
    """Stands for what merges images or sound into the embeddings: text alone passes through."""

    def forward(self, *args: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return args[1] if inputs_embeds is None else inputs_embeds


class AbsentProjection(Absent):
    """Stands for an embedding or a linear map: zeros of the right width, whatever comes in."""

    def __init__(self, replaced: nn.Embedding | nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(replaced)
        self._from_ids = isinstance(replaced, nn.Embedding)
        # A table of positions may be called with a mask: one row of zeros broadcasts.
        self._is_positions = "Position" in type(replaced).__name__
        width = replaced.embedding_dim if self._from_ids else replaced.out_features
        self._width, self._dtype = int(width), dtype  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        rows: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        shape = rows.shape if self._from_ids else rows.shape[:-1]
        if self._is_positions:
            shape = torch.Size((1, 1))
        return torch.zeros(*shape, self._width, dtype=self._dtype, device=rows.device)


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one model's parts, as `named_modules` spells them.

    `decoder` owns the list `layers`; `before` and `after` are the parameter-owning modules that
    only the first and only the last stage need; `unused` serve no text (vision towers).
    """

    decoder: str
    layers: str
    num_layers: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    unused: tuple[str, ...]
    head: str | None

    @property
    def layers_path(self) -> str:
        """Path of the list of layers; "" when the family has no straight line of them."""
        return joined(self.decoder, self.layers) if self.layers else ""


def joined(*parts: str) -> str:
    """Dotted path without empty parts."""
    return ".".join(part for part in parts if part)


def find_layout(model: Any) -> Layout:
    """Find the parts of a causal language model; UnsupportedFamily when no layers are found."""
    if model.config.model_type in _LOOPED:
        path = _path_of(model, model.get_decoder()) or ""
        return Layout(path, "", int(model.config.num_hidden_layers), (), (), (), None)
    decoder_path, layers_name = _find_layers(model)
    decoder = model.get_submodule(decoder_path)
    head = _path_of(model, model.get_output_embeddings())
    before, after = _children_around(decoder, layers_name, decoder_path)
    family = decoder.config.model_type
    unused = [joined(decoder_path, name) for name in _FEATURES.get(family, ())]
    before, after = ([p for p in side if p not in unused] for side in (before, after))
    steps = decoder_path.split(".") if decoder_path else []
    for depth in range(len(steps)):
        ancestor = ".".join(steps[:depth])
        seen = False
        for name, child in model.get_submodule(ancestor).named_children():
            path = joined(ancestor, name)
            if name == steps[depth]:
                seen = True
            elif path == head or not any(True for _ in child.parameters()):
                continue
            elif hasattr(child, "config") or not seen:
                unused.append(path)
            else:
                after.append(path)
    num_layers = len(getattr(decoder, layers_name))
    if head is not None:
        after.append(head)
    return Layout(
        decoder_path, layers_name, num_layers, tuple(before), tuple(after), tuple(unused), head
    )


def _find_layers(model: Any) -> tuple[str, str]:
    config = model.config.get_text_config(decoder=True)
    wanted = getattr(config, "num_hidden_layers", None)
    start = _path_of(model, model.get_decoder()) or ""
    found: list[tuple[int, str, str]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        parent, _, name = path.rpartition(".")
        if start and not (parent == start or parent.startswith(start + ".")):
            continue
        if name in ("layers", "h", "blocks", "block") and not isinstance(module[0], nn.ModuleList):
            found.append((path.count("."), parent, name))
    exact = [f for f in found if len(model.get_submodule(joined(f[1], f[2]))) == wanted]
    if not (exact or found):
        raise UnsupportedFamily(
            f"{type(model).__name__}: no list of {wanted} decoder layers was found in it"
        )
    _, parent, name = min(exact or found)
    return parent, name


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    if wanted is None:
        return None
    return next((path for path, module in model.named_modules() if module is wanted), None)


def _children_around(
    decoder: Any, layers_name: str, decoder_path: str
) -> tuple[list[str], list[str]]:
    """Parameter-owning children of the decoder that serve before and after its layers."""
    family = decoder.config.model_type
    plan = list(getattr(decoder.config, "base_model_pp_plan", None) or ())
    at = plan.index(layers_name) if layers_name in plan else len(plan)
    before: list[str] = []
    after: list[str] = []
    seen = False
    for name, child in decoder.named_children():
        if name == layers_name:
            seen = True
            continue
        if not any(True for _ in child.parameters()):
            continue
        first = not seen
        if name in plan and at < len(plan):
            first = plan.index(name) < at
        if name in _USED_AFTER.get(family, ()):
            first = False
        if name in _USED_BEFORE.get(family, ()):
            first = True
        (before if first else after).append(joined(decoder_path, name))
    return before, after


def cut(model: Any, layout: Layout, first: int, last: int, dtype: torch.dtype) -> None:
    """Replace in place everything that the slice `[first, last)` of the layers does not need.

    A module that a kept one is tied to stays (the embedding on the last stage).
    """
    if not layout.layers:
        return
    layers = model.get_submodule(layout.layers_path)
    for index in range(layout.num_layers):
        if not first <= index < last:
            layer = layers[index]
            layers[index] = AbsentLayer(layer, extra_outputs(type(layer).forward))
    dropped = list(layout.unused)
    if first > 0:
        dropped += layout.before
    if last < layout.num_layers:
        dropped += layout.after
    keep = tied_sources(model, dropped)
    for path in dropped:
        if path not in keep:
            replace(model, path, dtype)


def tied_sources(model: Any, dropped: list[str]) -> set[str]:
    """Modules among `dropped` that hold the weight of one that stays."""
    keep = set()
    for target, source in model.all_tied_weights_keys.items():
        stays = not any(target.startswith(path + ".") for path in dropped)
        owner = next((path for path in dropped if source.startswith(path + ".")), None)
        if stays and owner is not None and ".layers." not in target:
            keep.add(owner)
    return keep


def replace(model: nn.Module, path: str, dtype: torch.dtype) -> None:
    """Put a stand-in at `path`."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    old = model.get_submodule(path)
    new: nn.Module
    if path.rpartition(".")[2] in {name for names in _FEATURES.values() for name in names}:
        new = AbsentFeatures(old)
    elif isinstance(old, nn.Embedding | nn.Linear):
        new = AbsentProjection(old, dtype)
    elif isinstance(old, nn.ModuleList):
        new = nn.ModuleList([_stand_in(child, dtype) for child in old])
    else:
        new = Absent(old)
    setattr(parent, name, new)


def _stand_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, nn.Embedding | nn.Linear):
        return AbsentProjection(module, dtype)
    return Absent(module)


def extra_outputs(forward: Callable[..., Any]) -> int | None:
    """How many values a layer returns after the hidden states; None when it returns them bare.

    Read from the source's `return` statements, since no run can tell before the weights are there.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    for node in ast.walk(function):
        if not isinstance(node, ast.Return) or node.value is None:
            continue
        if isinstance(node.value, ast.Tuple):
            return len(node.value.elts) - 1
        if isinstance(node.value, ast.Name) and node.value.id == "outputs":
            return 1
    return None
