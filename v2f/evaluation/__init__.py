"""How a run is judged: a protocol per kind of task, the networks that judge, tables, and comparisons of runs."""
