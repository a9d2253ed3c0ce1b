"""The resolved request: stored with the job, never changed, enough to run it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from common.domain.glossary import Entry, Glossary
from common.domain.models import ModelName
from common.domain.speakers import SpeakerCount
from common.domain.values import Span

Strategy = Literal["vad", "silence", "fixed"]
Task = Literal["transcribe", "translate"]
Channels = Literal["mix", "separate", "auto"]


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a recording is cut into windows.

    ``window_ms`` in [1000, 60000], for Whisper at most 30000; ``overlap_ms`` is what neighbours
    share if no silence was found; ``silence_dbfs`` <= 0 and ``min_silence_ms`` define silence.
    """

    strategy: Strategy = "vad"
    window_ms: int = 30_000
    overlap_ms: int = 2_000
    silence_dbfs: float = -40.0
    min_silence_ms: int = 500


@dataclass(frozen=True, slots=True)
class Decoding:
    """How windows are decoded; ``None``: the engine's measured default.

    ``beam_size`` in [1, 16]; ``temperature`` in [0, 1] switches the fallback ladder off.
    """

    task: Task = "transcribe"
    beam_size: int | None = None
    temperature: float | None = None
    initial_prompt: str | None = None
    hotwords: str | None = None
    word_timestamps: bool = True


@dataclass(frozen=True, slots=True)
class Options:
    """All of a job's options.

    ``moderation``: label the segments. ``filter_profanity``: mask the offending words wherever the
    text is shown, unless a request overrides it; the stored text is not masked. ``audio_track``: an
    index, or a language; see `common.domain.tracks`. ``detect_in``: detect the language of this
    part, and transcribe nothing. ``languages``: several that are spoken, each transcribed as such;
    the first is taken where none can be detected; empty: there is one, or it is detected.
    ``models``: by language, the models to choose from, best first; empty where the request names
    one that is installed and detects languages itself; those of `ANY_LANGUAGE` also detect the
    language. ``fetch_model``: some have to be fetched. ``diarize``: find so many speakers, and who
    says what; None: do not. ``channels``: transcribe the mix of all channels, or each by itself;
    ``auto``: each if there are two with different people. ``identify``: name the speakers whose
    voices are enrolled. ``review``: whether a person has to approve the text; None, which is not
    stored: as the tenant's row says. ``span``: what of the recording is transcribed; None: all.
    ``glossaries``: as they were when the job was created; their words are in the hotwords.
    ``glossary_truncated``: some are not, as there was no room. ``enhance``: the requests of the
    second AI step once the job is COMPLETED, in their stored form with their ``model``.
    """

    cutting: Cutting = Cutting()
    decoding: Decoding = Decoding()
    moderation: bool = False
    filter_profanity: bool = False
    audio_track: str | None = None
    detect_in: Span | None = None
    languages: tuple[str, ...] = ()
    models: Mapping[str, tuple[ModelName, ...]] = field(default_factory=dict)
    fetch_model: bool = False
    diarize: SpeakerCount | None = None
    channels: Channels = "mix"
    identify: bool = False
    review: bool | None = None
    span: Span | None = None
    glossaries: tuple[Glossary, ...] = ()
    glossary_truncated: bool = False
    enhance: tuple[Mapping[str, Any], ...] = ()

    @property
    def to_rewrite(self) -> list[Entry]:
        """The entries whose spellings are replaced in the text."""
        return [entry for each in self.glossaries if each.rewrite for entry in each.entries]

    def to_json(self) -> dict[str, Any]:
        names = {language: [str(each) for each in them] for language, them in self.models.items()}
        glossaries = [each.to_json() for each in self.glossaries]
        return asdict(self) | {"models": names, "glossaries": glossaries}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read the output of `to_json`."""
        return cls(
            # Jobs of other kinds are stored without some of these, and so are older ones.
            Cutting(**document.get("cutting", {})),
            Decoding(**document.get("decoding", {})),
            moderation=document.get("moderation", False),
            filter_profanity=document.get("filter_profanity", False),
            audio_track=document.get("audio_track"),
            detect_in=Span(**part) if (part := document.get("detect_in")) else None,
            languages=tuple(document.get("languages", ())),
            models={
                language: tuple(map(ModelName.parse, names))
                for language, names in document.get("models", {}).items()
            },
            fetch_model=document.get("fetch_model", False),
            diarize=SpeakerCount(**count) if (count := document.get("diarize")) else None,
            channels=document.get("channels", "mix"),
            identify=document.get("identify", False),
            review=document.get("review"),
            span=Span(**span) if (span := document.get("span")) else None,
            glossaries=tuple(map(Glossary.from_json, document.get("glossaries", ()))),
            glossary_truncated=document.get("glossary_truncated", False),
            enhance=tuple(document.get("enhance", ())),
        )
