"""Convert, load and compare small models of transformers' architectures.

    python -m nvfp4.bench.architectures --part 1/4  # a quarter of them; results are merged
    python -m nvfp4.bench.architectures --only llama,gpt_oss
    python -m nvfp4.bench.architectures --render    # only rewrites the table in the docs

Each model has its architecture's own configuration with small sizes (bench/tiny_models.py) and
random weights. `convert` makes a W4A16 checkpoint of it, and `load_model` loads that. Beside it
stands the model in float32 that was never saved. Into it go the weights of the loaded NVFP4 layers,
dequantized here by tables. A row has two numbers:

    weights  the largest relative error of a dequantized weight: about 0.1, or 1 if it is another's
    logits   the relative error of the loaded model's logits, that of the median token: rounding may
             send a token of a mixture to another expert

Inputs of linear layers and of experts are rounded to bfloat16 on both sides, as in W4A16. Between
an expert's layers only the loaded model rounds.
"""

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nvfp4
from nvfp4.bench.tiny_models import Kind, NotMade, kinds, made
from nvfp4.checkpoints import load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.layers import Linear, MoE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
BEGIN, END = "<!-- made by nvfp4.bench.architectures -->", "<!-- end -->"

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
IDS = torch.arange(1, 17)[None]

MOST_WEIGHT_ERROR = 0.2
"""Quantized normal numbers are about 0.1 off; another layer's weight is about 1.4 off."""

MOST_LOGITS_ERROR = 0.02
"""Rounding between an expert's layers gives up to 0.01; quantized weights are about 0.1 off."""

Row = dict[str, Any]


def row_of(kind: Kind) -> Row:
    """Make, convert, load and compare one architecture; failures are said in the row."""
    row: Row = {"model_type": kind.model_type, "task": kind.task}
    try:
        model = made(kind)
    except NotMade as error:
        return row | {"not made": str(error)}
    row["class"] = type(model).__name__
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            _logits(model)
        except Exception as error:  # it needs pictures, or sizes of other names
            return row | {"not made": f"the forward pass of text: {_line(error, folder)}"}
        stage = "convert"
        try:
            model.save_pretrained(folder / "floats")
            summary = convert(folder / "floats", folder / "out", Options(), _no_bar)
            row["quantized"] = summary.quantized_layers
            row["left"] = summary.bytes_left_in_floats / summary.bytes_before
            stage = "load"
            loaded = load_model(folder / "out", dtype=torch.float32)
            stage = "compare"
            row |= _compared(model.float(), loaded)
        except Exception as error:
            return row | {"failed": f"{stage}: {_line(error, folder)}"}
    return row


def _compared(model: Any, loaded: Any) -> Row:
    """Put the dequantized weights into the model in floats, and compare the logits."""
    worst, layers, experts = 0.0, 0, 0
    for path, module in loaded.named_modules():
        if isinstance(module, Linear):
            layers += 1
            layer = model.get_submodule(path)
            worst = max(worst, _replace(layer.weight, [_dequantized(module.packed())]))
            layer.register_forward_pre_hook(_round_input)
        elif isinstance(module, MoE):
            experts += 1
            parent = model.get_submodule(path.rpartition(".")[0])
            for leaf, part in zip(("gate_up_proj", "down_proj"), module.packed(), strict=True):
                name = leaf if hasattr(parent, leaf) else "up_proj"
                rows = torch.stack([_dequantized(part[e]) for e in range(module.experts)])
                worst = max(worst, _replace(getattr(parent, name), _layouts(rows)))
            parent.register_forward_pre_hook(_round_input)
    ours, theirs = (_logits(each).float().flatten(0, -2) for each in (loaded, model))
    return {
        "linear layers": layers,
        "blocks of experts": experts,
        "weights": worst,
        "logits": ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).median().item(),
    }


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Round a layer's input to bfloat16, as W4A16 does."""
    return (args[0].bfloat16().float(), *args[1:]) if args else None


def _dequantized(weight: nvfp4.QuantizedTensor) -> Tensor:
    """The values by tables: two codes a byte, the even one in the low nibble, times two scales."""
    codes = torch.stack([weight.data & 15, weight.data >> 4], dim=-1).flatten(-2)
    p = weight.row_scales().reshape(-1, 1)
    scales = weight.linear_scales().float().repeat_interleave(16, dim=-1)
    return E2M1[codes.int()] * scales * p


