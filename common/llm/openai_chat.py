"""`Chat` over the chat completions of OpenAI's API, which most servers of language models have.

The package `openai` writes requests and reads events; its client's retries are off, as a step has
its own. All requests go through `common.net.egress`.

Answers are streamed: a server that stops in the middle of one is noticed by its silence, not only
by the time limit of the whole. Servers differ in what they accept beyond the core of the protocol.
What one of them rejects by name is left out, and it is not asked again for as long as the
`OpenAIChat` exists: keep one a process.

Errors contain no key and no text of the request: servers repeat these in their messages.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import httpcore

from common.domain.chat import Form, Message
from common.domain.webhooks import MAX_RETRY_AFTER_S, RETRIED, retry_after_s
from common.errors import (
    AnswerBroken,
    AnswerTruncated,
    AnswerWithheld,
    ChatRejected,
    ChatUnavailable,
    EnhancementOff,
    OutOfRange,
    StenoError,
    UrlRefused,
)
from common.llm.chat import Answer, Chat, cost_of
from common.net.egress import Egress, Outbound, parse_url
from common.settings import Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionChunk

CONNECT_S = 10.0
SILENCE_S = 60.0
"""How long a server may be silent in the middle of an answer."""
LAST_EVENTS_S = 5.0
"""How long to wait, after an answer is complete, for its number of tokens."""
BASE_BYTES = 500_000
TOKEN_BYTES = 1_000
"""The largest response: so much, and so much for each token of the answer (an event of 300 bytes
is usual)."""
TEMPERATURE = 0.2
"""Low, as answers are to keep to the facts; not 0, so that another attempt may answer otherwise."""
LONGEST_MESSAGE = 200
REPEATED = 12
"""A server's message that has so many characters in a row of the request's data is left out."""
REPEATED_OF_KEY = 6
MOST_TOKENS = 1_000_000_000
NAMES_PARAMETERS = frozenset({400, 422})
"""The statuses of requests with a parameter that the server does not know."""
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class ChatServer:
    """A server and the model to ask there; ``base_url`` such as http://ollama:11434/v1.

    Raises:
        UrlRefused, OutOfRange: the URL or the key can be none.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parse_url(self.base_url, "base_url")
        if self.key is not None and not _KEY.fullmatch(self.key):
            limit = "printable ASCII without spaces"
            raise OutOfRange(field="api_key", limit=limit, value=f"{len(self.key)} characters")

    @property
    def host(self) -> str:
        """Its name or address, as it is resolved; for messages and logs, too."""
        return parse_url(self.base_url).raw_host.decode("ascii")


def configured_server(settings: Settings) -> ChatServer:
    """The server that the settings name.

    Raises:
        EnhancementOff: they name none.
        UrlRefused, OutOfRange: as `ChatServer`.
    """
    wanted = settings.enhanced_ai
    if wanted.base_url is None:
        raise EnhancementOff(setting="ENHANCED_AI_BASE_URL")
    if wanted.model is None:
        raise EnhancementOff(setting="ENHANCED_AI_MODEL")
    key = None if wanted.api_key is None else wanted.api_key.get_secret_value()
    return ChatServer(wanted.base_url, wanted.model, key)


