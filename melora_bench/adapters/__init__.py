"""Adapters as files of other libraries."""
