"""Every error a person or a client can meet, in one tree.

A class owns its message (the docstring, a format string over the keyword arguments), its stable
``code`` and its HTTP status. `Transient` failures are tried again; everything else is final.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class StenoError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, **details: object) -> None:
        self.details = details
        super().__init__(inspect.cleandoc(type(self).__doc__ or "").format(**details))

    @property
    def message(self) -> str:
        """What anybody may be told."""
        return str(self.args[0])


class Transient(StenoError):
    """A fault that may pass: {reason}"""

    code = "transient"
    status = 503
    counts: ClassVar[bool] = True
    """Whether an attempt at a step that ended so is one of MAX_RETRIES; else the step waits."""


class BadInput(StenoError):
    """The request cannot be served as it is."""

    code = "bad_input"
    status = 400


# --- what a client sent ---------------------------------------------------------------------


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
    """model {model} is not installed ({here} are): steno models pull {model} --engine {engine}"""

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
    """The API key has a limit: {field} {limit}; try again in {retry_after_s} s"""

    code = "over_limit"
    status = 429


class RateLimited(OverLimit):
    """The API key may make {limit} requests a {period}; try again in {retry_after_s} s"""

    code = "rate_limited"


class TooManyJobs(OverLimit):
    """The API key may have {limit} jobs at once; try again when one has ended"""

    code = "too_many_jobs"


class TooManyStreams(OverLimit):
    """The API key may have {limit} live streams at once; try again when one has ended"""

    code = "too_many_streams"


class TooMuchAudio(OverLimit):
    """The API key may send {limit:g} hours of audio a day (UTC), and this makes {value:g}"""

    code = "too_much_audio"


class Stalled(BadInput):
    """Nothing more of the request came in for {limit_s} s"""

    code = "stalled"
    status = 408


class Idle(BadInput):
    """Nothing came in for {limit_s:g} s; a WebSocket's KeepAlive keeps it open without sound"""

    code = "idle"
    status = 408


class SlowReader(BadInput):
    """What the stream tells was not read for {limit_s:g} s"""

    code = "slow_reader"
    status = 408


class NotPcm(BadInput):
    """The sound is a {value} file; send bare PCM: 16 bit, little endian, mono, 16 kHz"""

    code = "not_pcm"
    status = 415


class TooFast(BadInput):
    """The sound came in faster than it is heard for more than {limit_s:g} s; upload recordings"""

    code = "too_fast"
    status = 429


class TooLong(BadInput):
    """A live stream may be {limit:g} hours long"""

    code = "too_long"
    status = 413


class Unsupported(BadInput):
    """{field} is not supported here"""

    code = "unsupported_option"
    status = 422


class TooLarge(BadInput):
    """{field} may have at most {limit}; got {value}"""

    code = "too_large"
    status = 413


class NotAudio(BadInput):
    """file holds no sound that can be decoded: {reason}"""

    code = "not_audio"
    status = 415


class EncodedBody(BadInput):
    """The body may have no {field} here; got {value!r}"""

    code = "encoded_body"
    status = 415


class UrlRefused(BadInput):
    """{field} is refused: {reason}"""

    code = "url_refused"
    status = 422


class NotFound(BadInput):
    """There is no {what} {value}"""

    code = "not_found"
    status = 404


class NotReady(BadInput):
    """The job is {status_now}; its result can be had when it is COMPLETED"""

    code = "not_ready"
    status = 409


class JobStillRunning(BadInput):
    """Job {job_id} is still {status_now}; GET /api/v1/result/{job_id} has its text in the end"""

    code = "still_under_way"
    status = 504


class Conflict(BadInput):
    """{reason}"""

    code = "conflict"
    status = 409


class IdempotencyConflict(BadInput):
    """{field} {value} was used before, for another request"""

    code = "idempotency_conflict"
    status = 409


# --- what is broken on this side ------------------------------------------------------------


class Unavailable(Transient):
    """{what} is out of reach at the moment; try again soon"""

    code = "unavailable"
    counts = False
    logged: ClassVar[str] = "{what} is out of reach: {reason}"

    def __init__(
        self, *, reason: str | None = None, final: bool = False, **details: object
    ) -> None:
        """``reason`` is for logs and never for clients; ``final``: to wait will not help."""
        super().__init__(**details)
        self.reason = reason
        self.final = final

    def __str__(self) -> str:
        if self.reason is None:
            return self.message
        return self.logged.format(**self.details, reason=self.reason)


class Busy(Transient):
    """{what} has too much to do at the moment; try again soon"""

    code = "busy"


class StreamsFull(Transient):
    """{engine} keeps pace with {limit} live streams here, and there are so many; try again soon"""

    code = "streams_full"


class Restarting(Transient):
    """This gateway is about to end; another one, or the next, goes on"""

    code = "restarting"


class NotMigrated(Unavailable):
    """The database is at {found}, and this version needs {newest}: {remedy}"""


class SecretsLocked(Transient):
    """The webhooks' secrets cannot be decrypted: SECRETS_KEY lacks the key that encrypted them"""

    code = "secrets_locked"


class OutcomeUnknown(Unavailable):
    """{what} went away while it was told to commit; whether it did can be asked when it is back"""

    logged = "{what} went away while it was told to commit: {reason}"


class DatabaseReadOnly(Unavailable):
    """{what} takes no writes at the moment; try again soon"""

    logged = "{what} takes no writes: {reason}"


class DatabaseFull(Unavailable):
    """{what} has no space left; try again when there is some"""

    logged = "{what} has no space left: {reason}"


class StorageFull(Transient):
    """The storage is full; try again when there is space"""

    code = "storage_full"
    counts = False


class RecordingLost(StenoError):
    """The job's recording is gone from the storage"""

    code = "recording_lost"


class ChunkAudioLost(StenoError):
    """The sound of chunk {index} is gone, and its recording is another now; a retry hears that"""

    code = "sound_lost"


class EngineFailed(Transient):
    """The engine failed: {reason}"""

    code = "engine_failed"


class RecognizerUnusable(StenoError):
    """{engine} {model} cannot hear live streams here: {reason}"""

    code = "recognizer_unusable"
    status = 503


class WorkerLost(Transient):
    """The worker process was lost: {reason}"""

    code = "worker_lost"


class LeaseExpired(WorkerLost):
    """The worker process was lost: its lease ran out"""


class ChunkTimedOut(Transient):
    """The step ran into its limit of {limit_s} s"""

    code = "timed_out"


class FetchFailed(StenoError):
    """The recording cannot be had from {host}: {reason}"""

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
    """The weights {model} for {engine} are not here: steno models pull {model} --engine {engine}"""

    code = "weights_missing"
    status = 503


class WeightsCorrupt(StenoError):
    """{path} has the wrong hash (sha256 {found}, should be {expected}); delete it and pull again"""

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
    """Moderation is switched off here (AI_LOAD_MODELS=false)"""

    code = "moderation_off"
    status = 503


class SetupProblem(StenoError):
    """{problem}. {remedy}"""

    code = "setup"


class InUse(SetupProblem):
    """{problem}. {remedy}"""

    code = "in_use"


# --- what a client of the gateway meets -----------------------------------------------------


class RequestRejected(StenoError):
    """{detail}"""

    code = "refused"


class GatewayLost(Transient):
    """The gateway at {address} cannot be reached: {reason}"""

    code = "gateway_lost"
