"""Ways to make a direction per block out of the two poles' states; one file each.

`METHOD` in a file is a row of `tables.METHODS`.
"""
