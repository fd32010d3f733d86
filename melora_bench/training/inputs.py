"""What a run's numbers rest on beside its config: data, weights and start, as sha256.

They are compared wherever earlier work is to stand for the work that is asked for: when a record lets a run be
skipped, when a checkpoint lets it resume, in `status`, and when a score is already recorded.
"""

from collections.abc import Callable

from melora_bench.external.fetching import nothing_fetched
from melora_bench.external.fields import build
from melora_bench.external.notices import warn_once
from melora_bench.files import reason
from melora_bench.records import records
from melora_bench.records.inputs import difference, inputs_of_record, of_data, of_model, of_start
from melora_bench.training.points import Point
from melora_bench.training.starts import fingerprint, start_file


def refusals(point: Point, seeds: list[int]) -> dict[int, str]:
    """By seed, why its record does not belong to the run that the point would make now. Seeds whose record does belong
    to it are left out.

    A record is refused if it cannot be read, or if it was made of other data or weights or from another start. An input
    that is not on this machine is not compared, and a warning says so.
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
    """The result of `inputs(*of)`, which may fetch nothing; {}, with a warning, where that is not enough."""
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
