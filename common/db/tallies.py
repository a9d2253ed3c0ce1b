"""The values of `common.domain.metrics`, increased in the transaction of the counted event.

`count` and `observe` only collect; `Database.transaction` writes everything at the end, in one
statement and in the order of the keys. So these contended rows are locked only during the commit,
and two transactions cannot deadlock.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from common.db.tables import Tally
from common.domain.metrics import Counter, Histogram

Labels = tuple[str, ...]
"""The values of a metric's labels, in the metric's order."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram's observations: counts between its bounds and above the last, and their sum.

    Shape of ``counts``: one more than the histogram has ``bounds``.
    """

    counts: tuple[float, ...]
    sum: float


def count(session: Session, counter: Counter, amount: float = 1, **labels: str) -> None:
    """Increase ``counter`` by ``amount`` > 0 when the session's transaction commits."""
    _note(session, counter.name, _key(counter, labels), amount)


def observe(session: Session, histogram: Histogram, value: float, **labels: str) -> None:
    """Add an observation to ``histogram`` when the session's transaction commits."""
    key = _key(histogram, labels)
    bound = next((bound for bound in histogram.bounds if value <= bound), inf)
    _note(session, histogram.name, (*key, str(bound)), 1)
    _note(session, f"{histogram.name}_sum", key, value)


def write_tallies(session: Session) -> None:
    """Write the collected values: the last statement before the commit."""
    noted = session.info.pop(_NOTED, {})
    if not noted:
        return
    session.flush()
    rows = sorted((name, json.dumps(labels), value) for (name, labels), value in noted.items())
    names, labels, values = zip(*rows, strict=True)
    session.execute(_RAISE, {"names": list(names), "labels": list(labels), "amounts": list(values)})


class Tallied:
    """All values at one instant."""

    def __init__(self, session: Session) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        for row in session.execute(select(Tally.name, Tally.labels, Tally.value)):
            self._values.setdefault(row.name, {})[tuple(json.loads(row.labels))] = row.value

    def of(self, counter: Counter) -> Mapping[Labels, float]:
        """The values of a counter, by labels; labels that were never counted are absent."""
        return self._values.get(counter.name, {})

    def distributions(self, histogram: Histogram) -> dict[Labels, Distribution]:
        """The observations of a histogram, by labels."""
        places = len(histogram.bounds) + 1
        counts: dict[Labels, list[float]] = {}
        for (*labels, bound), value in self._values.get(histogram.name, {}).items():
            of_labels = counts.setdefault(tuple(labels), [0.0] * places)
            # An earlier release may have had other bounds.
            of_labels[bisect_left(histogram.bounds, float(bound))] += value
        sums = self._values.get(f"{histogram.name}_sum", {})
        return {
            labels: Distribution(tuple(found), sums.get(labels, 0.0))
            for labels, found in counts.items()
        }


_NOTED = "tallies"

_RAISE = text(
    "INSERT INTO tallies (name, labels, value)"
    " SELECT * FROM unnest(CAST(:names AS text[]), CAST(:labels AS text[]),"
    " CAST(:amounts AS double precision[]))"
    " ON CONFLICT (name, labels) DO UPDATE SET value = tallies.value + excluded.value"
)


def _key(metric: Counter | Histogram, labels: Mapping[str, str]) -> Labels:
    assert labels.keys() == set(metric.labels)  # noqa: S101 - the caller passes other labels
    return tuple(labels[name] for name in metric.labels)


def _note(session: Session, name: str, labels: Labels, amount: float) -> None:
    noted = session.info.setdefault(_NOTED, {})
    noted[name, labels] = noted.get((name, labels), 0.0) + amount
