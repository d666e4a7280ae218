"""Reads a slice's own tensors and nothing else, under the names and shapes of the model's code.

Knows no layer and no step: it is given a model on the meta device from which everything that is
not the slice's was already cut (layout.py), and a reader of byte ranges (lamella_checkpoint).

transformers renames, merges, splits and transposes tensors while loading for a third of all
families. The same mapping decides here, from names only, which source tensors a slice needs; then
those alone are read, one group of targets at a time, and given to transformers' own converter.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from lamella_contract.errors import CorruptModel, MissingTensor
from lamella_worker.readers import RenamedReader, TensorReader


@dataclass(frozen=True, slots=True)
class Renamings:
    """The model's mapping from stored names to its own, taken before anything is cut out of it."""

    mapping: list[Any]
    renamings: list[Any]
    converters: list[Any]
    prefix: str
    targets: Mapping[str, torch.Tensor]  # the whole model's parameters, on the meta device
    tied: Mapping[str, str]
    dtype_plan: dict[str, torch.dtype]

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> "Renamings":
        """Of an uncut model on the meta device."""
        mapping = get_model_conversion_mapping(model)
        return cls(
            mapping=mapping,
            renamings=[m for m in mapping if isinstance(m, WeightRenaming)],
            converters=[m for m in mapping if isinstance(m, WeightConverter)],
            prefix=model.base_model_prefix,
            targets=model.state_dict(),
            tied=dict(model.all_tied_weights_keys),
            dtype_plan=model._get_dtype_plan(dtype),
        )

    def targets_of(self, source: str) -> tuple[str, ...]:
        """The model's names that a stored tensor feeds; empty when the model has no place for it.

        The converter's first target stands for all of its targets in transformers' bookkeeping,
        so it comes first.
        """
        name, pattern = rename_source_key(
            source, self.renamings, self.converters, self.prefix, dict(self.targets)
        )
        if name not in self.targets and source in self.targets:
            name, pattern = rename_source_key(source, [], [], self.prefix, dict(self.targets))
        if name not in self.targets:
            return ()
        if pattern is None:
            return (name,)
        converter = next(c for c in self.converters if pattern in c.source_patterns)
        first = converter.target_patterns[0]
        others = [name.replace(first, other) for other in converter.target_patterns[1:]]
        return (name, *(other for other in others if other in self.targets))


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """Which stored tensors a slice reads, grouped so that one group is converted at a time."""

    groups: Mapping[str, tuple[str, ...]]  # layer or module -> stored names
    needed: frozenset[str]  # targets that must be there afterwards

    @property
    def names(self) -> tuple[str, ...]:
        """All stored names, in the order in which they are read."""
        return tuple(name for names in self.groups.values() for name in names)


def plan_weights(model: Any, renamings: Renamings, stored: Iterable[str]) -> WeightPlan:
    """Which of the `stored` names the cut `model` needs."""
    own = set(model.state_dict())
    groups: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    for source in sorted(stored, key=dot_natural_key):
        targets = renamings.targets_of(source)
        if own.isdisjoint(targets):
            continue
        for target in targets:
            found.setdefault(target, []).append(source)
        groups.setdefault(_group_of(targets[0]), []).append(source)
    # A tied tensor is read once even where a file repeats it.
    tied = {t: s for t, s in renamings.tied.items() if t in own and s in own}
    repeated = {name for t, s in tied.items() if s in found for name in found.get(t, ())}
    needed = own - {t for t, s in tied.items() if s in found}
    needed -= {s for t, s in tied.items() if s not in found and t in found}
    kept = {g: tuple(n for n in names if n not in repeated) for g, names in groups.items()}
    return WeightPlan({g: n for g, n in kept.items() if n}, frozenset(needed))


def under_source_names(renamings: Renamings, reader: TensorReader) -> TensorReader:
    """The reader with tied tensors under their source's name.

    Some files hold a tied tensor under the head's name alone; the stage with the embedding has no
    head to load it into.
    """
    fed = {target: name for name in reader.names for target in renamings.targets_of(name)}
    moved = {s: fed[t] for t, s in renamings.tied.items() if s not in fed and t in fed}
    if not moved:
        return reader
    kept = {name: name for name in reader.names if name not in moved.values()}
    return RenamedReader(reader, {**kept, **moved})


def _group_of(target: str) -> str:
    match = re.match(r"(.*?\.\d+)\.", target)
    return match.group(1) if match else target.rpartition(".")[0]


def load_weights(model: Any, renamings: Renamings, reader: TensorReader, dtype: torch.dtype) -> int:
    """Fill the cut `model` with its own tensors; the number of stored tensors that were read.

    Raises MissingTensor when one is in no file and CorruptModel when a shape is not the model's.
    """
    reader = under_source_names(renamings, reader)
    plan = plan_weights(model, renamings, reader.names)
    config = LoadStateDictConfig(
        dtype=dtype, dtype_plan=renamings.dtype_plan, weight_mapping=renamings.mapping
    )
    missing = set(plan.needed)
    for names in plan.groups.values():
        tensors = dict(reader.read(names))
        info, _ = convert_and_load_state_dict_in_model(model, tensors, config)
        if info.mismatched_keys or info.conversion_errors:
            problem = sorted(map(str, info.mismatched_keys)) or sorted(info.conversion_errors)
            raise CorruptModel(f"tensors that do not fit the model: {problem[:4]}")
        missing &= info.missing_keys
    _finish(model, plan, missing, renamings)
    return len(plan.names)


def _finish(model: Any, plan: WeightPlan, missing: set[str], renamings: Renamings) -> None:
    ignored = model._keys_to_ignore_on_load_missing or set()
    missing = {m for m in missing if not any(re.search(pattern, m) for pattern in ignored)}
    if missing:
        raise MissingTensor(
            f"{len(missing)} tensors are in no file, the first ones {sorted(missing)[:4]}"
        )
    own = set(model.state_dict())
    model.all_tied_weights_keys = {t: s for t, s in renamings.tied.items() if t in own and s in own}
    absent = own - set(plan.needed)
    model.tie_weights(missing_keys=absent, recompute_mapping=False)
    for name, buffer in list(model.named_non_persistent_buffers()):
        _set_buffer(model, name, _unset_like(buffer))
    model._initialize_missing_keys(False)
    _assert_complete(model)


def _set_buffer(model: Any, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._buffers[leaf] = value


def _unset_like(buffer: torch.Tensor) -> torch.Tensor:
    # A float buffer that nothing computes again must be seen, so it starts as NaN.
    fill = float("nan") if buffer.is_floating_point() else 0
    return torch.full(buffer.shape, fill, dtype=buffer.dtype, device="cpu")


def _assert_complete(model: Any) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert not tensor.is_meta, f"{name} was never loaded"
    for name, buffer in model.named_non_persistent_buffers():
        if buffer.is_floating_point():
            assert not bool(buffer.isnan().any()), f"{name} was not computed again"
