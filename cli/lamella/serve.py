"""`lamella serve`: from what the user pointed at to a pipeline that answers.

1. Refuse what can be refused at once (the port, the target), before anything is started.
2. Start the worker: it imports while the rest goes on.
3. Learn the model from its small files and headers; plan for this machine.
4. Mint keys, choose ports, write each process's document; start the gateway.
5. Show the loading, then the plan, the URL and a line to paste.
6. Watch until a signal; the supervisor ends everything.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lamella import fit, launch, machine, model, show
from lamella.children import ChildSpec
from lamella.errors import ChildFailed, StageFailed, UsageError
from lamella.local import Interrupted, Supervisor
from lamella.logview import CHILD_ENV, LogView, failure
from lamella.progress import Display, display_for
from lamella.rundir import RunDirectory, mint_key_pair
from lamella.target import Overrides, Target, resolve
from lamella.watch import Snapshot, Watcher
from lamella_contract import names
from lamella_contract.plan import Plan

WORKER_LIST_FILE = "worker.json"
WORKER_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}
"""Weights in huge pages: a decode step streams all of them, and would miss the TLB at each 4 KiB.
The C library reads these when a process starts, so they must be set from outside."""
QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything `lamella serve` was told."""

    where: str
    overrides: Overrides
    launch: launch.LaunchOptions
    verbose: bool = False


def serve(options: ServeOptions, out: Console, err: Console) -> None:
    """Returns when a signal asked to stop. Raises LamellaError for what the user can mend."""
    machine.require_port(options.launch.host, options.launch.port)
    target = resolve(options.where, options.overrides)
    facts_of_machine = machine.look()
    where = _with_device(options.launch, facts_of_machine)
    home = machine.cache_home()
    machine.require_space(home, 50_000_000, "the cache")
    log = LogView(err, verbose=options.verbose)
    try:
        with Supervisor(on_line=log.take) as supervisor:
            run_dir = supervisor.run_dir
            supervisor.start(_worker(run_dir))
            with err.status("reading the model's headers"):
                facts = model.learn(target, home, err)
                plan = fit.local(facts.profile, target.model.spec, facts_of_machine, where.device)
            made = _write(run_dir, target, facts, plan, facts_of_machine, where, home)
            supervisor.start(_gateway(run_dir))
            with Watcher(made.probe_ports, _reachable(where.host), where.port) as watcher:
                session = _Session(
                    supervisor,
                    display_for(err, len(plan.stages)),
                    lambda: _announce(out, made, plan, chats=facts.chats),
                    err,
                )
                try:
                    supervisor.run(lambda: session.tick(watcher.latest))
                finally:
                    session.close()
    except Interrupted:
        pass
    except ChildFailed as error:
        raise UsageError(failure(error.name, error.code, error.lines)) from error


class _Session:
    """What is shown as the pipeline changes: loading, ready, not ready, ready again."""

    def __init__(
        self,
        supervisor: Supervisor,
        display: Display,
        announce: Callable[[], None],
        console: Console,
    ) -> None:
        self._supervisor = supervisor
        self._display: Display | None = display
        self._announce = announce
        self._console = console
        self._last: Snapshot | None = None
        self._ready = False

    def tick(self, snapshot: Snapshot) -> None:
        """Looks at the newest snapshot. Raises StageFailed when a stage says it cannot load."""
        if snapshot is self._last:
            return
        self._last = snapshot
        if self._display is not None:
            self._load(snapshot)
        elif snapshot.ready != self._ready:
            self._ready = snapshot.ready
            clock = time.strftime("%H:%M:%S")
            words = "ready again" if snapshot.ready else f"not ready: {snapshot.reason}"
            self._console.print(f"{clock} {words}", markup=False, highlight=False)

    def _load(self, snapshot: Snapshot) -> None:
        assert self._display is not None
        self._display.show(snapshot)
        failed = [stage for stage in snapshot.stages if stage.state == "failed"]
        if failed:
            raise StageFailed(f"stage {failed[0].stage}: {failed[0].error or 'failed to load'}")
        if snapshot.ready:
            self._supervisor.ready = self._ready = True
            self.close()
            self._announce()

    def close(self) -> None:
        """Leaves the terminal tidy."""
        if self._display is not None:
            self._display.close()
            self._display = None


def _with_device(options: launch.LaunchOptions, here: machine.Machine) -> launch.LaunchOptions:
    """`auto` made definite. Raises UsageError for cuda without a GPU."""
    from dataclasses import replace

    if options.device == "cuda" and not here.gpu_free_bytes:
        raise UsageError("--device: got cuda, but no NVIDIA GPU was found; want cpu or auto")
    if options.device == "auto":
        return replace(options, device="cuda" if here.gpu_free_bytes else "cpu")
    return options


