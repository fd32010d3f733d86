"""Running what a model wrote (docs/sandbox.md)."""
