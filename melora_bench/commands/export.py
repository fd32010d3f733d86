"""Write a trained adapter for other libraries.

    melora-bench export run=RUN to=DIR [which=best|last] [merged=true] [output_dir=outputs] [backbone.path=DIR]
                        [base=NAME]

RUN is a record, an adapter file, or <experiment>/<task>/<method>-<hash> for all its seeds (one with -s<seed>). DIR
becomes a PEFT LoRA adapter, or with merged=true a plain transformers checkpoint; either has the head and a model card.
NAME is the backbone's name on a hub, for weights that are in a folder only; that folder is not named.
"""

from melora_bench.commands.arguments import UsageError, settings
from melora_bench.commands.running import command

REMEDY = "nothing was written"
OPTIONS = {
    "run": None,
    "to": None,
    "which": "best",
    "merged": "false",
    "output_dir": "outputs",
    "backbone.path": None,
    "base": None,
}


@command
def main(arguments: list[str]) -> int:
    options = settings(arguments, OPTIONS)
    run, to = options["run"], options["to"]
    if not run or not to:
        raise UsageError(f"{'to' if run else 'run'}= is missing: melora-bench export run=RUN to=DIR")
    if options["merged"] not in ("true", "false"):
        raise UsageError(
            f"merged={options['merged']} must be true or false: melora-bench export run=RUN to=DIR merged=true"
        )
    merged = options["merged"] == "true"
    import transformers

    from melora_bench.adapters.export import export

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folders = export(
        run,
        to,
        which=options["which"] or "",
        merged=merged,
        base=options["base"],
        output_dir=options["output_dir"] or "",
        backbone_path=options["backbone.path"],
    )
    library = "transformers" if merged else "peft"
    for folder, difference in folders.items():
        checked = f"{library} loads it with logits within {difference:.1e} of ours" if difference is not None else ""
        print(f"wrote {folder}  ({checked or 'not checked, as peft is not installed'})")
    return 0
