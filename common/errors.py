"""Every error that people or clients can see, in one tree.

A class owns its message (the docstring, a format string over the keyword arguments), its stable
``code`` and its HTTP status. `Transient` failures are retried; all others are final.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar


class StenoError(Exception):
    """An internal error occurred"""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init_subclass__(cls, *, code: str | None = None, status: int | None = None) -> None:
        """``code`` and ``status``: those of the base class unless they are given."""
        super().__init_subclass__()
        cls.code = code or cls.code
        cls.status = status or cls.status

    cost: Mapping[str, int] | None = None
    """What was used up before it happened, such as tokens; kept with a step's failed attempt."""

    def __init__(self, **details: object) -> None:
        self.details = details
        super().__init__(" ".join((type(self).__doc__ or "").split()).format(**details))

    def __reduce__(self) -> tuple[Callable[[], StenoError], tuple[()], dict[str, Any]]:
        return partial(type(self), **self.details), (), self.__dict__

    @property
    def message(self) -> str:
        """The text for everybody, clients included."""
        return str(self.args[0])


class Transient(StenoError, code="transient", status=503):
    """A temporary failure: {reason}"""

    counts: ClassVar[bool] = True
    """Whether a step's attempt that failed so counts towards MAX_RETRIES; else the step waits."""

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that a server asks to wait for before another attempt; None: it does not say."""
        asked = self.details.get("retry_after_s")
        return asked if isinstance(asked, float) else None


class BadInput(StenoError, code="bad_input", status=400):
    """The request is invalid"""


# --- errors in a request ---------------------------------------------------------------------


class Malformed(BadInput, code="malformed"):
    """The request is malformed: {reason}"""


class UnknownOption(BadInput, code="unknown_option", status=422):
    """{field} must be one of {allowed}; got {value!r}"""


class OutOfRange(BadInput, code="out_of_range", status=422):
    """{field} must be {limit}; got {value!r}"""


class TooLittleSpeech(OutOfRange):
    """{speaker} has {value:g} s of usable speech, and {limit:g} s are needed.

    Enrol this person from a recording in which they speak alone for about a minute
    """


class OptionConflict(BadInput, code="option_conflict", status=422):
    """{field}={value} needs {needed}"""


class FieldMissing(BadInput, code="missing", status=422):
    """{field} is missing"""


class ModelNotInstalled(BadInput, code="weights_missing", status=422):
    """{model} is not installed, {here} are; run: steno models pull {model} --engine {engine}"""


class ModelUnusable(BadInput, code="weights_unusable", status=422):
    """{field}={value} of {engine} cannot be used: {reason}"""


class Unauthorised(BadInput, code="unauthorised", status=401):
    """{reason}"""


class Forbidden(BadInput, code="forbidden", status=403):
    """{reason}"""


class LinkInvalid(Forbidden, code="link_invalid"):
    """The link is not valid: {reason}; request a new one"""


class LinkExpired(Forbidden, code="link_expired"):
    """The link expired at {value}; request a new one"""


class OverLimit(BadInput, code="over_limit", status=429):
    """The API key's limit is reached: {field} {limit}; try again in {retry_after_s} s"""


class RateLimited(OverLimit, code="rate_limited"):
    """The API key is limited to {limit} requests a {period}; try again in {retry_after_s} s"""


class TooManyJobs(OverLimit, code="too_many_jobs"):
    """The API key is limited to {limit} jobs at once; try again when one has ended"""


class TooManyStreams(OverLimit, code="too_many_streams"):
    """The API key is limited to {limit} live streams at once; try again when one has ended"""


class TooMuchAudio(OverLimit, code="too_much_audio"):
    """The API key is limited to {limit:g} hours of audio a day (UTC); this would make {value:g}"""


class Stalled(BadInput, code="stalled", status=408):
    """No data arrived for {limit_s} s; the request was not complete"""


class Idle(BadInput, code="idle", status=408):
    """No data arrived for {limit_s:g} s; send KeepAlive messages to keep a silent WebSocket open"""


class SlowReader(BadInput, code="slow_reader", status=408):
    """The client did not read the stream's messages for {limit_s:g} s"""


class NotPcm(BadInput, code="not_pcm", status=415):
    """The audio is a {value} file; send raw PCM: 16 bit, little endian, mono, 16 kHz"""


class TooFast(BadInput, code="too_fast", status=429):
    """The audio arrived faster than it is transcribed for {limit_s:g} s; upload recordings"""


