"""Plan: decode a recording once and cut it into chunks, which other workers start at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from common.asr.engine import Samples
from common.audio.channels import Separation, separate
from common.audio.decode import DAMAGED, ChannelDecoder, MonoDecoder
from common.audio.peaks import PeakFinder
from common.audio.planning import PlannedChunk, Planner, PlanOptions
from common.audio.probe import check_length
from common.audio.vad import speech_ms
from common.db.flow import NewPart
from common.db.steps import Claim
from common.db.transcriptions import audio_decoded, plan_begun, plan_ended
from common.domain.chunks import chunk_to_json, content_hash
from common.domain.detection import (
    LANGUAGE_UNCERTAIN,
    MOST_ASKED,
    Detection,
    among,
    spread,
)
from common.domain.glossary import GLOSSARY_TRUNCATED
from common.domain.languages import AUTO
from common.domain.models import (
    ANY_LANGUAGE,
    FALLBACK_MODEL,
    ChosenModel,
    ModelName,
    candidates,
)
from common.domain.pipeline import pipeline_of
from common.domain.request import Options
from common.domain.results import seconds
from common.domain.splicing import with_context
from common.domain.tracks import OTHER_AUDIO_TRACK, Track, default_track, find_track
from common.domain.values import MAX_WINDOW_MS, Span
from common.errors import (
    DecodeFailed,
    ModelFetchFailed,
    NoSpeech,
    NotAudio,
    WeightsCorrupt,
    WeightsMissing,
    WeightsUnusable,
)
from worker.context import Context, fenced, with_retries
from worker.steps.audio import (
    SLOWEST_ENGINE,
    chosen_models,
    cut_samples,
    decoding_identity,
    model_of,
    open_recording,
    part_of,
    plan_options,
)

CHARGED_MS = 30_000
"""How much audio is decoded between two charges."""
FALLBACK_LANGUAGE = "en"
"""The language of a recording in which none could be detected; any would do."""
HELD_WINDOWS = 16
"""How many windows, some minutes of speech, are held back until the language is decided. Planning
them takes a second and 15 MB."""
SLOWEST_PLAN = 0.05
"""Planning that takes more than this share of a recording's length counts as hung."""
LOWEST_BYTE_RATE = 1_000
"""The lowest rate of bytes a second of a recording: it bounds an unknown length."""
DETECT_EVERY = 40
"""After the first windows, one in so many is sampled, to notice other languages."""


class _PlanDiffers(Exception):
    """An earlier attempt, by another version, cut the recording in other places."""


def run(context: Context, claim: Claim) -> Claim | None:
    """Cut the recording of the claimed job; returns the claim of the next step, if any.

    Raises:
        DecodeFailed, OutOfRange, RecordingLost, TooLarge, WeightsMissing: permanently.
        ModelFetchFailed, StaleClaim, StorageFull, Unavailable: as in every step.
    """
    started = time.monotonic()
    planning = _Planning(context, claim)
    try:
        with_retries(planning.run, replan=False)
    except _PlanDiffers:
        with_retries(planning.run, replan=True)
    if with_retries(planning.find_speech):
        with_retries(planning.run, replan=True)
    planning.store_peaks()
    elapsed_ms = round((time.monotonic() - started) * 1000)
    return context.finish(
        claim,
        elapsed_ms=elapsed_ms,
        parts=planning.last,
        within=plan_ended(
            duration_ms=planning.duration_ms,
            warnings=planning.warnings,
            languages=planning.detection.probabilities,
        ),
    )


def limit_s(context: Context, claim: Claim) -> float:
    """The time limit, by the longest recording of this size."""
    job, recording = claim.job, claim.job.recording
    assert recording is not None  # noqa: S101 - the phase that fetches it comes first
    longest_s = recording.size_bytes / LOWEST_BYTE_RATE
    asked_s = MOST_ASKED * MAX_WINDOW_MS / 1000 if job.language == AUTO else 0
    models = Options.from_json(job.options).models or {job.language: (model_of(job),)}
    fetch_s = sum(map(context.models.fetch_limit_s, models.values()))
    limit_s = context.settings.chunk.timeout + SLOWEST_PLAN * longest_s + fetch_s
    return limit_s + SLOWEST_ENGINE * asked_s


