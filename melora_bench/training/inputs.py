"""What a run's numbers rest on beside its config: data, weights and start, as sha256.

They are compared wherever work that was done before is taken for the work that is asked for: a record (which is the skip),
a checkpoint (which is the resume), `status`, and a score.
"""

from collections.abc import Callable

from melora_bench.external.fetching import nothing_fetched
from melora_bench.external.notices import warn_once
from melora_bench.files import reason
from melora_bench.records import records
from melora_bench.records.records import RunRecord
from melora_bench.training.configs import build
from melora_bench.training.points import Point
from melora_bench.training.starts import fingerprint, start_file

OF_MODEL = {"sha256": "weights", "config_sha256": "config of the backbone", "tokenizer_sha256": "tokenizer"}


def inputs_of_record(record: RunRecord) -> dict:
    """The inputs of a run that is recorded: {words: sha256, or the list of several files', or None}."""
    data = {split: part and part["sha256"] for split, part in record.data.items()}
    return of_data(data) | of_model(record.model) | of_start(record.init_from)


def of_data(sha256: dict[str, list[str] | None]) -> dict:
    """sha256: of each file of each split; None for a split that is missing."""
    return {f"data {split}": of_files for split, of_files in sha256.items()}


def of_model(origin: dict) -> dict:
    """origin: what a record or an adapter file says of the backbone (`Backbone.origin`)."""
    return {words: origin[key] for key, words in OF_MODEL.items() if key in origin}


def of_start(start: dict | None) -> dict:
    """start: what a record says of it (`load_start`)."""
    config = {"config of the start": start["config_sha256"]} if start and "config_sha256" in start else {}
    return {"start": start and start["sha256"], **config}


def difference(there: dict, here: dict) -> str:
    """The first input that differs, in words; empty where none does. What one of them does not know is not compared."""
    for key in (key for key in here if key in there):
        if there[key] != here[key]:
            return f"{key}: {_short(there[key])} there, {_short(here[key])} here"
    return ""


def refusals(point: Point, seeds: list[int]) -> dict[int, str]:
    """Why the record of a seed is not that of the run that would be now, by seed; seeds whose record is are left out.

    A record is refused that cannot be read, or that was made of other data or weights or from another start. Where one of
    these is not at hand, it is not compared, and a warning says so.
    """
    reasons, shared = {}, at_hand("data", _data, point) | at_hand("weights", _model, point)
    for seed in seeds:
        path = point.record_path(seed)
        try:
            there = inputs_of_record(records.load(path))
        except ValueError as error:
            reasons[seed] = str(error)
            continue
        if differing := difference(there, shared | at_hand("start", _start, point, seed)):
            reasons[seed] = (
                f"{path} is the record of other inputs ({differing}): give experiment=NAME to keep both, or "
                "delete that record to run the point again"
            )
    return reasons


def at_hand(what: str, inputs: Callable[..., dict], *of: object) -> dict:
    """What `inputs` gives from what is on this machine; nothing, with a warning, where that is not all there."""
    try:
        with nothing_fetched():
            return inputs(*of)
    except (ValueError, OSError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        warn_once(f"records are not compared with their {what}, not at hand here: {why}")
        return {}


def _data(point: Point) -> dict:
    task, source = build(point.config.task, "task"), build(point.config.data, "data")
    return of_data(task.sha256(source))


def _model(point: Point) -> dict:
    return of_model(build(point.config.backbone, "backbone").origin())


def _start(point: Point, seed: int) -> dict:
    path = start_file(point, seed)
    return of_start(fingerprint(path) if path else None)


def _short(value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return " and ".join(f"sha256 {one[:10]}" if isinstance(one, str) else str(one).lower() for one in values)