class TooLong(BadInput, code="too_long", status=413):
    """A live stream is limited to {limit:g} hours"""


class Unsupported(BadInput, code="unsupported_option", status=422):
    """{field} is not supported"""


class Misnamed(Unsupported):
    """{field} is not supported; did you mean {nearest}?"""


class TooLarge(BadInput, code="too_large", status=413):
    """{field} is limited to {limit}; got {value}"""


class NotAudio(BadInput, code="not_audio", status=415):
    """file has no audio that can be decoded: {reason}"""


class EncodedBody(BadInput, code="encoded_body", status=415):
    """The body must not have a {field}; got {value!r}"""


class UrlRefused(BadInput, code="url_refused", status=422):
    """{field} is rejected: {reason}"""


class NotFound(BadInput, code="not_found", status=404):
    """There is no {what} {value}"""


class NotReady(BadInput, code="not_ready", status=409):
    """The job is {status_now}; its result is available when it is COMPLETED"""


class NotPlanned(BadInput, code="not_ready", status=409):
    """The job is {status_now}, and has peaks once it is planned; try again in {retry_after_s} s"""


class StaleRevision(BadInput, code="stale_revision", status=412):
    """The transcript is at revision {newest}, not at {value}: read it again and redo the change"""


class GlossaryChanged(BadInput, code="glossary_changed", status=412):
    """The glossary has changed; read it again and redo the change"""


class PreconditionMissing(BadInput, code="precondition_missing", status=428):
    """If-Match is missing; send the ETag of the transcript that you have changed"""


class JobStillRunning(BadInput, code="still_under_way", status=504):
    """Job {job_id} is still {status_now}; get its text later from GET /api/v1/result/{job_id}"""


class Conflict(BadInput, code="conflict", status=409):
    """{reason}"""


class TextsMissing(Conflict, code="no_text"):
    """These jobs have no text: {job_ids}"""


class NoSpeakers(Conflict):
    """The job has no speakers: it was sent without diarize=true, or no channels were separated"""


class JobKindUnknown(BadInput, code="job_kind_unknown", status=409):
    """The job is of the kind {kind}, which this version does not know"""


class IdempotencyConflict(BadInput, code="idempotency_conflict", status=409):
    """{field} {value} was already used for a different request"""


# --- failures of the service ------------------------------------------------------------


class Unavailable(Transient, code="unavailable"):
    """{what} is unavailable; try again soon"""

    counts = False
    logged: ClassVar[str] = "{what} is unavailable: {reason}"

    def __init__(
        self, *, reason: str | None = None, final: bool = False, **details: object
    ) -> None:
        """``reason`` is for logs, never for clients; ``final``: waiting will not help."""
        super().__init__(**details)
        self.reason = reason
        self.final = final

    def __str__(self) -> str:
        if self.reason is None:
            return self.message
        return self.logged.format(**self.details, reason=self.reason)


class Busy(Transient, code="busy"):
    """{what} is busy; try again soon"""


class PeaksPending(Transient, code="peaks_pending"):
    """The recording is being read; try again soon"""


class StreamsFull(Transient, code="streams_full"):
    """All {limit} live streams of {engine} are in use; try again soon"""


class Restarting(Transient, code="restarting"):
    """The gateway is restarting; try again soon"""


class NotMigrated(Unavailable):
    """The database is at {found}, and this version needs {newest}: {remedy}"""


class SecretsLocked(Transient, code="secrets_locked"):
    """The webhooks' secrets cannot be decrypted: SECRETS_KEY lacks the key that encrypted them"""


class VoicesLocked(Transient, code="voices_locked"):
    """The embeddings of voices cannot be decrypted: {cause}"""


class OutcomeUnknown(Unavailable):
    """{what} became unavailable during a commit; check whether it succeeded once it is back"""

    logged = "{what} became unavailable during a commit: {reason}"


class DatabaseReadOnly(Unavailable):
    """{what} is read-only at the moment; try again soon"""

    logged = "{what} is read-only: {reason}"


class DatabaseFull(Unavailable):
    """{what} has no disk space left; try again when there is some"""

    logged = "{what} has no disk space left: {reason}"


class StorageFull(Transient, code="storage_full"):
    """The storage is full; try again when there is space"""

    counts = False


class RecordingLost(StenoError, code="recording_lost"):
    """The job's recording is missing from the storage"""


class ChunkAudioLost(StenoError, code="sound_lost"):
    """The audio of chunk {index} is missing, and its source has changed; retry the job"""


class EngineFailed(Transient, code="engine_failed"):
    """The engine failed: {reason}"""


