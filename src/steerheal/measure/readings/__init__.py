"""The readings, a module for each kind of rows; a module that is put here is found.

Adding one takes a file with `ENTRIES` and how they are computed. See `table`.
"""
