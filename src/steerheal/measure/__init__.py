"""Readings of a model: instruments, coherence, the persona's axis, statistics."""