class RecognizerUnusable(StenoError, code="recognizer_unusable", status=503):
    """{engine} {model} cannot transcribe live streams: {reason}"""


class WorkerLost(Transient, code="worker_lost"):
    """The worker process was lost: {reason}"""


class LeaseExpired(WorkerLost):
    """The worker process was lost: its lease ran out"""


class ChunkTimedOut(Transient, code="timed_out"):
    """The step exceeded its limit of {limit_s} s"""


class FetchFailed(StenoError, code="fetch_failed", status=422):
    """The recording cannot be fetched from {host}: {reason}"""


class FetchInterrupted(Transient, code="fetch_failed"):
    """Fetching the recording from {host} failed: {reason}"""


class SourceRetried(Transient, code="source_retried"):
    """The job whose transcript this one changes is being retried; this one waits until that ends"""

    counts = False


class NoSpeech(StenoError, code="no_speech", status=422):
    """No speech was recognized from {start} s to {end} s: the transcript stays as it is"""


class DecodeFailed(StenoError, code="decode_failed", status=422):
    """The recording cannot be decoded: {reason}"""


class WeightsMissing(StenoError, code="weights_missing", status=503):
    """{model} for {engine} is not installed; run: steno models pull {model} --engine {engine}"""


class WeightsCorrupt(StenoError, code="weights_corrupt", status=503):
    """{path} has the wrong hash (sha256 {found}, expected {expected}); delete it and pull again"""


class WeightsUnusable(StenoError, code="weights_unusable", status=503):
    """{model} for {engine} cannot be used: {reason}"""


class PullFailed(StenoError, code="pull_failed", status=503):
    """The weights {model} could not be fetched from any source: {reason}"""


class ModelFetchFailed(Transient, code="pull_failed"):
    """The weights {model} could not be fetched: {reason}"""


class ModerationFailed(Transient, code="moderation_failed"):
    """The moderation model failed: {reason}"""


class ModerationUnusable(StenoError, code="moderation_unusable", status=503):
    """The moderation model in {path} cannot be used: {reason}"""


class ModerationOff(StenoError, code="moderation_off", status=503):
    """Moderation is disabled (AI_LOAD_MODELS=false)"""


class SetupProblem(StenoError, code="setup"):
    """{problem}. {remedy}"""


class InUse(SetupProblem, code="in_use"):
    """{problem}. {remedy}"""


# --- the second AI step -----------------------------------------------------------------------


class EnhancementOff(BadInput, code="enhancement_off", status=422):
    """No language model is configured; set {setting}"""


class SchemaRefused(BadInput, code="schema_refused", status=422):
    """{field} is rejected: {reason}"""


class NotModerated(Transient, code="not_moderated"):
    """The last change of the transcript is not moderated yet, so it cannot be masked"""

    counts = False


class TextMissing(BadInput, code="text_missing", status=409):
    """The transcript has no text"""


class ContextTooSmall(BadInput, code="context_too_small", status=422):
    """{what} takes about {value} tokens, and {limit} are left for it in a context of {context}"""


class ChatServerChanged(StenoError, code="chat_server_changed", status=409):
    """It was to be done by {value}, which is no longer the tenant's server: request it again"""


class ChatKeyLocked(Transient, code="chat_key_locked"):
    """The api_key of the tenant's language model server cannot be decrypted: {cause}"""


class ChatUnavailable(Transient, code="chat_unavailable"):
    """The language model's server {host} is unavailable: {reason}"""


class ChatRejected(StenoError, code="chat_rejected", status=502):
    """The language model's server {host} rejected the request: {reason}"""


class AnswerBroken(Transient, code="answer_broken"):
    """The answer of the language model's server {host} cannot be read: {reason}"""


class AnswerTruncated(Transient, code="answer_truncated"):
    """The language model did not end its answer within {limit} tokens"""


class AnswerWithheld(StenoError, code="answer_withheld", status=422):
    """The language model's server {host} withheld the answer: {reason}"""


class AnswerRejected(Transient, code="answer_rejected"):
    """The language model's answer is rejected: {reason}"""


class EnhancementFailed(StenoError, code="enhancement_failed", status=502):
    """The language model answered none of {count} request(s) usably; the last error: {reason}"""


# --- errors of a client of the gateway -----------------------------------------------------


class RequestRejected(StenoError, code="refused"):
    """{detail}"""


class GatewayLost(Transient, code="gateway_lost"):
    """The gateway at {address} cannot be reached: {reason}"""
