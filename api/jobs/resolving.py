"""Resolves the options of a client to the request that is stored with its job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from uuid import UUID, uuid4

from fastapi import Request

from api.auth.callers import Caller
from api.http.problems import validated
from api.jobs.enhancing import enhancement_options, tasks_of
from api.jobs.schemas import UploadOptions
from api.processes.moderator import NEEDED as MODERATION
from api.services import Services
from common.db.jobs import NewJob
from common.db.snapshots import ClientData
from common.domain.glossary import MOST_ENTRIES, NO_GLOSSARY, Glossary, cleaned, hotwords
from common.domain.job import Priority
from common.domain.languages import AUTO, LANGUAGES
from common.domain.models import (
    ANY_LANGUAGE,
    AUTO_MODEL,
    BATCH_ENGINES,
    SPEAKER_NETWORKS,
    ModelName,
    Table,
    candidates,
)
from common.domain.request import Cutting, Decoding, Options
from common.domain.speakers import SpeakerCount
from common.domain.values import MAX_WINDOW_MS
from common.errors import (
    ModelNotInstalled,
    ModelUnusable,
    OptionConflict,
    OutOfRange,
    UnknownOption,
)
from common.llm.servers import ServerInUse
from common.net.egress import Egress
from common.settings import Settings
from common.weights.manifest import EVERY_LANGUAGE, SHERPA_ONNX
from common.weights.store import WeightsState, WeightsStore

MOST_LANGUAGES = 8
"""More than people speak in one recording; each has a model to fetch and to load."""
MOST_NAMES = 10
"""Glossaries of a job."""
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
    container of its own, no weights are taken to be missing. ``failed_fetches`` returns those that
    no source had lately.
    """

    settings: Settings
    weights: WeightsStore
    egress: Egress
    of_workers: OfWorkers = lambda: None
    failed_fetches: Callable[[], set[tuple[str, str]]] = set

    async def resolve(
        self,
        job_id: UUID,
        options: UploadOptions,
        glossaries: Sequence[Glossary] = (),
        server: ServerInUse | None = None,
    ) -> NewJob:
        """The job that ``options`` ask for, with these glossaries.

        ``server`` is there where it asks for enhancements.

        Raises:
            UnknownOption, OutOfRange, OptionConflict, ModelNotInstalled, ModelUnusable, UrlRefused:
                one of them is wrong; it is named.
        """
        job = await asyncio.to_thread(
            self._resolve, job_id, options, glossaries, server
        )  # it reads the disk
        if options.webhook_url is not None:
            await self.egress.check(options.webhook_url, "webhook_url")
        return job

    async def check_names(self, options: UploadOptions) -> None:
        """Raise `UnknownOption` for names that are invalid whatever the other options are."""
        _languages(options)
        if options.model is not None and options.model.lower() != AUTO_MODEL:
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
        self._resolve(uuid4(), form_options({}))

    def installed(self) -> list[str]:
        """The weights that jobs may ask for, by their listed names; reads the disk."""
        return [self.listed_name(it.engine, it.model) for it in self._usable(self._states())]

    def listed_name(self, engine: str, model: str) -> str:
        """The name of these weights where no engine is given beside it; "" is the default.

        Weights of the default engine are listed by name, others as ``engine/name``.
        """
        default = self.settings.asr.default_engine
        name = ModelName(engine or default, model) if model else self.default()
        return name.model if name.engine == default else str(name)

    def default(self) -> ModelName:
        """The model of a job without options, as far as known; reads the disk."""
        names, here = self.settings.asr.default_models, self._here()
        return next((name for name in names if name in here), names[0])

    def _here(self) -> set[ModelName]:
        """Those that a worker or this machine has, as far as known."""
        return {ModelName(it.engine, it.model) for it in self._usable(self._states())}

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

    def _resolve(
        self,
        job_id: UUID,
        options: UploadOptions,
        glossaries: Sequence[Glossary] = (),
        server: ServerInUse | None = None,
    ) -> NewJob:
        asr = self.settings.asr
        languages = _languages(options) or (asr.default_language,)
        language = languages[0] if len(languages) == 1 else AUTO
        model = options.model or asr.default_model
        if model.lower() == AUTO_MODEL:
            models = self._candidates(options, languages)
            name, fetch = self._choose(models, languages)
        else:
            name = ModelName(options.engine or asr.default_engine, model)
            language, fetch = self._check(name, languages, options)
            models = {ANY_LANGUAGE: (name,)} if fetch else {}
            if name.engine == SHERPA_ONNX:
                if refused := _only_for_whisper(options):
                    raise _needs_whisper(*refused)
                if language == AUTO:  # another model detects the languages
                    of_each = dict.fromkeys(languages, (name,))
                    models = {**of_each, ANY_LANGUAGE: asr.models_for[ANY_LANGUAGE]}
                    fetch = self._choose(models, languages)[1]
        diarize = _speaker_count(options)
        cutting = self._cutting(options)
        used = {each.engine for names in models.values() for each in names} or {name.engine}
        if cutting.window_ms > MAX_WINDOW_MS and used != {SHERPA_ONNX}:
            limit = f"at most {MAX_WINDOW_MS // 1000} for Whisper"
            raise OutOfRange(field="chunk_duration", limit=limit, value=options.chunk_duration)
        glossaries = _usable(glossaries, options, languages)
        terms = tuple(entry.word for each in glossaries for entry in each.entries)
        decoding = Decoding(**options.model_dump(include=DECODING))
        words, truncated = hotwords(
            decoding.hotwords,
            decoding.initial_prompt,
            glossaries,
            for_whisper=used != {SHERPA_ONNX},
        )
        return NewJob(
            id=job_id,
            engine=name.engine,
            model=name.model,
            language=language,
            priority=Priority[options.priority.upper()],
            options=Options(
                cutting=cutting,
                decoding=replace(decoding, hotwords=words),
                moderation=self._moderation(options),
                filter_profanity=options.filter_profanity,
                audio_track=options.audio_track,
                languages=languages if len(languages) > 1 else (),
                models=models,
                fetch_model=fetch or (diarize is not None and self._lacks_networks()),
                diarize=diarize,
                channels=options.channels,
                identify=options.identify,
                review=options.review,
                glossaries=tuple(glossaries),
                glossary_truncated=truncated,
                enhance=tuple(
                    enhancement_options(server, task, terms=terms).to_json()
                    for task in tasks_of(options.enhance)
                    if server is not None
                ),
            ),
            webhook_url=options.webhook_url,
            client=ClientData(options.recording_id, options.metadata),
            delete_after_s=options.delete_after,
        )

    def _candidates(self, options: UploadOptions, languages: Sequence[str]) -> Table:
        """The models that may transcribe this request, best first, by language.

        Raises:
            UnknownOption: the engine runs none of them.
        """
        table = self.settings.asr.models_for
        if options.task == "translate":  # those of a single language were trained to transcribe
            table = {ANY_LANGUAGE: table[ANY_LANGUAGE]}
        if AUTO not in languages:
            table = {code: candidates(table, code) for code in _with_detection(languages)}
        whisper = _only_for_whisper(options)
        found = {
            code: tuple(
                name
                for name in self._run_by(options.engine, names)
                if whisper is None or name.engine != SHERPA_ONNX
            )
            for code, names in table.items()
        }
        if whisper is not None and not all(found.values()):
            raise _needs_whisper(*whisper)
        if not all(found.values()):
            allowed = [
                engine
                for engine in BATCH_ENGINES
                if all(self._run_by(engine, names) for names in table.values())
            ]
            raise _not_among("engine", allowed, options.engine or "")
        return found

    def _run_by(self, engine: str | None, names: Sequence[ModelName]) -> Sequence[ModelName]:
        """These models, or those of the same names for ``engine``."""
        if engine is None:
            return names
        known = {state.model for state in self._states() if state.engine == engine}
        same = dict.fromkeys(ModelName(engine, name.model) for name in names)
        return [name for name in same if name.model in known]

    def _choose(self, models: Table, languages: Sequence[str]) -> tuple[ModelName, bool]:
        """The model that the job begins with, and whether one has to be fetched.

        Raises:
            ModelNotInstalled: of the models of a language, none is here or can be fetched.
        """
        chosen = []
        for code in _with_detection(languages):
            names = candidates(models, code)
            name, is_here = self.choose(names)
            if name is None:
                raise self._not_installed(names[0])
            chosen.append((name, is_here))
        return chosen[0][0], not all(is_here for _, is_here in chosen)

    def choose(self, names: Sequence[ModelName]) -> tuple[ModelName | None, bool]:
        """The first of these that is here or can be fetched, and whether it is here.

        Those that no source had lately are fetched only where nothing else is left.
        """
        here, failed = self._here(), self.failed_fetches()
        fetchable = [name for name in names if self._can_fetch(name)]
        for name in names:
            if name in here:
                return name, True
            if name in fetchable and (name.engine, name.model) not in failed:
                return name, False
        return next(iter(fetchable), None), False

    def _lacks_networks(self) -> bool:
        """Whether the networks of diarization have to be fetched.

        Raises:
            OptionConflict: they are not here and cannot be fetched.
        """
        here = {(it.engine, it.model) for it in self._usable(self.weights.states())}
        missing = [it for it in SPEAKER_NETWORKS if (it.engine, it.model) not in here]
        lacking = [name for name in missing if not self._can_fetch(name)]
        if lacking:
            names = " and ".join(map(str, lacking))
            commands = " && ".join(name.pull_command for name in lacking)
            needed = f"{names}, which this service lacks; run: {commands}"
            raise OptionConflict(field="diarize", value="true", needed=needed)
        return bool(missing)

    def _can_fetch(self, name: ModelName) -> bool:
        auto_fetch = self.settings.asr.auto_fetch
        return auto_fetch and self.weights.manifest.has_source(name.engine, name.model)

    def _not_installed(self, name: ModelName) -> ModelNotInstalled:
        here = ", ".join(self.installed()) or "none"
        return ModelNotInstalled(
            field="model", model=name.model, engine=name.engine, value=name.model, here=here
        )

    def _check(
        self, name: ModelName, languages: Sequence[str], options: UploadOptions
    ) -> tuple[str, bool]:
        """The language to transcribe in, and whether the model has to be fetched.

        The language is the only one of ``languages``, or of a model of sherpa-onnx; else auto.
        """
        states = self._states()
        known = {state.model: state for state in states if state.engine == name.engine}
        if name.model not in known:
            raise _not_among("model", self._offered(list(known.values())), name.model)
        state = known[name.model]
        missing = state.state == "missing" and state not in self._usable(states)
        if missing and not self._can_fetch(name):
            raise self._not_installed(name)
        if state.problem:
            raise ModelUnusable(
                field="model", value=name.model, engine=name.engine, reason=state.problem
            )
        spoken = state.languages
        for language in languages:
            if spoken != EVERY_LANGUAGE and language not in (AUTO, *spoken):
                field = "languages" if options.languages else "language"
                raise _not_among(field, spoken, language)
        if len(languages) > 1:
            return AUTO, missing
        if language == AUTO and name.engine == SHERPA_ONNX:
            if len(spoken) > 1 or spoken == EVERY_LANGUAGE:
                needed = "an engine that detects languages: faster-whisper or whisper.cpp"
                raise OptionConflict(field="language", value=AUTO, needed=needed)
            language = spoken[0]
        return language, missing

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


