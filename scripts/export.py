"""Write a trained adapter for other libraries.

    python scripts/export.py run=RUN to=DIR [which=best|last] [merged=true] [output_dir=outputs] [backbone.path=DIR]
                             [base=NAME]

RUN is a record, an adapter file, or <experiment>/<task>/<method>-<hash> for all its seeds (one with -s<seed>). DIR becomes
a PEFT LoRA adapter, or with merged=true a plain transformers checkpoint; either has the head and a model card. NAME is the
backbone's name on a hub, for weights that are in a folder only; that folder is not named.
"""

import sys

from melora_bench.files import home, reason
from melora_bench.training.processes import interruptible

OPTIONS = {"run": None, "to": None, "which": "best", "merged": "false", "output_dir": "outputs", "backbone.path": None,
           "base": None}  # fmt: skip


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    given = dict(home(argument).partition("=")[::2] for argument in arguments)
    options = OPTIONS | given
    slips = [f"{key} is no option" for key in given if key not in OPTIONS]
    slips += [f"{key}= is missing" for key in ("run", "to") if not options[key]]
    if options["merged"] not in ("true", "false"):
        slips.append(f"merged={options['merged']} must be true or false")
    if slips:
        print(f"error: {slips[0]}\n{__doc__.partition(chr(10) * 2)[2]}", file=sys.stderr)
        return 2
    merged = options["merged"] == "true"
    import transformers

    from melora_bench.adapters.export import export

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        folders = export(options["run"], options["to"], which=options["which"], merged=merged, base=options["base"],
                         output_dir=options["output_dir"], backbone_path=options["backbone.path"])  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {reason(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    library = "transformers" if merged else "peft"
    for folder, difference in folders.items():
        found = f"{library} loads it with logits within {difference:.1e} of ours" if difference is not None else ""
        print(f"wrote {folder}  ({found or 'not checked, as peft is not installed'})")
    return 0


if __name__ == "__main__":
    with interruptible("nothing was written"):
        sys.exit(main(sys.argv[1:]))
