"""Which completions are kept: features of a text, scores of the base, and rules over both."""