async def resolved(
    services: Services, caller: Caller, request: Request, job_id: UUID, options: UploadOptions
) -> NewJob:
    """The caller's job that ``options`` ask for, with the tenant's glossaries.

    Raises:
        EnhancementOff: it asks for enhancements, and there is no server for them.
        UnknownOption, OutOfRange, OptionConflict, ModelNotInstalled, ModelUnusable, UrlRefused:
            one of the options is wrong; it is named.
    """
    stored = services.glossaries(caller.tenant)
    if options.glossaries is None:
        glossaries = await services.in_thread(stored.default)
    else:
        glossaries = await services.in_thread(stored.named, glossary_names(options.glossaries))
    server = None
    if tasks_of(options.enhance):
        server = await services.in_thread(services.chat_server_in_use, caller.tenant)
    job = await services.get(Resolver).resolve(job_id, options, glossaries, server)
    return caller.attributed(request, job)


def glossary_names(asked: str) -> list[str]:
    """The names in a list with commas; none for `NO_GLOSSARY`.

    Raises:
        OutOfRange: there are too many.
    """
    names = list(dict.fromkeys(name for each in asked.split(",") if (name := cleaned(each))))
    if [name.lower() for name in names] == [NO_GLOSSARY]:
        return []
    if len(names) > MOST_NAMES:
        raise OutOfRange(field="glossaries", limit=f"at most {MOST_NAMES} names", value=asked[:200])
    return names


