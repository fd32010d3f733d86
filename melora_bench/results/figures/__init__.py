"""Figures of a table's records: one module per kind, whose `figure(section)` is None where there is nothing to draw."""

from melora_bench.results.figures.drawing import draw

__all__ = ["draw"]
