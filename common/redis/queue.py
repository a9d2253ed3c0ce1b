"""RQ as the doorbell: it carries the ids of steps, never work that only it knows of.

What RQ loses (a flush, a kill between pop and start, a job past its TTL) is rung again from
Postgres by the dispatcher; what it delivers twice is claimed once.
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

from common.db.steps import Publication
from common.net.reach import malformed
from common.redis import presence
from common.redis.presence import QUEUE_NAME

STEP_FUNCTION = "worker.runner.run_step"
"""Named, not imported: whoever enqueues needs nothing of the worker's code."""

NO_LIMIT = -1
"""RQ's own time limit stays off: the worker sets one for each step as it starts it."""
RESULT_TTL_S = 60
FAILURE_TTL_S = 24 * 3600

ANSWER_S = 5.0
"""How long a command waits for Redis, and so does a connection."""

R = TypeVar("R", bound=Redis)


def connect(url: str) -> Redis:
    """A Redis client for workers and dispatchers; see `connect_as`."""
    return connect_as(Redis, url)


def connect_as(client: type[R], url: str, *, answer_s: float = ANSWER_S) -> R:
    """A Redis client that tries a broken connection a few times before it gives up.

    A server that does not answer within ``answer_s`` seconds is not asked a second time: it hangs.

    Raises:
        SetupProblem: the URL is none.
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
    """A step's queue message. Of what Redis has under its id, only the step's id is used.

    Whoever can write to Redis could otherwise have RQ call any function (callbacks, the job's own
    name), send any request (webhooks), or queue anything else (retries, repeats, dependents). A
    message that is not one of ours counts as missing.
    """

    @property
    def step_id(self) -> UUID:
        return UUID(self.args[0])

    @classmethod
    def fetch(cls, id: str, *args: Any, **options: Any) -> Self:  # noqa: A002
        """As RQ does.

        Raises:
            NoSuchJobError: it is missing, or none of ours.
        """
        try:
            found: Self = super().fetch(id, *args, **options)  # type: ignore[assignment]
        except ValueError as error:
            raise NoSuchJobError(id) from error
        return found

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take over what a message of ours has.

        Raises:
            NoSuchJobError: it is none of ours.
        """
        try:
            super().restore({name: raw_data[name] for name in KEPT if name in raw_data})
            ours = self._calls() == (QUEUE_NAME, STEP_FUNCTION, None, [str(self.step_id)], {})
        except (ValueError, TypeError, AttributeError, IndexError, DeserializationError):
            ours = False
        if not ours:
            logger.warning("a queue message is none of ours, and dropped: {!r}", self.id)
            raise NoSuchJobError(self.id)
        self.timeout = NO_LIMIT
        self.result_ttl, self.failure_ttl = RESULT_TTL_S, FAILURE_TTL_S

    def _calls(self) -> tuple[object, ...]:
        return self.origin, self.func_name, self.instance, self.args, self.kwargs


KEPT = (
    *(b"data", b"origin", b"status", b"description", b"worker_name"),
    *(b"created_at", b"enqueued_at", b"started_at", b"ended_at", b"last_heartbeat"),
)
"""What RQ keeps of a job that means something for a step's message."""


def queue_of(connection: Redis) -> Queue:
    """The queue that all steps go through."""
    return Queue(
        QUEUE_NAME, connection=connection, serializer=JSONSerializer, job_class=StepMessage
    )


class Doorbell:
    """The queue as the dispatcher and the gateway see it."""

    def __init__(self, connection: Redis) -> None:
        self._redis = connection
        self._queue = queue_of(connection)

    def ring(self, publications: Iterable[Publication]) -> None:
        """Enqueue each step once under its doorbell id."""
        for publication in publications:
            try:
                self._queue.enqueue_call(
                    STEP_FUNCTION,
                    args=(str(publication.step_id),),
                    job_id=publication.doorbell,
                    description=publication.description,
                    timeout=NO_LIMIT,
                    result_ttl=RESULT_TTL_S,
                    failure_ttl=FAILURE_TTL_S,
                    unique=True,
                )
            except DuplicateJobError:
                # The transaction that published it before did not commit.
                continue

    def waiting(self) -> int:
        """How many doorbells no worker has answered yet."""
        return self._queue.count

    def in_transit(self) -> set[str]:
        """Those taken from the queue by a worker that has not begun (its engine may be loading)."""
        taken = cast("list[bytes]", self._redis.lrange(self._queue.intermediate_queue_key, 0, -1))
        return {doorbell.decode() for doorbell in taken}

    def lost(self, doorbells: Sequence[str]) -> set[str]:
        """Those that wait in the queue no more.

        Whoever takes one claims its step within the moment, or never will: what RQ says of it,
        such as STARTED, may be the last word of a worker that was killed, two minutes ago.
        """
        return set(doorbells) - set(self._queue.get_job_ids())

    def live_workers(self) -> int:
        """How many workers have told of themselves lately."""
        return presence.living(presence.workers(self._redis))

    def live_dispatchers(self) -> int:
        """How many dispatchers have told lately that they have all that they need."""
        return presence.living(presence.dispatchers(self._redis))

    def weights(self) -> set[tuple[str, str]] | None:
        """Engine and model of the weights that living workers have; None: there is no worker."""
        return presence.weights(self._redis)

    def storage_is_full(self) -> bool:
        """Whether a worker could not write lately for want of space."""
        return presence.storage_is_full(self._redis)

    def memory(self) -> tuple[int, int | None]:
        """Bytes that Redis uses, and how many it may use, if there is a limit."""
        told = cast("dict[str, int]", self._redis.info("memory"))
        return told["used_memory"], told.get("maxmemory") or None

    def ping(self) -> None:
        self._redis.ping()