def _usable(
    glossaries: Sequence[Glossary], options: UploadOptions, languages: Sequence[str]
) -> list[Glossary]:
    """Those for the job's languages; a default one that is not is left out.

    Raises:
        OptionConflict: one that is named is for another language.
        OutOfRange: they have too many words.
    """
    possible = {None, *(LANGUAGES if AUTO in languages else languages)}
    usable = [each for each in glossaries if each.language in possible]
    if options.glossaries is not None:
        for each in glossaries:
            if each not in usable:
                needed = f"language={each.language} or auto"
                raise OptionConflict(field="glossaries", value=each.name, needed=needed)
    count = sum(len(each.entries) for each in usable)
    if count > MOST_ENTRIES:
        limit = f"glossaries with at most {MOST_ENTRIES} words in all"
        raise OutOfRange(field="glossaries", limit=limit, value=count)
    return usable


def _speaker_count(options: UploadOptions) -> SpeakerCount | None:
    """How many speakers to find; None: none.

    Raises:
        OutOfRange, OptionConflict: a number is impossible, or speakers are not to be found.
    """
    limits = {
        name: getattr(options, name) for name in ("num_speakers", "min_speakers", "max_speakers")
    }
    needed = None if options.diarize else "diarize=true"
    if options.channels == "separate":
        needed = "channels=mix or channels=auto: with separate, the channels are the speakers"
    asked = limits | {"identify": "true" if options.identify else None}
    for name, value in asked.items():
        if value is not None and needed is not None:
            raise OptionConflict(field=name, value=value, needed=needed)
    return SpeakerCount.of(**limits) if options.diarize else None


