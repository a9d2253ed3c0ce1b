"""Options of live streams, and their resolution to weights and settings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field

from api.http.fields import Metadata, Name, Omittable, RequestDocument, Word
from api.http.problems import echoed
from api.processes.moderator import NEEDED as MODERATION
from common.asr.loading import STYLES
from common.db.snapshots import ClientData
from common.domain.languages import AUTO, LANGUAGES
from common.domain.speaking import Endpointing
from common.domain.stream import Setup
from common.errors import (
    ModelNotInstalled,
    OptionConflict,
    OutOfRange,
    RecognizerUnusable,
    UnknownOption,
)
from common.settings import Settings
from common.weights.manifest import EVERY_LANGUAGE
from common.weights.store import WeightsState, WeightsStore

WHISPER = "whisper"
"""Another name of faster-whisper."""
PACKAGES = {"faster-whisper": "faster_whisper", "zipformer": "sherpa_onnx"}
"""The package that an engine requires; a gateway in a container of its own has none of them."""


class StreamOptions(RequestDocument):
    """The options of a live stream; defaults come from the settings."""

    model_id: Annotated[Omittable[Name], Field(examples=["base"])] = None
    """The weights, or `whisper` or `zipformer` for that engine's; `GET /api/v1/models` shows which
    support streams. It can be changed at any time."""
    engine: Annotated[Omittable[Literal["faster-whisper", "whisper", "zipformer"]], Word] = None
    """The code that runs the weights, where two engines have weights of that name."""
    language: Annotated[Omittable[str], Word, Field(examples=["vi"])] = None
    """A Whisper code (vi, en, ...)."""
    moderation: Omittable[bool] = None
    """Moderate each final; true unless moderation is off on the gateway."""
    endpointing: int = Field(500, ge=200, le=5_000)
    """Milliseconds of silence that end an utterance."""
    recording_id: Omittable[Name] = None
    """Your own name for the stream, returned unchanged."""
    metadata: Omittable[Metadata] = None
    """A JSON object of at most 16 KB, returned unchanged; in a URL as text."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A stream's options, fully resolved."""

    setup: Setup
    endpointing: Endpointing
    moderation: bool
    client: ClientData


class StreamResolver:
    """Resolves options by this gateway's defaults, engines and weights; it reads the disk."""

    def __init__(self, settings: Settings, weights: WeightsStore) -> None:
        self._settings = settings
        self._weights = weights

    def resolve(self, options: StreamOptions) -> StreamRequest:
        """The stream that ``options`` ask for.

        Raises:
            UnknownOption, ModelNotInstalled, OptionConflict: one of them is wrong; it is named.
            RecognizerUnusable: the engine is not installed on this gateway.
        """
        possible = self._settings.moderation.ai_load_models
        if options.moderation and not possible:
            raise OptionConflict(field="moderation", value="true", needed=MODERATION)
        return StreamRequest(
            setup=self.setup(options),
            endpointing=Endpointing(silence_ms=options.endpointing),
            moderation=possible if options.moderation is None else options.moderation,
            client=ClientData(options.recording_id, options.metadata),
        )

    def setup(self, options: StreamOptions, current: Setup | None = None) -> Setup:
        """The engine, weights and language; what is not named stays, or is as in the settings.

        Raises: as `resolve`.
        """
        default = self._settings.stream
        engine, model = self._names(options)
        if engine is None and model is None:
            engine = current.engine if current else default.engine
            model = current.model if current else default.model
        state = self._find(engine, model)
        if find_spec(PACKAGES[state.engine]) is None:
            reason = "the engine is not installed on this gateway"
            raise RecognizerUnusable(engine=state.engine, model=state.model, reason=reason)
        if state.state == "missing":
            here = [f"{engine}/{model}" for engine, model in self._weights.present()]
            raise ModelNotInstalled(
                field="model_id",
                model=state.model,
                engine=state.engine,
                value=state.model,
                here=", ".join(here) or "none",
            )
        return Setup(state.engine, state.model, self._language(options, current, state))

    def can_stream(self, state: WeightsState) -> bool:
        """Whether streams can use these weights on this gateway now."""
        return (
            state.engine in STYLES
            and state.state == "present"
            and self._settings.stream.limit_of(state.engine) > 0
            and find_spec(PACKAGES[state.engine]) is not None
        )

    def _names(self, options: StreamOptions) -> tuple[str | None, str | None]:
        """Engine and model as named; ``model_id`` may also name an engine."""
        engine: str | None = options.engine
        model = options.model_id
        if engine is None and model in {WHISPER, *STYLES}:
            engine, model = model, None
        return ("faster-whisper" if engine == WHISPER else engine), model

    def _find(self, engine: str | None, model: str | None) -> WeightsState:
        """The weights of these names; of several the present ones first, then the default."""
        default = self._settings.stream
        known = [state for state in self._weights.states() if state.engine in STYLES]
        fitting = [
            state
            for state in known
            if engine in (None, state.engine) and model in (None, state.model)
        ]
        if not fitting:
            allowed = dict.fromkeys(
                state.model for state in known if engine in (None, state.engine)
            )
            raise UnknownOption(
                field="model_id", allowed=", ".join(allowed), value=echoed(model or engine)
            )
        return min(
            fitting,
            key=lambda it: (
                it.state == "missing",
                (it.engine, it.model) != (default.engine, default.model),
            ),
        )

    def _language(self, options: StreamOptions, current: Setup | None, state: WeightsState) -> str:
        spoken = state.languages
        wanted = options.language
        if wanted is not None and wanted not in LANGUAGES:
            allowed = ", ".join(LANGUAGES)
            raise UnknownOption(field="language", allowed=allowed, value=echoed(wanted))
        usual = current.language if current else self._settings.asr.default_language
        language = wanted or usual
        if language == AUTO:  # detecting it would take seconds of audio
            raise UnknownOption(field="language", allowed=", ".join(LANGUAGES), value=language)
        if spoken == EVERY_LANGUAGE or language in spoken:
            return language
        if wanted is None:
            return spoken[0]
        raise UnknownOption(field="language", allowed=", ".join(spoken), value=wanted)


def check_unchanged(options: StreamOptions) -> None:
    """Reject options that can only be set before a stream's first audio.

    Raises:
        OutOfRange: one is given; it is named.
    """
    for name in ("moderation", "endpointing", "recording_id", "metadata"):
        if name in options.model_fields_set:
            value = echoed(getattr(options, name))
            raise OutOfRange(field=name, limit="sent before the first audio", value=value)
