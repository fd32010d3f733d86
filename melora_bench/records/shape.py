"""What the JSON of a record must look like (`external.shapes.misfit`), key by key of `RunRecord`."""

from melora_bench.external.shapes import count, flag, name, names, number, text

READ = {"rows": count, "sha256": [text, ...], "file?": text, "label?": text}
ENTRY = {
    "epoch": number,
    "step": count,
    **dict.fromkeys(("train_loss", "penalty", "lr"), (None, number)),
    "metrics": {str: number},
    "halves": [{str: number}],
    "selectable?": flag,
    "report": {"distinct_paths?": count, "singular_values_above_0.1?": {str: count}},
}
SHAPE = {
    "schema": count,
    "run_id": names,
    "config_hash": text,
    "seed": count,
    "packed_with": [count],
    "choices": {**dict.fromkeys(("method", "task", "backbone", "data"), name), "recipe": (None, names)},
    "versions": {"method": count, "task": count},
    "config": {"backbone": {"seen": [text]}},
    "git": {"commit": (None, text), "dirty": (None, flag)},
    "env": {"device": text, "precision": text},
    "model": {"name": name, "sha256": text, "config_sha256?": text, "tokenizer_sha256?": text},
    "data": {str: (None, READ)},
    "init_from": (None, {"source": text, "sha256": text, "run_id": (None, text), "config_sha256?": text}),
    "params": {"total": count, "adapter": count, "head": count},
    "metric": name,
    "epochs": [ENTRY, ...],
    **dict.fromkeys(("rows_per_second", "tokens_per_second"), (None, number)),
    "peak_memory_bytes": (None, count),
    "wall_seconds": number,
    "resumed_at": [number],
    **dict.fromkeys(("started", "finished", "digest"), text),
}
