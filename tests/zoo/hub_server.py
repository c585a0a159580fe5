"""A hub on loopback: what the Hugging Face Hub's API says of repositories of models and of datasets, for the tests.

    python -m tests.zoo.hub_server --root FOLDER

It listens at two ports, as the Hub has two hosts: at one of them is the API, and files of git itself; at the other, large
files, at addresses that are signed and need no token. Nothing here is made up: a file is where it was uploaded to, under
its hash, and a commit that was answered for is there after a restart.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlencode

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.zoo.hub_faults import CONTROL, Connections, Fault, Faults
from tests.zoo.hub_storage import PREFIXES, Change, Commit, File, HubError, Repository, Storage, Type, front_matter, now

PAGE = 50
"""Entries of a list in one answer."""

PART = 5 * 1024 * 1024
"""Bytes of one part of an upload in parts, which is how everything larger than two of them is sent."""

SECONDS_SIGNED = 3600


@dataclass(frozen=True)
class Access:
    """What a token lets one do."""

    user: str
    write: bool


ACCESS = {
    "hf_alice": Access("alice", write=True),
    "hf_alice_reads": Access("alice", write=False),
    "hf_bob": Access("bob", write=True),
}
"""The tokens that there are."""

TAGS: dict[Type, dict[str, str]] = {
    "model": {"license": "license", "datasets": "dataset", "base_model": "base_model"},
    "dataset": {key: key for key in ("task_categories", "task_ids", "language", "license", "size_categories")},
}
"""What of a card becomes tags, besides those that it gives itself, and how these start."""


class _Types(Convertor[Type]):
    """What stands for a type in the paths of the API."""

    types: ClassVar[dict[str, Type]] = {f"{type_}s": type_ for type_ in PREFIXES}
    regex = "|".join(types)

    def convert(self, value: str) -> Type:
        return self.types[value]


class _Prefix(_Types):
    """What stands for it in all others: nothing for a model."""

    types: ClassVar[dict[str, Type]] = {prefix: type_ for type_, prefix in PREFIXES.items()}
    regex = "|".join(types)


register_url_convertor("types", _Types())
register_url_convertor("prefix", _Prefix())


class Hub:
    """The API, and the storage of large files.

    Args:
        storage: The repositories.
        endpoint: The address of the API.
        files: The address of the storage.
    """

    def __init__(self, storage: Storage, endpoint: str, files: str) -> None:
        self.storage = storage
        self.endpoint = endpoint
        self.files = files
        self._secret = secrets.token_bytes()

    def api(self) -> Starlette:
        """What answers at the address of the API."""
        repo = "/api/{type:types}/{namespace}/{name}"
        git = "/{type:prefix}{namespace}/{name}.git/info/lfs/objects"
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/api/repos/create", self.create_repository, methods=["POST"]),
            Route("/api/repos/delete", self.delete_repository, methods=["DELETE"]),
            Route("/api/{type:types}", self.list_repositories),
            Route(repo, self.repository_info),
            Route(f"{repo}/revision/{{revision}}", self.repository_info),
            Route(f"{repo}/settings", self.change_settings, methods=["PUT"]),
            Route(f"{repo}/auth-check", self.check_reading),
            Route(f"{repo}/auth-check/write", self.check_writing),
            Route(f"{repo}/refs", self.list_refs),
            Route(f"{repo}/branch/{{branch}}", self.create_branch, methods=["POST"]),
            Route(f"{repo}/branch/{{branch}}", self.delete_branch, methods=["DELETE"]),
            Route(f"{repo}/tag/{{revision}}", self.create_tag, methods=["POST"]),
            Route(f"{repo}/tag/{{tag}}", self.delete_tag, methods=["DELETE"]),
            Route(f"{repo}/commits/{{revision}}", self.list_commits),
            Route(f"{repo}/tree/{{revision}}", self.list_tree),
            Route(f"{repo}/tree/{{revision}}/{{path:path}}", self.list_tree),
            Route(f"{repo}/paths-info/{{revision}}", self.describe_paths, methods=["POST"]),
            Route(f"{repo}/preupload/{{revision}}", self.preupload, methods=["POST"]),
            Route(f"{repo}/commit/{{revision}}", self.commit, methods=["POST"]),
            Route(f"{git}/batch", self.batch, methods=["POST"]),
            Route(f"{git}/verify", self.verify, methods=["POST"]),
            Route(f"{git}/complete/{{upload}}", self.complete_upload, methods=["POST"]),
            Route("/{type:prefix}{namespace}/{name}/resolve/{revision}/{path:path}", self.resolve),
        ]
        return Starlette(routes=routes, exception_handlers={HubError: _refuse})

    def file_storage(self) -> Starlette:
        """What answers at the address of the storage."""
        object_ = "/{type:prefix}{namespace}/{name}/{oid}"
        routes = [
            Route(object_, self.download),
            Route(object_, self.upload, methods=["PUT"]),
            Route(f"{object_}/{{upload}}/{{part:int}}", self.upload_part, methods=["PUT"]),
        ]
        return Starlette(routes=routes, exception_handlers={HubError: _refuse})

    # Who asks, and for what

    def _access(self, request: Request) -> Access | None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if not kind:
            return None
        if kind == "Basic":  # as git has it: a token in the place of the password
            token = base64.b64decode(token).decode().partition(":")[2]
        if kind not in ("Bearer", "Basic") or token not in ACCESS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return ACCESS[token]

    def _user(self, request: Request) -> Access:
        access = self._access(request)
        if access is None:
            raise HubError(401, "Invalid username or password.")
        return access

    def _readable(self, request: Request, named: tuple[Type, str] | None = None) -> Repository:
        """The repository that a request is about, if it may be read; one that may not is as good as none."""
        access = self._access(request)
        repository = self.storage.find(*(named or _named(request)))
        if repository is None or (repository.private and (access is None or access.user != repository.owner)):
            raise HubError(404 if access else 401, "Repository not found", "RepoNotFound")
        return repository

    def _writable(self, request: Request, named: tuple[Type, str] | None = None) -> Repository:
        repository = self._readable(request, named)
        access = self._user(request)
        if not access.write or access.user != repository.owner:
            raise HubError(403, f"This token does not allow {access.user} to write to {repository.id}")
        return repository

    def _commit(self, request: Request, repository: Repository) -> Commit:
        return repository.commit(unquote(request.path_params.get("revision", "main")))

    # Users and repositories

    async def whoami(self, request: Request) -> Response:
        access = self._user(request)
        role = "write" if access.write else "read"
        token = {"displayName": f"a token to {role}", "role": role, "createdAt": now()}
        auth = {"type": "access_token", "accessToken": token}
        return JSONResponse({"type": "user", "id": access.user, "name": access.user, "orgs": [], "auth": auth})

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        try:
            found = front_matter(content)
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": f"Invalid YAML: {error}"}], "warnings": []}, 400)
        warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    async def create_repository(self, request: Request) -> Response:
        access = self._user(request)
        wanted = await request.json()
        namespace = wanted.get("organization") or access.user
        type_ = _type(wanted)
        if not access.write or namespace != access.user:
            raise HubError(403, f"This token does not allow {access.user} to make repositories of {namespace}")
        identifier = f"{namespace}/{wanted['name']}"
        about = {"url": f"{self.endpoint}/{PREFIXES[type_]}{identifier}", "name": identifier, "id": identifier}
        if self.storage.find(type_, identifier):
            return JSONResponse({"error": f"You already created this {type_} repo", **about}, 409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.storage.create(type_, identifier, access.user, bool(private))
        return JSONResponse(about)

    async def delete_repository(self, request: Request) -> Response:
        wanted = await request.json()
        namespace = wanted.get("organization") or self._user(request).user
        self.storage.delete(self._writable(request, (_type(wanted), f"{namespace}/{wanted['name']}")))
        return JSONResponse({})

    async def change_settings(self, request: Request) -> Response:
        repository = self._writable(request)
        wanted = await request.json()
        if "visibility" in wanted or "private" in wanted:
            repository.set(private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
        return JSONResponse({"private": repository.private})

    async def check_reading(self, request: Request) -> Response:
        self._readable(request)
        return JSONResponse({})

    async def check_writing(self, request: Request) -> Response:
        self._writable(request)
        return JSONResponse({})

    async def list_repositories(self, request: Request) -> Response:
        access, asked, type_ = self._access(request), request.query_params, request.path_params["type"]
        found = []
        for repository in self.storage.repositories(type_):
            if repository.private and (access is None or access.user != repository.owner):
                continue
            about = _description(repository, repository.commit("main"), blobs=False)
            if (
                set(asked.getlist("filter")) <= set(about["tags"])
                and asked.get("author") in (None, about["author"])
                and all(word.lower() in repository.id.lower() for word in asked.getlist("search"))
                and asked.get("pipeline_tag") in (None, about.get("pipeline_tag"))
            ):
                found.append(about)
        if asked.get("sort") in ("lastModified", "createdAt"):
            found.sort(key=lambda about: about[asked["sort"]], reverse=True)
        if asked.getlist("expand"):
            found = [{key: about.get(key) for key in ("id", *asked.getlist("expand"))} for about in found]
        else:
            left_out = [
                key
                for key, given in (("siblings", "full"), ("cardData", "cardData" if type_ == "model" else "full"))
                if asked.get(given, "").lower() not in ("true", "1")
            ]
            found = [{key: value for key, value in about.items() if key not in left_out} for about in found]
        return self._page(request, found, int(asked.get("limit", PAGE)))

    async def repository_info(self, request: Request) -> Response:
        repository = self._readable(request)
        about = _description(repository, self._commit(request, repository), "blobs" in request.query_params)
        if expand := request.query_params.getlist("expand"):
            about = {key: about.get(key) for key in ("id", *expand)}
        return JSONResponse(about)

    # Branches, tags, commits, trees

    async def list_refs(self, request: Request) -> Response:
        repository = self._readable(request)
        answer: dict[str, list[dict[str, str]]] = {"converts": [], "pullRequests": []}
        for key, kind in (("branches", "heads"), ("tags", "tags")):
            answer[key] = [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
                for name, commit in repository.refs(kind).items()  # type: ignore[arg-type]
            ]
        return JSONResponse(answer)

    async def create_branch(self, request: Request) -> Response:
        repository = self._writable(request)
        branch = unquote(request.path_params["branch"])
        if branch.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a branch: {branch}")
        if branch in repository.refs("heads"):
            raise HubError(409, f"Reference already exists: {branch}")
        start = (await request.json()).get("startingPoint", "main") if await request.body() else "main"
        repository.set_ref("heads", branch, repository.commit(start).id)
        return JSONResponse({})

    async def delete_branch(self, request: Request) -> Response:
        repository = self._writable(request)
        branch = unquote(request.path_params["branch"])
        if branch == "main":
            raise HubError(403, "The branch main cannot be deleted")
        repository.delete_ref("heads", branch)
        return JSONResponse({})

    async def create_tag(self, request: Request) -> Response:
        repository = self._writable(request)
        tag = (await request.json())["tag"]
        if tag in repository.refs("tags"):
            raise HubError(409, f"Tag reference exists already: {tag}")
        repository.set_ref("tags", tag, self._commit(request, repository).id)
        return JSONResponse({})

    async def delete_tag(self, request: Request) -> Response:
        self._writable(request).delete_ref("tags", unquote(request.path_params["tag"]))
        return JSONResponse({})

    async def list_commits(self, request: Request) -> Response:
        repository = self._readable(request)
        revision = self._commit(request, repository).id
        commits = [
            {
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.user}],
                "date": commit.date,
            }
            for commit in repository.history(revision)
        ]
        return self._page(request, commits)

    async def list_tree(self, request: Request) -> Response:
        repository = self._readable(request)
        commit = self._commit(request, repository)
        inside = unquote(request.path_params.get("path", "")).strip("/")
        entries = _entries(commit)
        if inside and entries.get(inside, {}).get("type") != "directory":
            raise HubError(404, f"{inside} does not exist on {commit.id}", "EntryNotFound")
        start = f"{inside}/" if inside else ""
        deep = request.query_params.get("recursive", "").lower() in ("true", "1")
        found = [
            entry
            for path, entry in entries.items()
            if path.startswith(start) and (deep or "/" not in path.removeprefix(start))
        ]
        return self._page(request, found)

    async def describe_paths(self, request: Request) -> Response:
        repository = self._readable(request)
        entries = _entries(self._commit(request, repository))
        if request.headers.get("content-type", "").startswith("application/json"):
            paths = (await request.json())["paths"]
        else:
            paths = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([entries[path.strip("/")] for path in paths if path.strip("/") in entries])

    def _page(self, request: Request, entries: Sequence[Any], length: int = PAGE) -> Response:
        """A part of a list, with where the next part is."""
        length = max(1, min(length, PAGE))
        start = int(request.query_params.get("cursor", 0))
        headers = {}
        if start + length < len(entries):
            asked = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
            following = urlencode([*asked, ("cursor", start + length)])
            headers["Link"] = f'<{self.endpoint}{request.url.path}?{following}>; rel="next"'
        return JSONResponse(list(entries[start : start + length]), headers=headers)

    # Commits that are made

    async def preupload(self, request: Request) -> Response:
        repository = self._writable(request)
        _no_pull_request(request)
        commit = self._commit(request, repository)
        answers = []
        for asked in (await request.json())["files"]:
            sample = base64.b64decode(asked.get("sample", ""))
            mode = repository.upload_mode(commit, asked["path"], asked["size"], sample)
            answer = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            if present := commit.files.get(asked["path"]):
                answer["oid"] = present.sha256 if present.lfs else present.oid
            answers.append(answer)
        return JSONResponse({"commitOid": commit.id, "files": answers})

    async def commit(self, request: Request) -> Response:
        repository, user = self._writable(request), self._user(request).user
        _no_pull_request(request)
        header: dict[str, str] = {}
        change = Change()
        # Everything is read before anything is done: a body that is cut leaves nothing behind.
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                header = value
            elif operation["key"] == "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error as error:
                    raise HubError(400, f"The content of {value['path']} is not in base64: {error}") from None
                change.added[value["path"]] = repository.put_regular(content)
            elif operation["key"] == "lfsFile":
                change.added[value["path"]] = repository.lfs_file(value["oid"], value.get("size"))
            elif operation["key"] == "deletedFile":
                change.deleted.append(value["path"])
            elif operation["key"] == "deletedFolder":
                change.deleted_folders.append(value["path"].strip("/"))
            else:
                raise HubError(400, f"{operation['key']!r} is not something that a commit can do")
        # As git has it: the first line, and the rest.
        title, _, message = f"{header.get('summary', '')}\n\n{header.get('description', '')}".partition("\n")
        branch, parent = unquote(request.path_params["revision"]), header.get("parentCommit")
        commit = repository.add_commit(branch, change, title, message.strip(), user, parent)
        url = f"{self.endpoint}/{repository.path}/commit/{commit.id}"
        return JSONResponse({"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})

    # Large files: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md

    async def batch(self, request: Request) -> Response:
        repository = self._writable(request)
        asked = await request.json()
        if asked["operation"] != "upload" or asked.get("hash_algo", "sha256") != "sha256":
            raise HubError(422, "Only uploads by sha256 go through here")
        in_parts = "multipart" in asked.get("transfers", [])
        objects = [self._upload_actions(repository, one["oid"], one["size"], in_parts) for one in asked["objects"]]
        return JSONResponse({"transfer": "multipart" if in_parts else "basic", "objects": objects})

    def _upload_actions(self, repository: Repository, oid: str, size: int, in_parts: bool) -> dict[str, Any]:
        """What is to be done to upload an object: nothing if it is here."""
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if len(oid) != 64 or set(oid) - set("0123456789abcdef"):
            return {**answer, "error": {"code": 422, "message": f"{oid!r} is not a sha256"}}
        if repository.object(oid).exists():
            return answer
        address = f"{self.endpoint}/{repository.path}.git/info/lfs/objects"
        if in_parts and size > 2 * PART:
            upload = uuid.uuid4().hex
            parts = {
                f"{number:05}": self._signed("PUT", self.files, f"/{repository.path}/{oid}/{upload}/{number}")
                for number in range(1, -(-size // PART) + 1)
            }
            complete = self._signed("POST", self.endpoint, f"/{repository.path}.git/info/lfs/objects/complete/{upload}")
            up = {"href": f"{complete}&size={size}", "header": {"chunk_size": str(PART), **parts}}
        else:
            up = {"href": f"{self._signed('PUT', self.files, f'/{repository.path}/{oid}')}&size={size}", "header": {}}
        return {**answer, "actions": {"upload": up, "verify": {"href": f"{address}/verify", "header": {}}}}

    async def verify(self, request: Request) -> Response:
        repository = self._writable(request)
        asked = await request.json()
        repository.lfs_file(asked["oid"], asked["size"])
        return JSONResponse({})

    async def upload(self, request: Request) -> Response:
        repository, oid = self._signed_for(request), request.path_params["oid"]
        path = self.storage.uploads / uuid.uuid4().hex
        await _receive(request, path)
        repository.adopt(path, oid, int(request.query_params["size"]))
        return Response(headers={"ETag": f'"{oid}"'})

    async def upload_part(self, request: Request) -> Response:
        self._signed_for(request)
        folder = self.storage.uploads / f"{request.path_params['upload']}"
        folder.mkdir(exist_ok=True)
        aside = folder / uuid.uuid4().hex
        md5 = await _receive(request, aside)
        aside.replace(folder / str(request.path_params["part"]))
        return Response(headers={"ETag": f'"{md5}"'})

    async def complete_upload(self, request: Request) -> Response:
        repository = self._signed_for(request)
        asked = await request.json()
        folder = self.storage.uploads / request.path_params["upload"]
        whole = self.storage.uploads / uuid.uuid4().hex
        with whole.open("wb") as file:
            for part in sorted(asked["parts"], key=lambda part: part["partNumber"]):
                path = folder / str(part["partNumber"])
                content = path.read_bytes() if path.exists() else b""
                if hashlib.md5(content).hexdigest() != part["etag"].strip('"'):
                    raise HubError(400, f"InvalidPart: part {part['partNumber']} is not what was uploaded")
                file.write(content)
        repository.adopt(whole, asked["oid"], int(request.query_params["size"]))
        return JSONResponse({"success": True})

    # Files that are asked for

    async def resolve(self, request: Request) -> Response:
        repository = self._readable(request)
        commit = self._commit(request, repository)
        path = unquote(request.path_params["path"])
        headers = {"X-Repo-Commit": commit.id}
        if path not in commit.files:
            raise HubError(404, f"{path} does not exist on {commit.id}", "EntryNotFound", headers)
        file = commit.files[path]
        headers["ETag"] = f'"{file.oid}"'
        if not file.lfs:
            return FileResponse(repository.object(file.sha256), headers=headers, filename=Path(path).name)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        address = self._signed("GET", self.files, f"/{repository.path}/{file.sha256}")
        return RedirectResponse(f"{address}&filename={quote(Path(path).name)}", 302, headers)

    async def download(self, request: Request) -> Response:
        repository, oid = self._signed_for(request), request.path_params["oid"]
        if not repository.object(oid).exists():
            raise HubError(404, "NoSuchKey")
        name = request.query_params.get("filename", oid)
        return FileResponse(repository.object(oid), headers={"ETag": f'"{oid}"'}, filename=name)

    # Addresses that need no token

    def _signed(self, method: str, host: str, path: str) -> str:
        expires = int(time.time()) + SECONDS_SIGNED
        return f"{host}{path}?expires={expires}&signature={self._signature(method, path, expires)}"

    def _signature(self, method: str, path: str, expires: int) -> str:
        return hmac.new(self._secret, f"{method} {path} {expires}".encode(), "sha256").hexdigest()

    def _signed_for(self, request: Request) -> Repository:
        """The repository of an address, if this server gave it out for such a request."""
        method = "GET" if request.method == "HEAD" else request.method
        asked, path = request.query_params, request.url.path
        expires = int(asked.get("expires", 0))
        right = hmac.compare_digest(asked.get("signature", ""), self._signature(method, path, expires))
        if not right or expires < time.time():
            raise HubError(403, "AccessDenied: the address is not signed, or was too long ago")
        repository = self.storage.find(*_named(request))
        if repository is None:
            raise HubError(404, "NoSuchBucket")
        return repository


def _named(request: Request) -> tuple[Type, str]:
    """The type and the name of the repository that an address is of."""
    names = request.path_params
    return names["type"], f"{unquote(names['namespace'])}/{unquote(names['name'])}"


def _type(wanted: dict[str, Any]) -> Type:
    """The type of the repository that a body speaks of."""
    found = wanted.get("type") or "model"
    if found not in PREFIXES:
        raise HubError(400, f"There are no repositories of the type {found!r} here, only of {' and '.join(PREFIXES)}")
    return found


def _description(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    """What the hub says of a repository."""
    card = repository.card(commit)
    siblings = []
    for path, file in commit.files.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": file.size, "blobId": file.oid}
            if file.lfs:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
        siblings.append(sibling)
    settings = repository.settings
    about = {
        "_id": hashlib.sha1(repository.path.encode()).hexdigest()[:24],
        "id": repository.id,
        "author": repository.folder.parent.name,
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": settings["created"],
        "private": settings["private"],
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(repository.type, card),
        "cardData": card,
        "siblings": siblings,
        "usedStorage": sum(path.stat().st_size for path in (repository.folder / "objects").iterdir()),
    }
    if repository.type == "model":
        about |= {"modelId": repository.id, **{key: card.get(key) for key in ("pipeline_tag", "library_name")}}
    return about


def _tags(type_: Type, card: dict[str, Any]) -> list[str]:
    """What a repository can be found by: the tags of its card, and those that follow from the rest of it."""
    tags = [card[key] for key in ("library_name", "pipeline_tag") if type_ == "model" and card.get(key)]
    tags += _several(card.get("tags"))
    for key, start in TAGS[type_].items():
        tags += [f"{start}:{value}" for value in _several(card.get(key))]
    return list(dict.fromkeys([*map(str, tags), "region:us"]))


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """The files and the folders of a commit, by their paths."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in commit.files.items():
        for folder in reversed(Path(path).parents[:-1]):
            # git would name a tree by what is in it; no client looks at that.
            oid = hashlib.sha1(f"{commit.id} {folder}".encode()).hexdigest()
            entries.setdefault(folder.as_posix(), _entry("directory", folder.as_posix(), oid, 0))
        entries[path] = _entry("file", path, file.oid, file.size) | _lfs(file)
    return dict(sorted(entries.items()))


