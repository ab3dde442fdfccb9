"""One checkpoint of the thesis's final system at full size, by two savers: says, as JSON, what was in it.

Arguments: ROOT. The loss is made up, so that a step costs seconds; nets, engine and saver are the real ones.
"""

import json
import sys
from pathlib import Path

import torch

from v2f.engine import Engine
from v2f.nn.mapping import StyleMapping
from v2f.nn.stylegan2 import Generator
from v2f.nn.waveform import WaveformEncoder
from v2f.runs import checkpoint
from v2f.runs.config import load_config
from v2f.runs.saver import Saver, deal
from v2f.system import Batch, Losses, System, freeze
from v2f.systems.voice_styled_face import VoiceStyledFace

RECIPE = Path(__file__).parents[2] / "launch" / "recipes" / "thesis-final.yaml"


class Thesis(VoiceStyledFace):
    """Its modules as the recipe has them, without the weights that a user brings."""

    def __init__(self, config: VoiceStyledFace.Config) -> None:
        System.__init__(self)
        self.config = config
        with torch.device("meta"):  # the usual start values would take longer than all the rest
            self.generator = freeze(Generator(1024))
            self.encoder = WaveformEncoder(config.encoder)
            self.mapping = StyleMapping(config.mapping, channels=self.encoder.channels, n_styles=18, style_dim=512)
        self.to_empty(device="cpu")
        for number, tensor in enumerate(self.state_dict().values()):
            tensor.fill_(number)

    def loss(self, phase: str, batch: Batch, step: int) -> Losses:
        return {"total": sum(p.square().sum() for m in (self.encoder, self.mapping) for p in m.parameters())}  # type: ignore[dict-item]


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def main(root: str) -> None:
    config = load_config(str(RECIPE)).system
    assert isinstance(config, VoiceStyledFace.Config)
    system, engine = Thesis(config), Engine("fp32")
    engine.wrap(system, share=1, micro_batch=None)
    batch = {"slot": torch.zeros(1, dtype=torch.int64), "weight": torch.ones(1)}
    result = engine.step(system.phases()[0], batch, 0, micro_batch=None, seen=0, total=100)
    assert not result.skipped
    sizes = engine.sizes(system)
    shares = deal(sizes, 2)
    for rank in (1, 0):
        saver = Saver(root, rank=rank, world_size=2, attempt="full", keep=2)
        saver.start(1, shares, engine.copy(system, shares[rank]), {"step": 1})
        saver.wait()
        assert saver.take_failures() == []
    folder = checkpoint.latest(root) or ""
    record = checkpoint.read_state(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory is counted from here on
    before = memory("VmRSS")
    tensors, _ = checkpoint.load(folder)
    peak = memory("VmHWM") - before
    held = sum(tensor.nbytes for tensor in tensors.values())
    own = engine.copy(system, list(sizes))
    found = {
        "parameters": sum(p.numel() for m in (system.encoder, system.mapping) for p in m.parameters()),
        "frozen": sum(p.numel() for p in system.generator.parameters()),
        "moments": sum(t.numel() for n, t in tensors.items() if n.startswith("optim/") and t.ndim),
        "roots": sorted({name.split(".")[0] if name[0] == "m" else name.rsplit("/", 2)[0] for name in tensors}),
        "bytes": sum(part["bytes"] for part in record["parts"]),
        "parts": [part["bytes"] for part in record["parts"]],
        "equal": own.keys() == tensors.keys() and all(torch.equal(own[name], tensors[name]) for name in own),
        "peak_above_tensors": peak - held,
    }
    print(json.dumps(found))


main(*sys.argv[1:])
