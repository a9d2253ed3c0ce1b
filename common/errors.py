"""Every error that people or clients can see, in one tree.

A class owns its message (the docstring, a format string over the keyword arguments), its stable
``code`` and its HTTP status. `Transient` failures are retried; all others are final.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import ClassVar


class StenoError(Exception):
    """An internal error occurred"""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, **details: object) -> None:
        self.details = details
        super().__init__(inspect.cleandoc(type(self).__doc__ or "").format(**details))

    def __reduce__(self) -> tuple[Callable[[], StenoError], tuple[()]]:
        return partial(type(self), **self.details), ()

    @property
    def message(self) -> str:
        """The text for everybody, clients included."""
        return str(self.args[0])


class Transient(StenoError):
    """A temporary failure: {reason}"""

    code = "transient"
    status = 503
    counts: ClassVar[bool] = True
    """Whether a step's attempt that failed so counts towards MAX_RETRIES; else the step waits."""


class BadInput(StenoError):
    """The request is invalid"""

    code = "bad_input"
    status = 400


# --- errors in a request ---------------------------------------------------------------------


class Malformed(BadInput):
    """The request is malformed: {reason}"""

    code = "malformed"


class UnknownOption(BadInput):
    """{field} must be one of {allowed}; got {value!r}"""

    code = "unknown_option"
    status = 422


class OutOfRange(BadInput):
    """{field} must be {limit}; got {value!r}"""

    code = "out_of_range"
    status = 422


class OptionConflict(BadInput):
    """{field}={value} needs {needed}"""

    code = "option_conflict"
    status = 422


class FieldMissing(BadInput):
    """{field} is missing"""

    code = "missing"
    status = 422


class ModelNotInstalled(BadInput):
    """{model} is not installed, {here} are; run: steno models pull {model} --engine {engine}"""

    code = "weights_missing"
    status = 422


class Unauthorised(BadInput):
    """{reason}"""

    code = "unauthorised"
    status = 401


class Forbidden(BadInput):
    """{reason}"""

    code = "forbidden"
    status = 403


class OverLimit(BadInput):
    """The API key's limit is reached: {field} {limit}; try again in {retry_after_s} s"""

    code = "over_limit"
    status = 429


class RateLimited(OverLimit):
    """The API key is limited to {limit} requests a {period}; try again in {retry_after_s} s"""

    code = "rate_limited"


class TooManyJobs(OverLimit):
    """The API key is limited to {limit} jobs at once; try again when one has ended"""

    code = "too_many_jobs"


class TooManyStreams(OverLimit):
    """The API key is limited to {limit} live streams at once; try again when one has ended"""

    code = "too_many_streams"


class TooMuchAudio(OverLimit):
    """The API key is limited to {limit:g} hours of audio a day (UTC); this would make {value:g}"""

    code = "too_much_audio"


class Stalled(BadInput):
    """No data arrived for {limit_s} s; the request was not complete"""

    code = "stalled"
    status = 408


class Idle(BadInput):
    """No data arrived for {limit_s:g} s; send KeepAlive messages to keep a silent WebSocket open"""

    code = "idle"
    status = 408


class SlowReader(BadInput):
    """The client did not read the stream's messages for {limit_s:g} s"""

    code = "slow_reader"
    status = 408


class NotPcm(BadInput):
    """The audio is a {value} file; send raw PCM: 16 bit, little endian, mono, 16 kHz"""

    code = "not_pcm"
    status = 415


class TooFast(BadInput):
    """The audio arrived faster than it is transcribed for {limit_s:g} s; upload recordings"""

    code = "too_fast"
    status = 429


class TooLong(BadInput):
    """A live stream is limited to {limit:g} hours"""

    code = "too_long"
    status = 413


class Unsupported(BadInput):
    """{field} is not supported"""

    code = "unsupported_option"
    status = 422


class TooLarge(BadInput):
    """{field} is limited to {limit}; got {value}"""

    code = "too_large"
    status = 413


class NotAudio(BadInput):
    """file has no audio that can be decoded: {reason}"""

    code = "not_audio"
    status = 415


class EncodedBody(BadInput):
    """The body must not have a {field}; got {value!r}"""

    code = "encoded_body"
    status = 415


class UrlRefused(BadInput):
    """{field} is rejected: {reason}"""

    code = "url_refused"
    status = 422


class NotFound(BadInput):
    """There is no {what} {value}"""

    code = "not_found"
    status = 404


