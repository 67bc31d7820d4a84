"""A hub of this machine: what huggingface_hub asks of the real one when it uploads a model."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What has been asked of it, and what it holds.

    Attributes:
        files: content by repository and path.
        requests: method and path of every request.
        created: what repositories were asked for with.
        tokens: the Authorization headers of what is asked about repositories; the rest needs none.
        refuses: a part of a path; a request to it is answered with 403.
    """

    def __init__(self):
        self.files, self.requests, self.created, self.tokens = {}, [], [], set()
        self.refuses = None
        self._large = {}

    @contextmanager
    def running(self):
        """Answer requests; gives the address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self.address
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, method, path, body):
        """The status and the JSON of an answer."""
        if self.refuses and self.refuses in path:
            return 403, {"error": "You have no right to write there."}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            name = "/".join(filter(None, (self.created[-1].get("organization"), self.created[-1]["name"])))
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            found = [
                {"path": one["path"], "uploadMode": modes[one["path"].endswith(".safetensors")], "shouldIgnore": False}
                for one in asked
            ]
            return 200, {"files": found}
        if path.endswith("/info/lfs/objects/batch"):
            oids = [one["oid"] for one in json.loads(body)["objects"]]
            upload = {one: {"upload": {"href": f"{self.address}/large/{one}"}} for one in oids}
            return 200, {"objects": [{"oid": one, "size": 1, "actions": upload[one]} for one in oids]}
        if method == "PUT" and path.startswith("/large/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/large/")
            self._large[path.removeprefix("/large/")] = body
            return 200, {}
        if "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.files[repo, one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                elif one["key"] == "lfsFile":
                    self.files[repo, one["value"]["path"]] = self._large[one["value"]["oid"]]
            return 200, {"commitUrl": f"{self.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        return 404, {"error": f"{method} {path} is not of this hub"}

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.requests.append((self.command, self.path))
                if self.path.startswith(("/api/repos/", "/api/models/")):
                    hub.tokens.add(self.headers.get("Authorization"))
                status, content = hub.answer(self.command, self.path.partition("?")[0], body)
                answer = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = respond

            def log_message(self, *_):
                pass

        return Handler
