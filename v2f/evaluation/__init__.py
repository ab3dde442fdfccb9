"""How runs are evaluated: a protocol for each kind of task, the networks that judge, and comparisons of runs."""
