"""A small hub in a pod: the listing and the files of one model folder, with ranges and a token.

Runs as `python hub.py PORT FOLDER` with the standard library only. Repository `e2e/tiny` is open;
`e2e/gated` wants the token `good`.
"""

import hashlib
import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
COMMIT = hashlib.sha1(b"the one commit").hexdigest()
REPOS = {"e2e/tiny": None, "e2e/gated": "Bearer good"}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        listing = re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path)
        resolve = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        repo = (listing or resolve)[1] if listing or resolve else ""
        if repo not in REPOS:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if REPOS[repo] not in (None, self.headers.get("Authorization")):
            return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        return self.listing(repo) if listing else self.file(resolve[3])

    def listing(self, repo):
        siblings = []
        for name in sorted(os.listdir(FOLDER)):
            size = os.path.getsize(os.path.join(FOLDER, name))
            entry = {"rfilename": name, "size": size, "blobId": git_hash(name)}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": digest(name), "size": size, "pointerSize": 130}
            siblings.append(entry)
        told = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": []}
        self.answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def file(self, name):
        path = os.path.join(FOLDER, name)
        if not os.path.isfile(path):
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        size = os.path.getsize(path)
        tag = etag(name)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name.endswith(".safetensors"):
            headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest(name)}"'}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(span[1]), int(span[2] or size - 1)) if span else (0, size - 1)
        last = min(last, size - 1)
        if span:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with open(path, "rb") as file:
            file.seek(first)
            self.answer(206 if span else 200, file.read(last - first + 1), headers)

    def answer(self, status, data, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def etag(name):
    return digest(name) if name.endswith(".safetensors") else git_hash(name)


def digest(name):
    return hashlib.sha256(read(name)).hexdigest()


def git_hash(name):
    data = read(name)
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def read(name):
    with open(os.path.join(FOLDER, name), "rb") as file:
        return file.read()


ThreadingHTTPServer(("", PORT), Hub).serve_forever()
