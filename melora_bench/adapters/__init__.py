"""Adapters outside a run: files, exports, PEFT's format, and `adapt` for any model."""
