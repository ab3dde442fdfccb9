"""Saves that are killed (SIGKILL) before each thing that they do to the store, one after the other, until one lives.

Arguments: ROOT (a folder or s3:// prefix). Says, as JSON, after how many of its deeds a save was killed, and what was
found then. A deed is what Python's audit hooks tell (a file opened for writing, renamed, removed) or a write to a
socket by the S3 client, which runs in asyncio. On a disk each is tried a second time with a limit on file sizes from it
on, which kills in the middle of the next file.
"""

import asyncio.selector_events
import gc
import json
import os
import resource
import signal
import sys

import torch

from v2f.runs import checkpoint
from v2f.runs.saver import Saver
from v2f.storage import store

KEEP = 2
DEEDS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}
DEATHS = {signal.SIGKILL, signal.SIGXFSZ}


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {f"model/{n}.weight": torch.randn(n, 30, generator=generator) for n in (1, 40, 90)}


def save(root: str, step: int, attempt: str) -> None:
    saver = Saver(root, rank=0, world_size=1, attempt=attempt, keep=KEEP)
    whole = tensors(step)
    saver.start(step, [list(whole)], whole, {"step": step})
    saver.wait()
    failures = saver.take_failures()
    assert not failures, failures


def kill_after(deeds: int, cut: bool) -> None:
    """End this process at its next deed but ``deeds``; with ``cut``, in the first file that it writes after that."""
    left = [deeds]

    def deed() -> None:
        left[0] -= 1
        if left[0] < 0 and cut:
            resource.setrlimit(resource.RLIMIT_FSIZE, (7, 7))
        elif left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in DEEDS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            deed()

    def counted(act):
        def write(*values):
            deed()
            return act(*values)

        return write

    transport = asyncio.selector_events._SelectorSocketTransport
    for name in {"write", "writelines"} & vars(transport).keys():
        setattr(transport, name, counted(getattr(transport, name)))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.addaudithook(hook)


def whole_steps(root: str) -> list[int]:
    """Steps of the committed checkpoints, each of them read in full."""
    steps = []
    for folder in checkpoint.committed(root):
        found, state = checkpoint.load(folder)
        wanted = tensors(state["step"])
        assert found.keys() == wanted.keys(), folder
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), folder
        steps.append(state["step"])
    assert checkpoint.step_of(checkpoint.latest(root) or "") == steps[-1]
    return steps


def main(root: str) -> None:
    for step in (1, 2):
        save(root, step, "base")
    killed, step = [], 2
    for cut in [False, True] if store.local_path(root) is not None else [False]:
        for deeds in range(1000):
            step += 1
            gc.collect()
            child = os.fork()
            if child == 0:
                try:
                    kill_after(deeds, cut)
                    save(root, step, "killed")
                    os._exit(0)
                finally:
                    os._exit(1)
            status = os.waitpid(child, 0)[1]
            steps = whole_steps(root)
            assert steps[-KEEP:] in ([step - 2, step - 1], [step - 1, step]), steps  # none goes before its successor
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) in DEATHS
                killed.append({"deeds": deeds, "cut": cut, "committed": steps[-1] == step})
                save(root, step, "next")  # over the remains, or anew where it was committed
            else:
                assert os.WEXITSTATUS(status) == 0
                assert steps[-1] == step
            files = set()
            for number in (step - 1, step):  # these two, and nothing else is left
                folder = f"step-{number:08d}"
                parts = [part["name"] for part in checkpoint.read_state(store.join(root, folder))["parts"]]
                files |= {f"{folder}/{name}" for part in parts for name in (checkpoint.COMMIT, part, part + ".json")}
            assert set(store.tree(root)) == files, (deeds, cut)
            if not os.WIFSIGNALED(status):
                break
    print(json.dumps(killed))


main(*sys.argv[1:])
