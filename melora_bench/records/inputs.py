"""What a run's numbers rest on beside its config, as {words: sha256}: data, weights and start.

The words say what differs, in an error, where two accounts of a run do not agree.
"""

from melora_bench.records.records import RunRecord

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
    """The first input that differs, in words; empty where none does. An input that one side lacks is not compared."""
    for key in (key for key in here if key in there):
        if there[key] != here[key]:
            return f"{key}: {_short(there[key])} there, {_short(here[key])} here"
    return ""


def _short(value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return " and ".join(f"sha256 {one[:10]}" if isinstance(one, str) else str(one).lower() for one in values)