def _only_for_whisper(options: UploadOptions) -> tuple[str, str] | None:
    """The first option that only Whisper has, and its value."""
    if options.task != "transcribe":
        return "task", options.task
    if options.temperature is not None:
        return "temperature", f"{options.temperature:g}"
    if options.initial_prompt is not None:
        return "initial_prompt", options.initial_prompt[:200]
    return None


def _needs_whisper(field: str, value: str) -> OptionConflict:
    needed = "a Whisper engine: faster-whisper or whisper.cpp"
    return OptionConflict(field=field, value=value, needed=needed)


def _languages(options: UploadOptions) -> tuple[str, ...]:
    """The languages that are asked for, each once: codes, or auto alone; empty: none."""
    language = options.language
    if language is not None and language != AUTO and language not in LANGUAGES:
        raise _not_among("language", [AUTO, *LANGUAGES], language)
    if options.languages is None:
        return () if language is None else (language,)
    if language not in (None, AUTO):
        raise OptionConflict(field="languages", value=options.languages, needed="language=auto")
    codes = dict.fromkeys(code.strip() for code in options.languages.split(","))
    for code in codes:
        if code not in LANGUAGES:
            raise _not_among("languages", LANGUAGES, code)
    if len(codes) > MOST_LANGUAGES:
        limit = f"at most {MOST_LANGUAGES} codes"
        raise OutOfRange(field="languages", limit=limit, value=options.languages)
    return tuple(codes)


def _with_detection(languages: Sequence[str]) -> Sequence[str]:
    """The keys of the models that are needed: several languages are told apart by one as well."""
    return (*languages, ANY_LANGUAGE) if len(languages) > 1 else languages


def _either(given: float | None, default: float) -> float:
    return default if given is None else given


def _not_among(field: str, allowed: Iterable[str], value: str) -> UnknownOption:
    return UnknownOption(field=field, allowed=", ".join(allowed), value=value[:200])
