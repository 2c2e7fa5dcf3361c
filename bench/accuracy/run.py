"""The benchmark of accuracy: convert a model by each method, and compare each with the model."""

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.bench.accuracy.measure import (
    Compared,
    Predictions,
    compare,
    log_probabilities,
    predict,
)
from nvfp4.bench.accuracy.simulate import simulated
from nvfp4.bench.run import commit_of, version_of
from nvfp4.checkpoints.convert import REPORT_FILE, Options, convert
from nvfp4.checkpoints.float_model import load_float_model
from nvfp4.demo.measure import Progress
from nvfp4.spec.format import W4A4, W4A16
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

NAMES = {W4A16: "W4A16", W4A4: "W4A4"}

Step = Callable[[str, int], Progress]


@dataclass(frozen=True)
class Plan:
    """What is measured, and on what.

    model: a Hugging Face folder or a GGUF file. text: what perplexity is measured on, in windows
    that do not see each other. calibration: another text, for the methods that need one.
    methods: each converts the model. checkpoints: folders that are measured beside them.
    """

    model: Path
    text: Path
    calibration: Path | None = None
    methods: tuple[str, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    activations: tuple[str, ...] = (W4A16, W4A4)
    tokens: int = 8192
    calibration_tokens: int = 4096
    window: int = 512
    scale_rule: str = AMAX_OVER_SIX
    """How block scales of activations are chosen, in W4A4."""


class Row(NamedTuple):
    """One checkpoint with one form of activations; layers: median errors of its report, if any."""

    checkpoint: str
    activation: str
    found: Compared
    layers: dict[str, float]
    convert_seconds: float | None


@dataclass(frozen=True)
class Results:
    facts: dict[str, Any]
    baseline: Compared
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        rows = [row._asdict() | {"found": row.found._asdict()} for row in self.rows]
        return asdict(self) | {"rows": rows, "baseline": self.baseline._asdict()}

    def markdown(self) -> str:
        head = "| weights | activations | perplexity | nats over bf16 | KL to bf16 | top-1 equal |"
        lines = [head, "|---|---|---|---|---|---|"]
        base = self.baseline
        lines.append(f"| bf16 | bf16 | {_pm(base.perplexity, base.perplexity_error, 2)} | | | |")
        for row in self.rows:
            f = row.found
            cells = (
                row.checkpoint,
                NAMES[row.activation],
                _pm(f.perplexity, f.perplexity_error, 2),
                _pm(f.over, f.over_error, 3),
                _pm(f.kl, f.kl_error, 3),
                _pm(100 * f.top1, 100 * f.top1_error, 1) + " %",
            )
            lines.append("| " + " | ".join(cells) + " |")
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        return "\n".join(lines) + f"\n\n{facts}\n"

    def write(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")


def _pm(value: float, error: float, digits: int) -> str:
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def run(plan: Plan, commit: str, step: Step, keep: Callable[[Results], None]) -> Results:
    """Measure what the plan says; `keep` gets the results so far after each row.

    Raises:
        ValueError: a text is missing or too short, or a method is unknown.
    """
    start = time.perf_counter()
    for name, path in (("TEXT", plan.text), ("--calibrate", plan.calibration)):
        if path is not None and not path.is_file():
            raise ValueError(f"bench --accuracy: {name} needs a text file, got {path}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_float_model(plan.model, device)
    tokens = tokenizer(plan.text.read_text(), return_tensors="pt")["input_ids"][0]
    if len(tokens) < plan.tokens:
        need = f"at least {plan.tokens} tokens (--max-tokens)"
        raise ValueError(f"bench --accuracy: TEXT needs {need}, got {len(tokens)} in {plan.text}")
    windows = tokens[: plan.tokens].split(plan.window)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        baseline = Predictions(Path(scratch))
        predict(model.float(), windows, baseline, step("the model in floats", len(windows)))
        del model
        itself = compare(lambda index, _: baseline.load(index), windows, baseline)

        def results() -> Results:
            seconds = time.perf_counter() - start
            return Results(_facts(plan, commit, device, seconds), itself, tuple(rows))

        for folder, seconds in _checkpoints(plan, Path(scratch), step):
            for activation in plan.activations:
                rows.append(
                    _row(
                        folder,
                        activation,
                        plan.scale_rule,
                        seconds,
                        windows,
                        baseline,
                        device,
                        step,
                    )
                )
                keep(results())
        return results()


def _checkpoints(plan: Plan, scratch: Path, step: Step) -> Iterator[tuple[Path, float | None]]:
    """Convert the model by each method, and yield the folders and how long it took."""
    for method in plan.methods:
        begun, folder = time.perf_counter(), scratch / method
        tokens = plan.calibration_tokens
        options = Options(text=plan.calibration, method=method, max_tokens=tokens)
        convert(plan.model, folder, options, step)
        yield folder, time.perf_counter() - begun
    for folder in plan.checkpoints:
        yield folder, None


def _row(
    folder: Path,
    activation: str,
    rule: str,
    seconds: float | None,
    windows: Sequence[Tensor],
    baseline: Predictions,
    device: str,
    step: Step,
) -> Row:
    model = simulated(folder, activation, device, rule)
    done = step(f"{folder.name}, {NAMES[activation]}", len(windows))
    found = compare(lambda _, w: log_probabilities(model, w), windows, baseline, done)
    report = folder / REPORT_FILE
    layers = json.loads(report.read_text())["medians"] if report.exists() else {}
    return Row(folder.name, activation, found, layers, seconds)


def _facts(plan: Plan, commit: str, device: str, seconds: float) -> dict[str, Any]:
    return {
        "model": plan.model.name,
        "text": _named(plan.text),
        "tokens": plan.tokens,
        "window": plan.window,
        "calibration": _named(plan.calibration) if plan.calibration else None,
        "calibration_tokens": plan.calibration_tokens,
        "scale_rule": plan.scale_rule,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine() + " CPU",
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "commit": commit or commit_of(),
        "seconds": round(seconds),
    }


def _named(text: Path) -> str:
    """A text's name and the beginning of its SHA-256."""
    return f"{text.name} ({hashlib.sha256(text.read_bytes()).hexdigest()[:16]})"
