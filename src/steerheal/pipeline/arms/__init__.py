"""Kinds of arm of a comparison; one file each.

`KIND` in a file is a row of `tables.ARM_KINDS`.
"""
