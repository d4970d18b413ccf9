"""A server on this machine that answers as api.github.com does, for the calls that the App makes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from github import Auth, Github

from swapbench.forge.github import GitHubForge

NAME = "example/engine"


@dataclass
class FakeGitHub:
    """What the server knows (`answers` by method and path) and what it was asked (`asked`)."""

    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    address: str = ""

    def answer(self, method: str, path: str, said: Any, status: int = 200) -> None:
        self.answers[method, path] = (status, said)

    def said_to(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests to an address."""
        return [body for asked, where, body in self.asked if (asked, where) == (method, path)]

    def pull(self, number: int, sha: str, **changed: Any) -> dict[str, Any]:
        """A pull request in the form of the REST API, shortened to what the API always gives."""
        at = f"{self.address}/repos/{NAME}"
        return {
            "url": f"{at}/pulls/{number}",
            "number": number,
            "state": "open",
            "draft": False,
            "title": "Attention: swift",
            "user": {"login": "alice", "type": "User", "url": f"{self.address}/users/alice"},
            "labels": [{"name": "attention", "url": f"{at}/labels/attention"}],
            "author_association": "FIRST_TIME_CONTRIBUTOR",
            "head": {"sha": sha, "ref": "swift", "label": "alice:swift"},
            "base": {"sha": "b" * 40, "ref": "main", "label": "example:main"},
            "html_url": f"https://github.com/{NAME}/pull/{number}",
            "merged_at": None,
            **changed,
        }


@contextmanager
def serving() -> Iterator[FakeGitHub]:
    """The server, for as long as the context lasts."""
    fake = FakeGitHub()

    class Answers(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0]
            fake.asked.append((self.command, path, body))
            status, said = fake.answers.get((self.command, path), (404, {"message": "Not Found"}))
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fake.address = f"http://127.0.0.1:{server.server_port}"
    fake.answer("GET", f"/repos/{NAME}", {"full_name": NAME, "url": f"{fake.address}/repos/{NAME}"})
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def forge_of(fake: FakeGitHub, host: str = "https://github.com") -> GitHubForge:
    """The forge, which asks the server."""
    client = Github(
        base_url=fake.address,
        auth=Auth.Token("t0ken"),
        retry=None,
        seconds_between_requests=0,
        seconds_between_writes=0,
    )
    return GitHubForge(NAME, "1", "2", "", "s3cret", host=host, client=client)
