"""A server of OpenAI's chat completions with scripted answers, for benchmarks and tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from scripts.bench.local_server import LocalServer

EVENTS = "text/event-stream"


def event(document: object) -> bytes:
    """A server-sent event with JSON."""
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def chunk(text: str | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    """An event with a piece of the answer, or its end."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"object": "chat.completion.chunk", "model": "m-1", "choices": [choice], **more})


USAGE = event(
    {"model": "m-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
)
DONE = b"data: [DONE]\n\n"


def written(text: str, finish_reason: str | None = "stop") -> list[bytes]:
    """The events of an answer, a few letters each."""
    pieces = [chunk(text[at : at + 20]) for at in range(0, len(text), 20)]
    end = [] if finish_reason is None else [chunk(finish_reason=finish_reason)]
    return [chunk(""), *pieces, *end, USAGE, DONE]


@dataclass
class Scripted:
    """One response.

    ``parts`` are written one after the other, and then ``endless`` again and again. Then the
    connection is closed, in the middle of the body if it ``is_cut``; if it ``hangs``, not before
    the server is.
    """

    parts: Iterable[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False
    hangs: bool = False
    endless: bytes = b""


def answer(text: str) -> Scripted:
    """A whole answer."""
    return Scripted(written(text))


def error(status: int, message: str, **headers: str) -> Scripted:
    """A refusal, in the form of OpenAI's API."""
    body = json.dumps({"error": {"message": message, "type": "made_up"}}).encode()
    return Scripted([body], status, {"content-type": "application/json", **headers})


@dataclass(frozen=True)
class SeenChat:
    """A request; the names of ``headers`` are in small letters."""

    path: str
    headers: Mapping[str, str]
    body: Any


class ChatScript(LocalServer):
    """Answers each request by ``respond``; ``seen`` are the requests."""

    def __init__(self, respond: Callable[[SeenChat], Scripted]) -> None:
        super().__init__(_Handler)
        self.respond = respond
        self.seen: list[SeenChat] = []

    @classmethod
    def of(cls, *responses: Scripted) -> ChatScript:
        """With these responses, in order; the last one again and again."""
        left = list(responses)
        return cls(lambda _: left.pop(0) if len(left) > 1 else left[0])

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatScript
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.loads(self.rfile.read(int(headers["content-length"])))
        seen = SeenChat(self.path, headers, body)
        self.server.seen.append(seen)
        scripted = self.server.respond(seen)
        self.send_response(scripted.status)
        for name, value in {"content-type": EVENTS, **scripted.headers}.items():
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for part in self._parts(scripted):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            if scripted.hangs:
                self.server.closing.wait()
            if not scripted.is_cut:
                self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:  # the client had enough
            pass

    def _parts(self, scripted: Scripted) -> Iterator[bytes]:
        yield from filter(None, scripted.parts)
        while scripted.endless and not self.server.closing.is_set():
            yield scripted.endless
            self.server.closing.wait(0.01)

    def log_message(self, *_: object) -> None:
        """Who asks reads `ChatScript.seen`."""