def _entry(kind: str, path: str, oid: str, size: int) -> dict[str, Any]:
    return {"type": kind, "oid": oid, "size": size, "path": path}


def _lfs(file: File) -> dict[str, Any]:
    if not file.lfs:
        return {}
    return {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}}


def _no_pull_request(request: Request) -> None:
    if "create_pr" in request.query_params:
        raise HubError(403, "There are no pull requests here")


async def _receive(request: Request, path: Path) -> str:
    """Write a body to a file, and say what its md5 is; no file is left if the body does not come to its end."""
    md5 = hashlib.md5()
    try:
        with path.open("wb") as file:
            async for chunk in request.stream():
                md5.update(chunk)
                file.write(chunk)
    except BaseException:
        path.unlink()
        raise
    return md5.hexdigest()


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode(), **error.headers}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, error.status, headers)


def control(hub: Hub, faults: Faults) -> Starlette:
    """How a test tells the server what is to go wrong, and asks what came."""

    async def read(request: Request) -> Response:
        return JSONResponse(faults.report())

    async def write(request: Request) -> Response:
        asked = await request.json()
        if asked["do"] == "fault":
            faults.faults.append(Fault(**asked["fault"]))
        elif asked["do"] == "clear":
            faults.clear()
        elif asked["do"] == "mend":
            faults.faults.clear()
        elif asked["do"] == "empty":
            faults.clear()
            hub.storage.clear()
        else:
            raise HubError(400, f"{asked['do']!r} is not something that this server can be told")
        return JSONResponse({})

    routes = [Route(CONTROL, read), Route(CONTROL, write, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HubError: _refuse})


