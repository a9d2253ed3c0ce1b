"""The pipelines: the steps of each kind of job, their order, and the effect of a failed step.

They are declared only here. Claiming, finishing, fan-in, retry, stage and progress
(`common.db.flow`, `common.db.snapshots`) are derived from these declarations.

A pipeline is a sequence of phases. A phase has at most one step of the whole job, which may add
parts (chunks of a recording, pages of a document), and steps of each part. It ends when no step of
the job is open; then the next phase begins, or the job waits for a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import Any

from common.domain.job import (
    DIARIZATION_FAILED,
    ENHANCEMENT_INCOMPLETE,
    MODERATION_FAILED,
    REFINEMENT_FAILED,
    JobStatus,
)
from common.domain.values import MAX_WINDOW_MS
from common.errors import JobKindUnknown

Condition = Callable[[Mapping[str, Any]], bool]
"""Whether something applies to a job with these stored options."""


class StepKind(StrEnum):
    """The kinds of steps of the pipelines below."""

    FETCH = "fetch"
    FETCH_MODEL = "fetch_model"
    PLAN = "plan"
    TRANSCRIBE = "transcribe"
    MODERATE = "moderate"
    DIARIZE = "diarize"
    MERGE = "merge"
    REFINE = "refine"
    SPLICE = "splice"
    DIVIDE = "divide"
    ASK = "ask"
    COMBINE = "combine"


def always(_options: Mapping[str, Any]) -> bool:
    """The condition that holds for every job."""
    return True


OWN_SERVER = ("enhancement", "server")
"""Where options have the URL of the tenant's own server, if a job's requests go there."""


def own_server(options: Mapping[str, Any]) -> str | None:
    """The URL in the options of a job at `OWN_SERVER`."""
    kind, name = OWN_SERVER
    server: str | None = options.get(kind, {}).get(name)
    return server


@dataclass(frozen=True, slots=True)
class StepType:
    """A kind of step, and its place in its phase.

    ``stage`` is the job's stage in status documents while this step is the next to finish.
    ``after`` is the kind that it follows in the same part; None: it is the first of a part.
    ``warning`` is the job's warning after this step failed; None: the job fails. ``reuses``: it may
    reuse the result of an equal part of any job of the tenant. ``counts``: the job's progress
    counts it. ``reads_files``: it reads a file written by the phase's step of the whole job; these
    files are deleted when a job ends, so a retry begins with that step. ``is_limited``: at most
    half of the workers run it at a time. ``asks_server``: it sends requests to a server; if that is
    a tenant's own (`own_server`), it is limited likewise. ``has_all_tries``: each part has all its
    attempts, even after another one's failure has only left a warning.
    """

    kind: str
    stage: str
    after: str | None = None
    when: Condition = always
    warning: str | None = None
    reuses: bool = False
    counts: bool = False
    reads_files: bool = False
    is_limited: bool = False
    asks_server: bool = False
    has_all_tries: bool = False

    def is_limited_with(self, options: Mapping[str, Any]) -> bool:
        """Whether at most half of the workers run it at a time, of a job with these options."""
        return self.is_limited or (self.asks_server and own_server(options) is not None)


@dataclass(frozen=True, slots=True)
class Pause:
    """The job waits in ``status`` until a person resumes it; after its last phase, approves it."""

    status: JobStatus
    when: Condition = always


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a pipeline: a step of the whole job, steps of each part, or both.

    ``brings_input``: it is skipped if the job has its input (a recording) already.
    """

    name: str
    step: StepType | None = None
    each: tuple[StepType, ...] = ()
    pause: Pause | None = None
    brings_input: bool = False

    def step_of(self, options: Mapping[str, Any]) -> StepType | None:
        """The step of a whole job with these options; None: there is none."""
        return self.step if self.step is not None and self.step.when(options) else None

    def each_of(self, options: Mapping[str, Any]) -> tuple[StepType, ...]:
        """The steps of each part of a job with these options."""
        return tuple(step for step in self.each if step.when(options))

    def pauses(self, options: Mapping[str, Any]) -> bool:
        """Whether a job with these options waits for a person after it."""
        return self.pause is not None and self.pause.when(options)

    @property
    def steps(self) -> tuple[StepType, ...]:
        """All its steps, whatever a job's options."""
        return self.each if self.step is None else (self.step, *self.each)

    @property
    def kinds(self) -> set[str]:
        """The kinds of its steps."""
        return {step.kind for step in self.steps}


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A job that begins when another one is COMPLETED, and works on its result.

    The columns of the new job that are not those of the other one.
    """

    kind: str
    engine: str
    model: str
    options: Mapping[str, Any]


def nothing(_options: Mapping[str, Any]) -> Sequence[FollowUp]:
    """That no job follows."""
    return ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A kind of job. Its phases are done in order; kinds of steps are unique in it.

    ``units_a_part``: about how much of a job's ``units_total`` (milliseconds of a recording, pages
    of a document) one part has: the estimate of a job's turns before its parts are known.
    """

    kind: str
    phases: tuple[Phase, ...]
    units_a_part: int = 1
    afterwards: tuple[StepType, ...] = ()
    """Steps of the whole job that follow a change of its result (`Flow.add_afterwards`). They have
    a warning, which the job has until such a step is added anew; they affect neither its status nor
    its progress."""
    follow_ups: Callable[[Mapping[str, Any]], Sequence[FollowUp]] = nothing
    """The jobs that begin once a job with these options is COMPLETED, in the same transaction."""

    def first_phase(self, *, has_input: bool) -> Phase:
        """The phase in which a job begins."""
        return next(it for it in self.phases if not (has_input and it.brings_input))

    def phase(self, name: str) -> Phase:
        """The phase of this name."""
        return next(it for it in self.phases if it.name == name)

    def phases_after(self, name: str) -> tuple[Phase, ...]:
        """The phases after this one, in order; none: the job is COMPLETED after it."""
        return self.phases[self.phases.index(self.phase(name)) + 1 :]

    def since_pause(self, name: str, options: Mapping[str, Any]) -> list[Phase]:
        """The phases up to this one, from the last pause before it on."""
        until = self.phases[: self.phases.index(self.phase(name))]
        unpaused = takewhile(lambda it: not it.pauses(options), reversed(until))
        return [*reversed(list(unpaused)), self.phase(name)]

    def step(self, kind: str) -> StepType:
        """The declaration of a kind of step."""
        return next(step for step in (*self.steps, *self.afterwards) if step.kind == kind)

    @property
    def kinds_afterwards(self) -> list[str]:
        """The kinds of the steps that follow a change of the result."""
        return [step.kind for step in self.afterwards]

    @property
    def steps(self) -> Iterator[StepType]:
        """All kinds of steps of the phases, in order."""
        return (step for phase in self.phases for step in phase.steps)

    @property
    def warnings(self) -> set[str]:
        """The warnings of failed steps."""
        every = (*self.steps, *self.afterwards)
        return {step.warning for step in every if step.warning is not None}

    def counting(self, options: Mapping[str, Any]) -> list[StepType]:
        """The steps that count as progress of a job with these options."""
        return [step for step in self.steps if step.counts and step.when(options)]


