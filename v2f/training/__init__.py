"""The training loop, what starts it and what stops it."""
