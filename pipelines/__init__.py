"""Pipelines: wiring of components only. Compiled forms lie in `compiled/`."""
