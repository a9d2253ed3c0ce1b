"""What the chaos test sends and strikes is decided by its seed."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.system.chaos import UPLOADING, ChaosPlan, FaultKind, faults, orders

CLIPS = [Path("a.wav"), Path("b.wav")]
TALKS = [Path("talk.wav")]

asked_for = st.builds(
    ChaosPlan,
    jobs=st.integers(1, 100),
    seconds=st.floats(1, 1000),
    seed=st.integers(0, 1000),
)


@given(asked_for)
def test_every_kind_of_fault_happens_within_the_time_and_postgres_is_unavailable_once(
    asked: ChaosPlan,
) -> None:
    planned = faults(asked)
    kinds = [fault.kind for fault in planned]
    assert set(kinds) == set(FaultKind)
    assert kinds.count(FaultKind.OUTAGE) == 1
    assert kinds[-1] is not FaultKind.OUTAGE
    times = [fault.at_s for fault in planned]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= asked.seconds


@given(asked_for)
def test_every_upload_is_sent_while_faults_still_go_on(asked: ChaosPlan) -> None:
    sent = orders(asked, CLIPS, TALKS)
    assert len(sent) == asked.jobs
    assert all(0 <= order.at_s <= UPLOADING * asked.seconds for order in sent)
    assert any(order.recording in TALKS for order in sent)


@given(asked_for)
def test_a_seed_decides_which_uploads_and_faults_there_are(asked: ChaosPlan) -> None:
    assert faults(asked) == faults(asked)
    assert orders(asked, CLIPS, TALKS) == orders(asked, CLIPS, TALKS)