class _Planning:
    def __init__(self, context: Context, claim: Claim) -> None:
        self._context = context
        self._claim = claim
        self._job, recording = claim.job, claim.job.recording
        assert recording is not None  # noqa: S101 - the phase that fetches it comes first
        options = Options.from_json(self._job.options)
        self._cutting, self._detect_in = options.cutting, options.detect_in
        self._wanted_channels, self._span = options.channels, options.span
        again = None if self._span is None else with_context(self._span)
        self._part = again or self._detect_in
        """What is cut into chunks; None: all."""
        self._first_ms = 0 if again is None else again.start_ms
        """Where the recording is read from, and the chunks' times count from."""
        self._tracks = tuple(map(Track.from_json, recording.audio_tracks))
        self._default = default_track(self._tracks)
        self._requested = find_track(self._tracks, options.audio_track)
        self._track = next(
            (it for it in (self._requested, self._job.transcription.audio_track) if it is not None),
            self._default,
        )
        self._recording = recording
        self._reading = [
            step.kind
            for step in pipeline_of(self._job.kind).phase("chunks").each_of(self._job.options)
            if step.reads_files
        ]
        """The kinds of steps that read a chunk's audio."""
        self._truncated = options.glossary_truncated
        self._languages = options.languages
        self._models = options.models
        self._weights_sha256 = ""
        self._known: dict[int, tuple[str, bool]] = {}
        self._charged_ms = self._job.transcription.charged_ms
        self._is_silent = False
        self.duration_ms = 0
        self.warnings: list[str] = []
        self._fallback: dict[str, None] = {}
        """Warnings, each once."""

    def run(self, *, replan: bool) -> None:
        self._language: str | None = None
        self._held: list[PlannedChunk] = []
        self._since_detection = 0
        self._peaks = PeakFinder()
        self._decoded = False
        self.last: list[NewPart] = []
        """The parts found after decoding ended; stored when the step finishes."""
        self.detection = Detection()
        self._begin()
        if not replan:
            planned = self._context.transcriptions.planned
            self._known = with_retries(planned, self._claim.job_id, self._reading)
        self._separation = self._separate()
        if self._job.language != AUTO:
            self._start(self._job.language, replan=replan)
        channels = self._separation.channels
        planner = Planner(plan_options(self._cutting), self._context.voice_network, channels)
        span = self._span or Span(0, sys.maxsize)
        start_ms = 0 if self._is_damaged() else self._first_ms
        with open_recording(self._context, self._recording) as recording:
            decoder = ChannelDecoder if channels else MonoDecoder
            decoding = decoder(recording, track=self._track, start_ms=start_ms)
            for block in decoding if self._part is None else part_of(decoding, self._part):
                decoded_ms = min(decoding.duration_ms, span.end_ms) - span.start_ms
                check_length(decoded_ms, self._context.settings.upload.max_audio_hours)
                self._peaks.feed(block)
                if not self._charged_ms or decoded_ms >= self._charged_ms + CHARGED_MS:
                    self._charge(decoded_ms)
                for chunk in planner.feed(block):
                    self._add_or_hold(chunk, replan=replan)
                if self._detect_in is not None and self._language is not None:
                    break
        read = Span(self._first_ms, self._first_ms + planner.duration_ms)
        self.duration_ms = read.clipped(span).duration_ms
        self._charge(self.duration_ms if self._span else decoding.duration_ms)
        self._decoded = True
        for chunk in planner.finish():
            self._add_or_hold(chunk, replan=replan)
        if self._language is None:
            self._decide(replan=replan)
        self._is_silent = planner.speech_ms == 0
        self.warnings = [
            *decoding.warnings,
            *filter(None, [self._separation.warning]),
            *(["no_speech"] if self._is_silent else []),
            *self._fallback,
            *([GLOSSARY_TRUNCATED] if self._truncated else []),
            *self._detection_warnings,
        ]
        if self._track != (self._default if self._requested is None else self._requested):
            self.warnings.append(OTHER_AUDIO_TRACK)

    def _begin(self) -> None:
        """Create the job's places; `_start` checks the claim before anything is written there."""
        begin, job_id = self._context.storage.begin, self._claim.job_id
        with_retries(begin, "chunks", job_id)
        if self._part is None:
            with_retries(begin, "peaks", job_id)

    def _separate(self) -> Separation:
        """Which channels to transcribe separately; the same in every attempt."""
        if self._span is not None:  # those of the source, as they were found in all of it
            return Separation(tuple(self._job.transcription.channels or ()))
        if self._wanted_channels == "mix":
            return Separation()
        with open_recording(self._context, self._recording) as recording:
            return separate(ChannelDecoder(recording, track=self._track), self._wanted_channels)

    def _is_damaged(self) -> bool:
        """Whether the recording has to be decoded from its start to count its time."""
        source_id = self._job.source_id
        if source_id is None:
            return False
        return DAMAGED in with_retries(self._context.transcriptions.warnings, source_id)

    def _add_or_hold(self, planned: PlannedChunk, *, replan: bool) -> None:
        if self._language is None:
            self._held.append(planned)
            if sum(len(held.chunk.windows) for held in self._held) >= HELD_WINDOWS:
                self._decide(replan=replan)
            return
        if self._job.language == AUTO and not self._languages:
            self._since_detection += len(planned.chunk.windows)
            if self._since_detection >= DETECT_EVERY:
                self._since_detection = 0
                self._detect([planned])
        self._add(planned, self._language)

    def _decide(self, *, replan: bool) -> None:
        self._detect(self._held)
        otherwise = self._languages[0] if self._languages else FALLBACK_LANGUAGE
        language = next(iter(self.detection.probabilities), otherwise)
        self._start(language, replan=replan)
        held, self._held = self._held, []
        for planned in held:
            self._add(planned, language)

    def _detect(self, chunks: Sequence[PlannedChunk]) -> None:
        """Detect the language of windows spread over ``chunks``, until it is settled."""
        windows = [(planned, window) for planned in chunks for window in planned.chunk.windows]

        def samples(index: int) -> Samples:
            planned, window = windows[index]
            return cut_samples(planned.pcm, [window], planned.chunk.audio)[0]

        network = self._context.voice_network
        spoken_ms = [speech_ms(network, samples(index)) for index in range(len(windows))]
        for index in spread(spoken_ms):
            engine = self._context.engines.get(self._detector())
            (languages,) = engine.languages([samples(index)])
            if self._languages:
                languages = among(languages, self._languages)
            self.detection.add(spoken_ms[index], languages)
            if self.detection.is_settled:
                return

    @property
    def _detection_warnings(self) -> list[str]:
        """With several languages declared, it is no news that there are several."""
        found = self.detection.warnings
        return [each for each in found if not self._languages or each == LANGUAGE_UNCERTAIN]

    def _detector(self) -> ModelName:
        """The model that detects the language."""
        if not self._models:
            return model_of(self._job)
        return self._context.models.have_one(self._models[ANY_LANGUAGE])

    def _choose(self, language: str) -> ModelName:
        """The model for this language: the best one that is here."""
        if not self._models:
            return model_of(self._job)
        names = candidates(self._models, language)
        chosen = self._context.models.have_one(names)
        better = names[: names.index(chosen)]
        for name in better[:1]:
            self._fallback[f"{FALLBACK_MODEL}: {self._context.models.advice(name)}"] = None
        return chosen

    def _chosen(self, language: str) -> dict[str, ChosenModel]:
        """The model of the language or, of several, of each and of what detects them.

        A job that was planned before keeps those it was planned with, as long as they are here.
        """
        if kept := self._kept(language):
            return kept
        if self._detect_in is not None:
            names = {language: self._detector()}
        else:
            names = {code: self._choose(code) for code in self._languages or (language,)}
        if self._languages:
            names[ANY_LANGUAGE] = self._detector()
        resolve = self._context.models.resolve
        return {code: ChosenModel(name, resolve(name).sha256) for code, name in names.items()}

    def _kept(self, language: str) -> dict[str, ChosenModel]:
        """The models of an earlier plan; none: there is none, or they are not as they were."""
        stored, resolve = self._job.transcription, self._context.models.resolve
        planned = self._known and stored.detected_language == language
        if not planned or stored.weights_sha256 is None:
            return {}
        kept = chosen_models(self._job) or {
            language: ChosenModel(model_of(self._job), stored.weights_sha256)
        }
        with suppress(ModelFetchFailed, WeightsCorrupt, WeightsMissing, WeightsUnusable):
            if all(resolve(it.name).sha256 == it.weights_sha256 for it in kept.values()):
                fallbacks = (it for it in self._job.warnings if it.startswith(FALLBACK_MODEL))
                self._fallback = dict.fromkeys(fallbacks)
                return kept
        return {}

    def store_peaks(self) -> None:
        """Store the peaks of the recording, unless only a part of it was decoded."""
        if self._part is None:
            with fenced():
                peaks = self._peaks.finish()
                with_retries(self._context.storage.write_peaks, self._claim.job_id, peaks)

    def find_speech(self) -> bool:
        """Select another audio track if that one has speech and the default one has none."""
        if self._span is not None:
            if self._is_silent:
                raise NoSpeech(start=seconds(self._span.start_ms), end=seconds(self._span.end_ms))
            return False
        if len(self._tracks) < 2 or self._requested is not None or self._track != self._default:
            return False
        # With the fixed strategy, everything counts as speech.
        cut_blindly = self._cutting.strategy == "fixed"
        if self._has_speech(self._track) if cut_blindly else not self._is_silent:
            return False
        others = (track.index for track in self._tracks if track.index != self._default)
        found = next(filter(self._has_speech, others), None)
        if found is not None:
            self._track = found
        return found is not None

    def _has_speech(self, track: int | None) -> bool:
        """Whether a track has speech; decodes it up to the first."""
        planner = Planner(PlanOptions(), self._context.voice_network)
        with (
            open_recording(self._context, self._recording) as recording,
            suppress(DecodeFailed, NotAudio),
        ):
            for block in MonoDecoder(recording, track=track):
                planner.feed(block)
                if planner.speech_ms:
                    return True
            planner.finish()
        return planner.speech_ms > 0

    def _charge(self, decoded_ms: int) -> None:
        if decoded_ms > self._charged_ms:
            with_retries(self._context.steps.write, self._claim, audio_decoded(decoded_ms))
            self._charged_ms = decoded_ms

    def _start(self, language: str, *, replan: bool) -> None:
        self._language = language
        if replan:
            self._known = {}
        self._fallback = {}
        models = self._chosen(language)
        chosen = models[language]
        self._weights_sha256 = chosen.weights_sha256
        # as they will be stored
        self._job.engine, self._job.model = chosen.name.engine, chosen.name.model
        self._job.transcription.models = (
            {code: each.to_json() for code, each in models.items()} if self._languages else None
        )
        begun = plan_begun(
            name=chosen.name,
            weights_sha256=self._weights_sha256,
            language=language,
            audio_track=self._track,
            replan=replan,
            models=self._job.transcription.models,
            channels=self._separation.channels,
        )
        with_retries(self._context.steps.write, self._claim, begun)

    def _add(self, planned: PlannedChunk, language: str) -> None:
        """Store the chunk to be transcribed, unless the job only detects the language."""
        if self._detect_in is not None:
            return
        chunk = planned.chunk.shifted(self._first_ms)
        identity = decoding_identity(self._job, self._weights_sha256, language)
        address = content_hash(chunk, planned.pcm, identity)
        known_address, done = self._known.get(chunk.index, (address, False))
        if known_address != address:
            raise _PlanDiffers
        if done:
            return
        storage, job_id = self._context.storage, self._claim.job_id
        with fenced():
            with_retries(storage.write_chunk, job_id, chunk.index, planned.pcm)
        part = NewPart(chunk.index, planned.counted_ms, chunk_to_json(chunk), address)
        if self._decoded:
            self.last.append(part)
            return
        with_retries(self._context.steps.add_parts, self._claim, [part])
        self._context.events.work_to_do()
