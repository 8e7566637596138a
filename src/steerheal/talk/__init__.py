"""Talking to a finished run: who can answer, conversations side by side, and a local page."""
