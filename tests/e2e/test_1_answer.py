"""From nothing to the first token: the chart, the manifest, an answer over the Service."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from e2e_kube import Watch, wait_for
from e2e_models import DEMO, Model, gone
from e2e_report import Row
from e2e_traffic import ask_once

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_the_first_answer(kube: Any, release: Any, space: str, table: Any) -> None:
    began = time.monotonic()
    model = Model(kube, space, "first").apply()
    watch = Watch(space, "sm", "first")

    def answered() -> Any:
        answer = ask_once(model.url(), "first", tokens=5)
        return answer if not answer.error else None

    try:
        wait_for("the Service is there", lambda: kube.get("services", "first", space), 120)
        answer = wait_for("an answer", answered, 180, 0.5)
        first_s = answer.first - began
        model.until_ready()
        ready_s = time.monotonic() - began
    finally:
        text = watch.stop()
    table.keep("get-sm-watch.txt", text)
    table.add(Row("none: from apply to the first token", f"Ready after {ready_s:.0f} s",
                  "0", None, round(first_s, 1)))  # fmt: skip
    assert "1/1" in text.splitlines()[-1]
    told = kube.run("-n", space, "get", "sm", "first", "-o", "wide").splitlines()
    assert told[0].split() == ["NAME", "READY", "STAGES", "MODEL", "REASON", "URL", "AGE"]
    assert told[1].split()[1:5] == ["1/1", "2/2", "file:///models/tiny", "Ready"]
    kube.run("-n", space, "wait", "--for=condition=Ready", "sm/first", "--timeout=5s")
    model.delete()
    wait_for("nothing is left", gone(kube, space, "first"), 90)


def test_a_real_model_answers_a_question(make: Any, table: Any) -> None:
    model = make(
        "gemma", model={"uri": DEMO}, pipeline={"dtype": "bfloat16"},
        resources={"limits": {"memory": "4Gi"}},
    )  # fmt: skip
    model.until_ready(300)
    client = openai.OpenAI(base_url=model.url(), api_key="none", timeout=120)
    answer = client.completions.create(
        model="gemma", prompt="Q: What is the capital of France?\nA:", max_tokens=12,
        temperature=0, stop="\n",
    )  # fmt: skip
    assert "Paris" in answer.choices[0].text
    table.add(Row("none: gemma-3-270m in two pods", f"said {answer.choices[0].text.strip()!r}"))


def test_the_namespace_enforces_restricted(make: Any, fresh_space: Any, table: Any) -> None:
    space = fresh_space("restricted", {"pod-security.kubernetes.io/enforce": "restricted"})
    seconds = make("strict", space).until_ready()
    table.add(Row("a namespace that enforces `restricted`", "Ready like anywhere", "", None,
                  round(seconds, 1)))  # fmt: skip
