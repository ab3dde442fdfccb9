"""From shards to batches: the schema, the manifest, the order of samples, their decoding and loading.

Only ``loader``, ``streams`` and ``media`` import torch, so that decode workers start fast.
"""
