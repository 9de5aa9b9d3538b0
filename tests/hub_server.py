"""A small Hub for tests: real HTTP, real commits, files in a folder.

It speaks what huggingface_hub, datasets and transformers use to create, fill, list and read models, data sets and
Spaces, with LFS and without Xet. Clients read HF_ENDPOINT when they are imported: run them in a process with
`HubServer.environment`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

USER, TOKEN = "user", "hf_test_token"
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".zip", ".tar")
LFS_SIZE = 10_000_000


@dataclass(frozen=True)
class File:
    """A file of a commit; its content is the blob `sha256`."""

    sha256: str
    size: int
    git_oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    """Commits (each a dict of path to File) and the branches that point to them."""

    kind: str
    name: str
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File]) -> str:
        tree = json.dumps([self.branches.get(branch), sorted((p, f.sha256) for p, f in files.items())])
        commit = hashlib.sha1(tree.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class HubError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str, **content):
        super().__init__(code)
        self.status, self.code, self.content = status, code, {"error": code, **content}


class HubServer:
    """Serves from a thread while its `with` block lasts.

    Attributes:
        url: for HF_ENDPOINT.
        repos: by (kind, "user/name"), kind "model", "dataset" or "space".
        sent: bytes of file content sent so far, by "user/name".
        requests: "METHOD path" of all requests so far.
    """

    def __init__(self, folder: Path):
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.sent: Counter[str] = Counter()
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._failures: list[int] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a client process that talks to this Hub and keeps its cache in `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        secret = {"HF_TOKEN": token} if token else {}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **secret, **quiet}

    def fail_next(self, count: int, status: int = 503):
        """Answer the next `count` requests with an error, whatever they ask for."""
        self._failures += [status] * count

    def failure(self) -> int | None:
        with self.lock:
            return self._failures.pop(0) if self._failures else None

    def store(self, content: bytes, lfs: bool) -> File:
        digest = hashlib.sha256(content).hexdigest()
        (self.blobs / digest).write_bytes(content)
        return File(digest, len(content), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), lfs)

    def repo(self, kind: str, name: str) -> Repo:
        if (kind, name) not in self.repos:
            raise HubError(404, "RepoNotFound")
        return self.repos[kind, name]

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, File]]:
        """Commit hash and files of a branch or commit."""
        commit = repo.branches.get(revision.removeprefix("refs/heads/"), revision)
        if commit not in repo.commits:
            raise HubError(404, "RevisionNotFound")
        return commit, repo.commits[commit]


REPO_API = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([^/]+))?(?:/([^/]+))?(?:/(.+))?")
LFS_BATCH = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
RESOLVE = re.compile(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def _kind(prefix: str | None) -> str:
    """ "datasets/", as in an address, as "dataset"; models have no prefix."""
    return prefix.rstrip("s/") if prefix else "model"


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        try:
            if status := self.hub.failure():
                raise HubError(status, "told to fail")
            path, _, query = self.path.partition("?")
            self._route(urlsplit(path).path, parse_qs(query), body)
        except HubError as error:
            self._send(error.status, error.content, {"X-Error-Code": error.code})

    def _send(self, status: int, content: dict | list | bytes, headers: dict | None = None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _authorise(self, repo: Repo | None = None, write: bool = False):
        """Writing and private repositories need the token."""
        if (write or (repo and repo.private)) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubError(401, "RepoNotFound" if repo else "Unauthorized")

    def _route(self, path: str, query: dict, body: bytes):
        if path == "/api/whoami-v2":
            self._authorise(write=True)
            self._send(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := REPO_API.fullmatch(path):
            kind, name, verb, revision, rest = (unquote(m) if m else None for m in match.groups())
            repo = self.hub.repo(kind, name)
            self._authorise(repo, write=verb in ("preupload", "commit", "branch"))
            handle = getattr(self, f"_repo_{(verb or 'revision').replace('-', '_')}", None)
            if handle is None:
                raise HubError(404, "NotFound")
            handle(repo, revision or "main", rest, query, body)
        elif match := LFS_BATCH.fullmatch(path):
            self._authorise(self.hub.repo(_kind(match[1]), match[2]), write=True)
            self._lfs_batch(json.loads(body))
        elif path.startswith("/lfs/"):
            self._lfs_object(path.split("/")[2], body)
        elif match := RESOLVE.fullmatch(path):
            repo = self.hub.repo(_kind(match[1]), match[2])
            self._authorise(repo)
            self._resolve(repo, unquote(match[3]), unquote(match[4]))
        else:
            raise HubError(404, "NotFound")

    def _create(self, asked: dict):
        self._authorise(write=True)
        kind, name = asked.get("type", "model"), f"{asked.get('organization') or USER}/{asked['name']}"
        if (kind, name) in self.hub.repos:
            raise HubError(409, "RepoExists", url=self._page(self.hub.repos[kind, name]))
        if kind == "space" and "sdk" not in asked:
            raise HubError(400, "a Space needs an sdk")
        private = asked.get("visibility") == "private" or asked.get("private", False)
        repo = self.hub.repos[kind, name] = Repo(kind, name, private)
        repo.commit("main", {})
        self._send(200, {"url": self._page(repo)})

    def _page(self, repo: Repo) -> str:
        return f"{self.hub.url}/{'' if repo.kind == 'model' else f'{repo.kind}s/'}{repo.name}"

    def _repo_revision(self, repo: Repo, revision: str, rest: None, query: dict, body: bytes):
        commit, files = self.hub.files(repo, revision)
        siblings = []
        for path, file in sorted(files.items()):
            lfs = {"lfs": {"size": file.size, "sha256": file.sha256, "pointerSize": 130}} if file.lfs else {}
            siblings.append({"rfilename": path, "size": file.size, "blobId": file.git_oid, **lfs})
        facts = {"id": repo.name, "sha": commit, "private": repo.private, "gated": False, "tags": []}
        self._send(200, {**facts, "siblings": siblings, "lastModified": "2024-01-01T00:00:00.000Z"})

    def _repo_refs(self, repo: Repo, revision: str, rest: None, query: dict, body: bytes):
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repo.branches.items()
        ]
        self._send(200, {"branches": branches, "tags": [], "converts": []})

    def _repo_branch(self, repo: Repo, branch: str, rest: None, query: dict, body: bytes):
        if branch in repo.branches:
            raise HubError(409, "BranchExists")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repo.branches[branch] = self.hub.files(repo, start)[0]
        self._send(200, {})

    def _repo_preupload(self, repo: Repo, revision: str, rest: None, query: dict, body: bytes):
        _, files = self.hub.files(repo, revision)
        answers = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            lfs = path.endswith(LFS_SUFFIXES) or asked["size"] > LFS_SIZE
            known = {"oid": files[path].etag} if path in files else {}
            answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **known})
        self._send(200, {"files": answers})

    def _repo_commit(self, repo: Repo, branch: str, rest: None, query: dict, body: bytes):
        with self.hub.lock:
            files = dict(self.hub.files(repo, branch)[1])
            for line in body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), lfs=False)
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = self._uploaded(value["oid"])
                elif operation["key"] in ("deletedFile", "deletedFolder"):
                    gone = value["path"].rstrip("/")
                    files = {p: f for p, f in files.items() if p != gone and not p.startswith(f"{gone}/")}
            commit = repo.commit(branch, files)
        self._send(200, {"commitUrl": f"{self._page(repo)}/commit/{commit}", "commitOid": commit, "success": True})

    def _uploaded(self, oid: str) -> File:
        if not (self.hub.blobs / oid).is_file():
            raise HubError(400, "LFS object was not uploaded")
        return self.hub.store((self.hub.blobs / oid).read_bytes(), lfs=True)

    def _lfs_batch(self, asked: dict):
        objects = []
        for item in asked["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{item['oid']}"}
            actions = {"actions": {"upload": upload, "verify": {"href": f"{upload['href']}/verify"}}}
            present = (self.hub.blobs / item["oid"]).is_file()
            objects.append({"oid": item["oid"], "size": item["size"], **({} if present else actions)})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _lfs_object(self, oid: str, body: bytes):
        # The address alone is the permission to put, as with presigned ones; only the right content is taken.
        if self.command == "PUT" and self.hub.store(body, lfs=True).sha256 != oid:
            raise HubError(400, "content does not fit the oid")
        if self.command == "POST" and not (self.hub.blobs / oid).is_file():
            raise HubError(404, "EntryNotFound")
        self._send(200, {})

    def _repo_tree(self, repo: Repo, revision: str, folder: str | None, query: dict, body: bytes):
        _, files = self.hub.files(repo, revision)
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(prefix)]
        if folder and not inside:
            raise HubError(404, "EntryNotFound")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {parent.as_posix() for path in inside for parent in Path(path).parents} | set(inside)
        shown = [e for e in entries if e.startswith(prefix) and e != "." and (recursive or "/" not in e[len(prefix) :])]
        self._send(200, [self._entry(files, path) for path in sorted(shown)])

    def _repo_paths_info(self, repo: Repo, revision: str, rest: None, query: dict, body: bytes):
        _, files = self.hub.files(repo, revision)
        asked = parse_qs(body.decode()).get("paths", [])
        known = [p for p in asked if p in files or any(f.startswith(f"{p}/") for f in files)]
        self._send(200, [self._entry(files, path) for path in known])

    @staticmethod
    def _entry(files: dict[str, File], path: str) -> dict:
        if path not in files:
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        file = files[path]
        lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}} if file.lfs else {}
        return {"type": "file", "path": path, "oid": file.git_oid, "size": file.size, **lfs}

    def _resolve(self, repo: Repo, revision: str, path: str):
        commit, files = self.hub.files(repo, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound")
        file = files[path]
        content = (self.hub.blobs / file.sha256).read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes",
                   "X-Linked-Size": file.size, "X-Linked-Etag": f'"{file.etag}"',
                   "Content-Disposition": f"inline; filename*=UTF-8''{quote(Path(path).name)}"}  # fmt: skip
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or file.size - 1), file.size - 1)
            if start > end:
                raise HubError(416, "RangeNotSatisfiable")
            status, content = 206, content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
        if self.command == "GET":
            with self.hub.lock:
                self.hub.sent[repo.name] += len(content)
        self._send(status, content, headers)
