"""A pre-flight names the device that is wrong, the one that is slow and the rank that hangs, and no others."""

import dataclasses
import datetime
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from ports import free_port

from v2f.errors import V2FError
from v2f.preflight import command, meeting, network, workloads
from v2f.preflight.findings import judge
from v2f.preflight.network import rounds
from v2f.preflight.reports import Link, RankReport

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = REPOSITORY / "tests" / "workers" / "preflight.py"
CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(workloads.SIDE_N, "cpu", 128)
    monkeypatch.setitem(workloads.COPIED, "cpu", 1 << 20)


def cluster(hosts: int = 3, per_host: int = 2) -> list[RankReport]:
    """Ranks with correct and similar results."""
    return [
        RankReport(
            rank=rank,
            host=f"host-{rank // per_host}",
            device=f"cuda:{rank % per_host}",
            kind="H100",
            versions={"torch": "2.11.0"},
            rates={"matmul TFLOP/s": 700.0 + rank, "step samples/s": 90.0 - rank},
            answers={"loss of the same batch": "a"},
        )
        for rank in range(hosts * per_host)
    ]


def launched(ranks: int, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """The worker's processes as torchrun would start them; starting itself costs a second import of torch."""
    port = free_port()
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(running, outputs, strict=True)
    ]


# ------------------------------------------------------------------------------------------------ judging


def test_ranks_that_are_right_and_alike_give_nothing_to_look_at():
    assert judge(cluster(), [], 0.15, None) == []
    assert judge(cluster()[:1], [], 0.15, None) == []


def test_a_slow_rank_is_named_with_how_much():
    ranks = cluster()
    ranks[3].rates["step samples/s"] = 70.0
    (line,) = judge(ranks, [], 0.15, None)
    assert line == "host-1 cuda:1 (rank 3): slow: step samples/s: 70, the median is 88 (26% more)"
    assert judge(ranks, [], 0.3, None) == []


def test_of_two_ranks_the_faster_is_the_measure():
    ranks = cluster(1, 2)
    ranks[0].rates["matmul TFLOP/s"] = 600.0
    assert [line.split(":")[0] for line in judge(ranks, [], 0.15, None)] == ["host-0 cuda"]


def test_a_rank_that_disagrees_is_named_and_where_nobody_has_a_majority_all_are():
    ranks = cluster()
    ranks[4].answers["loss of the same batch"] = "b"
    assert judge(ranks, [], 0.15, None) == [
        "host-2 cuda:0 (rank 4): computes a different loss of the same batch than the other H100"
    ]
    two = judge([ranks[0], ranks[4]], [], 0.15, None)
    assert two == ["all 2 ranks: computes a different loss of the same batch than the other H100"]
    ranks[4].kind = "A100"  # another model may round otherwise
    assert judge(ranks, [], 0.15, None) == []


def test_a_host_with_another_version_is_named():
    ranks = cluster()
    for each in ranks[2:4]:
        each.versions["torch"] = "2.10.0"
    assert judge(ranks, [], 0.15, None) == [
        "host-1 cuda:0 (rank 2); host-1 cuda:1 (rank 3): has a different torch than the others"
    ]


def test_a_fault_that_all_share_is_one_line():
    ranks = cluster()
    for each in ranks:
        each.faults["step"] = "data/x: no data set there"
    assert judge(ranks, [], 0.15, None) == ["all 6 ranks: step: data/x: no data set there"]


def test_all_reduces_are_of_all_within_hosts_and_between_neighbors():
    shapes = [[(link.scope, link.ranks) for link in together] for together in rounds(cluster(4))]
    assert shapes == [
        [("all ranks", list(range(8)))],
        [("within a host", [0, 1]), ("within a host", [2, 3]), ("within a host", [4, 5]), ("within a host", [6, 7])],
        [("between two hosts", [0, 1, 2, 3]), ("between two hosts", [4, 5, 6, 7])],
        [("between two hosts", [2, 3, 4, 5]), ("between two hosts", [0, 1, 6, 7])],
    ]
    for hosts in (3, 4, 5, 8):
        pairs = [together for together in rounds(cluster(hosts)) if together[0].scope == "between two hosts"]
        assert sum(len(together) for together in pairs) == hosts
        for together in pairs:  # at the same time only what shares no host
            named = [host for link in together for host in link.hosts]
            assert len(named) == len(set(named))
    assert [len(together) for together in rounds(cluster(2, 1))] == [1]
    assert [[link.scope for link in together] for together in rounds(cluster(1, 4))] == [["all ranks"]]


