"""The files under launch/accelerate and launch/deepspeed, each read by the library that it is for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from two_phases import TwoPhases

from v2f.engine import launcher, zero
from v2f.errors import V2FError

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH = REPOSITORY / "launch"
ACCELERATE = sorted(path.name for path in (LAUNCH / "accelerate").glob("*.yaml"))
PROCESSES = {
    "one-process.yaml": (1, 1),
    "one-gpu.yaml": (1, 1),
    "ddp-8gpu.yaml": (8, 1),
    "zero1-8gpu.yaml": (8, 1),
    "zero2-8gpu.yaml": (8, 1),
    "multi-node.yaml": (16, 2),
}


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_every_file(name):
    path = str(LAUNCH / "accelerate" / name)
    config = load_config_from_file(path)
    assert (config.num_processes, config.num_machines) == PROCESSES[name]
    assert config.mixed_precision == "no"  # the recipe decides
    more = ["--rdzv_backend", "c10d", "--machine_rank", "1"]
    args = launch_command_parser().parse_args(["--config_file", path, *more, "v2f/train.py"])
    args, defaults, _ = _validate_launch_command(args)
    assert defaults.distributed_type == config.distributed_type
    assert args.multi_gpu == (name in ("ddp-8gpu.yaml", "multi-node.yaml"))
    assert args.use_deepspeed == name.startswith("zero")
    if name == "multi-node.yaml":
        prepare_multi_gpu_env(args)
        assert (args.rdzv_backend, args.rdzv_endpoint) == ("c10d", "127.0.0.1:29500")
        assert (args.nnodes, args.nproc_per_node) == ("2", "8")


@pytest.mark.parametrize("stage", [1, 2])
def test_what_accelerate_hands_on_from_a_zero_file_is_that_strategy(monkeypatch, stage):
    path = str(LAUNCH / "accelerate" / f"zero{stage}-8gpu.yaml")
    args = launch_command_parser().parse_args(["--config_file", path, "--main_process_port", "0", "v2f/train.py"])
    args, defaults, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(args)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    launch = launcher.read("auto", "fp32")
    assert launch.strategy == f"zero{stage}"
    assert launch.options == zero.DEFAULTS  # the files spell what holds without one
    assert launcher.read("ddp", "fp64").strategy == "ddp"


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_reads_every_file(stage):
    from deepspeed.runtime.config import DeepSpeedConfig

    found, options = zero.options_of(str(LAUNCH / "deepspeed" / f"zero{stage}.json"))
    assert found == stage
    for phase in TwoPhases().phases():
        config = DeepSpeedConfig(zero.settings(phase, stage, options, share=4))
        assert config.zero_config.stage == stage
        assert config.zero_config.reduce_bucket_size == 50_000_000
        assert config.gradient_clipping == (phase.optimizer.clip or 0.0)
        assert config.gradient_accumulation_steps == 1
        assert not config.float16_config.enabled
        assert not config.bfloat16_config.enabled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 64}, r"train_batch_size is set in the recipe \(data\.batch\)"),
        (
            {"gradient_clipping": 1.0},
            r"gradient_clipping is set in the recipe \(system\.optimizer",
        ),
        ({"fp16": {"enabled": True}}, r"fp16 is set in the recipe \(train\.precision\)"),
        ({"optimizer": {"type": "AdamW"}}, r"optimizer is set in the recipe"),
        ({"communication_data_type": "bf16"}, r"'communication_data_type' is not one that v2f passes on"),
        ({"zero_optimization": {"stage": 3}}, r"ZeRO stage 3 is not supported; use stage 1 or 2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, r"offload_optimizer is not one"),
    ],
)
def test_what_a_deepspeed_file_must_not_decide_is_refused_by_name(monkeypatch, tmp_path, values, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | values))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(V2FError, match=rf"mine\.json: .*{message}"):
        launcher.read("auto", "fp32")
    chosen = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}}
    path.write_text(json.dumps(chosen | dict.fromkeys(values, "auto")))
    if "zero_optimization" not in values:
        launch = launcher.read("auto", "fp32")
        assert (launch.strategy, launch.options["reduce_bucket_size"]) == ("zero1", 1000)


def test_a_deepspeed_file_that_cannot_be_read_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "none.json"))
    with pytest.raises(V2FError, match=r"none\.json: cannot read this DeepSpeed file \(No such file"):
        launcher.read("auto", "fp32")
    for text in ("{", "3", '{"zero_optimization": 2}'):
        (tmp_path / "none.json").write_text(text)
        with pytest.raises(V2FError, match=r"none\.json: cannot read this DeepSpeed file \(it is not a JSON object\)"):
            launcher.read("zero2", "fp32")


@pytest.mark.parametrize(
    ("environment", "asked", "strategy"),
    [
        ({}, "auto", "ddp"),
        ({}, "zero1", "zero1"),
        ({"USE_DEEPSPEED": "true"}, "auto", "zero2"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "1"}, "auto", "zero1"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "0"}, "auto", "ddp"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "1"}, "zero2", "zero2"),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "1"}, "ddp", "ddp"),
        ({"USE_DEEPSPEED": "false", "DEEPSPEED_ZERO_STAGE": "1"}, "auto", "ddp"),
        ({"USE_DEEPSPEED": "true", "GRADIENT_ACCUMULATION_STEPS": "1", "GRADIENT_CLIPPING": "none"}, "auto", "zero2"),
    ],
)
def test_a_strategy_that_is_named_wins_over_the_launchers(monkeypatch, environment, asked, strategy):
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert launcher.read(asked, "fp32").strategy == strategy


@pytest.mark.parametrize(
    ("environment", "precision", "message"),
    [
        ({"USE_FSDP": "true"}, "fp32", r"requests FSDP or Megatron-LM; v2f supports DDP"),
        ({"USE_DEEPSPEED": "true"}, "fp64", r"train\.precision fp64: ZeRO computes in fp32"),
        (
            {"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "3"},
            "fp32",
            r"ZeRO stage 3 is not supported; use stage 1 or 2",
        ),
        (
            {"USE_DEEPSPEED": "true", "GRADIENT_CLIPPING": "1.0"},
            "fp32",
            r"gradient_clipping is 1\.0, but each phase's system\.opt",
        ),
        (
            {"USE_DEEPSPEED": "true", "GRADIENT_ACCUMULATION_STEPS": "4"},
            "fp32",
            r"_steps is 4, but data\.batch and train",
        ),
        ({"USE_DEEPSPEED": "true", "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "fp32", r"offload_param_device is cpu"),
    ],
)
def test_what_a_launcher_must_not_decide_is_refused(monkeypatch, environment, precision, message):
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(V2FError, match=message):
        launcher.read("auto", precision)


def test_the_launchers_mixed_precision_is_overruled_in_one_line(monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    launcher.read("auto", "bf16")
    assert [record.getMessage() for record in caplog.records] == [
        "the launcher requests fp16; the recipe's train.precision overrides it: bf16"
    ]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launcher.read("auto", "bf16")
    assert len(caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize("start", ["accelerate", "torchrun"])
def test_a_launcher_on_cpus_starts_ranks_under_zero(start):
    """accelerate launch with the file of eight GPUs, but two processes; and torchrun with its environment."""
    worker, environment = str(REPOSITORY / "tests" / "workers" / "strategy.py"), dict(os.environ, OMP_NUM_THREADS="1")
    if start == "accelerate":
        file = ["--config_file", "launch/accelerate/zero2-8gpu.yaml", "--main_process_port", "0"]
        command = ["-m", "accelerate.commands.launch", *file, "--num_processes", "2", worker]
    else:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker]
        environment |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    # A watchdog of 90 minutes tells why before a collective fails.
    said = "cpu [('zero2', 0, ''), ('zero2', 1, '')], others are given up after 1:35:00"
    assert said in done.stdout.splitlines()
