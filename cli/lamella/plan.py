"""`lamella plan`: what each stage would hold, in bytes and tokens; loads no tensor.

Knows profiles and plans; starts nothing. With the manifest's memory it is the plan that a cluster
gets; without one it is the plan that `lamella serve` makes on this machine.
"""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lamella import fit, machine, model, show
from lamella.target import Overrides, resolve
from lamella_contract.config import PipelineConfig
from lamella_contract.plan import Plan
from lamella_contract.profile import ModelProfile


def show_plan(where: str, overrides: Overrides, output: str, out: Console, err: Console) -> None:
    """Prints the plan as `table` or `json`. Raises LamellaError."""
    target = resolve(where, overrides)
    facts = model.learn(target, machine.cache_home(), err)
    wanted = target.model.spec
    if wanted.pipeline.memory() is None:
        here = machine.look()
        device = machine.device_for(here, wanted.pipeline.quantization)
        made = fit.local(facts.profile, wanted, here, device)
    else:
        made = fit.declared(facts.profile, wanted)
    if output == "json":
        document = as_json(target.model.name, facts.profile, made)
        out.print(json.dumps(document, indent=2), markup=False, highlight=False, soft_wrap=True)
        return
    out.print(stage_table(target.model.name, number_format(facts.profile), made))
    profile = facts.profile
    out.print(
        f"{profile.family}, {profile.num_layers} layers, {show.size(profile.weight_bytes)} of "
        f"weights; {show.number(made.kv_tokens)} tokens of cache: up to {made.max_sequences} "
        f"requests, contexts up to {show.number(made.max_model_len)} tokens; "
        f"{show.size(profile.boundary_bytes_per_token)} per token and hop",
        highlight=False,
    )


def number_format(served: ModelProfile | PipelineConfig) -> str:
    """What the model is served in, as people say it."""
    if served.quantization == "none":
        return served.dtype
    return f"{served.dtype} with weights in {served.quantization}"


def stage_table(name: str, dtype: str, plan: Plan, places: Sequence[str] = ()) -> Table:
    """One row per stage; `places` says where each runs, when that is known."""
    columns = ["stage", "layers", "weights", "cache/token", "KV tokens", "needs", "memory"]
    rows = []
    for index, stage in enumerate(plan.stages):
        memory = "" if stage.memory_bytes is None else show.size(stage.memory_bytes)
        rows.append(
            [
                str(index),
                f"{stage.first_layer} to {stage.last_layer - 1} ({stage.num_layers})",
                show.size(stage.weight_bytes),
                show.size(stage.kv_bytes_per_token),
                show.number(stage.kv_tokens),
                show.size(stage.needed_bytes(plan.kv_tokens)),
                memory,
                *places[index : index + 1],
            ]
        )
    if places:
        columns.append("runs on")
    return show.table(columns, rows, title=f"{name}, {dtype}, {len(plan.stages)} stages")


def as_json(name: str, profile: ModelProfile, plan: Plan) -> dict[str, object]:
    """The plan as a JSON object; bytes and tokens are whole numbers, layer ranges half-open."""
    return {
        "name": name,
        "model": {
            "uri": profile.uri,
            "commit": profile.commit,
            "family": profile.family,
            "dtype": profile.dtype,
            "quantization": profile.quantization,
            "layers": profile.num_layers,
            "weight_bytes": profile.weight_bytes,
            "boundary_bytes_per_token": profile.boundary_bytes_per_token,
        },
        "max_model_len": plan.max_model_len,
        "max_sequences": plan.max_sequences,
        "block_size": plan.block_size,
        "num_blocks": plan.num_blocks,
        "kv_tokens": plan.kv_tokens,
        "stages": [
            {
                "stage": index,
                "first_layer": stage.first_layer,
                "last_layer": stage.last_layer,
                "weight_bytes": stage.weight_bytes,
                "kv_bytes_per_token": stage.kv_bytes_per_token,
                "state_bytes": stage.state_bytes,
                "kv_tokens": stage.kv_tokens,
                "needed_bytes": stage.needed_bytes(plan.kv_tokens),
                "memory_bytes": stage.memory_bytes,
            }
            for index, stage in enumerate(plan.stages)
        ],
    }
