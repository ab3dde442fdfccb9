"""Train systems that turn a voice into a face, from WebDataset shards, on one core or many GPUs."""

__version__ = "0.1.0"
