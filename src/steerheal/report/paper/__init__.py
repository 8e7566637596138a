"""A finished run or comparison as a paper to go on writing: from its record alone, no model."""
