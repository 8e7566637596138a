"""Checks 1 to 3 and the loop: which outcome the saved numbers show, and what to try."""
