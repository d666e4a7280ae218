"""`lamella serve`: from what the user pointed at to a pipeline that answers.

1. Refuse what can be refused at once (the port, the target), before anything is started.
2. Start the worker: it imports while the rest goes on.
3. Learn the model from its small files and headers; plan for this machine.
4. Mint keys, choose ports, write each process's document; start the gateway.
5. Show the loading, then the plan, the URL and a line to paste.
6. Watch until a signal; the supervisor ends everything. SIGHUP has a manifest read again.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from lamella import documents, fit, launch, machine, model, show
from lamella.children import ChildSpec
from lamella.errors import ChildFailed, StageFailed, UsageError
from lamella.local import Interrupted, Supervisor
from lamella.logview import CHILD_ENV, LogView, failure
from lamella.progress import Display, display_for
from lamella.reload import Reload
from lamella.rundir import RunDirectory
from lamella.target import Overrides, is_manifest, resolve
from lamella.watch import Snapshot, Watcher
from lamella_contract import names
from lamella_contract.config import StageConfig
from lamella_contract.plan import Plan

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
    quantization = target.model.spec.pipeline.quantization
    where = _with_device(options.launch, facts_of_machine, quantization)
    home = machine.cache_home()
    machine.require_space(home, 50_000_000, "the cache")
    log = LogView(err, verbose=options.verbose)
    try:
        with Supervisor(on_line=log.take, reloads=is_manifest(options.where)) as supervisor:
            run_dir = supervisor.run_dir
            supervisor.start(documents.worker(run_dir))
            with err.status("reading the model's headers"):
                facts = model.learn(target, home, err)
                plan = fit.local(facts.profile, target.model.spec, facts_of_machine, where.device)
            written = documents.Documents(run_dir, facts, where, home)
            running = written.pipeline(target, plan, facts_of_machine)
            made = running.made
            supervisor.start(_gateway(run_dir))
            host = documents.reachable(where.host)
            with Watcher(made.probe_ports, host, where.port) as watcher:
                session = _Session(
                    supervisor,
                    display_for(err, len(plan.stages)),
                    lambda: _announce(out, made, plan, chats=facts.chats),
                    err,
                )
                reload = Reload(
                    read=lambda: resolve(options.where, options.overrides),
                    say=session.say,
                    supervisor=supervisor,
                    watcher=watcher,
                    documents=written,
                    running=running,
                    at_start=facts_of_machine,
                )

                def tick() -> None:
                    session.tick(watcher.latest)
                    reload.tick()

                try:
                    supervisor.run(tick)
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
            self.say("ready again" if snapshot.ready else f"not ready: {snapshot.reason}")

    def say(self, words: str) -> None:
        """Prints a line with the time of day."""
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock} {words}", markup=False, highlight=False, soft_wrap=True)

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


def _with_device(
    options: launch.LaunchOptions, here: machine.Machine, quantization: str
) -> launch.LaunchOptions:
    """`auto` made definite. Raises UsageError for cuda without a GPU, or with quantization."""
    from dataclasses import replace

    if options.device == "cuda" and not here.gpu_free_bytes:
        raise UsageError("--device: got cuda, but no NVIDIA GPU was found; want cpu or auto")
    if options.device == "cuda" and quantization != "none":
        raise UsageError(f"--device: got cuda with quantization {quantization}, want cpu or auto")
    if options.device == "auto":
        return replace(options, device=machine.device_for(here, quantization))
    return options


def _gateway(run_dir: RunDirectory) -> ChildSpec:
    config = str(run_dir.file(names.GATEWAY_CONFIG_FILE))
    argv = (sys.executable, "-P", "-m", "lamella_gateway", "--config", config)
    return ChildSpec("gateway", (*argv, "--parent-pid", str(os.getpid())), CHILD_ENV)


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


def _place(stage: StageConfig) -> str:
    """Where a stage computes, in words."""
    core = "" if stage.cpu is None or stage.in_turn else f" core {stage.cpu}"
    threads = f"{stage.threads} thread{'' if stage.threads == 1 else 's'}"
    return f"{stage.device}{core}, {threads}{', in turn' if stage.in_turn else ''}"


def _announce(out: Console, made: launch.Launch, plan: Plan, *, chats: bool) -> None:
    """The plan as a table, the URL, and a line to paste."""
    from lamella.plan import number_format, stage_table

    places = [_place(stage) for stage in made.stages]
    url = url_of(documents.reachable(made.gateway.http_host), made.gateway.http_port)
    out.print(stage_table(made.pipeline.name, number_format(made.pipeline), plan, places))
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
