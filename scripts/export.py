"""Write a trained adapter for other libraries.

    python scripts/export.py run=RUN to=DIR [which=best|last] [merged=true] [output_dir=outputs] [backbone.path=DIR]

RUN is a record, an adapter file, or <experiment>/<task>/<method>-<hash> for all its seeds (one with -s<seed>). DIR becomes
a PEFT LoRA adapter, or with merged=true a plain transformers checkpoint; either has the head and a model card.
"""

import sys

OPTIONS = {"run": None, "to": None, "which": "best", "merged": "false", "output_dir": "outputs", "backbone.path": None}


def main(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    odd = [key for key in given if key not in OPTIONS]
    options = OPTIONS | given
    if odd or not (options["run"] and options["to"]) or options["merged"].lower() not in ("true", "false"):
        print(f"error: {odd[0]} is no option\n" * bool(odd) + __doc__.partition("\n\n")[2], file=sys.stderr)
        return 2
    merged = options["merged"].lower() == "true"
    import transformers

    from melora_bench.export import export

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        folders = export(options["run"], options["to"], which=options["which"], merged=merged,
                         output_dir=options["output_dir"], backbone_path=options["backbone.path"])  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for folder, difference in folders.items():
        checked = (
            "not checked, as peft is not installed" if difference is None else f"logits within {difference:.1e} of ours"
        )
        print(f"wrote {folder}  ({checked} when loaded by {'transformers' if merged else 'peft'})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
