"""Load the checkpoints of makers' tools, and compare each layer with what its maker computes.

    python tests/interop/compare.py OUT [--record bench/results/interop.json]

OUT is where with_modelopt.py and with_llmcompressor.py wrote. All errors are relative:

    weights  the largest of an element, this package's dequantization beside the maker's own
    linear   the largest norm of a linear layer's error, given the input of the maker's simulation
    experts  the same of a block's whole mixture of experts
    logits   the norm of the model's error
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nvfp4
from nvfp4.checkpoints import Checkpoint, load_model
from nvfp4.layers import Linear, MoE

ROOT = Path(__file__).parents[2]
EXACT = 1e-5
"""The largest error of a layer in W4A4: sums in float32 in another order."""
ROUNDED = 2**-8
"""The largest where bfloat16 is between: inputs of W4A16, weights of other formats."""
UNSUPPORTED = {
    "modelopt-svdquant": "refused",
    "modelopt-w4a8": "refused",
    "modelopt-experts-awq": "not made",
}
"""What does not load here, or what a tool cannot export."""
COMMAND = "make interop RECORD=bench/results/interop.json"
PACKAGES = ("torch", "transformers", "safetensors")
MEASURES = ("weights", "linear", "experts", "logits")

Row = dict[str, Any]


def compared(folder: Path, made: dict[str, Any]) -> Row:
    """Load a checkpoint and compare it; made: the record of its maker."""
    row: Row = {"checkpoint": folder.name}
    if "not made" in made:
        return row | {"not made": made["not made"]}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = load_model(folder, dtype=torch.float32)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".replace(f"{folder}", folder.name)
        return row | {"refused": said}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (Linear, MoE))}
    row["layers"] = len(layers)
    row["activations"] = sorted({_activation(layer) for layer in layers.values()})
    if said := [str(w.message).replace(f"{folder}", folder.name) for w in caught]:
        row["warned"] = said
    row["weights"] = weights_differ(Checkpoint(folder), made["weights"])
    with torch.inference_mode():
        row |= outputs_differ(model, made["layers"])
        logits = model(made["ids"]).logits[0].float()
    row["logits"] = relative(logits, made["logits"])
    row["same tokens"] = (logits.argmax(-1) == made["logits"].argmax(-1)).float().mean().item()
    return row


def _activation(layer: Linear | MoE) -> str:
    form = layer.activation if isinstance(layer, Linear) else layer.activation_format
    return "W4A16" if form == "bf16" else "W4A4"


def weights_differ(checkpoint: Checkpoint, weights: dict[str, Tensor]) -> float:
    """The largest relative error of a weight that is not 0, which must be 0 in both."""
    worst = 0.0
    for module, theirs in weights.items():
        if checkpoint.is_quantized(module):
            ours = checkpoint.weight(module).dequantize(torch.float32)
        else:
            ours = checkpoint.floats.read(f"{module}.weight").float()
        error = (ours - theirs).abs() / theirs.abs()
        worst = max(worst, error[ours != theirs].max().item() if (ours != theirs).any() else 0.0)
    return worst


def outputs_differ(model: nn.Module, layers: dict[str, tuple[Tensor, Tensor]]) -> Row:
    """Each layer on the input that it had in the maker's simulation."""
    row: Row = {}
    for name, module in model.named_modules():
        if name not in layers:
            continue
        x, theirs = layers[name]
        if isinstance(module, Linear):
            kind = "linear"
        elif any(isinstance(each, MoE) for each in module.modules()):
            kind = "experts"
        else:
            continue
        ours = module(x)
        ours = ours[0] if isinstance(ours, tuple) else ours
        row[kind] = max(row.get(kind, 0.0), relative(ours, theirs))
        row[f"{kind} compared"] = row.get(f"{kind} compared", 0) + 1
    return row


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def is_right(row: Row) -> bool:
    """Whether the checkpoint was loaded and its layers compute what the maker's do.

    Those in UNSUPPORTED must fail as they are listed.
    The logits say less: where one activation rounds to another code, later layers amplify it.
    """
    if expected := UNSUPPORTED.get(row["checkpoint"]):
        return expected in row
    if "layers" not in row:
        return False
    bound = EXACT if row["activations"] == ["W4A4"] else ROUNDED
    outputs = [row[kind] for kind in ("linear", "experts") if kind in row]
    return row["weights"] <= ROUNDED and all(error <= bound for error in outputs)


def table(rows: list[Row]) -> str:
    """The rows as a table of Markdown, as docs/serving.md has it."""
    lines = [
        "| checkpoint | layers | activations | weights | a linear layer | experts | logits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "layers" not in row:
            why = "refused" if "refused" in row else "not made"
            lines.append(f"| {row['checkpoint']} | {why} | | | | | |")
            continue
        errors = [_error(row[each]) if each in row else "" for each in MEASURES]
        cells = row["checkpoint"], str(row["layers"]), ", ".join(row["activations"]), *errors
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def record(rows: list[Row], makers: dict[str, str]) -> dict[str, Any]:
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    return {
        "command": COMMAND,
        "commit": done.stdout.strip(),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "nvfp4": nvfp4.__version__,
        "versions": {package: version(package) for package in PACKAGES},
        "makers' versions": makers,
        "ModelOpt's simulation": "its GPU kernels' arithmetic in torch, modelopt_on_cpu.py",
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--record", type=Path, help="A file of JSON for the result.")
    options = parser.parse_args()
    rows, makers = [], {}
    for path in sorted(options.out.glob("*.pt")):
        made = torch.load(path)
        makers |= made.get("versions", {})
        rows.append(compared(options.out / path.stem, made))
    print(table(rows))
    for row in rows:
        for what in ("refused", "not made", "warned"):
            if what in row:
                print(f"{row['checkpoint']} {what}: {row[what]}")
    if options.record:
        text = json.dumps(record(rows, makers), indent=1)
        options.record.write_text(f"{text}\n")
    if wrong := [row["checkpoint"] for row in rows if not is_right(row)]:
        sys.exit(f"not as their makers compute: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
