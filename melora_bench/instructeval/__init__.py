"""Evaluating an instruction-tuned model: its answers, and the programs it writes."""
