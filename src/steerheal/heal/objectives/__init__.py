"""What a heal fits; one file each. `OBJECTIVE` in a file is a row of `tables.OBJECTIVES`."""
