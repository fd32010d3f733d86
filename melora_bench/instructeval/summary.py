"""From scored rows to numbers: averages in percent over questions or subjects, of the whole and of two halves."""

import itertools
import statistics
from collections import Counter
from dataclasses import dataclass

SCORES = ("score", "exact", "ceiling")
# {subject: its rows}; a row has the number of shots in its prompt, and what `Benchmark.score` gives.
Rows = dict[str, list[dict]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A model's numbers on one benchmark, in percent. None: the benchmark has no such score, or it was not measured."""

    questions: int
    # The protocol's, exact match, and what the authors' own solutions reach under the same cut.
    score: float
    exact: float | None
    ceiling: float | None
    # `score` of every other question, and of the rest; of a single question twice the same.
    halves: list[float]
    # {number of shots in a prompt, as text: how many questions had so many}
    shots: dict[str, int]
    # {subject: questions, and its scores}
    subjects: dict[str, dict]
    # How many passes contain what lets wrong programs pass; None where no program is run.
    tampering: int | None


def summarise(average: str, rows: Rows) -> Summary:
    """average: micro, over questions, or macro, over subjects."""
    everything = [row for each in rows.values() for row in each]
    averages, subjects = averages_of(average, rows)
    shots = Counter(row["shots"] for row in everything)
    return Summary(
        questions=len(everything),
        score=averages["score"],
        exact=averages.get("exact"),
        ceiling=averages.get("ceiling"),
        halves=[averages_of(average, half or rows)[0]["score"] for half in halves_of(rows)],
        shots={str(number): shots[number] for number in sorted(shots, reverse=True)},
        subjects=subjects,
        tampering=sum(bool(row["tampering"]) for row in everything) if "tampering" in everything[0] else None,
    )


def averages_of(average: str, rows: Rows) -> tuple[dict, dict[str, dict]]:
    """({score: its average}, {subject: questions and averages}) of the scores that rows have;
    None where a row's is None."""
    everything = [row for each in rows.values() for row in each]
    keys = [key for key in SCORES if any(key in row for row in everything)]
    means = {name: {key: _mean(key, each) for key in keys} for name, each in rows.items()}
    averages = {}
    for key in keys:
        values = [mean[key] for mean in means.values()]
        known = [value for value in values if value is not None]
        over_subjects = average == "macro" and len(known) == len(values)
        averages[key] = statistics.fmean(known) if over_subjects else _mean(key, everything)
    return averages, {name: {"questions": len(rows[name]), **mean} for name, mean in means.items()}


def halves_of(rows: Rows) -> list[Rows]:
    """Every other row, and the rest; subjects without a row in a half are left out of it."""
    places = itertools.count()
    numbered = {name: [(next(places), row) for row in each] for name, each in rows.items()}
    halves = [
        {name: [row for place, row in each if place % 2 == half] for name, each in numbered.items()} for half in (0, 1)
    ]
    return [{name: each for name, each in half.items() if each} for half in halves]


def _mean(key: str, rows: list[dict]) -> float | None:
    values = [row[key] for row in rows]
    return None if None in values else 100 * statistics.fmean(values)