def test_a_host_whose_network_is_slow_is_named_and_its_neighbors_are_not():
    links = [link for together in rounds(cluster(5)) for link in together]
    for link in links:
        slow = "host-3" in link.hosts and link.scope != "within a host"
        link.rates = {1.0: 1.0, 256.0: 20.0 if slow else 180.0}
    assert judge(cluster(5), links, 0.15, None) == [
        "host-3: slow: all-reduce with its neighbors, GB/s: 20, the median is 180 (800% more)"
    ]
    (line, _) = judge(cluster(5), links, 0.15, 100.0)[::-1]
    assert line == "all ranks: all-reduce: 20 GB/s, below the required 100"


# ------------------------------------------------------------------------------------------------ one device


def test_the_product_is_exact_and_one_wrong_entry_is_seen(quick, monkeypatch):
    workload = workloads.matmul(CPU)
    assert workload.same(workload.run())
    real = torch.Tensor.__matmul__

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        c = real(a, b)
        if c.ndim == 2:
            c[3, 4] += 1
        return c

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    with pytest.raises(V2FError, match="the product of two matrices of whole numbers is wrong"):
        workloads.matmul(CPU)


def test_a_product_of_the_gpu_s_size_stays_exact_in_bfloat16(monkeypatch):
    # What a GPU multiplies, at a side that a CPU can: the largest entry grows with the root of the side.
    monkeypatch.setitem(workloads.SIDE_N, "cpu", 1024)
    workload = workloads.matmul(CPU)
    largest = float(workload.run().abs().max())
    assert largest * (workloads.SIDE_N["cuda"] / 1024) ** 0.5 * 1.3 < 256


def test_work_that_gives_another_result_the_second_time_is_a_fault(quick):
    results = iter([7, 7, 8])
    workload = workloads.Workload("x", 1.0, lambda: next(results), lambda found: found == 7)
    with pytest.raises(V2FError, match="the same work gave another result the 3th time"):
        workloads.timed(workload, CPU, 10.0)


def test_a_recipe_s_step_runs_on_its_first_samples_and_moves_nothing(run_values, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run_values()))
    workload = workloads.recipe_step(CPU, str(recipe), [], 2)
    assert workload.amount == 4
    first = workload.run()
    assert workload.same(first)
    assert workload.run() == first
    again = workloads.recipe_step(CPU, str(recipe), [], 2)
    assert again.answers == workload.answers
    assert workloads.recipe_step(CPU, str(recipe), ["seed=4"], 2).answers != workload.answers
    with pytest.raises(V2FError, match=r"data\.batch: 8 is not a multiple of 3 ranks"):
        workloads.recipe_step(CPU, str(recipe), [], 3)
    with pytest.raises(V2FError, match=r"the first 400 samples of .* cannot be used: the split \w+ has fewer"):
        workloads.recipe_step(CPU, str(recipe), ["data.batch=400"], 1)


