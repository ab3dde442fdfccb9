"""Files, folders and objects: where they lie, how they are read and written, and who may write."""
