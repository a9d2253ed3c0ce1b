"""Downloads of a hub repository's files over HTTP, each resumed where it was interrupted.

Not by `huggingface_hub`: it takes 65 s to give up on a stalled transfer, loses up to 10 MB when a
transfer breaks (it writes blocks of that size), rejects plain HTTP mirrors, and does not bound the
resolving of the host name.
"""

from __future__ import annotations

import queue
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from common.weights.manifest import FileSpec
from common.weights.transfer import (
    DownloadOptions,
    Meter,
    Progress,
    SourceFailed,
    check_file,
    human,
    is_whole,
)

_T = TypeVar("_T")

_FRUITLESS_ATTEMPTS = 2
"""A broken transfer is resumed until this many attempts in a row have brought no data."""


def fetch(
    repo: str,
    revision: str,
    files: Sequence[FileSpec],
    into: Path,
    network: DownloadOptions,
    progress: Progress,
    paths: Mapping[str, str] | None = None,
) -> None:
    """Download ``files`` to the folder ``into``, except those that it has whole.

    ``paths`` maps a file's name to its path in the repository, where the two differ. Files are
    checked against the manifest's hash, or else against the one that the hub states.

    Raises:
        SourceFailed: the hub is unavailable, lacks a file, stalls, or sent a wrong file.
    """
    from huggingface_hub import constants, get_token

    if network.hub_endpoint is None and constants.HF_HUB_OFFLINE:
        raise SourceFailed("HF_HUB_OFFLINE is set")
    endpoint = network.hub_endpoint or constants.ENDPOINT
    _require_connection(endpoint, network.connect_timeout_s)
    timeout = httpx.Timeout(network.stall_timeout_s, connect=network.connect_timeout_s)
    # a compressed transfer could not be resumed at a file's offset
    headers = {"accept-encoding": "identity"}
    if token := get_token():
        headers["authorization"] = f"Bearer {token}"
    meter = Meter(progress, sum(file.size or 0 for file in files))
    with httpx.Client(timeout=timeout, headers=headers, follow_redirects=True) as client:
        for file in files:
            target = into / file.name
            if is_whole(target, file):
                meter.add(target.stat().st_size)
                continue
            path = quote((paths or {}).get(file.name, file.name))
            url = f"{endpoint}/{repo}/resolve/{quote(revision, safe='')}/{path}"
            meter.what = file.name
            digest = _FileDownload(client, url, target, file.size, meter).run()
            check_file(target, file.size, file.sha256 or digest)


class _FileDownload:
    """The download of one file, through a `.part` file beside its target."""

    def __init__(
        self, client: httpx.Client, url: str, target: Path, size: int | None, meter: Meter
    ) -> None:
        self._client = client
        self._url = url
        self._target = target
        self._part = target.with_name(target.name + ".part")
        self._size = size
        self._meter = meter
        self._base = meter.done

    def run(self) -> str | None:
        """Download the file; returns the hash that the hub states for it, if any."""
        fruitless = 0
        while True:
            before = self._length()
            try:
                stated = self._transfer(before)
                self._part.replace(self._target)
            except httpx.HTTPError as problem:
                fruitless = 0 if self._length() > before else fruitless + 1
                if fruitless >= _FRUITLESS_ATTEMPTS or isinstance(problem, httpx.TimeoutException):
                    raise SourceFailed(_why(problem)) from problem
            except OSError as problem:
                raise SourceFailed(f"cannot be written: {problem}") from problem
            else:
                return stated

    def _length(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _transfer(self, have: int) -> str | None:
        headers = {"range": f"bytes={have}-"} if have else {}
        with self._client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if have == self._size:  # interrupted after the last byte
                    return _stated_hash(response)
                self._part.unlink()
                raise httpx.RemoteProtocolError("the server cannot resume")
            if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                raise SourceFailed(f"it answers {response.status_code}")
            if response.status_code == httpx.codes.OK:
                have = 0
            length = int(response.headers.get("content-length", 0))
            self._require_space(length)
            self._meter.move_to(self._base + have)
            with self._part.open("ab" if have else "wb") as file:
                # unbuffered: blocks of one size would lose data when the connection breaks
                for block in response.iter_raw():
                    self._meter.add(file.write(block))
            return _stated_hash(response)

    def _require_space(self, size: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if size > free:
            raise SourceFailed(f"it needs {human(size)} of disk space, {human(free)} are free")


def _stated_hash(response: httpx.Response) -> str | None:
    """The SHA-256 of a large file, from the hub's redirect or answer."""
    for answer in (*response.history, response):
        tag: str = answer.headers.get("x-linked-etag", "").strip('"')
        if len(tag) == 64:
            return tag
    return None


def _why(problem: httpx.HTTPError) -> str:
    match problem:
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return "unreachable"
        case httpx.ReadTimeout():
            return "the transfer stalled"
        case _:
            return f"the connection broke ({problem})"


def _require_connection(url: str, within_s: float) -> None:
    """Check within a time limit that a host's name resolves and that it accepts connections.

    httpx bounds neither: without an answering name server the resolver waits up to half a minute,
    and the connect timeout applies to each address anew. A proxy is left to do both.

    Raises:
        SourceFailed: the host is unreachable.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if parts.hostname is None or parts.scheme in proxies or "all" in proxies:
        return
    deadline = time.monotonic() + within_s
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    addresses = _first_success(
        [lambda: socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)], deadline
    )
    if addresses is None:
        raise SourceFailed("its host name cannot be resolved")

    def connect(family: int, address: Any) -> bool:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(within_s)
            connection.connect(address)
        return True

    attempts = [partial(connect, family, address) for family, *_, address in addresses]
    if _first_success(attempts, deadline) is None:
        raise SourceFailed("unreachable")


def _first_success(attempts: Sequence[Callable[[], _T]], deadline: float) -> _T | None:
    """The first result of concurrent ``attempts`` by ``deadline``; None where all fail."""
    results: queue.SimpleQueue[_T | None] = queue.SimpleQueue()

    def run(attempt: Callable[[], _T]) -> None:
        try:
            results.put(attempt())
        except OSError:
            results.put(None)

    for attempt in attempts:
        # a daemon: a hanging resolver must not keep the process from ending
        threading.Thread(target=run, args=(attempt,), daemon=True).start()
    for _ in attempts:
        try:
            result = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if result is not None:
            return result
    return None
