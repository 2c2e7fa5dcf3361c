"""Converting a model in floats to an NVFP4 checkpoint, one tensor at a time."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvfp4.checkpoints.calibrate import Amax, calibrate
from nvfp4.checkpoints.float_model import load_float_model
from nvfp4.checkpoints.names import DOWN, WEIGHT, expert_of
from nvfp4.checkpoints.plan import Options, Plan, Summary
from nvfp4.checkpoints.schemes import CONFIG_FILE, QUANT_CONFIG_FILE
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter, published, refuse_existing
from nvfp4.ops.quantize import quantize
from nvfp4.spec.format import LINEAR
from nvfp4.spec.quantize import global_scale

Step = Callable[[str, int], Callable[[], None]]

__all__ = ["Options", "Summary", "convert"]


def convert(source: Path, destination: Path, options: Options, step: Step) -> Summary:
    """Convert a model in floats to an NVFP4 checkpoint in a new folder.

    The source is a Hugging Face folder (safetensors) or a GGUF file. The linear layers of the
    blocks are quantized, those of each expert among them. These are copied:

        embeddings, the head, norms and routers
        layers whose K is not a multiple of 16, and what the model's class keeps in float32
        what transformers does not compute as x W^T + b or as gated experts without biases
        what is not of the language model: the vision tower and its projector

    A block's experts in one tensor become separate ones, which engines read. The summary and the
    configuration's ignore list name what is copied. A warning is given if it is most
    of the bytes. `step(title, total)` opens a progress bar and returns the function that advances
    it. The largest tensor bounds the memory, but calibration runs the whole model in bfloat16.

    Raises:
        ValueError: naming the option, file or tensor. Nothing is written then.
    """
    refuse_existing(destination)
    plan = Plan(Source(source), options)
    if plan.mostly_left:
        warnings.warn(plan.mostly_left, stacklevel=2)
    amax = None if options.text is None else _calibrated(plan, options, step)
    with published(destination) as folder:
        _write_weights(folder, plan, amax, options, step)
        plan.source.copy_others(folder)
        _write_configs(folder, plan)
    return plan.summary()


def _calibrated(plan: Plan, options: Options, step: Step) -> Amax:
    assert options.text is not None
    if not options.text.is_file():
        raise ValueError(f"--calibrate needs a text file, got {options.text}")
    done = step("load the model", 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_float_model(plan.source.path, device)
    done()
    tokens = tokenizer(options.text.read_text(), return_tensors="pt")["input_ids"][0]
    if not tokens.numel():
        raise ValueError(f"--calibrate needs a text of at least one token, got {options.text}")
    paths = map(plan.source.skeleton.path, sorted(plan.quantized))
    return calibrate(model, tokens[: options.max_tokens], paths, step)


def _write_weights(
    folder: Path, plan: Plan, amax: Amax | None, options: Options, step: Step
) -> None:
    need = sum(spec.nbytes for spec in plan.outputs.values())
    if (free := shutil.disk_usage(folder).free) < need:
        raise ValueError(f"DST needs {need} bytes of free space, got {free}")
    scales = WeightScales(plan, options.separate_scales)
    done = step("quantize and write", len(plan.source.tensors))
    copied: set[str] = set()
    with ShardedWriter(folder, plan.outputs, options.shard_size) as writer:
        for name in plan.source.tensors:
            module = name.removesuffix(WEIGHT)
            if module not in plan.quantized:
                whole = plan.source.published(name)[0]
                if whole not in copied:
                    writer.write(whole, plan.source.read(whole))
                copied.add(whole)
            else:
                for leaf, tensor in _quantized(plan, scales, module).items():
                    writer.write(f"{module}.{leaf}", tensor)
                if amax is not None:
                    p = _input_scale(plan, amax, module)
                    writer.write(f"{module}.{plan.format.input_global_scale}", p)
            done()


class WeightScales:
    """The global scale of each weight, amax / 2688, computed when it is first needed.

    Layers that engines fuse share one scale, unless `separate` is set.
    """

    def __init__(self, plan: Plan, separate: bool) -> None:
        self._plan = plan
        self._separate = separate
        self._known: dict[str, Tensor] = {}

    def of(self, module: str) -> Tensor:
        if module not in self._known:
            together = (module,) if self._separate else self._plan.siblings(module)
            amax = torch.stack([self._amax(each) for each in together])
            p = self._plan.format.storable(global_scale(amax))
            self._known |= dict.fromkeys(together, p)
        return self._known.pop(module)

    def _amax(self, module: str) -> Tensor:
        low, high = torch.aminmax(self._plan.source.read(module + WEIGHT))
        amax = torch.maximum(-low, high).float()
        if not amax.isfinite():
            raise ValueError(f"SRC: {module}{WEIGHT} needs finite values, got NaN or Inf")
        return amax


def _quantized(plan: Plan, scales: WeightScales, module: str) -> dict[str, Tensor]:
    """Quantize a layer and return its tensors by their names in the format."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    format, p = plan.format, scales.of(module)
    w = plan.source.read(module + WEIGHT).to(device)
    packed = quantize(w, p.to(device), LINEAR)
    return {
        format.data: packed.data.cpu(),
        format.scales: packed.scales.cpu(),
        format.global_scale: _scalar(plan, p),
    }


def _input_scale(plan: Plan, amax: Amax, module: str) -> Tensor:
    expert, path = expert_of(module), plan.source.skeleton.path(module)
    if expert is not None and expert.part == DOWN:
        return _scalar(plan, global_scale(amax.of_expert(path, expert.expert)))
    return _scalar(plan, global_scale(amax.inputs[path]))


def _scalar(plan: Plan, p: Tensor) -> Tensor:
    return plan.format.to_stored(p).reshape(plan.format.scale_shape)


def _write_configs(folder: Path, plan: Plan) -> None:
    apart = plan.scheme.hf_quant_config()
    if apart is not None:
        _write_json(folder / QUANT_CONFIG_FILE, apart)
    config = plan.source.config_dict() | {"quantization_config": plan.scheme.config()}
    _write_json(folder / CONFIG_FILE, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
