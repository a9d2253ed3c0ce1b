"""Live streams in containers, also while their gateway is killed and restarted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

from common.errors import GatewayLost, RequestRejected, SetupProblem
from scripts.bench.service import until
from scripts.bench.stream_play import Played, Programme, median, play, waits_of
from scripts.cli.client import Gateway
from scripts.cli.streaming import Message
from tests.system.containers.project import Project
from tests.system.report import Row

SERVICE = "live"
SHARE = 0.8
"""The least share of a job's words that a stream must have; it decodes without later context."""
END_S = 120.0
"""How long until a stream is over whose gateway was killed: it has to be silent for a while."""
LOST_AND_BACK = ("recognizer_lost", "recognizer_back")
KILL_RECOGNIZER = r"""
for each in /proc/[0-9]*; do
    if tr '\0' ' ' <"$each/cmdline" 2>/dev/null | grep -q ' -m [a-z.]*recognizer_process '; then
        kill -9 "${each#/proc/}"
    fi
done
"""


@dataclass(slots=True)
class Speaker:
    """Says the same on every stream; the programme's reference is what jobs transcribed."""

    project: Project
    gateway: Callable[[], Gateway]
    programme: Programme

    def speak(
        self, to: str = SERVICE, fault_at_first_final: Callable[[], object] | None = None
    ) -> StreamOutcome:
        """Say all of it; ``fault_at_first_final`` is called at the first final."""
        outcome = StreamOutcome()
        with ThreadPoolExecutor(1) as pool:

            def on_message(message: Message) -> None:
                outcome.messages.append(message)
                if (
                    fault_at_first_final is not None
                    and message.type == "final"
                    and outcome.fault_at_first_final is None
                ):
                    outcome.fault_at_first_final = pool.submit(fault_at_first_final)

            try:
                outcome.played = asyncio.run(
                    play(
                        self.project.address_of(to),
                        self.project.secrets["GATEWAY_API_KEY"],
                        self.programme,
                        on_message=on_message,
                        language=self.programme.language,
                    )
                )
            except (RequestRejected, GatewayLost) as error:
                outcome.error = error
            if outcome.fault_at_first_final is not None:
                outcome.fault_at_first_final.result()
        return outcome

    def share(self, text: str) -> float:
        """How much of what jobs transcribed is in a text."""
        wanted = _words(self.programme.reference)
        return len(wanted & _words(text)) / max(1, len(wanted))

    def row(self, what: str, outcome: StreamOutcome) -> Row:
        """How well a stream was transcribed, and how soon."""
        share = self.share(outcome.text)
        observed = [f"{share:.0%} of the words that jobs transcribed"]
        if outcome.played is not None:
            waits = waits_of(outcome.played)
            observed.append(f"first partial after {median(waits.firsts):.2f} s in the median")
            observed.append(f"final after {median(waits.finals):.2f} s")
        if outcome.error is not None:
            observed.append(outcome.error.message)
        ok = share >= SHARE and outcome.error is None
        return Row(what, ", ".join(observed), f">= {SHARE:.0%}", ok)

    def kept(self, outcome: StreamOutcome) -> Mapping[str, Any]:
        """A stream as another gateway reports it."""
        with self.gateway() as gateway:
            return gateway.stream(outcome.session_id)


@dataclass(slots=True)
class StreamOutcome:
    """What came of a stream: all that was said, until it was over or broke."""

    messages: list[Message] = field(default_factory=list)
    played: Played | None = None
    error: RequestRejected | GatewayLost | None = None
    fault_at_first_final: Future[object] | None = None

    @property
    def finals(self) -> list[str]:
        return [each.document["text"] for each in self.messages if each.type == "final"]

    @property
    def text(self) -> str:
        return " ".join(self.finals)

    @property
    def session_id(self) -> str:
        return next(
            str(each.document["session_id"])
            for each in self.messages
            if "session_id" in each.document
        )

    def has(self, name: str, value: str) -> bool:
        """Whether any message had this value in that field."""
        return any(each.document.get(name) == value for each in self.messages)


def live(speaker: Speaker, job: AbstractContextManager[object]) -> Iterator[Row]:
    """Stream undisturbed, beside a job, and while the gateway is killed or restarted."""
    project = speaker.project
    yield Row("docker compose --profile live up -d --wait", f"{project.up(SERVICE):.0f} s")
    yield speaker.row(f"{speaker.programme.duration_s:.0f} s of speech", speaker.speak())
    with job:
        yield speaker.row("the same beside a job", speaker.speak())
    yield _without_engines(speaker)
    yield from _recognizer_killed(speaker)
    yield from _restarted(speaker)
    yield from _killed(speaker)
    yield speaker.row("a stream afterwards", speaker.speak())


def _without_engines(speaker: Speaker) -> Row:
    refused = speaker.speak("api").error
    observed = "it was transcribed" if refused is None else refused.message
    return Row("a stream on api", observed, "refused", refused is not None and "engine" in observed)


def _recognizer_killed(speaker: Speaker) -> Iterator[Row]:
    (container,) = speaker.project.containers(SERVICE)
    outcome = speaker.speak(
        fault_at_first_final=lambda: speaker.project.shell(container, KILL_RECOGNIZER)
    )
    yield speaker.row("kill -9 of the recognizer", outcome)
    states = [state for state in LOST_AND_BACK if outcome.has("status", state)]
    observed = ", ".join(states) or "nothing"
    fine = len(states) == len(LOST_AND_BACK)
    yield Row("kill -9 of the recognizer: reported", observed, ", ".join(LOST_AND_BACK), fine)


def _restarted(speaker: Speaker) -> Iterator[Row]:
    outcome = speaker.speak(
        fault_at_first_final=lambda: speaker.project.compose("restart", SERVICE)
    )
    observed = outcome.has("code", "restarting")
    closed = "that it restarts" if observed else "nothing of it"
    yield _struck("restart", speaker, outcome, f"reported {closed}", observed)
    yield _back("restart", speaker)


def _killed(speaker: Speaker) -> Iterator[Row]:
    project = speaker.project
    (victim,) = project.containers(SERVICE)
    outcome = speaker.speak(fault_at_first_final=lambda: project.kill(victim))
    lost = isinstance(outcome.error, GatewayLost)
    broke = "the connection broke" if lost else "the connection held"
    yield _struck("kill -9", speaker, outcome, broke, lost)
    yield _back("kill -9", speaker)

    def ended() -> bool:
        return speaker.kept(outcome)["outcome"] is not None

    seconds = until(ended, END_S)
    ending = speaker.kept(outcome)["outcome"]
    observed = "it goes on" if seconds is None else f"{ending} after {seconds:.0f} s"
    yield Row("kill -9: its stream", observed, "interrupted", ending == "interrupted")


def _struck(what: str, speaker: Speaker, outcome: StreamOutcome, observed: str, ok: bool) -> Row:
    """Whether all finals that a client received are kept."""
    kept = [final["text"] for final in speaker.kept(outcome)["finals"]]
    missing = [text for text in outcome.finals if text not in kept]
    count = len(outcome.finals)
    return Row(
        f"{what} of live while somebody speaks",
        f"{observed}; {count - len(missing)} of {count} finals kept",
        "reported, and all kept",
        ok and count > 0 and not missing,
    )


def _back(what: str, speaker: Speaker) -> Row:
    seconds = None
    with suppress(SetupProblem):
        seconds = speaker.project.up(SERVICE, options=("--no-recreate",))
    observed = "not healthy" if seconds is None else f"healthy after {seconds:.0f} s"
    return Row(f"{what} of live: afterwards", observed, "healthy", seconds is not None)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
