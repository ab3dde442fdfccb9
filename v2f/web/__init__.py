"""Pages about runs: self-contained files for a browser, without scripts; and the one page with a server, to speak into."""
