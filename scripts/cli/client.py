"""The gateway's client, and the commands that ask about one job."""

from __future__ import annotations

import functools
import io
import ipaddress
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Self

import click
import httpx

from api.http.multipart import file_name
from common.domain.detection import LANGUAGE_MISMATCH, LANGUAGE_UNCERTAIN, MIXED_LANGUAGES
from common.domain.formats import DOCUMENT_TYPES, MEDIA_TYPES, SUBTITLES
from common.domain.languages import AUTO, LANGUAGES, language_code
from common.domain.moderation import Label
from common.domain.speakers import MAX_SPEAKERS, SpeakerCount
from common.domain.subtitles import LIMITS, Layout
from common.errors import (
    BadInput,
    GatewayLost,
    OptionConflict,
    OutOfRange,
    RequestRejected,
    SetupProblem,
)
from scripts.cli.cli import data_dir_option, load_settings, suggestion
from scripts.stack.running import find_owner, find_running

FORMATS = (*MEDIA_TYPES, *DOCUMENT_TYPES)
WAV = "wav"
WITH_TEXT = frozenset({"COMPLETED", "REVIEW"})
"""States of a job that has its whole text."""
ENDED = WITH_TEXT | {"FAILED", "CANCELLED"}
"""States of a job that changes no more by itself."""

CONNECT_S = 5.0
ANSWER_S = 60.0
"""How long a response may take beyond the wait that was asked for."""

WARNINGS = {
    "truncated": "the file is cut off; the part that is there was transcribed",
    "damaged": "damaged parts of the file were skipped",
    "gaps": "missing packets were replaced by silence",
    "header_size_wrong": "there is more audio than the file's header says; all was transcribed",
    "channels_inverted": "channels cancel each other out; one was inverted before mixing",
    "channels_left_out": "a channel holds loud noise; it was skipped where another holds speech",
    "one_channel": "it has one channel, so there are none to separate",
    "identical_channels": "channels have the same audio; it was transcribed once",
    "other_audio_track": "the default audio track has no speech; another was transcribed "
    "(--audio-track chooses one)",
    "clock_jumped": "the file's clock jumps, so times after the jump may differ from a player's",
    "no_speech": "nobody speaks in it",
    "speech_too_short": "it has too little speech to recognize a word with confidence",
    "doubtful_text": "all of its text is doubtful; see its segments' flags",
    "speech_without_text": "some speech in it has no text",
    "language_mismatch": "part of it is in another language than the requested one, so the text "
    "of that part is wrong; pass that language, or auto",
    "mixed_languages": "it has several languages; its text is in one of them",
    "language_uncertain": "its language could not be detected with confidence",
    "moderation_failed": "some segments could not be moderated; the text is complete",
    "diarization_failed": "in some of it the speakers are not known; the text is complete "
    "(steno retry ID tries again)",
    "enhancement_incomplete": "the language model gave no usable answer about some of it "
    "(steno retry ID tries again)",
    "refinement_failed": "new words of an edit or a rerun could not be moderated, or not be "
    "aligned to the audio (steno retry ID tries again)",
    "fewer_speakers": "fewer speakers were found than requested",
    "review_timed_out": "nobody approved its text in time (REVIEW_TIMEOUT)",
    "glossary_truncated": "not all words of its glossaries are hotwords: there was no room",
    "identification_failed": "its speakers could not be compared with the enrolled voices: "
    "VOICE_KEY is not set, or lacks the key that encrypted them",
    "identification_ambiguous": "a speaker is like enrolled voices of several names, so got none; "
    "voices of one person need one name",
    "nobody_enrolled": "nobody is enrolled, so nobody was identified",
    "channels_not_identified": "the channels are the speakers, so nobody was identified",
    "moderated_by_several_models": "the moderation model changed during the job; "
    "the manifest lists all of them",
}
"""Warnings of a result, in words."""

