"""Pages about runs: self-contained files for a browser, without a server and without scripts."""
