"""What `helm test` runs: is the operator ready, and does a model answer? Changes nothing."""

import json
import os
import urllib.request


def get(url: str, body: object = None) -> bytes:
    """The body of an answer of 2xx; anything else raises."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("API_KEY"):
        headers["Authorization"] = f"Bearer {key.split()[0]}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
        return answer.read()


print("operator:", get(os.environ["OPERATOR"] + "/readyz").decode().strip())
if model := os.environ.get("MODEL"):
    served = json.loads(get(model + "/v1/models"))["data"][0]["id"]
    prompt = {"model": served, "prompt": "The sea is", "max_tokens": 8, "temperature": 0}
    text = json.loads(get(model + "/v1/completions", prompt))["choices"][0]["text"]
    print(f"{served}: The sea is{text}")
