"""The counters and histograms of the service, with their names in Prometheus.

Their values are about the whole service and outlive its processes: they are stored in Postgres
(`common.db.tallies`), and every gateway reports the same. Labels have few values, whatever clients
send.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that only grows; ``name`` lacks the ``_total`` that Prometheus adds."""

    name: str
    help: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations were at most as large as each of ``bounds``, which ascend."""

    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]


JOBS_SUBMITTED = Counter("stenopool_jobs_submitted", "Jobs submitted", ("tier", "engine", "model"))
JOBS_ENDED = Counter(
    "stenopool_jobs_ended",
    "Jobs that were completed, failed or cancelled; one that is retried ends again",
    ("status", "tier", "engine", "model"),
)
JOB_FAILURES = Counter(
    "stenopool_job_failures", "Jobs that failed, by the reason", ("code", "engine", "model")
)
AUDIO_TRANSCRIBED = Counter(
    "stenopool_audio_transcribed_seconds",
    "Length of the recordings of completed jobs",
    ("tier", "engine", "model"),
)
STAGE_SECONDS = Histogram(
    "stenopool_job_stage_seconds",
    "How long completed jobs waited, and took for planning, engine, moderation and merging, "
    "each summed over their chunks; wall is from submission to completion",
    ("stage", "engine", "model"),
    (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800),
)
STAGE_RTF = Histogram(
    "stenopool_job_stage_rtf",
    "The same as shares of the recording's length: the real time factor",
    ("stage", "engine", "model"),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 4, 10),
)
LEASES_EXPIRED = Counter(
    "stenopool_leases_expired", "Steps rescued because their lease expired", ("kind",)
)
STEP_RETRIES = Counter(
    "stenopool_step_retries", "Steps that were retried, by the reason", ("kind", "code")
)
WEBHOOK_ATTEMPTS = Counter(
    "stenopool_webhook_attempts", "Attempts to send webhook messages", ("outcome",)
)
WEBHOOK_DELIVERIES = Counter(
    "stenopool_webhook_deliveries", "Webhook messages that were delivered or failed", ("outcome",)
)
STREAMS_OPENED = Counter("stenopool_streams_opened", "Live streams opened", ("engine", "model"))
STREAMS_ENDED = Counter(
    "stenopool_streams_ended",
    "Live streams that were completed, interrupted (no heartbeat from their gateway), or ended "
    "by an error; one that is reopened ends again",
    ("outcome", "engine", "model"),
)
STREAM_AUDIO = Counter(
    "stenopool_stream_audio_seconds", "Audio received on live streams", ("engine", "model")
)
STREAM_LATENCY = Histogram(
    "stenopool_stream_latency_seconds",
    "From the end of an utterance of a live stream to its text",
    ("engine", "model"),
    (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20),
)

COUNTERS = (
    JOBS_SUBMITTED,
    JOBS_ENDED,
    JOB_FAILURES,
    AUDIO_TRANSCRIBED,
    LEASES_EXPIRED,
    STEP_RETRIES,
    WEBHOOK_ATTEMPTS,
    WEBHOOK_DELIVERIES,
    STREAMS_OPENED,
    STREAMS_ENDED,
    STREAM_AUDIO,
)
HISTOGRAMS = (STAGE_SECONDS, STAGE_RTF, STREAM_LATENCY)
