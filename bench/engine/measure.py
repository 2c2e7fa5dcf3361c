"""Engines beside each other: started together, measured in turns, started again with full caches.

Each engine is a process of its own. None is measured while another works, and each round measures
all of them.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from select import select
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from nvfp4.bench.engine.serve import OURS, PEERS, PREFILL, PROMPT, SEQUENCES, WRITTEN
from nvfp4.bench.engine.timeline import steps_of

KEYS = [*map(str, SEQUENCES), "prefill"]


class Running(NamedTuple):
    """An engine's process."""

    name: str
    process: "subprocess.Popen[str]"

    def ask(self, line: str) -> Any:
        """Send a line and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline() or '"no answer"')

    def end(self) -> None:
        self.ask("end")
        self.process.wait()


class Setting(NamedTuple):
    """What all engines of a measurement have in common."""

    folder: Path
    result: Path
    tensor_parallel: int
    patience: float
    """How many seconds an engine may take to start."""

    def start(
        self, name: str, traces: Path | None = None, environment: Mapping[str, str] = {}
    ) -> Running:
        """Start an engine; what it prints goes to a log beside the result."""
        log = open(f"{self.result}.{name.replace(' ', '-')}.log", "a")  # noqa: SIM115 - the child's
        command = [sys.executable, "-m", "nvfp4.bench.engine", "serve", name, str(self.folder)]
        command += ["--tensor-parallel", str(self.tensor_parallel)]
        command += ["--traces", str(traces)] if traces else []
        return Running(
            name,
            subprocess.Popen(
                command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                text=True,
                env=os.environ | environment,
            ),
        )

    def ready(self, engines: list[Running]) -> Iterator[tuple[Running, float]]:
        """Each engine that starts in time, and its seconds; others are told and ended."""
        deadline = time.monotonic() + self.patience
        for engine in engines:
            out = engine.process.stdout
            assert out is not None
            answered, _, _ = select([out], [], [], max(0, deadline - time.monotonic()))
            line = out.readline() if answered else ""
            if line:
                yield engine, float(line)
            else:
                print(f"{engine.name}: not started; its log says why", file=sys.stderr)
                engine.process.kill()


def measure(setting: Setting, names: list[str], rounds: int, again: bool) -> dict[str, Any]:
    """Measure the engines and return what the result's files hold.

    again: start each once more, alone and with full caches, and record its start and a decode step.
    """
    found: dict[str, Any] = {
        "about": "tokens a second of vLLM, each round's",
        "command": "python -m nvfp4.bench.engine " + " ".join(sys.argv[1:]),
        "model": setting.folder.name,
        "tensor parallel": setting.tensor_parallel,
        "machine": {
            "gpu": torch.cuda.get_device_name(),
            **{name: version(name) for name in ("nvfp4", "vllm", "torch", "triton")},
        },
        "tokens": {"prompt": PROMPT, "written": WRITTEN, "prefill": math.prod(PREFILL)},
    }
    started = dict(setting.ready([setting.start(name) for name in names]))
    found["seconds to start, all side by side, empty caches"] = _by_name(started)
    speeds: dict[str, dict[str, list[float]]]
    speeds = {engine.name: {key: [] for key in KEYS} for engine in started}
    for _ in range(rounds):
        for key in KEYS:
            for engine in started:
                speeds[engine.name][key].append(engine.ask(key))
    found["tokens a second"] = speeds
    found["the same tokens twice"] = {engine.name: engine.ask("repeat") for engine in started}
    found["prompts of 16 with the same tokens alone"] = {
        engine.name: engine.ask("batch") for engine in started
    }
    for engine in started:
        engine.end()
    write(found, setting.result)  # what follows takes minutes
    if again:
        found |= _once_more(setting, [engine.name for engine in started])
    return found


def _once_more(setting: Setting, names: list[str]) -> dict[str, Any]:
    seconds, steps, invariant = {}, {}, {}
    for name in names:
        with TemporaryDirectory() as folder:
            traces = Path(folder)
            for engine, took in setting.ready([setting.start(name, traces)]):
                seconds[name] = took
                engine.ask("trace")
                engine.end()
            for trace in sorted(traces.glob("**/*.json*"))[:1]:
                steps[name] = steps_of(trace)
    if OURS in names:
        alone = setting.start(OURS, environment={"VLLM_BATCH_INVARIANT": "1"})
        for engine, _ in setting.ready([alone]):
            invariant[OURS] = engine.ask("batch")
            engine.end()
    return {
        "seconds to start, alone, full caches": seconds,
        "decode steps of one sequence": steps,
        "prompts of 16 with the same tokens alone, batch-invariant": invariant,
    }


def _by_name(seconds: Mapping[Running, float]) -> dict[str, float]:
    return {engine.name: took for engine, took in seconds.items()}


def table(found: dict[str, Any]) -> str:
    """The best of the rounds as a table, and decoding's geometric mean over the better peer."""
    speeds = {
        name: {key: max(each) for key, each in by_key.items()}
        for name, by_key in found["tokens a second"].items()
    }
    starts = found.get("seconds to start, alone, full caches", {})
    steps = found.get("decode steps of one sequence", {})
    heads = ["tokens/s, sequences:", *KEYS, "start s", "a step's idle us"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, by_key in speeds.items():
        cells = [f"{by_key[key]:.0f}" for key in KEYS]
        cells.append(f"{starts[name]:.0f}" if name in starts else "")
        cells.append(f"{steps[name]['idle us']:.0f}" if name in steps else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    peers = [name for name in PEERS if name in speeds]
    for ours in (name for name in speeds if name not in (*PEERS, "bf16") and peers):
        best = {key: max(speeds[name][key] for name in peers) for key in KEYS}
        ratio = {key: speeds[ours][key] / best[key] for key in KEYS}
        cells = [f"{ratio[key]:.2f}" for key in KEYS]
        lines.append(f"| {ours} / the better of its peers | {' | '.join(cells)} | | |")
        mean = math.prod(ratio[key] for key in KEYS[:-1]) ** (1 / len(SEQUENCES))
        lines.append(f"| {ours}: geometric mean of decoding | {mean:.2f} {'| ' * len(KEYS)}| |")
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any], result: Path) -> None:
    """Write RESULT.json and RESULT.md."""
    result.with_suffix(".json").write_text(json.dumps(found, indent=1))
    result.with_suffix(".md").write_text(table(found))
