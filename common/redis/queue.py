"""The RQ queue of steps. Its messages carry step ids only: Postgres holds the work itself.

A message that RQ loses (a flush, a kill between pop and start, an expired job) is published again
by the dispatcher; a step whose message is delivered twice is claimed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar, cast
from uuid import UUID

from loguru import logger
from redis import Redis, exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import Queue
from rq.exceptions import DeserializationError, DuplicateJobError, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from common.domain.job import Publication
from common.net.reach import malformed
from common.redis import presence
from common.redis.presence import QUEUE_NAME

STEP_FUNCTION = "worker.runner.run_step"
"""By name, so that the gateway need not import the worker's code."""

NO_LIMIT = -1
"""RQ's own time limit is off: the worker sets one when it starts a step."""
RESULT_TTL_S = 60
FAILURE_TTL_S = 24 * 3600

ANSWER_S = 5.0
"""Timeout of a command, and of connecting."""

R = TypeVar("R", bound=Redis)


def connect(url: str) -> Redis:
    """A Redis client for workers and dispatchers; see `connect_as`."""
    return connect_as(Redis, url)


def connect_as(client: type[R], url: str, *, answer_s: float = ANSWER_S) -> R:
    """A Redis client that retries a broken connection a few times.

    A command that times out after ``answer_s`` seconds is not retried: the server hangs.

    Raises:
        SetupProblem: the URL is malformed.
    """
    try:
        connected: R = client.from_url(  # type: ignore[assignment] # it says Redis
            url,
            socket_connect_timeout=answer_s,
            socket_timeout=answer_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(
                ExponentialBackoff(cap=0.5, base=0.05),
                3,
                supported_errors=(exceptions.ConnectionError,),
            ),
        )
    except ValueError:
        raise malformed("REDIS_URL", "redis://[:password@]host:port/db") from None
    return connected


class StepMessage(Job):
    """A step's queue message. Only the step's id is taken from what Redis stores.

    Otherwise whoever can write to Redis could make RQ call any function (callbacks, the job's own
    name), send any request (webhooks), or queue anything else (retries, repeats, dependents). A
    message that this service did not write counts as missing.
    """

    @property
    def step_id(self) -> UUID:
        return UUID(self.args[0])

    @classmethod
    def fetch(cls, id: str, *args: Any, **options: Any) -> Self:  # noqa: A002
        """Read a message, as RQ does.

        Raises:
            NoSuchJobError: it is missing, or not a step's message.
        """
        try:
            found: Self = super().fetch(id, *args, **options)  # type: ignore[assignment]
        except ValueError as error:
            raise NoSuchJobError(id) from error
        return found

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Restore the fields of a step's message.

        Raises:
            NoSuchJobError: it is not a step's message.
        """
        try:
            super().restore({name: raw_data[name] for name in KEPT if name in raw_data})
            valid = self._calls() == (QUEUE_NAME, STEP_FUNCTION, None, [str(self.step_id)], {})
        except (ValueError, TypeError, AttributeError, IndexError, DeserializationError):
            valid = False
        if not valid:
            logger.warning("dropped queue message {!r}: it is not a step's", self.id)
            raise NoSuchJobError(self.id)
        self.timeout = NO_LIMIT
        self.result_ttl, self.failure_ttl = RESULT_TTL_S, FAILURE_TTL_S

    def _calls(self) -> tuple[object, ...]:
        return self.origin, self.func_name, self.instance, self.args, self.kwargs


KEPT = (
    *(b"data", b"origin", b"status", b"description", b"worker_name"),
    *(b"created_at", b"enqueued_at", b"started_at", b"ended_at", b"last_heartbeat"),
)
"""The fields of RQ's jobs that a step's message needs."""


def queue_of(connection: Redis) -> Queue:
    """The queue of all steps."""
    return Queue(
        QUEUE_NAME, connection=connection, serializer=JSONSerializer, job_class=StepMessage
    )


class StepQueue:
    """The queue as the dispatcher and the gateway use it."""

    def __init__(self, connection: Redis) -> None:
        self._redis = connection
        self._queue = queue_of(connection)

    def publish(self, publications: Iterable[Publication]) -> None:
        """Enqueue each step once, under the id of its publication."""
        for publication in publications:
            try:
                self._queue.enqueue_call(
                    STEP_FUNCTION,
                    args=(str(publication.step_id),),
                    job_id=publication.rq_job_id,
                    description=publication.description,
                    timeout=NO_LIMIT,
                    result_ttl=RESULT_TTL_S,
                    failure_ttl=FAILURE_TTL_S,
                    unique=True,
                )
            except DuplicateJobError:
                continue  # published before, by a transaction that did not commit

    def waiting(self) -> int:
        """The number of messages that no worker has taken yet."""
        return self._queue.count

    def in_transit(self) -> set[str]:
        """Messages that a worker took but has not started (its engine may be loading)."""
        taken = cast("list[bytes]", self._redis.lrange(self._queue.intermediate_queue_key, 0, -1))
        return {message_id.decode() for message_id in taken}

    def lost(self, message_ids: Sequence[str]) -> set[str]:
        """The messages that are no longer in the queue.

        A worker claims the step at once, or never: RQ's own status, such as STARTED, may be the
        last that a worker wrote before it was killed, two minutes ago.
        """
        return set(message_ids) - set(self._queue.get_job_ids())

    def live_workers(self) -> int:
        """The number of workers with a recent heartbeat."""
        return presence.count_alive(presence.workers(self._redis))

    def live_dispatchers(self) -> int:
        """The number of dispatchers with a recent heartbeat."""
        return presence.count_alive(presence.dispatchers(self._redis))

    def weights(self) -> set[tuple[str, str]] | None:
        """Engine and model of the weights that live workers have; None without a live worker."""
        return presence.weights(self._redis)

    def failed_fetches(self) -> set[tuple[str, str]]:
        """Engine and model of the weights that workers could not fetch lately."""
        return presence.failed_fetches(self._redis)

    def storage_is_full(self) -> bool:
        """Whether a worker recently found the storage full."""
        return presence.storage_is_full(self._redis)

    def memory(self) -> tuple[int, int | None]:
        """Bytes that Redis uses, and its limit, if there is one."""
        info = cast("dict[str, int]", self._redis.info("memory"))
        return info["used_memory"], info.get("maxmemory") or None

    def ping(self) -> None:
        self._redis.ping()
