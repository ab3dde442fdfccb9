"""Which keys of a configuration may change when a run resumes: the marks beside the fields, against a table."""

import re
from pathlib import Path
from typing import Any

import pytest

from v2f.config import build, fixed_on_resume, flatten
from v2f.runs.config import RunConfig, changes, load_config

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
ROLES = ("generator", "identity", "perceptual", "codes")
MAY_CHANGE = (
    "out",
    "data.path",
    "data.mix",
    "data.cache",
    "data.max_bad_fraction",
    "system.path",
    *(f"system.encoder.{key}" for key in ("file", "sha256", "path", "which")),
    *(f"system.head.{key}" for key in ("sha256", "path", "which")),
    *(f"system.backbone.{key}" for key in ("file", "sha256")),
    "system.draw.",
    "system.frozen.path",
    "system.frozen.referee",
    *(f"system.frozen.{role}.{key}" for role in ROLES for key in ("file", "sha256", "path", "which")),
    "data.workers",
    "tracking.",
    "train.threads",
    "train.strategy",
    "train.micro_batch",
    "train.log_every",
    "train.validate_",
    "train.checkpoint_every",
    "train.keep",
    "train.best",
    "train.max_skipped",
    "train.watchdog_minutes",
    "train.sample_log",
)
"""How the keys begin; a stream's are those of ``data``."""

DIGEST = "0" * 64
OF_RUN = {"net": "run", "path": "runs/a", "module": "net", "which": 5, "sha256": DIGEST}
PSP = {"net": "psp", "file": "psp.pt", "sha256": DIGEST}
VARIANTS: dict[str, dict[str, Any]] = {
    "files": {
        "system": {
            "frozen": {
                "generator": PSP,
                "codes": PSP,
                "identity": {"net": "facenet", "file": "f.pt", "sha256": DIGEST},
                "perceptual": {"net": "lpips", "file": "l.pt", "sha256": DIGEST},
                "referee": {"net": "ir_se50", "channels": "rgb", "file": "r.pt", "sha256": DIGEST},
            }
        }
    },
    "runs": {"system": {"frozen": dict.fromkeys(ROLES, OF_RUN)}},
    "precomputed": {"system": {"frozen": {"codes": {"net": "precomputed"}, "embeddings": {"net": "precomputed"}}}},
    "mix": {"data": {"path": None, "mix": [{"path": "a"}, {"path": "b"}]}},
    "streams": {"data": {"streams": {"voice": {"path": "a", "split": "train"}, "face": {"mix": [{"path": "b"}]}}}},
    "groups": {"data": {"cache": {"path": "/c", "gb": 1.0}}, "train": {"best": {"metric": "R@1", "mode": "max"}}},
}


def variant(name: str) -> RunConfig:
    values = load_config(str(RECIPES / "synthetic.yaml")).model_dump(mode="json")
    for group, own in VARIANTS[name].items():
        values[group] |= own
    return build(RunConfig, values, name)


@pytest.mark.parametrize("name", [*(path.name for path in sorted(RECIPES.glob("*.yaml"))), *VARIANTS])
def test_the_keys_that_may_change_are_those_of_the_table(name: str) -> None:
    config = variant(name) if name in VARIANTS else load_config(str(RECIPES / name))
    keys = flatten(config).keys()
    expected = {
        key for key in keys if re.sub(r"^data\.streams\.\w+\.(?=path|mix)", "data.", key).startswith(MAY_CHANGE)
    }
    assert keys - fixed_on_resume(config).keys() == expected


def test_what_may_not_change_is_named_with_both_values() -> None:
    before, now = variant("files"), variant("runs")
    moved = changes(before, now.model_copy(update={"out": "/elsewhere"}))
    assert "system.frozen.codes.net: psp -> run" in moved
    assert not [line for line in moved if line.split(": ")[0].endswith(("file", "sha256", "which", ".path", "out"))]
