"""Pages about runs: self-contained files for a browser, without scripts; and one with a server, to speak into."""
