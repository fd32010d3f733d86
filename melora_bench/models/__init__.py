"""Frozen backbones, their heads, and rows without padding."""
