"""Queries about enrolled voices, always within one tenant, and the stored form of embeddings."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from common.db.database import Database
from common.db.deletions import Reason, remove_voice, was_deleted
from common.db.paging import Cursor, Page, beyond, page_of
from common.db.tables import Kind, Step, Voice
from common.db.vault import Cipher
from common.domain.job import StepStatus
from common.domain.pipeline import StepKind
from common.domain.voices import KnownVoice
from common.errors import Conflict, NotFound, VoicesLocked

MOST_VOICES = 1_000
"""Of a tenant: the more there are, the likelier is one that resembles somebody else."""
_BATCH = 100
"""Results that one transaction encrypts again."""


@dataclass(frozen=True, slots=True)
class NewVoice:
    """A voice to enrol; the fields are the columns of `common.db.tables.Voice`."""

    name: str
    embedding: bytes = field(repr=False)
    sampled_ms: int
    network: str
    narrow: bool
    consent_by: str
    consent_note: str | None
    key_id: str | None
    job_id: UUID
    speaker: str


class Voices:
    """The voices of one tenant.

    Methods with a ``voice_id`` raise `NotFound` if the tenant has no such voice.
    """

    def __init__(self, database: Database, tenant: str, cipher: Cipher) -> None:
        self._database = database
        self._tenant = tenant
        self._cipher = cipher

    def enrol(self, voice: NewVoice) -> Voice:
        """Store a voice.

        Raises:
            Conflict: the tenant has `MOST_VOICES` already.
        """
        with self._database.transaction() as session:
            # Not locked: a few requests at once may exceed the limit by as many.
            count = session.scalar(
                select(func.count()).select_from(Voice).where(Voice.tenant == self._tenant)
            )
            if (count or 0) >= MOST_VOICES:
                raise Conflict(reason=f"The tenant has {count} voices, the maximum")
            row = Voice(
                tenant=self._tenant,
                name=voice.name,
                embedding=self._cipher.seal(b64encode(voice.embedding).decode()),
                sampled_ms=voice.sampled_ms,
                network=voice.network,
                narrow=voice.narrow,
                consent_by=voice.consent_by,
                consent_note=voice.consent_note,
                key_id=voice.key_id,
                job_id=voice.job_id,
                speaker=voice.speaker,
            )
            session.add(row)
            session.flush()
            session.refresh(row)
            return row

    def page(self, *, limit: int, after: Cursor | None) -> Page[Voice]:
        """The newest voices."""
        with self._database.transaction() as session:
            rows = session.scalars(
                select(Voice)
                .where(Voice.tenant == self._tenant, *beyond(after, Voice.created_at, Voice.id))
                .order_by(Voice.created_at.desc(), Voice.id.desc())
                .limit(limit + 1)
            ).all()
        return page_of(rows, limit, lambda it: Cursor(it.created_at, it.id))

    def voice(self, voice_id: UUID) -> Voice:
        """One voice."""
        with self._database.transaction() as session:
            return self._voice(session, voice_id)

    def rename(self, voice_id: UUID, name: str) -> Voice:
        """Give a voice another name; texts keep the one that they have."""
        with self._database.transaction() as session:
            voice = self._voice(session, voice_id, lock=True)
            voice.name = name
            return voice

    def delete(self, voice_id: UUID) -> bool:
        """Erase a voice and leave a receipt; False if that was done before."""
        with self._database.transaction() as session:
            if was_deleted(session, self._tenant, voice_id, Kind.VOICE):
                return False
            remove_voice(session, self._voice(session, voice_id, lock=True), Reason.REQUEST)
            return True

    def known(self, network: str) -> list[KnownVoice]:
        """All that can be compared with embeddings of this network, the oldest first.

        Raises:
            VoicesLocked: one of them cannot be decrypted.
        """
        with self._database.transaction() as session:
            rows = session.execute(
                select(Voice.id, Voice.name, Voice.embedding, Voice.narrow)
                .where(Voice.tenant == self._tenant, Voice.network == network)
                .order_by(Voice.created_at, Voice.id)
            ).all()
        known = []
        for voice_id, name, stored, narrow in rows:
            embedding = self._cipher.open(stored)
            if embedding is None:
                raise VoicesLocked(cause=self._cipher.lack)
            known.append(KnownVoice(voice_id, name, b64decode(embedding), narrow))
        return known

    def _voice(self, session: Session, voice_id: UUID, *, lock: bool = False) -> Voice:
        statement = select(Voice).where(Voice.id == voice_id, Voice.tenant == self._tenant)
        voice = session.scalar(statement.with_for_update() if lock else statement)
        if voice is None:
            raise NotFound(what="voice", value=voice_id)
        return voice


# --- the embeddings in the results of diarize steps -------------------------------------------


def sealed(result: Mapping[str, Any], cipher: Cipher) -> dict[str, Any]:
    """The stored form of a result of a diarize step."""
    return {**result, "embeddings": cipher.seal(result["embeddings"])}


def opened(stored: Mapping[str, Any] | None, cipher: Cipher) -> dict[str, Any] | None:
    """A result of a diarize step; None: there is none, or it cannot be decrypted."""
    embeddings = None if stored is None else cipher.open(stored["embeddings"])
    return None if stored is None or embeddings is None else {**stored, "embeddings": embeddings}


def count_voices(database: Database, cipher: Cipher) -> tuple[int, int]:
    """How many voices there are, and how many of them cannot be decrypted."""
    with database.transaction() as session:
        stored = session.scalars(select(Voice.embedding)).all()
    return len(stored), sum(cipher.open(each) is None for each in stored)


def seal_voices(database: Database, cipher: Cipher) -> tuple[int, int]:
    """Encrypt all embeddings again, of voices and of steps; returns how many succeeded and failed.

    A step that ends meanwhile stores what its worker's key encrypts.
    """
    done = locked = 0
    with database.transaction() as session:
        for voice in session.scalars(select(Voice).with_for_update()):
            embedding = cipher.open(voice.embedding)
            if embedding is None:
                locked += 1
            else:
                voice.embedding = cipher.seal(embedding)
                done += 1
        of_steps = select(Step.id).where(
            Step.kind == StepKind.DIARIZE, Step.status == StepStatus.DONE
        )
        steps = session.scalars(of_steps).all()
    for at in range(0, len(steps), _BATCH):
        batch = Step.id.in_(steps[at : at + _BATCH])
        with database.transaction() as session:
            for step_id, stored in session.execute(select(Step.id, Step.result).where(batch)):
                result = opened(stored, cipher)
                if result is None:
                    locked += 1
                else:
                    change = update(Step).where(Step.id == step_id)
                    session.execute(change.values(result=sealed(result, cipher)))
                    done += 1
    return done, locked