def _by_port(apps: dict[int, ASGIApp]) -> ASGIApp:
    """One application for several ports.

    It is shown paths as they came: what is quoted in them (the / of a branch) must not be taken for more of the path.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("ascii")
        await apps[scope["server"][1]]({**scope, "path": path}, receive, send)

    return app


def _beside(control: ASGIApp, app: ASGIApp) -> ASGIApp:
    """An application, and the control of it, which has a path of its own."""

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (control if scope["path"] == CONTROL else app)(scope, receive, send)

    return both


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(128)
    return listening


def _leave_with_parent() -> None:
    """Stop when the process that holds the other end of standard input is no more."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds everything")
    parser.add_argument("--port", type=int, default=0, help="the port of the API; a free one if 0")
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()

    api, files = _listen(arguments.port), _listen(0)
    endpoint, storage = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (api, files))
    hub = Hub(Storage(arguments.root), endpoint, storage)
    connections = Connections()
    apps: dict[int, ASGIApp] = {api.getsockname()[1]: hub.api(), files.getsockname()[1]: hub.file_storage()}
    faults = Faults(_by_port(apps), connections)
    app = _beside(control(hub, faults), faults)
    config = uvicorn.Config(
        app, http=connections.protocol(), loop="asyncio", ws="none", lifespan="off", log_level="error"
    )
    sys.stdout.write(f"{endpoint.rsplit(':', 1)[1]}\n")
    sys.stdout.flush()
    if arguments.with_parent:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    uvicorn.Server(config).run(sockets=[api, files])


if __name__ == "__main__":
    main()
