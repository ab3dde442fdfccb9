"""A run that was never trained, as `v2f checkpoint export` writes one: all that drawing a face needs, in a second."""

import json
from pathlib import Path

from v2f.config import dump_yaml
from v2f.runs import checkpoint
from v2f.runs.config import load_config
from v2f.runs.run import MODEL, NOTES, build_system
from v2f.runs.saver import write_tensors

QUICKSTART = Path(__file__).resolve().parent.parent / "launch/recipes/quickstart.yaml"


def export(folder: Path) -> str:
    """Write the quickstart's system with its first weights into ``folder``; returns it."""
    config = load_config(str(QUICKSTART))
    tensors = checkpoint.module_tensors(build_system(config))
    weights = {name.removeprefix("model/"): tensor for name, tensor in tensors.items()}
    notes = {"format": "pt", NOTES: json.dumps({"step": 0, "fingerprint": ""})}
    write_tensors(str(folder / MODEL), weights, notes)
    (folder / "config.yaml").write_text(dump_yaml(config))
    return str(folder)
