"""`lamella chat`: talk to an endpoint in the terminal.

Knows the OpenAI API and a terminal, nothing of what is behind the endpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from lamella import client
from lamella.errors import EndpointError

HELP = (
    "/new starts over, /system TEXT sets the system prompt, /quit or Ctrl-D ends, "
    "Ctrl-C stops an answer."
)


PLAIN_MAX_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Taste:
    """How answers are drawn. None leaves it to the endpoint."""

    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(slots=True)
class Conversation:
    """What was said so far, in the API's form."""

    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    plain: bool = False
    """A base model without a chat template: the turns are written out as questions and answers."""

    def messages(self) -> list[dict[str, str]]:
        """All messages for the next request."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def transcript(self) -> str:
        """The same as a text for a base model to go on with."""
        marks = {"system": "", "user": "Q: ", "assistant": "A: "}
        lines = [f"{marks[turn['role']]}{turn['content'].strip()}" for turn in self.messages()]
        return "\n".join([*lines, "A:"])

    def request(self, model: str, taste: Taste) -> tuple[str, dict[str, object]]:
        """Path and body of the next request."""
        body: dict[str, object] = {"model": model, "stream": True}
        if taste.temperature is not None:
            body["temperature"] = taste.temperature
        if taste.max_tokens is not None or self.plain:
            body["max_tokens"] = taste.max_tokens or PLAIN_MAX_TOKENS
        if self.plain:
            return "/v1/completions", body | {"prompt": self.transcript(), "stop": ["\nQ:"]}
        return "/v1/chat/completions", body | {"messages": self.messages()}


def run(
    url: str,
    api_key: str,
    conversation: Conversation,
    taste: Taste,
    *,
    ask: Callable[[], str],
    say: Callable[[str], None],
) -> None:
    """Reads a line with `ask` (EOFError ends), streams the answer to `say`, and again."""
    with httpx.Client(timeout=client.timeout(), headers=client.headers(api_key)) as http:
        model = client.model_name(http, url)
        say(f"{model} at {url}\n{HELP}\n")
        while True:
            try:
                line = ask().strip()
            except (EOFError, KeyboardInterrupt):
                say("\n")
                return
            if line in ("/quit", "/exit"):
                return
            if line and not _command(line, conversation, say):
                _turn(http, url, model, line, conversation, taste, say)


def _command(line: str, conversation: Conversation, say: Callable[[str], None]) -> bool:
    """True when the line was a command and has been obeyed."""
    if not line.startswith("/"):
        return False
    name, _, rest = line.partition(" ")
    if name == "/new":
        conversation.turns.clear()
        say("(a new conversation)\n")
    elif name == "/system":
        conversation.system = rest
        say("(system prompt set)\n" if rest else "(no system prompt)\n")
    else:
        say(f"{HELP}\n")
    return True


def _turn(
    http: httpx.Client,
    url: str,
    model: str,
    line: str,
    conversation: Conversation,
    taste: Taste,
    say: Callable[[str], None],
) -> None:
    """One question and its answer; an error is said and forgotten with its question."""
    conversation.turns.append({"role": "user", "content": line})
    answer: list[str] = []
    try:
        if not _stream(http, url, conversation.request(model, taste), answer, say):
            conversation.plain = True
            say("(no chat template: going on as questions and answers)\n")
            _stream(http, url, conversation.request(model, taste), answer, say)
    except KeyboardInterrupt:
        # Leaving the stream closed the connection, so the endpoint stops computing too.
        say(" (stopped)")
    except (EndpointError, httpx.HTTPError) as error:
        say(f"(error: {error})\n")
        conversation.turns.pop()
        return
    say("\n")
    conversation.turns.append({"role": "assistant", "content": "".join(answer)})


def _stream(
    http: httpx.Client,
    url: str,
    request: tuple[str, dict[str, object]],
    answer: list[str],
    say: Callable[[str], None],
) -> bool:
    """Streams into `answer`; False when the model has no chat template. Raises EndpointError."""
    path, body = request
    with http.stream("POST", f"{url}{path}", json=body) as response:
        if response.status_code != 200:
            response.read()
            if client.error_code(response.text) == "no_chat_template":
                return False
            raise EndpointError(client.error_text(response.status_code, response.text))
        for piece in client.pieces(response.iter_lines()):
            answer.append(piece.text)
            say(piece.text)
    return True