class NotReady(BadInput):
    """The job is {status_now}; its result is available when it is COMPLETED"""

    code = "not_ready"
    status = 409


class JobStillRunning(BadInput):
    """Job {job_id} is still {status_now}; get its text later from GET /api/v1/result/{job_id}"""

    code = "still_under_way"
    status = 504


class Conflict(BadInput):
    """{reason}"""

    code = "conflict"
    status = 409


class IdempotencyConflict(BadInput):
    """{field} {value} was already used for a different request"""

    code = "idempotency_conflict"
    status = 409


# --- failures of the service ------------------------------------------------------------


class Unavailable(Transient):
    """{what} is unavailable; try again soon"""

    code = "unavailable"
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


class Busy(Transient):
    """{what} is busy; try again soon"""

    code = "busy"


class StreamsFull(Transient):
    """All {limit} live streams of {engine} are in use; try again soon"""

    code = "streams_full"


class Restarting(Transient):
    """The gateway is restarting; try again soon"""

    code = "restarting"


class NotMigrated(Unavailable):
    """The database is at {found}, and this version needs {newest}: {remedy}"""


class SecretsLocked(Transient):
    """The webhooks' secrets cannot be decrypted: SECRETS_KEY lacks the key that encrypted them"""

    code = "secrets_locked"


class OutcomeUnknown(Unavailable):
    """{what} became unavailable during a commit; check whether it succeeded once it is back"""

    logged = "{what} became unavailable during a commit: {reason}"


class DatabaseReadOnly(Unavailable):
    """{what} is read-only at the moment; try again soon"""

    logged = "{what} is read-only: {reason}"


class DatabaseFull(Unavailable):
    """{what} has no disk space left; try again when there is some"""

    logged = "{what} has no disk space left: {reason}"


class StorageFull(Transient):
    """The storage is full; try again when there is space"""

    code = "storage_full"
    counts = False


class RecordingLost(StenoError):
    """The job's recording is missing from the storage"""

    code = "recording_lost"


class ChunkAudioLost(StenoError):
    """The audio of chunk {index} is missing, and its source has changed; retry the job"""

    code = "sound_lost"


class EngineFailed(Transient):
    """The engine failed: {reason}"""

    code = "engine_failed"


class RecognizerUnusable(StenoError):
    """{engine} {model} cannot transcribe live streams: {reason}"""

    code = "recognizer_unusable"
    status = 503


class WorkerLost(Transient):
    """The worker process was lost: {reason}"""

    code = "worker_lost"


class LeaseExpired(WorkerLost):
    """The worker process was lost: its lease ran out"""


class ChunkTimedOut(Transient):
    """The step exceeded its limit of {limit_s} s"""

    code = "timed_out"


class FetchFailed(StenoError):
    """The recording cannot be fetched from {host}: {reason}"""

    code = "fetch_failed"
    status = 422


class FetchInterrupted(Transient):
    """Fetching the recording from {host} failed: {reason}"""

    code = "fetch_failed"


class DecodeFailed(StenoError):
    """The recording cannot be decoded: {reason}"""

    code = "decode_failed"
    status = 422


class WeightsMissing(StenoError):
    """{model} for {engine} is not installed; run: steno models pull {model} --engine {engine}"""

    code = "weights_missing"
    status = 503


class WeightsCorrupt(StenoError):
    """{path} has the wrong hash (sha256 {found}, expected {expected}); delete it and pull again"""

    code = "weights_corrupt"
    status = 503


class PullFailed(StenoError):
    """The weights {model} could not be fetched from any source: {reason}"""

    code = "pull_failed"
    status = 503


class ModerationFailed(Transient):
    """The moderation model failed: {reason}"""

    code = "moderation_failed"


class ModerationUnusable(StenoError):
    """The moderation model in {path} cannot be used: {reason}"""

    code = "moderation_unusable"
    status = 503


class ModerationOff(StenoError):
    """Moderation is disabled (AI_LOAD_MODELS=false)"""

    code = "moderation_off"
    status = 503


class SetupProblem(StenoError):
    """{problem}. {remedy}"""

    code = "setup"


class InUse(SetupProblem):
    """{problem}. {remedy}"""

    code = "in_use"


# --- errors of a client of the gateway -----------------------------------------------------


class RequestRejected(StenoError):
    """{detail}"""

    code = "refused"


class GatewayLost(Transient):
    """The gateway at {address} cannot be reached: {reason}"""

    code = "gateway_lost"