MOST_LANGUAGES = 3
"""How many languages are shown with their probabilities."""
MOST_FLAGGED = 5
"""How many flagged segments are listed with their times."""

Command = Callable[..., None]

Sent = Callable[[int], None]
"""Called with the number of bytes just sent; may raise to abort."""


class Gateway:
    """A gateway's batch API, one method a route; usable by several threads.

    ``address`` is its URL without ``/api/v1``; ``key`` is the API key to send.

    Raises, from every method:
        RequestRejected: the gateway said no; its detail is the message, ``details["status"]`` the
            status.
        GatewayLost: it is unreachable, or the connection broke.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address = address.rstrip("/")
        with self._errors():
            self._http = httpx.Client(
                base_url=f"{self.address}/api/v1",
                headers=shown(key),
                timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
                trust_env=not _is_here(self.address),  # never through a proxy
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def reach(self) -> None:
        """Raise `GatewayLost` unless the gateway responds."""
        with self._errors():
            self._http.head(f"{self.address}/healthz")

    def upload(
        self, path: Path, options: Mapping[str, str], sent: Sent = lambda _: None
    ) -> dict[str, Any]:
        """Stream a recording from disk; returns the response that accepted it.

        Raises:
            OSError: the file cannot be read.
        """
        with _Counted(path, sent) as file:
            files = {"file": (path.name, file, "application/octet-stream")}
            return self._json("POST", "/upload", data=dict(options), files=files)

    def status(self, job_id: str, wait_s: float = 0) -> dict[str, Any]:
        """A job's status; with ``wait_s`` (long poll), once it changes or after that time."""
        timeout = httpx.Timeout(ANSWER_S + wait_s, connect=CONNECT_S)
        params = {"wait": f"{wait_s:g}"} if wait_s else {}
        return self._json("GET", f"/status/{job_id}", params=params, timeout=timeout)

    def result(
        self, job_id: str, *, partial: bool = False, filter_profanity: bool | None = None
    ) -> dict[str, Any]:
        """A job's text; with ``partial``, what is there so far.

        Offending words are masked as ``filter_profanity`` says, or (None) as the upload did.
        """
        params = _given(partial=partial or None, filter_profanity=filter_profanity)
        return self._json("GET", f"/result/{job_id}", params=params)

    def stream(self, session_id: str) -> dict[str, Any]:
        """A live stream with its finals, also while it is open."""
        return self._json("GET", f"/streams/{session_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{job_id}/cancel")

    def retry(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{job_id}/retry")

    def approve(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{job_id}/approve")

    def transcript(self, job_id: str) -> tuple[dict[str, Any], str]:
        """The newest revision of a job's transcript, with all its words, and its ETag."""
        answer = self._send("GET", f"/jobs/{job_id}/transcript")
        return answer.json(), answer.headers["ETag"]

    def edit(
        self, job_id: str, edits: Sequence[Mapping[str, Any]], tag: str, note: str | None = None
    ) -> dict[str, Any]:
        """Edit the revision that has this ETag; returns the new one, without its text."""
        body = {"edits": list(edits), "note": note}
        headers = {"If-Match": tag}
        return self._json("PATCH", f"/jobs/{job_id}/transcript", json=body, headers=headers)

    def revisions(self, job_id: str) -> Iterator[dict[str, Any]]:
        """All revisions of a job's transcript, newest first, without their texts."""
        return self._pages(f"/jobs/{job_id}/revisions", "revisions")

    def difference(self, job_id: str, old: int, new: int) -> list[dict[str, Any]]:
        """What to change in one revision to get another."""
        params = {"old": old, "new": new}
        found = self._json("GET", f"/jobs/{job_id}/revisions/difference", params=params)
        changes: list[dict[str, Any]] = found["changes"]
        return changes

    def restore(
        self, job_id: str, revision: int, tag: str, note: str | None = None
    ) -> dict[str, Any]:
        """Restore an earlier revision, as an edit of the one that has this ETag."""
        path, headers = f"/jobs/{job_id}/revisions/{revision}/restore", {"If-Match": tag}
        return self._json("POST", path, json={"note": note}, headers=headers)

    def rerun(self, job_id: str, start_s: float, end_s: float, **wanted: Any) -> dict[str, Any]:
        """Transcribe a span again; returns the status of the job that does it."""
        body = {"start": start_s, "end": end_s, **wanted}
        return self._json("POST", f"/jobs/{job_id}/rerun", json=body)

    def delete(self, job_id: str) -> None:
        self._send("DELETE", f"/jobs/{job_id}")

    def jobs(self, **query: object) -> Iterator[dict[str, Any]]:
        """Jobs, newest first, asked for a page at a time; ``query`` as the gateway takes it."""
        return self._pages("/jobs", "jobs", **query)

    def search(self, **query: object) -> Iterator[dict[str, Any]]:
        """Where something was said, the best places first; ``query`` as the gateway takes it."""
        return self._pages("/search", "results", **query)

    def enhance(self, job_id: str, task: str, **wanted: Any) -> dict[str, Any]:
        """Have a language model work on a job's text, in a job of its own."""
        return self._json("POST", "/enhanced-ai", json={"job_id": job_id, "task": task, **wanted})

    def enhancement(self, enhanced_job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/enhanced-ai/{enhanced_job_id}")

    def enhanced_file(self, enhanced_job_id: str, ending: str) -> str:
        """The text that a language model made of a transcript, with its times, as a file."""
        path = f"/enhanced-ai/{enhanced_job_id}/download"
        return self._send("GET", path, params={"format": ending}).text

    def keys(self, tenant: str | None) -> list[dict[str, Any]]:
        """The keys of ``tenant``, by default the caller's own; for admins, like the next two."""
        found: list[dict[str, Any]] = self._json("GET", "/keys", headers=_of(tenant))["keys"]
        return found

    def create_key(self, tenant: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("POST", "/keys", json=wanted, headers=_of(tenant))

    def revoke_key(self, tenant: str | None, key_id: str) -> None:
        self._send("DELETE", f"/keys/{key_id}", headers=_of(tenant))

    def health(self) -> dict[str, Any]:
        return self._json("GET", f"{self.address}/health")

    @contextmanager
    def download(
        self,
        job_id: str,
        ending: str,
        *,
        flag: bool = False,
        layout: Mapping[str, Any] = {},
        filter_profanity: bool | None = None,
        redact: bool = False,
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """A result as a file: what the gateway calls it, and its content piece by piece.

        ``flag`` marks offending text, ``layout`` has the limits of cues (`Layout.of`),
        ``filter_profanity`` is as for `result`, ``redact`` covers offending words of the recording
        (``wav``).
        """
        params = _given(
            format=ending,
            flag=flag or None,
            filter_profanity=filter_profanity,
            redact=redact or None,
            **layout,
        )
        with (
            self._errors(),
            self._http.stream("GET", f"/download/{job_id}", params=params) as answer,
        ):
            _check(answer)
            yield _file_name(answer) or f"{job_id}.{ending}", answer.iter_bytes()

    def save(
        self,
        job_id: str,
        ending: str,
        target: Path,
        *,
        flag: bool = False,
        layout: Mapping[str, Any] = {},
    ) -> None:
        """`download` to ``target``, whole or not at all."""
        with self.download(job_id, ending, flag=flag, layout=layout) as (_, pieces):
            _write_atomically(target, pieces)

    def _pages(self, path: str, name: str, **query: object) -> Iterator[dict[str, Any]]:
        """The items of a list, called ``name``, which is requested a page at a time."""
        cursor: dict[str, str] = {}
        while True:
            page = self._json("GET", path, params={**query, **cursor})
            yield from page[name]
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._errors():
            answer = self._http.request(method, path, **request)
        _check(answer)
        return answer

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            document: dict[str, Any] = self._send(method, path, **request).json()
        except ValueError:
            raise RequestRejected(
                detail=f"{self.address} does not answer like a gateway of Stenopool", status=0
            ) from None
        return document

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.InvalidURL, UnicodeError) as error:  # the latter of a name that IDNA has not
            raise RequestRejected(
                detail=f"{self.address} is not a valid URL: {error}", status=0
            ) from error
        except httpx.UnsupportedProtocol as error:
            raise RequestRejected(
                detail=f"{self.address} is not an http(s) URL", status=0
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise GatewayLost(address=self.address, reason=reason) from error


def shown(key: str | None) -> dict[str, str]:
    """The headers that carry a key; none without a key.

    Raises:
        RequestRejected: it cannot be a key.
    """
    if not key:
        return {}
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise RequestRejected(detail="The API key contains invalid characters", status=0)
    return {"Authorization": f"Bearer {key}"}


def _of(tenant: str | None) -> dict[str, str]:
    return {"X-Tenant-Id": tenant} if tenant else {}


def _given(**params: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise refusal(answer.status_code, answer.reason_phrase, answer.read())


def refusal(status: int, phrase: str, content: bytes) -> RequestRejected:
    """The gateway's rejection, with its own detail if it gives one."""
    detail = f"The gateway answered {status} {phrase}"
    with suppress(ValueError, TypeError, KeyError):
        problem = json.loads(content)
        detail = str(problem["detail"])
        detail += suggestion(problem["value"], problem["allowed"].split(", "))
    if status == HTTPStatus.UNAUTHORIZED:
        detail += "; pass one with --key or STENO_API_KEY (steno keys create makes one)"
    return RequestRejected(detail=detail, status=status)


def passing(error: RequestRejected | GatewayLost) -> bool:
    """Whether the error is transient: worth a retry."""
    return isinstance(error, GatewayLost) or error.details["status"] in {
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }


class _Counted(io.FileIO):
    """A file that reports how much of it was read."""

    def __init__(self, path: Path, sent: Sent) -> None:
        super().__init__(path, "rb")
        self._sent = sent

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(-1 if size is None else size) or b""
        self._sent(len(piece))
        return piece


def _is_here(address: str) -> bool:
    host = httpx.URL(address).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file_name(answer: httpx.Response) -> str | None:
    """The name in Content-Disposition, without any folder."""
    sent = file_name(answer.headers.get("Content-Disposition", "").encode()) or ""
    name = PurePosixPath(sent.replace("\\", "/")).name
    return name if name not in {"", ".."} else None


def _write_atomically(target: Path, pieces: Iterator[bytes]) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
        part.chmod(0o666 & ~_umask())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def lines(result: Mapping[str, Any]) -> list[str]:
    """The text, one segment a line, as ``--format txt`` has it."""
    # A gateway of an earlier version knows no speakers.
    names = {it["id"]: it["name"] or it["id"] for it in result.get("speakers") or ()}
    return [
        f"{names[segment['speaker']]}: {text}" if segment.get("speaker") in names else text
        for segment in result["segments"]
        if (text := " ".join(segment["text"].split()))
    ]


def flagged(result: Mapping[str, Any]) -> str | None:
    """The flagged segments in words; None if there are none."""
    moderated = (result.get("moderation") or {}).get("results", ())
    line = [
        f"{clock(each['start'])} {each['label']}"
        for each in moderated
        if each["label"] != Label.CLEAN
    ]
    if not line:
        return None
    more = f" and {len(line) - MOST_FLAGGED} more" if len(line) > MOST_FLAGGED else ""
    return f"{plural(len(line), 'segment')} flagged: {', '.join(line[:MOST_FLAGGED])}{more}"


def plural(count: int, noun: str) -> str:
    """``1 word``, ``2 words``."""
    return f"{count} {noun}" + "s" * (count != 1)


def clock(seconds: float) -> str:
    """``7:05``, or ``1:07:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- the commands -----------------------------------------------------------------------------


def gateway_options(command: Command) -> Command:
    """Add the options that select the gateway: ``server``, ``key``, and the data directory."""
    command = data_dir_option(command)
    command = click.option(
        "--key", metavar="KEY", help="API key to send [STENO_API_KEY, GATEWAY_API_KEY]."
    )(command)
    return click.option(
        "--server",
        envvar="STENO_SERVER",
        metavar="URL",
        help="Gateway to use [STENO_SERVER, or the one of `steno up`].",
    )(command)


def with_gateway(command: Command) -> Command:
    """Add `gateway_options`, and pass the gateway that they select as ``gateway``."""

    @gateway_options
    @functools.wraps(command)
    def connected(server: str | None, key: str | None, **others: Any) -> None:
        with find_gateway(server, key) as gateway:
            command(gateway=gateway, **others)

    return connected


class LanguageParam(click.ParamType[str]):
    """A language as `language_code` takes it, or auto; converts to the code."""

    name = "language"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        wanted = value.strip().lower()
        code = AUTO if wanted == AUTO else language_code(wanted)
        if code is None:
            names = [AUTO, *LANGUAGES, *map(str.lower, LANGUAGES.values())]
            meant = suggestion(wanted, names) or ". Such as vi, en or auto"
            self.fail(f"{value!r} is not a Whisper language{meant}", param, ctx)
        return code


class LanguagesParam(LanguageParam):
    """Several languages, separated by commas; converts to their codes."""

    name = "languages"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = filter(str.strip, value.split(","))
        return ",".join(super(LanguagesParam, self).convert(name, param, ctx) for name in names)


class SpeakersParam(click.ParamType[dict[str, Any]]):
    """How many people speak: a number, a range, or auto; converts to the options of an upload."""

    name = "speakers"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        if value.strip().lower() == AUTO:
            return {"diarize": True}
        least, dash, most = value.strip().partition("-")
        if not least.isdecimal() or (dash and not most.isdecimal()):
            wanted = "auto, a number or a range such as 2-4; a FILE goes before --speakers"
            self.fail(f"{value!r} is not {wanted}", param, ctx)
        counts = (
            {"min_speakers": int(least), "max_speakers": int(most)}
            if dash
            else {"num_speakers": int(least)}
        )
        try:
            SpeakerCount.of(**counts)
        except (OutOfRange, OptionConflict):
            limit = f"between 1 and {MAX_SPEAKERS}" + ", the smaller first" * bool(dash)
            self.fail(f"{value!r} is not {limit}", param, ctx)
        return {"diarize": True, **counts}


job_id_argument = click.argument("job_id", metavar="ID")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the gateway's response.")
_masks = click.option(
    "--filter-profanity/--no-filter-profanity",
    default=None,
    help="Mask offensive words, or show them [as the job asked].",
)


def print_json(document: object) -> None:
    """Print what the gateway answered."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def find_gateway(server: str | None, key: str | None = None) -> Gateway:
    """The gateway that ``server`` names, or that of the stack that runs here.

    It is sent ``key``, or the key of the settings.

    Raises:
        SetupProblem: there is none.
    """
    settings = load_settings()
    key = key or settings.key.of_client
    if server:
        return Gateway(server, key)
    data_dir = settings.storage.data_dir.absolute()
    running = find_running(data_dir)
    if running is None and (owner := find_owner(data_dir)) is not None:
        raise SetupProblem(
            problem=f"Stenopool is starting or stopping in {data_dir} (process {owner})",
            remedy="Try again once it is up",
        )
    if running is None:
        raise SetupProblem(
            problem=f"Stenopool is not running in {data_dir}",
            remedy="Start it with: steno up; or pass --data-dir or --server of a running one",
        )
    return Gateway(running.address, key)


@click.command()
@job_id_argument
@json_option
@with_gateway
def status(gateway: Gateway, job_id: str, as_json: bool) -> None:
    """Show the status and progress of the job ID."""
    state = gateway.status(job_id)
    if as_json:
        print_json(state)
        return
    for name, value in _facts(state):
        click.echo(f"{name:<10} {value}")


def _facts(state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recording", recording_name(state)
    yield "status", state["status"]
    if state["status"] == "PENDING" and state["queue_position"] is not None:
        yield "queue", f"{state['queue_position']} before it"
    if state["status"] == "PROCESSING":
        more = "" if state["planned"] else " found so far"
        chunks = f"{state['chunks_completed']} of {state['chunks_total']} chunks{more}"
        yield "progress", f"{state['progress']} %, {state['stage']}, {chunks}"
    if state["eta_seconds"] is not None:
        yield "left", f"about {clock(state['eta_seconds'])}"
    languages = ",".join(state.get("languages", ())) or state["language"]
    asked = [f"{state['engine']} {state['model']}", f"language {languages}"]
    # A gateway of an earlier version does not have these.
    asked += [name for name in ("diarize", "identify") if state.get(name)]
    if state.get("channels", "mix") != "mix":
        asked.append(f"channels {state['channels']}")
    yield "asked for", ", ".join(asked)
    for name in ("created", "started", "completed"):
        if state[f"{name}_at"]:
            yield name, local_time(state[f"{name}_at"])
    for it in state.get("enhancements", ()):
        place = f"/api/v1/enhanced-ai/{it['enhanced_job_id']}"
        yield "enhanced", f"{it['task']} {it['status']}, at {place}"
    if state["error_message"]:
        yield "error", state["error_message"]
    for code in state["warnings"]:
        yield "warning", WARNINGS.get(code, code)


def warning(code: str, found: Mapping[str, Any]) -> str:
    """A result's warning in words, with the detected languages where it is about those."""
    meaning = WARNINGS.get(code, code)
    languages: Mapping[str, float] = found.get("language_probabilities") or {}
    if code not in {LANGUAGE_MISMATCH, MIXED_LANGUAGES, LANGUAGE_UNCERTAIN} or not languages:
        return meaning
    likeliest = sorted(languages.items(), key=lambda item: -item[1])[:MOST_LANGUAGES]
    return f"{meaning} ({', '.join(f'{each} {100 * p:.0f} %' for each, p in likeliest)})"


def spoken(result: Mapping[str, Any]) -> str:
    """The language of a result; of several, each with its share of the time with text."""
    segments = result["segments"]
    codes = {each.get("language") for each in segments}
    if len(codes) < 2:
        return str(result["language"])
    lengths = {
        code: sum(each["end"] - each["start"] for each in segments if each["language"] == code)
        for code in sorted(codes)
    }
    whole = sum(lengths.values()) or 1.0
    longest = sorted(codes, key=lambda code: -lengths[code])
    return ", ".join(f"{code} {100 * lengths[code] / whole:.0f} %" for code in longest)


def who_speaks(result: Mapping[str, Any]) -> Iterator[str]:
    """The speakers of a result, and what became of its channels, where these were asked for."""
    if result.get("speakers") is not None:
        yield plural(len(result["speakers"]), "speaker")
    manifest = result.get("manifest") or {}
    if manifest.get("options", {}).get("channels", "mix") != "mix":
        channels = manifest.get("channels")
        yield plural(len(channels), "channel") if channels else "channels mixed"


def recording_name(state: Mapping[str, Any]) -> str:
    """A job's recording in words: its filename, and its duration if known."""
    seconds = state["duration_seconds"]
    return f"{state['filename']} ({clock(seconds)})" if seconds else str(state["filename"])


def local_time(time: str) -> str:
    """A time of the gateway's in this machine's time zone, such as ``2026-01-31 09:05:00``."""
    return datetime.fromisoformat(time).astimezone().strftime("%F %T")


@click.command()
@job_id_argument
@click.option(
    "--partial", is_flag=True, help="Print what is there so far of a job that still runs."
)
@_masks
@json_option
@with_gateway
def result(
    gateway: Gateway, job_id: str, partial: bool, filter_profanity: bool | None, as_json: bool
) -> None:
    """Print the text of the finished job ID."""
    found = gateway.result(job_id, partial=partial, filter_profanity=filter_profanity)
    if as_json:
        print_json(found)
        return
    for line in lines(found):
        click.echo(line)
    for code in found["warnings"]:
        click.echo(f"steno: warning: {warning(code, found)}", err=True)
    if flags := flagged(found):
        click.echo(f"steno: {flags}", err=True)


def layout_options(command: Command) -> Command:
    """The options of `Layout.of`, which the command gets by name."""
    for name, kind, text in reversed(
        (
            ("max_line_width", int, "Characters of a line of subtitles"),
            ("max_line_count", int, "Lines of a cue; needs --max-line-width"),
            ("max_cue_seconds", float, "Longest cue, in s"),
            ("min_cue_seconds", float, "Shortest cue, in s, where a pause allows it"),
            ("max_cps", float, "Characters to read in a second"),
        )
    ):
        least, most = LIMITS[name]
        option = click.option(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar="N",
            help=f"{text} (srt, vtt), {least:g} to {most:g}.",
        )
        command = option(command)
    return command


def layout_of(limits: Mapping[str, Any], endings: Iterable[str]) -> dict[str, Any]:
    """The limits of cues that were given, for `Gateway.download`.

    Raises:
        click.UsageError: they are out of range, or no file has cues.
    """
    given = _given(**limits)
    try:
        Layout.of(**given)
    except BadInput as error:
        raise click.UsageError(error.message) from None
    if given and not any(ending in SUBTITLES for ending in endings):
        name = next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--{name} is of the cues of srt and vtt; choose such a format")
    return given


@click.command()
@job_id_argument
@click.option(
    "--format",
    "ending",
    type=click.Choice((*FORMATS, WAV)),
    help="Format to save [by the extension of --output, or txt]; wav saves the recording.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="File or folder to write to, - for stdout [named like the recording, here].",
)
@click.option(
    "--flag", is_flag=True, help="Prefix offensive text with its label (srt, vtt, docx, html)."
)
@layout_options
@_masks
@click.option(
    "--redact", is_flag=True, help="Save the recording with offensive words covered by a tone."
)
@with_gateway
def download(
    gateway: Gateway,
    job_id: str,
    ending: str | None,
    output: Path | None,
    flag: bool,
    filter_profanity: bool | None,
    redact: bool,
    **limits: Any,
) -> None:
    """Save the text or the recording of the finished job ID to a file.

    Existing files are overwritten; an existing recording only when --output names it.
    """
    ending = ending or _ending_of_download(output) or (WAV if redact else "txt")
    file = gateway.download(
        job_id,
        ending,
        flag=flag,
        layout=layout_of(limits, [ending]),
        filter_profanity=filter_profanity,
        redact=redact,
    )
    with file as (name, pieces):
        if output == Path("-"):
            for piece in pieces:
                click.echo(piece, nl=False)
            return
        folder = output if output is not None and output.is_dir() else None
        target = folder / name if folder else output or Path(name)
        if ending == WAV and target != output and target.exists():
            raise SetupProblem(
                problem=f"{target} exists, and may be the recording itself",
                remedy="Pass another file with --output",
            )
        _write_atomically(target, pieces)
        click.echo(target)


def _ending_of_download(output: Path | None) -> str | None:
    if output is None:
        return None
    return WAV if output.suffix.lower() == f".{WAV}" else ending_of(output)


def ending_of(path: Path) -> str | None:
    """The format by a filename's extension."""
    ending = path.suffix.removeprefix(".").lower()
    return ending if ending in FORMATS else None


@click.command()
@job_id_argument
@with_gateway
def cancel(gateway: Gateway, job_id: str) -> None:
    """Cancel the job ID. Finished chunks are kept for another run."""
    click.echo(f"{job_id} {gateway.cancel(job_id)['status']}")
