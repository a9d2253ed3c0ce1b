"""Resolves the options of a client to the request that is stored with its job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from uuid import UUID

from api.http.problems import validated
from api.jobs.schemas import UploadOptions
from api.processes.moderator import NEEDED as MODERATION
from common.db.jobs import NewJob
from common.db.snapshots import ClientData
from common.domain.job import Priority
from common.domain.languages import AUTO, LANGUAGES
from common.domain.request import Cutting, Decoding, Options
from common.errors import (
    ModelNotInstalled,
    ModelUnusable,
    OptionConflict,
    OutOfRange,
    UnknownOption,
)
from common.net.egress import Egress
from common.settings import Settings
from common.weights.manifest import BATCH_ENGINES, EVERY_LANGUAGE, SHERPA_ONNX
from common.weights.store import WeightsState, WeightsStore

DECODING = {each.name for each in fields(Decoding)}
OfWorkers = Callable[[], set[tuple[str, str]] | None]


def form_options(sent: Mapping[str, str]) -> UploadOptions:
    """The options in a form's fields; an empty one counts as not sent.

    Raises:
        UnknownOption, OutOfRange, Unsupported: one of them is wrong; it is named.
    """
    given = {name: value for name, value in sent.items() if value.strip()}
    return validated(UploadOptions, given)


@dataclass(eq=False)
class Resolver:
    """Resolves options by this installation's defaults and weights.

    ``of_workers`` returns engine and model of the weights that running workers have, or None where
    that is unknown. Weights are missing where neither a worker nor this machine has them. Where it
    is unknown what workers have, and this machine has no weights for jobs at all, as a gateway in a
    container of its own, no weights are taken to be missing.
    """

    settings: Settings
    weights: WeightsStore
    egress: Egress
    of_workers: OfWorkers = lambda: None

    async def resolve(self, job_id: UUID, options: UploadOptions) -> NewJob:
        """The job that ``options`` ask for.

        Raises:
            UnknownOption, OutOfRange, OptionConflict, ModelNotInstalled, ModelUnusable, UrlRefused:
                one of them is wrong; it is named.
        """
        job = await asyncio.to_thread(self._resolve, job_id, options)  # it reads the disk
        if options.webhook_url is not None:
            await self.egress.check(options.webhook_url, "webhook_url")
        return job

    async def check_names(self, options: UploadOptions) -> None:
        """Raise `UnknownOption` for names that are invalid whatever the other options are."""
        _check_language(options.language)
        if options.model is not None:
            states = await asyncio.to_thread(self._states)
            if options.model not in {state.model for state in states}:
                allowed = await asyncio.to_thread(self._offered, states)
                raise _not_among("model", allowed, options.model)

    def check_defaults(self) -> None:
        """Check that a job without options can be accepted; reads the disk.

        Raises:
            UnknownOption, ModelNotInstalled: the defaults name a language or weights that do not
                exist.
        """
        asr = self.settings.asr
        self._check(asr.default_engine, asr.default_model, asr.default_language)

    def installed(self) -> list[str]:
        """The weights that jobs may ask for, by their listed names; reads the disk."""
        return [self.listed_name(it.engine, it.model) for it in self._usable(self._states())]

    def listed_name(self, engine: str, model: str) -> str:
        """The name of these weights where no engine is given beside it; "" is the default.

        Weights of the default engine are listed by name, others as ``engine/name``.
        """
        asr = self.settings.asr
        name = model or asr.default_model
        return name if engine in ("", asr.default_engine) else f"{engine}/{name}"

    def _states(self) -> list[WeightsState]:
        return [state for state in self.weights.states() if state.engine in BATCH_ENGINES]

    def _usable(self, states: Sequence[WeightsState]) -> Sequence[WeightsState]:
        """Those that a worker or this machine has, as far as known."""
        local = {(it.engine, it.model) for it in states if it.state != "missing"}
        of_workers = self.of_workers()
        if of_workers is None and not local:
            return states
        had = local | (of_workers or set())
        return [state for state in states if (state.engine, state.model) in had]

    def _offered(self, states: Sequence[WeightsState]) -> list[str]:
        """The names to suggest in place of an unknown one."""
        return list(dict.fromkeys(it.model for it in self._usable(states) or states))

    def _resolve(self, job_id: UUID, options: UploadOptions) -> NewJob:
        asr = self.settings.asr
        engine = options.engine or asr.default_engine
        language = options.language or asr.default_language
        model = options.model or asr.default_model
        language = self._check(engine, model, language)
        if engine == SHERPA_ONNX:
            _check_for_sherpa_onnx(options)
        return NewJob(
            id=job_id,
            engine=engine,
            model=model,
            language=language,
            priority=Priority[options.priority.upper()],
            options=Options(
                cutting=self._cutting(options),
                decoding=Decoding(**options.model_dump(include=DECODING)),
                moderation=self._moderation(options),
                filter_profanity=options.filter_profanity,
                audio_track=options.audio_track,
            ),
            webhook_url=options.webhook_url,
            client=ClientData(options.recording_id, options.metadata),
            delete_after_s=options.delete_after,
        )

    def _check(self, engine: str, model: str, language: str) -> str:
        """The language to transcribe in: ``language``, or the only one that sherpa-onnx's has."""
        _check_language(language)
        states = self._states()
        known = {state.model: state for state in states if state.engine == engine}
        if model not in known:
            raise _not_among("model", self._offered(list(known.values())), model)
        if known[model].state == "missing" and known[model] not in self._usable(states):
            here = ", ".join(self.installed()) or "none"
            raise ModelNotInstalled(
                field="model", model=model, engine=engine, value=model, here=here
            )
        if problem := known[model].problem:
            raise ModelUnusable(field="model", value=model, engine=engine, reason=problem)
        spoken = known[model].languages
        if spoken != EVERY_LANGUAGE and language not in (AUTO, *spoken):
            raise _not_among("language", spoken, language)
        if language == AUTO and engine == SHERPA_ONNX:
            if len(spoken) == 1 and spoken != EVERY_LANGUAGE:
                return spoken[0]
            needed = "an engine that detects languages: faster-whisper or whisper.cpp"
            raise OptionConflict(field="language", value=AUTO, needed=needed)
        return language

    def _moderation(self, options: UploadOptions) -> bool:
        possible = self.settings.moderation.ai_load_models
        if options.moderation and not possible:
            raise OptionConflict(field="moderation", value="true", needed=MODERATION)
        wanted = possible if options.moderation is None else options.moderation
        if options.filter_profanity and not wanted:
            needed = "moderation=true" if possible else MODERATION
            raise OptionConflict(field="filter_profanity", value="true", needed=needed)
        return wanted

    def _cutting(self, options: UploadOptions) -> Cutting:
        chunk, silence = self.settings.chunk, self.settings.silence
        duration = _either(options.chunk_duration, chunk.duration)
        widest = duration / 4
        if options.chunk_overlap is not None and options.chunk_overlap > widest:
            limit = f"at most a quarter of chunk_duration ({widest:g})"
            raise OutOfRange(field="chunk_overlap", limit=limit, value=options.chunk_overlap)
        overlap = _either(options.chunk_overlap, min(chunk.overlap, widest))
        return Cutting(
            strategy=options.chunk_strategy or chunk.strategy,
            window_ms=int(duration * 1000),
            overlap_ms=int(overlap * 1000),
            silence_dbfs=_either(options.silence_threshold, silence.silence_threshold),
            min_silence_ms=int(_either(options.min_silence_duration, silence.min_silence_duration)),
        )


def _check_for_sherpa_onnx(options: UploadOptions) -> None:
    """Reject options that only Whisper has."""
    whisper = {
        "task": options.task if options.task != "transcribe" else None,
        "temperature": options.temperature,
        "initial_prompt": options.initial_prompt,
    }
    for field, value in whisper.items():
        if value is not None:
            needed = "a Whisper engine: faster-whisper or whisper.cpp"
            raise OptionConflict(field=field, value=str(value)[:200], needed=needed)


def _check_language(language: str | None) -> None:
    if language is not None and language != AUTO and language not in LANGUAGES:
        raise _not_among("language", [AUTO, *LANGUAGES], language)


def _either(given: float | None, default: float) -> float:
    return default if given is None else given


def _not_among(field: str, allowed: Iterable[str], value: str) -> UnknownOption:
    return UnknownOption(field=field, allowed=", ".join(allowed), value=value[:200])
