"""The Hub's API: one method for each call, and the table that says which."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from .cards import metadata_problems
from .repository import File, HubError, Repository, User, apply_operations, describe, no_such_repository
from .server import Answer, Request
from .storage import Storage

OWNER, READER, COLLEAGUE, STRANGER = "hf_owner", "hf_reader", "hf_colleague", "hf_stranger"
USERS = {
    OWNER: User("me", ("clinic",)),
    READER: User("me", ("clinic",), role="read"),
    COLLEAGUE: User("colleague", ("clinic",)),
    STRANGER: User("stranger"),
}
ANONYMOUS = "Invalid username or password."


class Api:
    """The repositories by id (`repos`), and the calls that act on them."""

    def __init__(self, storage: Storage):
        self.address = ""
        self.storage = storage
        self.repos: dict[str, Repository] = {}
        self._lock = threading.Lock()

    def call(self, request: Request) -> Answer:
        """Answers a request; one after another, so that commits are atomic."""
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, route in ROUTES:
            if method == route_method and (found := re.fullmatch(pattern, request.path)):
                with self._lock:
                    return route(self, request, **{k: unquote(v) for k, v in found.groupdict().items() if v})
        raise HubError(404, f"no such call: {request.method} {request.path}")

    def _user(self, request: Request) -> User | None:
        if request.token is None:
            return None
        if request.token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS[request.token]

    def _repo(self, request: Request, repo_id: str, write: bool = False) -> Repository:
        user = self._user(request)
        if repo_id not in self.repos:
            raise no_such_repository(user)
        self.repos[repo_id].check_access(user, write)
        return self.repos[repo_id]

    def _whoami(self, request: Request) -> Answer:
        user = self._user(request)
        if user is None:
            raise HubError(401, ANONYMOUS)
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
        orgs = [{"type": "org", "name": name} for name in user.organizations]
        return Answer.json({"type": "user", "id": user.name, "name": user.name, "orgs": orgs, "auth": auth})

    def _validate(self, request: Request) -> Answer:
        errors, warnings = metadata_problems(request.json()["content"])
        problems = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return Answer.json(problems, 400 if errors else 200)

    # Repositories

    def _create(self, request: Request) -> Answer:
        user, asked = self._user(request), request.json()
        if user is None:
            raise HubError(401, ANONYMOUS)
        namespace = asked.get("organization") or user.name
        if namespace not in user.namespaces or user.role != "write":
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        plain = f"{namespace}/{asked['name']}"
        repo_id = f"datasets/{plain}" if asked.get("type") == "dataset" else plain
        answer = {"url": f"{self.address}/{repo_id}", "name": plain, "id": plain}
        if repo_id in self.repos:
            return Answer.json({**answer, "error": "You already created this model repo"}, 409)
        # huggingface_hub 1 says `private`, later versions say `visibility`.
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.repos[repo_id] = Repository(repo_id, private)
        return Answer.json(answer)

    def _settings(self, request: Request, repo: str) -> Answer:
        repository = self._repo(request, repo, write=True)
        repository.private = request.json()["visibility"] == "private"
        return Answer.json({"private": repository.private})

    def _info(self, request: Request, repo: str, revision: str = "main") -> Answer:
        repository = self._repo(request, repo)
        commit = repository.at(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in request.query:
            for row in siblings:
                file = commit.files[row["rfilename"]]
                row |= {"size": file.size, "blobId": file.git_oid, **file.lfs_info("sha256")}
        return Answer.json(
            {
                "id": repo.removeprefix("datasets/"),
                "modelId": repo,
                "author": repository.namespace,
                "sha": commit.oid,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "siblings": siblings,
                "lastModified": commit.date,
                "createdAt": repository.history("main")[-1].date,
            }
        )

    def _refs(self, request: Request, repo: str) -> Answer:
        repository = self._repo(request, repo)

        def rows(names: Mapping[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

        tags = rows(repository.tags, "tags")
        return Answer.json({"branches": rows(repository.branches, "heads"), "converts": [], "tags": tags})

    def _commits(self, request: Request, repo: str, revision: str) -> Answer:
        row = {"message": "", "authors": [{"user": "me"}]}
        history = self._repo(request, repo).history(revision)
        return Answer.json([{"id": c.oid, "title": c.title, "date": c.date, **row} for c in history])

    def _branch(self, request: Request, repo: str, name: str) -> Answer:
        self._repo(request, repo, write=True).branch(name, request.json().get("startingPoint"))
        return Answer.json({})

    def _tag(self, request: Request, repo: str, revision: str) -> Answer:
        repository = self._repo(request, repo, write=True)
        repository.tags[request.json()["tag"]] = repository.at(revision).oid
        return Answer.json({})

    # Reading

    def _tree(self, request: Request, repo: str, revision: str, path: str = "") -> Answer:
        recursive = request.query.get("recursive", "").lower() in ("true", "1")
        return Answer.json(self._repo(request, repo).at(revision).below(path, recursive))

    def _paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        files = self._repo(request, repo).at(revision).files
        asked = parse_qs(request.body.decode())["paths"]
        return Answer.json([{"path": path, **describe(files[path])} for path in asked if path in files])

    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        commit, file = self._repo(request, repo).file(revision, path)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if not file.is_lfs:
            return Answer(self.storage.sent(path, file), headers=headers, ranges=True)
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        if file.xet_hash:
            kind = repo if repo.startswith("datasets/") else f"models/{repo}"
            route = f"{self.address}/api/{kind}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
        return Answer(status=302, headers={**headers, "Location": self.storage.download_link(file, path)})

    # Writing

    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        files = self._repo(request, repo, write=True).at(revision).files
        rows = []
        for asked in request.json()["files"]:
            path, sample = asked["path"], base64.b64decode(asked["sample"])
            mode = "lfs" if self.storage.goes_through_lfs(path, asked["size"], sample) else "regular"
            known = {"oid": files[path].oid} if path in files else {}
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return Answer.json({"files": rows})

    def _lfs_batch(self, request: Request, repo: str) -> Answer:
        self._repo(request, repo, write=True)
        rows = []
        for asked in request.json()["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if not self.storage.in_lfs(repo, asked["oid"]):
                verify = {"href": f"{self.address}/{repo}.git/info/lfs/objects/verify"}
                row["actions"] = {"upload": {"href": self.storage.upload_link(repo, asked["oid"])}, "verify": verify}
            rows.append(row)
        return Answer.json({"transfer": "basic", "objects": rows})

    def _lfs_verify(self, request: Request, repo: str) -> Answer:
        self._repo(request, repo, write=True)
        asked = request.json()
        if not self.storage.in_lfs(repo, asked["oid"]):
            raise HubError(400, "the object was not uploaded")
        return Answer.json({})

    def _xet_token(self, request: Request, repo: str, kind: str, revision: str) -> Answer:
        self._repo(request, repo, write=kind == "write").at(revision)
        token = self.storage.xet.token()
        names = {"accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration", "casUrl": "X-Xet-Cas-Url"}
        return Answer.json(token, headers={header: str(token[key]) for key, header in names.items()})

    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        repository = self._repo(request, repo, write=True)
        header, *operations = request.json_lines()
        added = {
            operation["value"]["path"]: self._committed(repo, operation["key"], operation["value"])
            for operation in operations
            if operation["key"] in ("file", "lfsFile")
        }
        after = apply_operations(repository.at(revision).files, operations, added)
        if "README.md" in added:
            errors, _ = metadata_problems(self.storage.content(added["README.md"]).decode())
            if errors:
                raise HubError(400, f"Invalid metadata in README.md: {errors}")
        asked = header["value"]
        commit = repository.commit(revision, asked["summary"], after, asked.get("parentCommit"))
        url = f"{self.address}/{repo}/commit/{commit.oid}"
        return Answer.json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _committed(self, repo: str, key: str, value: Mapping[str, Any]) -> File:
        if key == "file":
            file = File.regular(base64.b64decode(value["content"]))
            self.storage.blobs[file.sha256] = base64.b64decode(value["content"])
            return file
        uploaded = self.storage.uploaded(repo, value["oid"], value["size"])
        if uploaded is None:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
        return uploaded


# The id of a data set begins with "datasets/" here.
MODEL = r"/api/(?:models/|(?=datasets/))(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+)"
REPO = r"/(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", Api._whoami),
    ("POST", "/api/validate-yaml", Api._validate),
    ("POST", "/api/repos/create", Api._create),
    ("PUT", f"{MODEL}/settings", Api._settings),
    ("GET", MODEL, Api._info),
    ("GET", f"{MODEL}/revision/{REVISION}", Api._info),
    ("GET", f"{MODEL}/refs", Api._refs),
    ("GET", f"{MODEL}/commits/{REVISION}", Api._commits),
    ("POST", f"{MODEL}/branch/(?P<name>[^/]+)", Api._branch),
    ("POST", f"{MODEL}/tag/{REVISION}", Api._tag),
    ("GET", f"{MODEL}/tree/{REVISION}(?:/(?P<path>.+))?", Api._tree),
    ("POST", f"{MODEL}/paths-info/{REVISION}", Api._paths_info),
    ("GET", f"{REPO}/resolve/{REVISION}/(?P<path>.+)", Api._resolve),
    ("POST", f"{MODEL}/preupload/{REVISION}", Api._preupload),
    ("POST", rf"{REPO}\.git/info/lfs/objects/batch", Api._lfs_batch),
    ("POST", rf"{REPO}\.git/info/lfs/objects/verify", Api._lfs_verify),
    ("GET", f"{MODEL}/xet-(?P<kind>read|write)-token/{REVISION}", Api._xet_token),
    ("POST", f"{MODEL}/commit/{REVISION}", Api._commit),
]
