"""What writes the text that is trained on; one file each.

`TEACHER` in a file is a row of `tables.TEACHERS`.
"""
