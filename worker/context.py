"""The services that steps use, built once in the process that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from loguru import logger
from redis import Redis
from redis.exceptions import RedisError

from common.db.chat_servers import ChatServers, key_of
from common.db.enhancements import Enhancing, options_of
from common.db.flow import NewPart
from common.db.retention import Retention
from common.db.steps import Claim, StaleClaim, Steps, Within
from common.db.tables import Job
from common.db.transcriptions import Transcriptions
from common.db.vault import Cipher
from common.db.voices import Voices
from common.errors import ChatServerChanged, NotFound, Unavailable
from common.redis import presence
from common.redis.events import Events
from common.settings import Settings
from common.storage.storage import Storage
from worker.diarization import WarmDiarizer
from worker.engines import Engines
from worker.memory import Memory
from worker.models import Models
from worker.moderation import WarmModeration

if TYPE_CHECKING:
    from common.audio.silero import SileroNetwork
    from common.llm.chat import Chat
    from common.llm.openai_chat import ChatServer
    from common.net.egress import Egress

P = ParamSpec("P")
T = TypeVar("T")

MOST_CHATS = 16
"""Clients name models as they like, and tenants have servers of their own."""
OUTAGE_TIMEOUT_S = 600.0
"""How long a step waits for Postgres or the storage before it fails."""


@dataclass(frozen=True)  # without slots, for the cached properties
class Context:
    """The services, by the names that steps use."""

    settings: Settings
    steps: Steps
    transcriptions: Transcriptions
    retention: Retention
    storage: Storage
    events: Events
    models: Models
    engines: Engines
    moderation: WarmModeration
    diarizer: WarmDiarizer
    memory: Memory
    redis: Redis
    voice_cipher: Cipher
    """Encrypts embeddings."""
    chat_cipher: Cipher
    """Decrypts the keys of tenants' language models."""
    may_continue: Callable[[], bool] = lambda: True
    """Whether this worker may claim a step that follows the one it finishes."""

    @cached_property
    def voice_network(self) -> SileroNetwork:
        from common.audio.silero import SileroNetwork

        return SileroNetwork()

    @cached_property
    def egress(self) -> Egress:
        from common.net.egress import Egress

        return Egress(self.settings.egress.allow)

    @cached_property
    def enhancing(self) -> Enhancing:
        return Enhancing(self.retention.database)

    @cached_property
    def _chats(self) -> dict[tuple[ChatServer | None, str], Chat]:
        return {}

    def chat(self, job: Job) -> Chat:
        """The model that an enhancement asks; what its server accepts is found out once.

        A job that was requested of a tenant's own server asks no other one, so that no transcript
        gets where nobody wanted it. Its key may have changed.

        Raises:
            EnhancementOff: the settings name no server.
            ChatServerChanged: the tenant's own server is another one now.
            ChatKeyLocked: its key cannot be decrypted.
            Unavailable: Postgres is, for too long.
        """
        from common.llm.openai_chat import ChatServer, open_chat

        override, wanted = None, options_of(job.options).server
        if wanted is not None:
            database = self.retention.database
            own = with_retries(ChatServers(database, job.tenant, self.chat_cipher).find)
            if own is None or own.base_url != wanted:
                raise ChatServerChanged(value=wanted)
            override = ChatServer(own.base_url, own.model, key_of(own, self.chat_cipher))
        key = (override, job.model)
        if key not in self._chats:
            if len(self._chats) >= MOST_CHATS:
                self._chats.clear()
            self._chats[key] = open_chat(self.settings, override, model=job.model)
        return self._chats[key]

    def voices(self, tenant: str) -> Voices:
        return Voices(self.retention.database, tenant, self.voice_cipher)

    def finish(
        self,
        claim: Claim,
        *,
        result: Any | None = None,
        elapsed_ms: int | None = None,
        parts: Sequence[NewPart] = (),
        within: Within | None = None,
    ) -> Claim | None:
        """Finish the claimed step (`Steps.finish`); returns the claim of the next step, if any."""
        return with_retries(
            self.steps.finish,
            claim,
            result=result,
            elapsed_ms=elapsed_ms,
            parts=parts,
            within=within,
            take_next=self.may_continue(),
        )

    def note_space(self, *, full: bool) -> None:
        """Report to the gateways whether the storage is full."""
        with suppress(RedisError):
            if full:
                presence.report_full_storage(self.redis)
            else:
                presence.clear_full_storage(self.redis)


@contextmanager
def fenced() -> Iterator[None]:
    """Guard writes to a job's folder, which is removed with the job.

    Raises:
        StaleClaim: the folder was removed.
    """
    try:
        yield
    except NotFound as error:
        raise StaleClaim from error


def with_retries(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an idempotent function, and retry it while Postgres or the storage is unavailable.

    An outage must not lose computed results.

    Raises:
        Unavailable: the outage lasted longer than `OUTAGE_TIMEOUT_S`.
    """
    deadline = time.monotonic() + OUTAGE_TIMEOUT_S
    delay_s = 0.1
    while True:
        try:
            return call(*args, **kwargs)
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("retrying in {:.1f} s: {}", delay_s, error)
            time.sleep(delay_s)
            delay_s = min(2.0, delay_s * 2)
