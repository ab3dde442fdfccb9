"""Web pages about runs and data sets: self-contained files without scripts, and a served page that takes recordings."""
