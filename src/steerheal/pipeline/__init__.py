"""A run: the loop, its rounds and stages, the store behind them, and the walk of the dose."""