def test_one_process_needs_no_launcher(quick, tmp_path, capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "found.json"
    assert command.main(["--seconds", "0.01", "--json", str(out)]) == 0
    assert "nothing to look at" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [sorted(each["rates"]) for each in found["ranks"]] == [["matmul TFLOP/s", "memory GB/s", "step samples/s"]]
    assert command.main(["--seconds", "0.01", "--recipe", str(tmp_path / "none.yaml")]) == 1
    assert "look at" in capsys.readouterr().out


def test_a_stage_may_take_its_limit_beyond_the_time_that_a_measurement_is_asked_to_take(quick, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    limits = []

    class Alarm(threading.Timer):
        def __init__(self, interval, *arguments):
            limits.append(interval)
            super().__init__(interval, *arguments)

    monkeypatch.setattr(meeting.threading, "Timer", Alarm)
    monkeypatch.setattr(workloads, "timed", lambda workload, device, seconds: 1.0)
    assert command.main(["--seconds", "1000", "--limit", "300"]) == 0
    assert limits == [1900.0] + [1300.0] * 6  # three preparations and measurements, and the comparison


def test_a_stage_that_blocks_the_store_s_client_is_told_at_the_limit(monkeypatch, capsys):
    port = free_port()
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    here = meeting.Meeting(0.05)
    other = meeting.dist.TCPStore("127.0.0.1", port, is_master=False)
    monkeypatch.setattr(meeting.os, "_exit", lambda code: other.set("given up by", str(code)))
    with here.stage("joining the network", "here"):  # which waits in C++ for who does not come
        here.store.wait(["given up by"], datetime.timedelta(seconds=20))
    assert here.store.get("given up by") == b"1"
    assert "preflight: joining the network does not end, waited 0 s: all ranks are in it" in capsys.readouterr().err


def test_bus_bandwidth_is_nccl_tests(monkeypatch):
    ranks = cluster(1, 4)
    link = Link("all ranks", ["host-0"], [0, 1, 2, 3])
    clock = iter(range(1000))
    monkeypatch.setattr(network.time, "perf_counter", lambda: float(next(clock)))  # each all-reduce takes a second
    monkeypatch.setattr(network.dist, "new_group", lambda ranks: None)
    monkeypatch.setattr(network.dist, "all_reduce", lambda tensor, group: tensor.fill_(1 + 2 + 3 + 4))
    own = dataclasses.replace(ranks[1], faults={})
    assert network.reduce_all([link], own, CPU, [1.0]) == {1.0: pytest.approx(2 * 3 / 4 * (1 << 20) / 1e9)}
    assert own.faults == {}
    monkeypatch.setattr(network.dist, "all_reduce", lambda tensor, group: tensor.fill_(9))
    network.reduce_all([link], own, CPU, [1.0])
    assert own.faults == {"all-reduce": "a sum over 4 ranks is wrong"}


# ------------------------------------------------------------------------------------------------ several ranks


def test_the_slow_rank_is_named_and_nobody_else(tmp_path):
    out = tmp_path / "found.json"
    done = launched(3, "hosts", "1:slow", "--", "--seconds", "0.3", "--tolerance", "9", "--json", str(out))
    assert [each.returncode for each in done] == [1, 1, 1], done[0].stderr
    found = json.loads(out.read_text())
    (line,) = found["findings"]
    assert line.startswith("host-1 cpu (rank 1): slow: matmul TFLOP/s: ")
    assert line in done[0].stdout
    assert [(link["scope"], link["ranks"]) for link in found["all-reduce"]] == [
        ("all ranks", [0, 1, 2]),
        ("between two hosts", [0, 1]),
        ("between two hosts", [1, 2]),
        ("between two hosts", [0, 2]),
    ]
    assert all(rate > 0 for link in found["all-reduce"] for rate in link["rates"].values())
    assert len({each["answers"]["loss of the same batch"] for each in found["ranks"]}) == 1


def test_the_wrong_rank_is_named_and_the_one_that_hangs():
    done = launched(2, "0:wrong", "1:stuck", "--", "--seconds", "0.01", "--limit", "5")
    assert [each.returncode for each in done] == [1, 1]
    who = f"{socket.gethostname()} cpu (rank 1)"
    said = [line for each in done for line in each.stderr.splitlines() if line.startswith("preflight:")]
    assert said == [f"preflight: memory does not end, waited 5 s: behind: {who} in memory, preparing"]


def test_the_script_hands_options_to_the_launcher_and_to_the_module(tmp_path):
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def called(*arguments: str) -> str:
        script = str(REPOSITORY / "launch" / "preflight")
        return subprocess.run([script, *arguments], env=environment, check=True, capture_output=True, text=True).stdout

    assert called() == "1 --standalone -m v2f.preflight\n"
    assert called("--nnodes", "8", "--", "--recipe", "r.yaml") == "1 --nnodes 8 -m v2f.preflight --recipe r.yaml\n"
    assert called("--", "--json", "x") == "1 --standalone -m v2f.preflight --json x\n"
