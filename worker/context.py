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

from common.db.enhancements import Enhancing
from common.db.flow import NewPart
from common.db.retention import Retention
from common.db.steps import Claim, StaleClaim, Steps, Within
from common.db.transcriptions import Transcriptions
from common.db.vault import Cipher
from common.db.voices import Voices
from common.errors import NotFound, Unavailable
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
    from common.net.egress import Egress

P = ParamSpec("P")
T = TypeVar("T")

MOST_CHATS = 16
"""Clients name models as they like."""
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
    def _chats(self) -> dict[str, Chat]:
        return {}

    def chat(self, model: str) -> Chat:
        """A model of the language models' server; what the server accepts is found out once.

        Raises:
            EnhancementOff: the settings name no server.
        """
        from common.llm.openai_chat import open_chat

        if model not in self._chats:
            if len(self._chats) >= MOST_CHATS:
                self._chats.clear()
            self._chats[model] = open_chat(self.settings, model=model)
        return self._chats[model]

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