def _worker(run_dir: RunDirectory) -> ChildSpec:
    """`-P`: the user's current folder is not searched for modules."""
    list_file = str(run_dir.file(WORKER_LIST_FILE))
    own = {name: value for name, value in WORKER_MEMORY.items() if name not in os.environ}
    argv = (sys.executable, "-P", "-m", "lamella.warm", list_file)
    return ChildSpec("worker", argv, {**CHILD_ENV, **own})


def _gateway(run_dir: RunDirectory) -> ChildSpec:
    config = str(run_dir.file(names.GATEWAY_CONFIG_FILE))
    argv = (sys.executable, "-P", "-m", "lamella_gateway", "--config", config)
    return ChildSpec("gateway", (*argv, "--parent-pid", str(os.getpid())), CHILD_ENV)


def _write(
    run_dir: RunDirectory,
    target: Target,
    facts: model.ModelFacts,
    plan: Plan,
    here: machine.Machine,
    options: launch.LaunchOptions,
    home: Path,
) -> launch.Launch:
    """Keys and documents in the run directory; the worker's list last, for the worker waits for
    it."""
    stages = len(plan.stages)
    keys = {role: mint_key_pair() for role in launch.roles(stages)}
    control, gateway, *probes = machine.free_ports(stages + 2)
    made = launch.launch(
        name=target.model.name,
        served_name=target.model.spec.model.served_name,
        facts=facts,
        plan=plan,
        machine=here,
        options=options,
        ports=launch.Ports(control, gateway, tuple(probes)),
        public_keys={role: pair.public for role, pair in keys.items()},
        key_files={
            role: run_dir.write_keys(names.KEY_FILE.format(role=role), pair)
            for role, pair in keys.items()
        },
        cache_home=home,
        parent_pid=os.getpid(),
    )
    paths = [
        str(run_dir.write(names.STAGE_CONFIG_FILE.format(stage=k), config.to_json()))
        for k, config in enumerate(made.stages)
    ]
    run_dir.write(names.GATEWAY_CONFIG_FILE, made.gateway.to_json())
    run_dir.write(names.STATUS_FILE, json.dumps(_status_document(made)))
    document = {"configs": paths, "family": facts.profile.family}
    run_dir.write(WORKER_LIST_FILE, json.dumps(document))
    return made


def _status_document(made: launch.Launch) -> dict[str, object]:
    """What `lamella status` reads: whom to ask, no key."""
    return {
        "pid": os.getpid(),
        "name": made.pipeline.name,
        "host": _reachable(made.gateway.http_host),
        "port": made.gateway.http_port,
        "served_name": made.gateway.served_name,
        "probe_ports": list(made.probe_ports),
        "splits": list(made.pipeline.splits),
        "num_layers": made.pipeline.num_layers,
    }


def _reachable(host: str) -> str:
    """An address to dial for one that was bound."""
    return {"0.0.0.0": names.LOOPBACK, "::": "::1", "": names.LOOPBACK}.get(host, host)


def url_of(host: str, port: int) -> str:
    """`http://host:port`, brackets around IPv6."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def curl_line(url: str, served_name: str, *, chats: bool, api_keys: bool) -> str:
    """One line to paste into a shell: a chat, or for a base model a text to go on with."""
    body: dict[str, object] = {"model": served_name, "max_tokens": 32, "temperature": 0}
    if chats:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": QUESTION}]
    else:
        path = "/v1/completions"
        body |= {"prompt": f"Q: {QUESTION}\nA:", "stop": "\n"}
    key = " -H 'Authorization: Bearer YOUR_KEY'" if api_keys else ""
    head = f"curl {url}{path} -H 'Content-Type: application/json'{key}"
    return f"{head} -d {shlex.quote(json.dumps(body))}"


def _announce(out: Console, made: launch.Launch, plan: Plan, *, chats: bool) -> None:
    """The plan as a table, the URL, and a line to paste."""
    from lamella.plan import stage_table

    places = [
        f"{stage.device}{'' if stage.cpu is None else f' core {stage.cpu}'}, {stage.threads} thread"
        f"{'' if stage.threads == 1 else 's'}"
        for stage in made.stages
    ]
    url = url_of(_reachable(made.gateway.http_host), made.gateway.http_port)
    out.print(stage_table(made.pipeline.name, made.pipeline.dtype, plan, places))
    out.print(
        f"{made.gateway.served_name} is ready at [bold]{url}[/bold] "
        f"(context {show.number(plan.max_model_len)} tokens; Ctrl-C stops)\n",
        highlight=False,
        soft_wrap=True,
    )
    line = curl_line(
        url, made.gateway.served_name, chats=chats, api_keys=bool(made.gateway.api_keys_file)
    )
    out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.file.flush()
