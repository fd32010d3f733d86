"""The commands of `melora-bench`: one module each, with main(arguments) -> exit code; its docstring is its help."""
