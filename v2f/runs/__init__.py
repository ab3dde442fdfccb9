"""What a run is on disk: its configuration, its folder, its checkpoints, and what is exported from it."""
