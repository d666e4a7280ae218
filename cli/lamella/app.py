"""The commands and their options; each hands over to the module of its name.

Modules are imported inside the commands: `lamella --help` and the first moments of `serve` must not
wait for HTTP clients they do not need.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer import Argument, Option
from typer.exceptions import TyperException

from lamella import show
from lamella_contract import names
from lamella_contract.errors import LamellaError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="lamella",
    help="Serve a language model in stages, here or across the GPUs of a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Where = Annotated[
    str, Argument(help="A ShardedModel manifest, a model folder, a GGUF file, or hf://org/name.")
]
Stages = Annotated[int | None, Option(min=1, help="Number of stages.")]
Split = Annotated[str | None, Option(help="Layers per stage, such as 10,8.")]
StageMemory = Annotated[str | None, Option(help="Memory of each stage, such as 24Gi.")]
Dtype = Annotated[str | None, Option(help=f"One of {', '.join(names.DTYPES)}.")]
Quantization = Annotated[
    str | None, Option(help="none, or int8: weights of 8 bits, half the memory; on CPUs.")
]
MaxModelLen = Annotated[int | None, Option(min=1, help="Longest context in tokens.")]
MaxSequences = Annotated[int | None, Option(min=1, help="Most requests at once.")]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of an hf:// model.")]
Output = Annotated[str, Option("--output", "-o", help="table or json.")]
ApiKey = Annotated[str, Option(envvar="LAMELLA_API_KEY", help="Key that the endpoint wants.")]
Url = Annotated[str, Argument(help="The endpoint.")]


@app.command("serve")
def serve_command(
    where: Where,
    stages: Stages = None,
    split: Split = None,
    port: Annotated[int, Option(min=1, max=65535, help="HTTP port.")] = names.PORT_HTTP,
    host: Annotated[str, Option(help="Address to listen on.")] = names.LOOPBACK,
    device: Annotated[str, Option(help="cpu, cuda or auto.")] = "auto",
    threads_per_stage: Annotated[
        int | None, Option(min=1, help="Compute threads; default: all cores, stages in turn.")
    ] = None,
    pin: Annotated[bool, Option("--pin", help="Pin each stage to a core of its own.")] = False,
    dtype: Dtype = None,
    quantization: Quantization = None,
    stage_memory: StageMemory = None,
    max_model_len: MaxModelLen = None,
    max_sequences: MaxSequences = None,
    max_step_tokens: Annotated[int | None, Option(min=1, help="Most tokens of a step.")] = None,
    served_name: Annotated[str | None, Option(help="Name that clients ask for.")] = None,
    revision: Revision = None,
    runner: Annotated[str, Option(help=f"One of {', '.join(names.RUNNERS)}.")] = "auto",
    api_keys: Annotated[Path | None, Option(help="File of allowed keys, one a line.")] = None,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Show all logs.")] = False,
) -> None:
    """Serve a model on this machine: one OpenAI-compatible endpoint, one process per stage."""
    from lamella import launch, serve
    from lamella.target import Overrides

    _one_of("--device", device, ("cpu", "cuda", "auto"))
    _one_of("--runner", runner, names.RUNNERS)
    if quantization == "int8" and runner not in ("auto", "fast"):
        _one_of("--runner", runner, ("auto", "fast"))
    overrides = Overrides(
        stages=stages,
        split=_split(split),
        stage_memory=_quantity(stage_memory),
        dtype=_dtype(dtype),
        max_model_len=max_model_len,
        max_sequences=max_sequences,
        served_name=served_name,
        revision=revision,
        quantization=_quantization(quantization),
    )
    how = launch.LaunchOptions(
        host=host,
        port=port,
        device=device,
        threads_per_stage=threads_per_stage,
        pin=pin,
        runner=runner,
        api_keys_file="" if api_keys is None else str(_existing("--api-keys", api_keys)),
        max_step_tokens=max_step_tokens,
    )
    out, err = show.console(), show.console(stderr=True)
    serve.serve(serve.ServeOptions(where, overrides, how, verbose), out, err)


@app.command("plan")
def plan_command(
    where: Where,
    output: Output = "table",
    stages: Stages = None,
    split: Split = None,
    stage_memory: StageMemory = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    max_model_len: MaxModelLen = None,
    max_sequences: MaxSequences = None,
    revision: Revision = None,
) -> None:
    """Show layers, bytes and KV tokens per stage; nothing is loaded."""
    from lamella import plan
    from lamella.target import Overrides

    _one_of("--output", output, ("table", "json"))
    overrides = Overrides(
        stages=stages,
        split=_split(split),
        stage_memory=_quantity(stage_memory),
        dtype=_dtype(dtype),
        max_model_len=max_model_len,
        max_sequences=max_sequences,
        revision=revision,
        quantization=_quantization(quantization),
    )
    plan.show_plan(where, overrides, output, show.console(), show.console(stderr=True))


@app.command("chat")
def chat_command(
    url: Annotated[str, Option(help="The endpoint.")] = "",
    system: Annotated[str, Option(help="System prompt.")] = "",
    temperature: Annotated[float | None, Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, Option(min=1)] = None,
    api_key: ApiKey = "",
) -> None:
    """Talk to an endpoint in the terminal."""
    from lamella import chat, client

    def ask() -> str:
        return input("> ")

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    chat.run(
        client.base_url(url),
        api_key,
        chat.Conversation(system),
        chat.Taste(temperature, max_tokens),
        ask=ask,
        say=say,
    )


@app.command("status")
def status_command(output: Output = "table") -> None:
    """Show what runs on this machine, and why it is not ready when it is not."""
    from lamella import status

    _one_of("--output", output, ("table", "json"))
    raise typer.Exit(status.show_status(output, show.console()))


@app.command("bench")
def bench_command(
    url: Url = "",
    concurrency: Annotated[
        str, Option("--concurrency", "-c", help="Numbers of clients, such as 1,4,16.")
    ] = "1,4,16",
    input_tokens: Annotated[int, Option(min=1, help="Tokens of each prompt, about.")] = 64,
    output_tokens: Annotated[int, Option(min=1, help="Tokens of each answer.")] = 128,
    requests: Annotated[
        int | None, Option(min=1, help="Requests per level; default: 2 per client, 4 at least.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Ask for chats, not completions.")] = False,
    output: Output = "table",
    api_key: ApiKey = "",
) -> None:
    """Measure an endpoint from outside: time to first token, per token, throughput, failures.

    Any OpenAI-compatible one; of a Lamella gateway also what the stages' own step times allow.
    """
    import asyncio
    import json

    from lamella import bench, client

    _one_of("--output", output, ("table", "json"))
    loads = [
        bench.Load(clients, requests or max(2 * clients, 4), input_tokens, output_tokens)
        for clients in _numbers("--concurrency", concurrency)
    ]
    address = client.base_url(url)
    model, levels = asyncio.run(bench.run(address, api_key, loads, chat=chat))
    out = show.console()
    if output == "json":
        document = {"url": address, "model": model, "levels": [x.as_json() for x in levels]}
        out.print(json.dumps(document, indent=2), markup=False, highlight=False, soft_wrap=True)
    else:
        title = f"{model} at {address}: {input_tokens} tokens in, {output_tokens} out"
        out.print(show.table(bench.COLUMNS, map(bench.row, levels), title=title))
    for level in levels:
        if level.failures:
            first = f"{level.concurrency} clients: {level.first_error}"
            show.console(stderr=True).print(escape(first), style="red", soft_wrap=True)
    raise typer.Exit(1 if any(level.failures for level in levels) else 0)


@app.command("demo-model")
def demo_command() -> None:
    """Print the folder of the demo model; it is made once, which takes about a minute."""
    from lamella import demo, machine

    typer.echo(demo.ensure(machine.cache_home(), show.console(stderr=True)))


@app.callback()
def _root() -> None:
    """Serve a language model in stages, here or across the GPUs of a cluster."""


def run(arguments: list[str]) -> int:
    """The exit code. Every error that a user can mend is one line on standard error."""
    try:
        code = app(arguments, prog_name="lamella", standalone_mode=False)
    except LamellaError as error:
        return _fail(str(error))
    except TyperException as error:
        return _fail(error.format_message())
    except typer.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `lamella plan FILE | head`: the reader has had enough.
        return 0
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    sys.stderr.write(f"lamella: {' '.join(message.split())}\n")
    return EXIT_BAD_INPUT


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    from lamella.errors import UsageError

    if value not in known:
        raise UsageError(f"{option}: got {value!r}, want one of {', '.join(known)}")


def _dtype(value: str | None) -> str | None:
    if value in (None, "auto"):
        return None
    _one_of("--dtype", value or "", names.DTYPES)
    return value


def _quantization(value: str | None) -> str | None:
    if value is not None:
        _one_of("--quantization", value, names.QUANTIZATIONS)
    return value


def _split(text: str | None) -> tuple[int, ...] | None:
    from lamella.target import parse_split

    return None if text is None else parse_split(text)


def _quantity(text: str | None) -> int | None:
    from lamella_contract.spec import quantity

    return None if text is None else quantity(text, "--stage-memory")


def _numbers(option: str, text: str) -> list[int]:
    from lamella.errors import UsageError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option}: got {text!r}, want numbers such as 1,4,16")
    return [int(part) for part in parts]


def _existing(option: str, path: Path) -> Path:
    from lamella.errors import UsageError

    if not path.is_file():
        raise UsageError(f"{option}: got {str(path)!r}, want a file that exists")
    return path.absolute()