def _layouts(rows: Tensor) -> list[Tensor]:
    """The ways in which a class may hold experts [E, N, K]: gate and up in turn, or for x W."""
    turns = [rows]
    if rows.shape[1] % 2 == 0:
        turns.append(torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2))
    return [*turns, *(each.mT for each in turns)]


def _replace(weight: nn.Parameter, candidates: list[Tensor]) -> float:
    """Give the weight the nearest candidate's values; return how far they are, relatively."""
    fitting = [each for each in candidates if each.shape == weight.shape]
    if not fitting:
        raise ValueError(f"a weight {list(weight.shape)} got {list(candidates[0].shape)}")
    errors = [((each - weight).norm() / weight.norm()).item() for each in fitting]
    weight.data.copy_(fitting[errors.index(min(errors))])
    return min(errors)


def _logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def _line(error: Exception, folder: Path) -> str:
    said = " ".join(str(error).replace(str(folder), "").split())
    return f"{type(error).__name__}: {said[:200]}"


def _no_bar(title: str, total: int) -> Any:
    return lambda: None


def is_right(row: Row) -> bool:
    return (
        "weights" in row
        and row["weights"] < MOST_WEIGHT_ERROR
        and row["logits"] < MOST_LOGITS_ERROR
    )


def _record(rows: list[Row]) -> None:
    """Merge the rows with those of other parts."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    by_kind = {(row["model_type"], row["task"]): row for row in [*found["rows"], *rows]}
    content = {
        "command": "python -m nvfp4.bench.architectures",
        "commit": _commit(),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
        "rows": [by_kind[key] for key in sorted(by_kind)],
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def _commit() -> str:
    """The commit, and whether more than recorded results and the docs differ from it."""
    outputs = ":!bench/results", ":!docs"
    commit, changed = (
        subprocess.run(["git", *command], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        for command in (
            ("rev-parse", "--short", "HEAD"),
            ("status", "--short", "--untracked-files=no", "--", ".", *outputs),
        )
    )
    return f"{commit}-dirty" if changed else commit


def table(rows: list[Row]) -> Iterator[str]:
    """The lines of the docs' table, and what it does not have."""
    compared = [row for row in rows if "weights" in row]
    right = [row for row in compared if is_right(row)]
    yield f"{len(right)} of {len(rows)} model types compute what their dequantized weights do."
    yield ""
    yield "| model type | class | NVFP4 layers | blocks of experts | in floats | weights | logits |"
    yield "|---|---|---|---|---|---|---|"
    for row in compared:
        mark = "" if is_right(row) else " (differs)"
        yield (
            f"| {row['model_type']} | {row['class']} | {row['linear layers']} "
            f"| {row['blocks of experts'] or ''} | {row['left']:.0%} "
            f"| {row['weights']:.2f} | {row['logits']:.0e}{mark} |"
        )
    for key, title in (
        ("failed", "These cannot be converted, or do not run after it:"),
        ("not made", "No small model was made of these, or it does not run on text alone:"),
    ):
        if found := [row for row in rows if key in row]:
            yield from ("", title, "")
            yield from (
                f"- {row['model_type']} ({row['task']}): {_cell(row[key])}" for row in found
            )


def _cell(text: str) -> str:
    """A message as one line of Markdown without markup."""
    return "`" + re.sub(r"[`|]", "'", text) + "`"


def _render() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    lines = "\n".join(table(rows))
    PAGE.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare small models of all architectures.")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="which part of them")
    parser.add_argument("--only", metavar="TYPES", help="model types, separated by commas")
    parser.add_argument("--render", action="store_true", help="only rewrite the docs' table")
    options = parser.parse_args()
    if not options.render:
        warnings.filterwarnings("ignore")
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        index, count = map(int, options.part.split("/"))
        only = options.only.split(",") if options.only else None
        rows = []
        for kind in list(kinds())[index - 1 :: count]:
            if only is None or kind.model_type in only:
                rows.append(row_of(kind))
                said = {k: v for k, v in rows[-1].items() if k not in ("model_type", "task")}
                print(kind.model_type, kind.task, said, flush=True)
                gc.collect()
        _record(rows)
    _render()


if __name__ == "__main__":
    main()
