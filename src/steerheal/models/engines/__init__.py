"""What writes completions; one file each.

`ENGINE` in a file is a row of `tables.ENGINES`.
"""
