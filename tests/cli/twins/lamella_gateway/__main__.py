"""Ready when TWIN_READY exists; ends with 3 when its port is taken, as the gateway does."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lamella_contract.config import GatewayConfig


class Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = Path(os.environ["TWIN_READY"]).exists()
        body = json.dumps({"reason": "" if ready else "stage 1 is loading"}).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The twin says nothing of its requests."""


def main() -> int:
    config = GatewayConfig.from_json(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    try:
        ThreadingHTTPServer((config.http_host, config.http_port), Gateway).serve_forever()
    except OSError as error:
        sys.stderr.write(f"lamella gateway: port in use: {error}\n")
        return 3
    return 0


sys.exit(main())
