"""Metrics, parameters and artifacts of a run on their way to MLflow; nothing here can stop or stall a training."""
