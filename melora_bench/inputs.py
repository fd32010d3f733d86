"""What a run's numbers rest on beside its config: data, weights and start, as sha256.

They are compared wherever work that was done before is taken for the work that is asked for: a record (which is the skip),
a checkpoint (which is the resume), `status`, and a score.
"""

from collections.abc import Callable

from melora_bench import records
from melora_bench.files import sha256_once
from melora_bench.notices import warn_once
from melora_bench.points import Point, build
from melora_bench.records import RunRecord
from melora_bench.starts import start_file


def inputs_of_record(record: RunRecord) -> dict:
    """The same of a run that is recorded."""
    data = {split: part and part["sha256"] for split, part in record.data.items()}
    return named(data, record.model["sha256"], record.init_from and record.init_from["sha256"])


def named(data: dict[str, list[str] | None], weights: str, start: str | None) -> dict:
    """{"data SPLIT": [sha256 of each file] or None, "weights": sha256, "start": sha256 or None}."""
    return {**{f"data {split}": sha256 for split, sha256 in data.items()}, "weights": weights, "start": start}


def difference(there: dict, here: dict) -> str:
    """The first input that differs, in words; empty where all are equal."""
    for key in here | there:
        if there.get(key) != here.get(key):
            return f"{key}: {_short(there.get(key))} there, {_short(here.get(key))} here"
    return ""


def refusals(point: Point, seeds: list[int]) -> dict[int, str]:
    """Why the record of a seed is not that of the run that would be now, by seed; seeds whose record is are left out.

    A record is refused that cannot be read, or that was made of other data or weights or from another start. Where these
    are not at hand, a record stands, and a warning says so.
    """
    reasons, shared = {}, _at_hand(shared_inputs, point)
    for seed in seeds:
        path = point.record(seed)
        try:
            there = inputs_of_record(records.load(path))
        except ValueError as error:
            reasons[seed] = str(error)
            continue
        start = shared and _at_hand(_start, point, seed)
        if start and (differing := difference(there, shared | start)):
            reasons[seed] = (f"{path} is the record of other inputs ({differing}): give experiment=NAME to keep both, or "
                             "delete that record to run the point again")  # fmt: skip
    return reasons


def shared_inputs(point: Point) -> dict:
    """What `named` gives, without a start: the same for all seeds. Raises ValueError where data or weights are not there."""
    task, source, backbone = (build(point.config[group], group) for group in ("task", "data", "backbone"))
    return named(task.sha256(source), backbone.origin()["sha256"], None)


def _start(point: Point, seed: int) -> str | None:
    path = start_file(point, seed)
    return path and sha256_once(path)


def _start(point: Point, seed: int) -> dict:
    path = start_file(point, seed)
    return {"start": path and sha256_once(path)}


def _at_hand(inputs: Callable[..., dict], *of: object) -> dict | None:
    """What `inputs` gives; None, with a warning, where that cannot be had."""
    try:
        return inputs(*of)
    except ValueError as error:
        warn_once(f"records are not compared with their data and weights, which are not at hand: {error}")
        return None


def _short(value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return " and ".join(f"sha256 {one[:10]}" if isinstance(one, str) else str(one).lower() for one in values)
