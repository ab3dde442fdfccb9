"""What cached decoding of codes costs, against computing every prefix anew: the document's bottom Transformer.

    python bench/decoding.py                # about three minutes on one core

Both draw codes with one and the same net (6 + 12 layers, width 100), its weights at random, and compute the condition
once. Anew means a forward pass over BEGIN and all codes so far, and the logits of the last place only. A whole sequence
takes minutes so; a round measures such passes at every ``--stride``-th length and adds them up by the trapezoid rule.
Rounds are paired: each measures both, one after the other. Seconds are those of the processor on one thread, so that
other processes do not count. Writes bench/results/decoding.json; exit code 1 if a target is missed: logits equal to
1e-5, 901 codes at least 10 times as fast, and a code at position 3,600 at most 3 times as long as one at 100.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from machine import cpus  # noqa: E402 - after the path

from v2f.nn.code_transformer import Decoding, TokenTransformer  # noqa: E402

CODES, TOP, BOTTOM = 2048, 900, 3600
TOKENS, EARLY, LATE, AROUND = 901, 100, 3600, 20
LEAST_FASTER, MOST_LATER, MOST_APART = 10.0, 3.0, 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stride", type=int, default=300, help="codes between the prefixes that are computed anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = TokenTransformer(CODES, TOP, BOTTOM, width=100, heads=4, layers=(6, 12), ff=1024).eval()
    condition, code_1T = torch.randint(CODES, (1, TOP)), torch.randint(CODES, (1, BOTTOM))
    read_1T = torch.cat([torch.full((1, 1), net.begin), code_1T], 1)
    with torch.no_grad():
        apart = _apart(net, condition, read_1T)
        rounds = [_round(net, condition, read_1T, args.stride) for _ in range(args.rounds)]
    found = {
        "date": datetime.date.today().isoformat(),
        "device": cpus(),
        "threads": 1,
        "versions": {name: version(name) for name in ("v2f", "torch")} | {"python": platform.python_version()},
        "parameters": sum(each.numel() for each in net.parameters()),
        f"largest difference of a logit, {TOKENS} tokens": apart,
        "rounds": args.rounds,
        **{name: _spread([each[name] for each in rounds]) for name in rounds[0]},
    }
    out = REPOSITORY / "bench" / "results" / "decoding.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    missed = [
        text
        for text, wrong in (
            (f"logits equal to {MOST_APART:g}", apart > MOST_APART),
            (f"{LEAST_FASTER:g} times as fast", found["times as fast"]["median"] < LEAST_FASTER),
            (f"at most {MOST_LATER:g} times as long", found["late to early"]["median"] > MOST_LATER),
        )
        if wrong
    ]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


def _apart(net: TokenTransformer, condition: torch.Tensor, read_1T: torch.Tensor) -> float:
    """The largest difference between a cached logit and that of a forward pass, over TOKENS places."""
    decoding = Decoding(net, condition)
    found = torch.stack([decoding.step(token) for token in read_1T[:, :TOKENS].T], 1)
    return float((found - net(condition, read_1T[:, :TOKENS])).abs().max())


def _round(net: TokenTransformer, condition: torch.Tensor, read_1T: torch.Tensor, stride: int) -> dict[str, float]:
    """Seconds and ratios of one round."""
    lengths = sorted({1, *range(stride, TOKENS, stride), TOKENS})
    anew = []
    memory = net.encode(condition)
    encode, net.encode = net.encode, lambda _: memory  # type: ignore[method-assign]
    logits, net.logits = net.logits, lambda x: logits(x[:, -1:])  # type: ignore[method-assign]
    for length in lengths:
        begun = time.process_time()
        net(condition, read_1T[:, :length])
        anew.append(time.process_time() - begun)
    net.encode, net.logits = encode, logits  # type: ignore[method-assign]
    decoding, took = Decoding(net, condition), []
    for token in read_1T[:, : LATE + AROUND].T:
        begun = time.process_time()
        decoding.step(token)
        took.append(time.process_time() - begun)
    whole, cached = float(np.trapezoid(anew, lengths)) + anew[0], sum(took[:TOKENS])
    early, late = (statistics.median(took[at - AROUND : at + AROUND]) for at in (EARLY, LATE))
    return {
        f"anew, s for {TOKENS} codes": whole,
        f"cached, s for {TOKENS} codes": cached,
        "times as fast": whole / cached,
        f"cached, ms for a code at {EARLY}": 1e3 * early,
        f"cached, ms for a code at {LATE}": 1e3 * late,
        "late to early": late / early,
        f"cached, s for {BOTTOM} codes": sum(took[:BOTTOM]),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        name: float(f"{of(values):.4g}")
        for name, of in (("median", statistics.median), ("least", min), ("largest", max))
    }


if __name__ == "__main__":
    sys.exit(main())
