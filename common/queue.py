"""RQ as the doorbell: it carries the ids of steps, never work that only it knows of.

What RQ loses (a flush, a kill between pop and start, a job past its TTL) is rung again from
Postgres by the dispatcher; what it delivers twice is claimed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from redis import Redis, exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.serializers import JSONSerializer

from common import presence
from common.db.steps import Publication
from common.presence import QUEUE_NAME
from common.reach import malformed

STEP_FUNCTION = "worker.runner.run_step"
"""Named, not imported: whoever enqueues needs nothing of the worker's code."""

NO_LIMIT = -1
"""RQ's own time limit stays off: the worker sets one for each step as it starts it."""


def connect(url: str) -> Redis:
    """A Redis client that tries a broken connection a few times before it gives up.

    Raises:
        SetupProblem: the URL is none.
    """
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=3,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
            retry_on_error=[exceptions.ConnectionError, exceptions.TimeoutError],
        )
    except ValueError:
        raise malformed("REDIS_URL", "redis://[:password@]host:port/db") from None


class Doorbell:
    """The queue as the dispatcher and the gateway see it."""

    def __init__(self, connection: Redis) -> None:
        self._redis = connection
        self._queue = Queue(QUEUE_NAME, connection=connection, serializer=JSONSerializer)

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
                    result_ttl=60,
                    failure_ttl=24 * 3600,
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

    def memory(self) -> tuple[int, int | None]:
        """Bytes that Redis uses, and how many it may use, if there is a limit."""
        told = cast("dict[str, int]", self._redis.info("memory"))
        return told["used_memory"], told.get("maxmemory") or None

    def stop(self, doorbell: str) -> None:
        """Have the worker that runs this step end it at once."""
        try:
            send_stop_job_command(self._redis, doorbell, serializer=JSONSerializer)
        except (NoSuchJobError, InvalidJobOperation):
            # It has just ended by itself.
            return

    def ping(self) -> None:
        self._redis.ping()