def open_chat(
    settings: Settings, override: ChatServer | None = None, *, model: str | None = None
) -> Chat:
    """The model of the settings, or that of ``override``, a tenant's own; ``model``: another one.

    The operator has chosen the host in the settings, so it is allowed even if it is not public; a
    tenant's is allowed as other URLs of clients are.

    Raises:
        EnhancementOff, UrlRefused, OutOfRange: as `configured_server`.
    """
    server = override or configured_server(settings)
    if model is not None:
        server = replace(server, model=model)
    chosen = server.host if override is None else None
    egress = Egress(settings.egress.allow, chosen=chosen)
    return OpenAIChat(
        server, egress, timeout_s=settings.enhanced_ai.timeout, of_tenant=override is not None
    )


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What a server accepts beyond the core of the protocol."""

    response_format: Literal["json_schema", "json_object"] | None = "json_schema"
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    has_temperature: bool = True
    counts_tokens: bool = True

    def without(self, complaint: str) -> _Dialect | None:
        """Without what a server's error names; None: it names none of it."""
        names = complaint.lower()
        if "max_completion_tokens" in names and self.length_field == "max_tokens":
            return replace(self, length_field="max_completion_tokens")
        if "temperature" in names and self.has_temperature:
            return replace(self, has_temperature=False)
        if "stream_options" in names and self.counts_tokens:
            return replace(self, counts_tokens=False)
        if any(word in names for word in ("response_format", "schema", "json_object", "grammar")):
            if self.response_format == "json_schema":
                return replace(self, response_format="json_object")
            if self.response_format == "json_object":
                return replace(self, response_format=None)
        return None

    def parameters(self, max_tokens: int, form: Form | None) -> dict[str, Any]:
        """The request's, apart from the model and the messages."""
        wanted: dict[str, Any] = {self.length_field: max_tokens, "stream": True}
        if self.has_temperature:
            wanted["temperature"] = TEMPERATURE
        if self.counts_tokens:
            wanted["stream_options"] = {"include_usage": True}
        if form is not None and self.response_format == "json_schema":
            schema = {"name": form.name, "schema": form.schema, "strict": form.is_strict}
            wanted["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form is not None and self.response_format == "json_object":
            wanted["response_format"] = {"type": "json_object"}
        return wanted


class OpenAIChat:
    """The model of one server. A ``timeout_s`` bounds a whole answer, all attempts included.

    ``of_tenant``: errors name the fields of a tenant's own server, not the settings.
    """

    def __init__(
        self,
        server: ChatServer,
        egress: Egress,
        *,
        timeout_s: float,
        silence_s: float = SILENCE_S,
        of_tenant: bool = False,
    ) -> None:
        self._server = server
        self._of_tenant = of_tenant
        self._egress = egress
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._dialect = _Dialect()

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, form: Form | None = None
    ) -> Answer:
        request, reply = _Request(messages, max_tokens, form), _Reply()
        started = time.monotonic()

        def elapsed_ms() -> int:
            return round((time.monotonic() - started) * 1000)

        try:
            asyncio.run(self._ask(request, reply))
            text = self._checked(reply, max_tokens)
        except StenoError as error:
            if reply.has_begun:
                error.cost = cost_of(reply.input_tokens, reply.output_tokens, elapsed_ms())
            raise
        return Answer(
            text=text,
            model=reply.model or self._server.model,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            elapsed_ms=elapsed_ms(),
        )

    async def _ask(self, request: _Request, reply: _Reply) -> None:
        """Receive the answer, complete or not."""
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                reply.limit, reply.end = limit, asyncio.get_running_loop().time() + self._timeout_s
                await self._attempts(request, reply)
        except UrlRefused as error:
            reason = str(error.details["reason"])
            raise UrlRefused(field=self._name("base_url"), reason=reason) from None
        except (TimeoutError, httpcore.TimeoutException):
            reason = "it did not complete its answer in time"
        except httpcore.ConnectError:
            reason = "it cannot be reached"
        except (httpcore.NetworkError, httpcore.ProtocolError):
            reason = "the connection broke"
        else:
            return
        if reply.finish_reason is not None:  # only its number of tokens is missing
            return
        # Without the cause, whose text may repeat what was sent.
        raise ChatUnavailable(host=self._server.host, reason=reason)

    async def _attempts(self, request: _Request, reply: _Reply) -> None:
        """Ask, in simpler ways if the server does not accept one; ``reply`` gets the answer."""
        from openai import APIError, APIStatusError

        host = self._server.host
        dialect = self._dialect
        async with self._client(request) as client:
            while True:
                try:
                    await self._receive(client, request, dialect, reply)
                    break
                except APIStatusError as error:
                    simpler = None
                    if error.status_code in NAMES_PARAMETERS:
                        simpler = dialect.without(f"{error.message} {error.body}")
                    if simpler is None:
                        raise self._translated(error, request) from None
                    dialect = simpler
                except APIError as error:  # sent as an event
                    # llama.cpp does so if JSON that meets a schema does not end in time.
                    reason = f"it ends with an error: {self._shown(error.message, request)}"
                    raise AnswerBroken(host=host, reason=reason) from None
                except (ValueError, RecursionError):  # they hold what was received
                    reason = "an event in it is not JSON in UTF-8"
                    raise AnswerBroken(host=host, reason=reason) from None
        if request.form is not None and not request.form.is_strict:
            # It may be this schema that the server does not accept.
            dialect = replace(dialect, response_format=self._dialect.response_format)
        self._dialect = dialect

    @asynccontextmanager
    async def _client(self, request: _Request) -> AsyncIterator[AsyncOpenAI]:
        from httpx2 import AsyncClient
        from openai import AsyncOpenAI

        from common.llm.transport import GuardedTransport

        server = self._server
        async with (
            Outbound(self._egress, timeout_s=self._timeout_s, connect_s=CONNECT_S) as outbound,
            AsyncClient(
                transport=GuardedTransport(
                    outbound,
                    host=server.host,
                    key=server.key,
                    max_bytes=BASE_BYTES + TOKEN_BYTES * request.max_tokens,
                ),
                follow_redirects=False,
                trust_env=False,
            ) as http,
        ):
            # The transport adds the key, and keeps all headers back that the package finds in the
            # environment.
            yield AsyncOpenAI(
                api_key="-",
                base_url=server.base_url,
                max_retries=0,
                timeout=self._timeout_s,
                http_client=http,
            )

    async def _receive(
        self, client: AsyncOpenAI, request: _Request, dialect: _Dialect, reply: _Reply
    ) -> None:
        messages: Any = [{"role": it.role, "content": it.content} for it in request.messages]
        stream: AsyncIterator[ChatCompletionChunk] = await client.chat.completions.create(
            model=self._server.model,
            messages=messages,
            **dialect.parameters(request.max_tokens, request.form),
        )
        async for chunk in stream:
            if reply.take(chunk):
                reply.wait(LAST_EVENTS_S if reply.finish_reason else self._silence_s)

    def _checked(self, reply: _Reply, max_tokens: int) -> str:
        """The text of a complete answer."""
        host = self._server.host
        # Servers may cut an answer in the middle of a letter that UTF-16 has two units for.
        units = "".join(reply.texts).encode("utf-16", "surrogatepass")
        text = units.decode("utf-16", "replace")
        if reply.finish_reason == "length":
            raise AnswerTruncated(limit=max_tokens)
        if reply.finish_reason == "content_filter":
            raise AnswerWithheld(host=host, reason="by its content filter")
        if reply.is_refusal and not text:
            raise AnswerWithheld(host=host, reason="the model refused")
        if reply.finish_reason is None:
            reason = "it is cut off" if reply.has_choices else "it has no choices"
            raise AnswerBroken(host=host, reason=reason)
        if reply.finish_reason != "stop":
            raise AnswerBroken(host=host, reason="it did not end as a text does")
        if not text.strip():
            raise AnswerBroken(host=host, reason="it is blank")
        return text

    def _translated(self, error: Any, request: _Request) -> StenoError:
        """The error of a response with this status."""
        host, status = self._server.host, error.status_code
        if status in RETRIED or status >= 500:
            asked = retry_after_s(error.response.headers.get("retry-after"), datetime.now(UTC))
            return ChatUnavailable(
                host=host,
                reason=f"it answered {status}{self._quoted(error, request)}",
                retry_after_s=None if asked is None else min(asked, MAX_RETRY_AFTER_S),
            )
        if 300 <= status < 400:
            reason = f"it answered {status}, and redirects are not followed; set its final address"
        elif status in {401, 403}:  # their messages show parts of the key
            reason = f"it answered {status}; check the key ({self._name('api_key')})"
        elif status == 404:
            reason = (
                f"it answered 404; check the address ({self._name('base_url')}) and the model"
                f" ({self._name('model')}){self._quoted(error, request)}"
            )
        else:
            reason = f"it answered {status}{self._quoted(error, request)}"
        return ChatRejected(host=host, reason=reason)

    def _name(self, field: str) -> str:
        """What whoever has set the server calls this field of it."""
        if self._of_tenant:
            return f"{field} of the tenant's server"
        return f"ENHANCED_AI_{field.upper()}"

    def _quoted(self, error: Any, request: _Request) -> str:
        body = error.body
        message = body.get("message") if isinstance(body, Mapping) else None
        return f": {self._shown(message, request)}" if isinstance(message, str) else ""

    def _shown(self, message: str, request: _Request) -> str:
        """A server's message on one line, without the key and without the request's data."""
        line = " ".join(message.split())[:LONGEST_MESSAGE]
        data = [form for it in request.messages if it.role == "user" for form in _forms(it.content)]
        key = [self._server.key or ""]
        if _repeats(line, data, REPEATED) or _repeats(line, key, REPEATED_OF_KEY):
            return "its message repeats the request"
        return "".join(letter for letter in line if letter.isprintable())