_MODEL = Phase(
    "model",
    StepType(
        StepKind.FETCH_MODEL,
        stage="fetching_model",
        when=lambda options: bool(options.get("fetch_model")),
        is_limited=True,
    ),
)
_TRANSCRIBE = StepType(
    StepKind.TRANSCRIBE, stage="transcribing", reuses=True, counts=True, reads_files=True
)
_MODERATE = StepType(
    StepKind.MODERATE,
    stage="moderating",
    after=StepKind.TRANSCRIBE,
    when=lambda options: bool(options.get("moderation")),
    warning=MODERATION_FAILED,
)

ENHANCEMENT = Pipeline(
    "enhancement",
    phases=(
        Phase("divide", StepType(StepKind.DIVIDE, stage="dividing")),
        Phase(
            "ask",
            each=(
                StepType(
                    StepKind.ASK,
                    stage="asking",
                    warning=ENHANCEMENT_INCOMPLETE,
                    reuses=True,
                    counts=True,
                    asks_server=True,
                    has_all_tries=True,
                ),
            ),
        ),
        Phase("combine", StepType(StepKind.COMBINE, stage="combining")),
    ),
    units_a_part=600_000,
)
"""Has a language model work on another job's transcript. A part is a request to it; the last step
goes back to the second phase with more parts as long as the answers have to be condensed."""

