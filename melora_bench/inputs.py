"""What a run's numbers rest on beside its config: data, weights and start, as sha256.

They are compared wherever work that was done before is taken for the work that is asked for: a record (which is the skip),
a checkpoint (which is the resume), `status`, and a score.
"""

import logging

from melora_bench import records
from melora_bench.files import sha256_once
from melora_bench.points import Point, build
from melora_bench.records import RunRecord
from melora_bench.starts import start_file

log = logging.getLogger(__name__)


def inputs_of(point: Point, seed: int) -> dict:
    """{"data SPLIT": [sha256 of each file] or None, "weights": sha256, "start": sha256 or None} of a run to be.

    Raises ValueError where one of them cannot be had.
    """
    task, source, backbone = (build(point.config[group], group) for group in ("task", "data", "backbone"))
    start = start_file(point, seed)
    return named(task.sha256(source), backbone.origin()["sha256"], start and sha256_once(start))


def inputs_of_record(record: RunRecord) -> dict:
    """The same of a run that is recorded."""
    data = {split: part and part["sha256"] for split, part in record.data.items()}
    return named(data, record.model["sha256"], record.init_from and record.init_from["sha256"])


def named(data: dict[str, list[str] | None], weights: str, start: str | None) -> dict:
    return {**{f"data {split}": sha256 for split, sha256 in data.items()}, "weights": weights, "start": start}


def difference(there: dict, here: dict) -> str:
    """The first input that differs, in words; empty where all are equal."""
    for key in here | there:
        if there.get(key) != here.get(key):
            return f"{key}: {_short(there.get(key))} there, {_short(here.get(key))} here"
    return ""


def check_record(point: Point, seed: int) -> None:
    """Raises ValueError for a record of this point that cannot be read, or that was made of other data or weights or from
    another start than a run would be now. Where these are not at hand, the record stands, and a warning says so."""
    path = point.record(seed)
    record = records.load(path)
    try:
        here = inputs_of(point, seed)
    except ValueError as error:
        log.warning("%s is not compared with its data and weights, which are not at hand: %s", path, error)
        return
    if differing := difference(inputs_of_record(record), here):
        raise ValueError(f"{path} is the record of other inputs ({differing}): give experiment=NAME to keep both, or delete "
                         "that record to run the point again")  # fmt: skip


def _short(value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return " and ".join(f"sha256 {one[:10]}" if isinstance(one, str) else str(one).lower() for one in values)