def _forms(text: str) -> list[str]:
    """How a server may write ``text``: as it is, as JSON in ASCII, and as Python shows it."""
    return [text, json.dumps(text), text.encode("unicode_escape").decode(), repr(text.encode())]


def _repeats(line: str, texts: Sequence[str], size: int) -> bool:
    pieces = {line[at : at + size] for at in range(max(1, len(line) - size + 1))}
    return any(len(piece) == size and piece in text for text in texts for piece in pieces)


@dataclass(frozen=True, slots=True)
class _Request:
    messages: Sequence[Message]
    max_tokens: int
    form: Form | None


@dataclass(slots=True)
class _Reply:
    """What has been received of an answer so far."""

    limit: asyncio.Timeout | None = None
    end: float = 0.0
    has_choices: bool = False
    is_refusal: bool = False
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the model has worked on it."""
        return self.has_choices or self.input_tokens is not None

    def wait(self, seconds: float) -> None:
        """Wait at most so long for more, and never beyond the end."""
        if self.limit is not None:
            self.limit.reschedule(min(self.end, asyncio.get_running_loop().time() + seconds))

    def take(self, chunk: ChatCompletionChunk) -> bool:
        """Keep what an event brings; whether it brings some of the answer, or ends it.

        The package does not validate events: a server may leave out or mistype any field.
        """
        model = getattr(chunk, "model", None)
        if isinstance(model, str):
            shown = "".join(letter for letter in model if letter.isprintable())
            self.model = shown[:LONGEST_MESSAGE] or self.model
        usage = getattr(chunk, "usage", None)
        self.input_tokens = _count(getattr(usage, "prompt_tokens", None), self.input_tokens)
        self.output_tokens = _count(getattr(usage, "completion_tokens", None), self.output_tokens)
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list) or not choices:
            return False
        self.has_choices = True
        delta = getattr(choices[0], "delta", None)
        text = getattr(delta, "content", None)
        if isinstance(text, str):
            self.texts.append(text)
        self.is_refusal = self.is_refusal or bool(getattr(delta, "refusal", None))
        finish_reason = getattr(choices[0], "finish_reason", None)
        if isinstance(finish_reason, str) and finish_reason:
            self.finish_reason = finish_reason
        # Reasoning models send their thoughts in fields of these names.
        thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        return bool(text or thought or self.finish_reason)


def _count(found: object, before: int | None) -> int | None:
    return found if isinstance(found, int) and 0 <= found <= MOST_TOKENS else before