CHAT_ENGINE = "openai"
"""The engine of these jobs; their model is as its server names it."""


def _enhancements(options: Mapping[str, Any]) -> list[FollowUp]:
    return [
        FollowUp(ENHANCEMENT.kind, CHAT_ENGINE, wanted["model"], {ENHANCEMENT.kind: wanted})
        for wanted in options.get("enhance", ())
    ]


TRANSCRIPTION = Pipeline(
    "transcription",
    phases=(
        Phase(
            "fetch",
            StepType(StepKind.FETCH, stage="fetching", is_limited=True),
            brings_input=True,
        ),
        _MODEL,
        Phase(
            "chunks",
            StepType(StepKind.PLAN, stage="planning"),
            each=(
                _TRANSCRIBE,
                _MODERATE,
                StepType(
                    StepKind.DIARIZE,
                    stage="diarizing",
                    when=lambda options: bool(options.get("diarize")),
                    warning=DIARIZATION_FAILED,
                    reuses=True,
                    reads_files=True,
                ),
            ),
        ),
        Phase(
            "merge",
            StepType(StepKind.MERGE, stage="merging"),
            pause=Pause(JobStatus.REVIEW, when=lambda options: bool(options.get("review"))),
        ),
    ),
    units_a_part=MAX_WINDOW_MS,
    afterwards=(StepType(StepKind.REFINE, stage="refining", warning=REFINEMENT_FAILED),),
    follow_ups=_enhancements,
)

RERUN = Pipeline(
    "rerun",
    phases=(
        _MODEL,
        Phase("chunks", StepType(StepKind.PLAN, stage="planning"), each=(_TRANSCRIBE, _MODERATE)),
        Phase("splice", StepType(StepKind.SPLICE, stage="splicing")),
    ),
    units_a_part=MAX_WINDOW_MS,
)
"""Transcribes a span of a recording again, for a new revision of another job's transcript."""

PIPELINES = {pipeline.kind: pipeline for pipeline in (TRANSCRIPTION, RERUN, ENHANCEMENT)}
"""All kinds of jobs, by the name in their rows."""


def pipeline_of(kind: str) -> Pipeline:
    """The pipeline of a kind of job.

    Raises:
        JobKindUnknown: it is a kind of a newer version.
    """
    if kind not in PIPELINES:
        raise JobKindUnknown(kind=kind)
    return PIPELINES[kind]


def kinds_of_steps() -> list[str]:
    """All kinds of steps, each once."""
    steps = (step for it in PIPELINES.values() for step in (*it.steps, *it.afterwards))
    return list(dict.fromkeys(str(step.kind) for step in steps))


def limited_kinds(*, with_own_server: bool = False) -> list[str]:
    """The kinds that at most half of the workers run at a time.

    ``with_own_server``: those of jobs whose requests go to the tenant's own server.
    """
    options = {OWN_SERVER[0]: {OWN_SERVER[1]: ""}} if with_own_server else {}
    steps = (step for it in PIPELINES.values() for step in it.steps)
    return list(dict.fromkeys(str(step.kind) for step in steps if step.is_limited_with(options)))
