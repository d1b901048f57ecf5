"""A hub of models on this host: it answers what huggingface_hub and transformers ask of one."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self

import pytest

from ciuic_dist.hub import commits

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_may_see"


@dataclass(frozen=True, slots=True)
class Answer:
    """To one request."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Hub:
    """Serves the folders in ``repositories`` by their hub ids while it is entered.

    The one called ``gated`` is for who has ``TOKEN``; the file called ``failing`` is out of order, and the one called
    ``cut`` breaks off after its half.
    """

    def __init__(
        self,
        repositories: Mapping[str, Path],
        *,
        gated: str = "",
        failing: str = "",
        cut: str = "",
        commit: str = COMMIT,
    ) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        """Requests by method and file."""
        self._repositories = repositories
        self._gated = gated
        self._failing = failing
        self._cut = cut
        self._commit = commit

        class Handler(_Handler):
            hub = self

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, token: str) -> Answer:
        """What there is at ``path`` for who shows ``token``."""
        found: Callable[[str, str], Answer]
        match path.partition("?")[0].split("/")[1:]:
            case ["api", "models", organisation, name, *rest]:
                found = self._description
            case [organisation, name, "resolve", _, *rest]:
                found = self._file
            case ["large", organisation, name, *rest]:
                return self._content(self._repositories[f"{organisation}/{name}"] / "/".join(rest))
            case _:
                return Answer(404)
        repository = f"{organisation}/{name}"
        if repository not in self._repositories:
            return Answer(404, {"X-Error-Code": "RepoNotFound"})
        if repository == self._gated and token != f"Bearer {TOKEN}":
            return Answer(403, {"X-Error-Code": "GatedRepo"})
        if rest[-1:] == [self._failing]:
            return Answer(500)
        return found(repository, "/".join(rest))

    def _description(self, repository: str, what: str) -> Answer:
        """Of the repository, or of the files in it."""
        if what not in ("", "revision/main", f"revision/{self._commit}", "tree/main", f"tree/{self._commit}"):
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        names = [file.name for file in self._repositories[repository].iterdir()]
        files = [{"type": "file", "path": name, "size": 0, "oid": ""} for name in names]
        siblings = [{"rfilename": name} for name in names]
        described = files if what.startswith("tree") else {"id": repository, "sha": self._commit, "siblings": siblings}
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(described).encode())

    def _file(self, repository: str, name: str) -> Answer:
        """Its content, or for weights where it lies, as on a hub that has large files elsewhere."""
        of_commit = {"X-Repo-Commit": self._commit}
        file = self._repositories[repository] / name
        if not file.is_file():
            return Answer(404, of_commit | {"X-Error-Code": "EntryNotFound"})
        content = self._content(file)
        if not name.endswith(".safetensors"):
            return Answer(200, {**of_commit, **content.headers}, content.body)
        port = self._server.server_port  # another host by its name, as one for large files is
        linked = {"X-Linked-Etag": content.headers["ETag"], "X-Linked-Size": str(len(content.body))}
        return Answer(302, of_commit | linked | {"Location": f"http://localhost:{port}/large/{repository}/{name}"})

    def _content(self, file: Path) -> Answer:
        content = file.read_bytes()
        return Answer(200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content)

    def kept(self, path: str, body: bytes) -> bytes:
        """What of ``body`` gets through."""
        return body[: len(body) // 2] if self._cut and path.endswith(f"/{self._cut}") else body


class _Handler(BaseHTTPRequestHandler):
    """One request; its connection ends with it."""

    hub: Hub

    def do_GET(self) -> None:
        """HEAD too."""
        self.hub.asked[self.command, Path(self.path).name] += 1
        if "Range" in self.headers:
            return  # what broke off doesn't go on
        answer = self.hub.answer(self.path, self.headers.get("Authorization", ""))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.hub.kept(self.path, answer.body))

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """The hub's library as where a process starts with these; it waits for nobody when it tries again."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        sleep = time.sleep
        patch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
        try:
            importlib.reload(constants)  # it reads them when it is imported
            commits.clear()
            yield
        finally:
            commits.clear()
            patch.undo()
            importlib.reload(constants)
