"""The files of one run: each pipeline's keys and documents, and where its gateway finds pipelines.

Knows the run directory and what `launch` makes; starts nothing. A run has one gateway and, while
its layout changes, two pipelines. Stage 0 and the gateway keep their keys over both, so that the
gateway needs no other document.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella import launch, machine, model
from lamella.children import ChildSpec
from lamella.logview import CHILD_ENV
from lamella.rundir import KeyPair, RunDirectory, mint_key_pair
from lamella.target import Target
from lamella_contract import names
from lamella_contract.plan import Plan

WORKER_LIST_FILE = "worker.json"
ADDRESSES_FILE = "pipelines"
WORKER_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "GOMP_SPINCOUNT": "20000",
}
"""Weights in huge pages: a decode step streams all of them, and would miss the TLB at each 4 KiB.
Threads that compute stay awake between the operators of a step, about a millisecond, and no longer:
the core is the next stage's then. The libraries read these when a process starts, so they must be
set from outside."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One layout of the model: what was asked, how it was planned, and the child that runs it."""

    worker: ChildSpec
    target: Target
    plan: Plan
    made: launch.Launch

    @property
    def name(self) -> str:
        return self.worker.name


class Documents:
    """Writes what the processes of one run are told."""

    def __init__(
        self,
        run_dir: RunDirectory,
        facts: model.ModelFacts,
        options: launch.LaunchOptions,
        home: Path,
    ) -> None:
        self.facts = facts
        self.options = options
        self._run_dir = run_dir
        self._home = home
        self._keys: dict[str, KeyPair] = {}
        self._files: dict[str, Path] = {}
        self._number = 0

    def pipeline(self, target: Target, plan: Plan, here: machine.Machine) -> Pipeline:
        """Keys and documents of a pipeline; its worker's list last, for the worker waits for it."""
        self._number += 1
        roles = launch.roles(len(plan.stages))
        self._mint(roles)
        control, gateway, *probes = machine.free_ports(len(plan.stages) + 2)
        made = launch.launch(
            name=target.model.name,
            served_name=target.model.spec.model.served_name,
            facts=self.facts,
            plan=plan,
            machine=here,
            options=self.options,
            ports=launch.Ports(control, gateway, tuple(probes)),
            public_keys={role: self._keys[role].public for role in roles},
            key_files={role: self._files[role] for role in roles},
            addresses_file=self._run_dir.file(ADDRESSES_FILE),
            cache_home=self._home,
            parent_pid=os.getpid(),
        )
        paths = [
            str(self._write(names.STAGE_CONFIG_FILE.format(stage=k), config.to_json()))
            for k, config in enumerate(made.stages)
        ]
        if self._number == 1:
            self.name((made.address,))
            self.serving(made)
            self._run_dir.write(names.GATEWAY_CONFIG_FILE, made.gateway.to_json())
        document = {"configs": paths, "family": self.facts.profile.family}
        self._write(WORKER_LIST_FILE, json.dumps(document))
        return Pipeline(worker(self._run_dir, self._number), target, plan, made)

    def name(self, addresses: Sequence[str]) -> None:
        """Tells the gateway to which pipelines it is to send what is new."""
        self._run_dir.write(ADDRESSES_FILE, "".join(f"{address}\n" for address in addresses))

    def serving(self, made: launch.Launch) -> None:
        """Tells `lamella status` what runs."""
        self._run_dir.write(names.STATUS_FILE, json.dumps(_status_document(made)))

    def _mint(self, roles: Sequence[str]) -> None:
        for role in roles:
            if role not in self._keys:
                self._keys[role] = pair = mint_key_pair()
                file = names.KEY_FILE.format(role=role)
                self._files[role] = self._run_dir.write_keys(file, pair)

    def _write(self, file: str, text: str) -> Path:
        return self._run_dir.write(_of(self._number, file), text)


def worker(run_dir: RunDirectory, number: int = 1) -> ChildSpec:
    """The child that runs pipeline `number` of this run; it may start before there is a plan.

    `-P`: the user's current folder is not searched for modules.
    """
    list_file = str(run_dir.file(_of(number, WORKER_LIST_FILE)))
    own = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in os.environ}
    argv = (sys.executable, "-P", "-m", "lamella.warm", list_file)
    name = "worker" if number == 1 else f"worker-{number}"
    return ChildSpec(name, argv, {**CHILD_ENV, **own})


def reachable(host: str) -> str:
    """An address to dial for one that was bound."""
    return {"0.0.0.0": names.LOOPBACK, "::": "::1", "": names.LOOPBACK}.get(host, host)


def _of(number: int, file: str) -> str:
    """The name of a file of pipeline `number`; a worker that is started again reads its own."""
    return file if number == 1 else f"{number}-{file}"


def _status_document(made: launch.Launch) -> dict[str, object]:
    """What `lamella status` reads: whom to ask, no key."""
    return {
        "pid": os.getpid(),
        "name": made.pipeline.name,
        "host": reachable(made.gateway.http_host),
        "port": made.gateway.http_port,
        "served_name": made.gateway.served_name,
        "probe_ports": list(made.probe_ports),
        "splits": list(made.pipeline.splits),
        "num_layers": made.pipeline.num_layers,
    }
