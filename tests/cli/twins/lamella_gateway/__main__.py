"""Ready when TWIN_READY exists, as is each pipeline that its file names; ends with 3 when its port
is taken, as the gateway does.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lamella_contract.config import GatewayConfig


class Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = Path(os.environ["TWIN_READY"]).exists()
        document: dict[str, object] = {"reason": "" if ready else "stage 1 is loading"}
        if self.path == "/status":
            addresses = Path(config().discover.removeprefix("file:")).read_text().split()
            document["pipelines"] = [{"address": where, "ready": ready} for where in addresses]
        body = json.dumps(document).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The twin says nothing of its requests."""


def config() -> GatewayConfig:
    return GatewayConfig.from_json(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())


def main() -> int:
    told = config()
    try:
        ThreadingHTTPServer((told.http_host, told.http_port), Gateway).serve_forever()
    except OSError as error:
        sys.stderr.write(f"lamella gateway: port in use: {error}\n")
        return 3
    return 0


sys.exit(main())
