"""Routes for voices: people who agreed to be recognized in later recordings."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from fastapi import APIRouter
from loguru import logger
from starlette.status import HTTP_201_CREATED, HTTP_204_NO_CONTENT

from api.auth.callers import Caller, Reader, Transcriber
from api.http.pagination import Limit, PageCursor, next_cursor, parse_cursor
from api.http.problems import documented
from api.jobs.waiting import check_ready
from api.services import Services, ServicesDep
from api.voices.schemas import NewVoice, RecordedConsent, VoiceChange, VoiceDocument, VoiceList
from common.db import voices as stored
from common.db.tables import Voice
from common.db.transcriptions import ChunkResult, Transcriptions
from common.domain.models import EMBEDDING_NETWORK
from common.domain.speakers import Diarization, voiced_by
from common.domain.voices import MIN_VOICE_MS
from common.errors import (
    Conflict,
    FieldMissing,
    NoSpeakers,
    TooLittleSpeech,
    UnknownOption,
    VoicesLocked,
)
from common.transcripts import stretches_of, transcript_of, usable

router = APIRouter(prefix="/voices", tags=["voices"], responses=documented(422, 503))


@router.post(
    "", summary="Enrol a voice", status_code=HTTP_201_CREATED, responses=documented(404, 409)
)
async def enrol(wanted: NewVoice, services: ServicesDep, caller: Transcriber) -> VoiceDocument:
    """Enrol a speaker of a job with `diarize` that has its text.

    Later jobs with `identify=true` name them. To enrol a person from a recording of their own, send
    that with `diarize=true` and `num_speakers=1` first.
    """
    return await services.in_thread(_enrol, services, caller, wanted)


@router.get("", summary="List voices")
async def list_voices(
    services: ServicesDep, caller: Reader, limit: Limit = 50, cursor: PageCursor = None
) -> VoiceList:
    """The tenant's voices, newest first."""
    page = await services.in_thread(
        services.voices(caller.tenant).page, limit=limit, after=parse_cursor(cursor)
    )
    return VoiceList(
        voices=[_document(each) for each in page.items], next_cursor=next_cursor(page.next)
    )


@router.get("/{voice_id}", summary="Get a voice", responses=documented(404))
async def read(voice_id: UUID, services: ServicesDep, caller: Reader) -> VoiceDocument:
    """One voice."""
    return _document(await services.in_thread(services.voices(caller.tenant).voice, voice_id))


@router.patch("/{voice_id}", summary="Rename a voice", responses=documented(404))
async def rename(
    voice_id: UUID, wanted: VoiceChange, services: ServicesDep, caller: Transcriber
) -> VoiceDocument:
    """Give a voice another name, for later jobs."""
    voices = services.voices(caller.tenant)
    if wanted.name is None:
        return _document(await services.in_thread(voices.voice, voice_id))
    return _document(await services.in_thread(voices.rename, voice_id, wanted.name))


@router.delete(
    "/{voice_id}",
    summary="Erase a voice",
    status_code=HTTP_204_NO_CONTENT,
    responses=documented(404),
)
async def delete(voice_id: UUID, services: ServicesDep, caller: Transcriber) -> None:
    """Erase a voice, and what it is recognized by; a receipt remains. Erasing it again is a 204.

    Texts keep the names that it gave. The job that it was enrolled from keeps its own description
    of its speakers until it is deleted.
    """
    if await services.in_thread(services.voices(caller.tenant).delete, voice_id):
        logger.info("voice {} was deleted", voice_id)


def _enrol(services: Services, caller: Caller, wanted: NewVoice) -> VoiceDocument:
    from common.diarization.identification import mean_voice  # numpy takes memory

    jobs = services.jobs(caller.tenant)
    check_ready(jobs.snapshot(wanted.job_id))
    diarization = transcript_of(jobs.text(wanted.job_id)).diarization
    if diarization is None:
        raise NoSpeakers
    speaker = _speaker(diarization, wanted.speaker)
    sealed, _ = Transcriptions(services.database).to_merge(wanted.job_id)
    chunks = usable(sealed, services.voice_cipher)
    if _diarized(chunks) < _diarized(sealed):
        raise VoicesLocked(cause=services.voice_cipher.lack)
    if not _diarized(chunks):
        reason = "The job has no voices: its diarization failed, or its channels were separated"
        raise Conflict(reason=reason)
    theirs = voiced_by(stretches_of(chunks), diarization.turns).get(speaker, ())
    voice = mean_voice(theirs)
    if voice is None or voice.sampled_ms < MIN_VOICE_MS:
        found_s = 0 if voice is None else voice.sampled_ms // 100 / 10
        limit_s = MIN_VOICE_MS / 1000
        raise TooLittleSpeech(field="speaker", speaker=speaker, limit=limit_s, value=found_s)
    row = services.voices(caller.tenant).enrol(
        stored.NewVoice(
            name=wanted.name,
            embedding=voice.embedding,
            sampled_ms=voice.sampled_ms,
            network=EMBEDDING_NETWORK.model,
            narrow=voice.narrow,
            consent_by=wanted.consent.by,
            consent_note=wanted.consent.note,
            key_id=caller.key_id,
            job_id=wanted.job_id,
            speaker=speaker,
        )
    )
    logger.info(
        "voice {voice_id} was enrolled from job {job_id}", voice_id=row.id, job_id=row.job_id
    )
    return _document(row)


def _diarized(chunks: Iterable[ChunkResult]) -> int:
    return sum(chunk.diarization is not None for chunk in chunks)


def _speaker(diarization: Diarization, wanted: str | None) -> str:
    """The speaker to enrol: the one wanted, or the only one there is."""
    known = diarization.speakers
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None and known:
        raise FieldMissing(field="speaker")
    if wanted not in known:
        allowed = ", ".join(known) or "somebody who speaks; nobody does"
        raise UnknownOption(field="speaker", allowed=allowed, value=wanted)
    return wanted


def _document(row: Voice) -> VoiceDocument:
    return VoiceDocument(
        id=row.id,
        name=row.name,
        seconds=row.sampled_ms / 1000,
        network=row.network,
        telephone=row.narrow,
        consent=RecordedConsent(
            by=row.consent_by, note=row.consent_note, at=row.created_at, key_id=row.key_id
        ),
        job_id=row.job_id,
        speaker=row.speaker,
        created_at=row.created_at,
    )
