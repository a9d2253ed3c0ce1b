"""A small real HTTP server in a gateway's place, for what a real one rarely does: reject, vanish.

It takes uploads in, lets each job's status advance by one word of its script with every question,
and answers with the texts it was given.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

WHEN = "2026-01-01T10:00:0{}+00:00"


@dataclass
class ScriptedJob:
    """A job; ``states`` are what is left of its life, the last one stays."""

    job_id: str
    filename: str
    sha256: str
    options: dict[str, str]
    states: list[dict[str, Any]]
    texts: list[str]
    warnings: list[str]
    moderation: dict[str, Any] | None
    cancelled: bool = False

    def status(self) -> dict[str, Any]:
        change = self.states[0] if len(self.states) == 1 else self.states.pop(0)
        if self.cancelled:
            change = {"status": "CANCELLED"}
        return state(self.job_id, self.filename) | {"warnings": self.warnings} | change

    def result(self) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "status": self.states[-1].get("status", "COMPLETED"),
            "text": " ".join(self.texts),
            "word_count": len(" ".join(self.texts).split()),
            "duration_seconds": 8.0,
            "language": self.options.get("language", "vi"),
            "segments": [{"text": text} for text in self.texts],
            "moderation": self.moderation,
            "warnings": self.warnings,
        }


def state(job_id: str, filename: str) -> dict[str, Any]:
    """A status with everything in it, of a job that was just taken in."""
    return {
        "job_id": job_id,
        "status": "PENDING",
        "stage": "queued",
        "progress": 0,
        "chunks_completed": 0,
        "chunks_total": 0,
        "planned": True,
        "created_at": WHEN.format(0),
        "started_at": None,
        "completed_at": None,
        "error_message": None,
        "error_code": None,
        "eta_seconds": None,
        "queue_position": None,
        "warnings": [],
        "filename": filename,
        "engine": "faster-whisper",
        "model": "base",
        "language": "vi",
        "languages": [],
        "duration_seconds": 8.0,
    }


WORKING = {
    "status": "PROCESSING",
    "stage": "transcribing",
    "progress": 50,
    "eta_seconds": 2.0,
    "chunks_completed": 1,
    "chunks_total": 2,
    "started_at": WHEN.format(1),
}
DONE = {
    "status": "COMPLETED",
    "stage": "done",
    "progress": 100,
    "chunks_completed": 2,
    "chunks_total": 2,
    "started_at": WHEN.format(1),
    "completed_at": WHEN.format(4),
}


@dataclass
class ScriptedGateway:
    """The server. What it is to do next is set from outside, what was asked is kept."""

    states: list[dict[str, Any]] = field(default_factory=lambda: [{}, WORKING, DONE])
    states_of: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Another script for the jobs of recordings with these names."""
    warnings: list[str] = field(default_factory=list)
    moderation: dict[str, Any] | None = None
    hang_up: int = 0
    """Answer the next so many questions by closing the connection."""
    unavailable: int = 0
    """Answer the next so many questions with 503."""
    forget_uploads: bool = False
    """Read an upload and keep nothing of it."""
    cut_downloads: bool = False
    """End downloads half-way."""
    reject: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)
    """Status, body and its type to answer, by the path's beginning."""
    disposition: str = 'attachment; filename="talk.txt"'
    jobs: dict[str, ScriptedJob] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    queries: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """What was asked for about jobs, and how."""
    answering: threading.Lock = field(default_factory=threading.Lock)
    """Held for each answer: clients upload in several threads."""

    def __enter__(self) -> Self:
        handler = type("Handler", (_ScriptedHandler,), {"gateway": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take_in(self, form: dict[str, tuple[str | None, bytes]]) -> dict[str, Any]:
        filename, content = form.pop("file")
        job_id = f"00000000-0000-4000-8000-{len(self.jobs):012}"
        name = filename or ""
        self.jobs[job_id] = ScriptedJob(
            job_id,
            name,
            hashlib.sha256(content).hexdigest(),
            {field_name: value.decode() for field_name, (_, value) in form.items()},
            list(self.states_of.get(name, self.states)),
            [f"This is {name}.", "Over."],
            self.warnings,
            self.moderation,
        )
        accepted = {"job_id": job_id, "status": "PENDING"}
        return accepted | {"message": "", "estimated_time_seconds": None}


class _ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: ScriptedGateway

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        if self.path.endswith("/upload") and self.gateway.forget_uploads:
            while left:
                left -= len(self.rfile.read(min(left, 65_536)))
        self._answer(self.rfile.read(left))

    def _answer(self, body: bytes) -> None:
        with self.gateway.answering:
            self._answer_alone(self.gateway, body)

    def _answer_alone(self, gateway: ScriptedGateway, body: bytes) -> None:
        path = urlsplit(self.path).path.removeprefix("/api/v1")
        gateway.asked[path.split("/")[1]] += 1
        rejected = [each for each in gateway.reject if path.startswith(each)]
        if gateway.hang_up:
            gateway.hang_up -= 1
            self.close_connection = True
        elif gateway.unavailable:
            gateway.unavailable -= 1
            self._problem(503, "Postgres is unavailable; try again soon")
        elif rejected:
            self._send(*gateway.reject[rejected[0]])
        elif path == "/upload":
            self._json(gateway.take_in(_form(self.headers["Content-Type"], body)))
        else:
            self._answer_about_a_job(*path.split("/")[1:3])

    def _answer_about_a_job(self, what: str, job_id: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.gateway.queries.append((what, {name: values[0] for name, values in query.items()}))
        job = self.gateway.jobs.get(job_id)
        if job is None:
            self._problem(404, f"There is no job {job_id}")
        elif what == "download":
            self._download(job)
        elif what == "result":
            self._json(job.result())
        else:
            job.cancelled = job.cancelled or what == "jobs"
            self._json(job.status())

    def _download(self, job: ScriptedJob) -> None:
        ending = parse_qs(urlsplit(self.path).query)["format"][0]
        content = f"{ending} of {job.filename}\n".encode() * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Disposition", self.gateway.disposition)
        self.end_headers()
        if self.gateway.cut_downloads:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def _json(self, document: dict[str, Any]) -> None:
        self._send(200, json.dumps(document).encode(), "application/json")

    def _problem(self, code: int, detail: str) -> None:
        body = json.dumps({"detail": detail, "status": code}).encode()
        self._send(code, body, "application/problem+json")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _form(content_type: str, body: bytes) -> dict[str, tuple[str | None, bytes]]:
    message = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    found = {}
    for part in message.get_payload():
        assert not isinstance(part, str)
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(name, str)
        assert isinstance(content, bytes)
        found[name] = (part.get_filename(), content)
    return found
