"""Barriers: divergences of the student from its reference; one file each.

`BARRIER` in a file is a row of `tables.BARRIERS`.
"""
