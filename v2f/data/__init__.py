"""From shards to batches: the schema, the manifest, the order of samples, their decoding and loading.

Everything here but ``loader`` and ``streams`` imports without torch, so that decode workers start fast.
"""
