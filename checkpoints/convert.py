"""Converting a model in floats to an NVFP4 checkpoint, one tensor at a time."""

import json
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.checkpoints.calibrate import Amax, calibrate
from nvfp4.checkpoints.float_model import load_float_model
from nvfp4.checkpoints.layerwise import Layerwise
from nvfp4.checkpoints.names import DOWN, WEIGHT, expert_of
from nvfp4.checkpoints.plan import Options, Plan, Summary
from nvfp4.checkpoints.schemes import CONFIG_FILE, QUANT_CONFIG_FILE
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter, published, refuse_existing
from nvfp4.ops.quantize import quantize
from nvfp4.quantization import MSE, RTN, Packed, global_scale_of, quantize_matrix
from nvfp4.quantization.errors import LayerError, decoded, weight_error
from nvfp4.spec.format import LINEAR
from nvfp4.spec.quantize import global_scale, global_scale_of_amax

Step = Callable[[str, int], Callable[[], None]]

REPORT_FILE = "nvfp4_report.json"
"""The file beside the checkpoint with each layer's error, by round-to-nearest and as written."""


class Part(NamedTuple):
    """Tensors of the checkpoint by name, and the errors of the layers among them."""

    tensors: dict[str, Tensor]
    errors: list[LayerError]


__all__ = ["Options", "Summary", "convert"]


def convert(source: Path, destination: Path, options: Options, step: Step) -> Summary:
    """Convert a model in floats to an NVFP4 checkpoint in a new folder.

    The source is a Hugging Face folder (safetensors) or a GGUF file. The linear layers of the
    blocks are quantized, those of each expert among them. These are copied:

        embeddings, norms, routers, and the head unless `include` names it
        layers whose K is not a multiple of 16, and what the model's class keeps in float32
        what transformers does not compute as x W^T + b or as experts of a known kind
        what is not of the language model: the vision tower and its projector

    A block's experts in one tensor become separate ones, which engines read. Where gate and up
    alternate (gpt-oss), their rows are sorted apart. An expert's bias stays in floats beside its
    packed weight, as `experts.3.up_proj.bias` [I]. The summary and the configuration's ignore list
    name what is copied. A warning is given if it is most of the bytes.

    `step(title, total)` opens a progress bar and returns the function that advances it. The largest
    tensor bounds the memory, but calibration runs the whole model in bfloat16. Methods that need a
    text also hold the text's hidden states, and one block in float32 with its inputs. The errors of
    their layers are written beside the checkpoint, in REPORT_FILE.

    Raises:
        ValueError: naming the option, file or tensor. Nothing is written then.
    """
    refuse_existing(destination)
    plan = Plan(Source(source), options)
    if plan.mostly_left:
        warnings.warn(plan.mostly_left, stacklevel=2)
    if plan.method.needs_text:
        parts = _block_by_block(plan, options, step)
    else:
        amax = None
        if plan.calibrated:
            amax = _calibrated(plan, *_loaded(plan, options, step), plan.quantized, step)
        parts = _one_by_one(plan, plan.quantized, amax, plan.method.rounding, step)
    with published(destination) as folder:
        errors = _write_weights(folder, plan, parts, options, step)
        plan.source.copy_others(folder)
        _write_configs(folder, plan)
        if errors:
            _write_json(folder / REPORT_FILE, _report(plan, options, errors))
    return plan.summary(errors)


def _loaded(plan: Plan, options: Options, step: Step) -> tuple[Any, Tensor]:
    """Load the model, and the tokens of the text for calibration."""
    assert options.text is not None
    if not options.text.is_file():
        raise ValueError(f"--calibrate needs a text file, got {options.text}")
    done = step("load the model", 1)
    model, tokenizer = load_float_model(plan.source.path, _device())
    done()
    tokens = tokenizer(options.text.read_text(), return_tensors="pt")["input_ids"][0]
    if not tokens.numel():
        raise ValueError(f"--calibrate needs a text of at least one token, got {options.text}")
    return model, tokens[: options.max_tokens]


def _calibrated(
    plan: Plan, model: Any, tokens: Tensor, layers: Collection[str], step: Step
) -> Amax:
    return calibrate(model, tokens, map(plan.source.skeleton.path, sorted(layers)), step)


def _write_weights(
    folder: Path, plan: Plan, parts: Iterator[Part], options: Options, step: Step
) -> list[LayerError]:
    """Write all tensors, those of `parts` first and the rest as they are; return the errors."""
    need = sum(spec.nbytes for spec in plan.outputs.values())
    if (free := shutil.disk_usage(folder).free) < need:
        raise ValueError(f"DST needs {need} bytes of free space, got {free}")
    errors: list[LayerError] = []
    with ShardedWriter(folder, plan.outputs, options.shard_size) as writer:
        left = list(plan.copied)
        for part in parts:
            for name, tensor in part.tensors.items():
                writer.write(name, tensor.cpu())
            left = [name for name in left if name not in part.tensors]
            errors += part.errors
        done = step("write the rest", len(left))
        for name in left:
            writer.write(name, plan.source.read(name))
            done()
    return errors


def _one_by_one(
    plan: Plan, layers: Collection[str], amax: Amax | None, rounding: str, step: Step
) -> Iterator[Part]:
    """Quantize each of these layers by its weight alone."""
    scales = WeightScales(plan, rounding)
    modules = [m for n in plan.source.tensors if (m := n.removesuffix(WEIGHT)) in layers]
    done = step("quantize and write", len(modules))
    for module in modules:
        w = plan.source.read(module + WEIGHT).to(_device())
        p = scales.of(module)
        packed = _quantized(w, p.to(w.device), rounding)
        tensors = _tensors(plan, module, packed, p)
        if amax is not None:
            name = f"{module}.{plan.format.input_global_scale}"
            tensors[name] = _scalar(plan, _input_scale(plan, amax, module))
        errors = []
        if rounding != RTN:
            error = weight_error(module, w.float(), decoded(packed, p.to(w.device)))
            note = f"it is in no block: quantized by {rounding}"
            errors.append(error if rounding == plan.method.rounding else error._replace(note=note))
        yield Part(tensors, errors)
        done()


def _block_by_block(plan: Plan, options: Options, step: Step) -> Iterator[Part]:
    """Quantize the layers of each block by their inputs, and a head by its weight alone."""
    model, tokens = _loaded(plan, options, step)
    outside, amax = plan.quantized - plan.in_blocks, None
    if outside and plan.calibrated:
        amax = _calibrated(plan, model, tokens, outside, step)
    blocks = Layerwise(plan, model, tokens)
    done = step("quantize the blocks", len(blocks))
    for result in blocks:
        tensors = dict(result.floats)
        for module, layer in result.layers.items():
            tensors |= _tensors(plan, module, layer.packed, layer.global_scale)
            if plan.calibrated:
                p = global_scale_of_amax(layer.input_amax)
                tensors[f"{module}.{plan.format.input_global_scale}"] = _scalar(plan, p)
        yield Part(tensors, result.errors)
        done()
    yield from _one_by_one(plan, outside, amax, MSE, step)


class WeightScales:
    """The global scale of each weight, computed when it is first needed.

    Layers that engines fuse share one scale, unless the plan separates them.
    """

    def __init__(self, plan: Plan, rounding: str) -> None:
        self._plan, self._rounding = plan, rounding
        self._known: dict[str, Tensor] = {}

    def of(self, module: str) -> Tensor:
        if module not in self._known:
            plan = self._plan
            together = (module,) if plan.separate_scales else plan.siblings(module)
            amax = [self._amax(each) for each in together]
            p = plan.format.storable(global_scale_of(amax, self._rounding))
            self._known |= dict.fromkeys(together, p)
        return self._known.pop(module)

    def _amax(self, module: str) -> Tensor:
        low, high = torch.aminmax(self._plan.source.read(module + WEIGHT))
        amax = torch.maximum(-low, high).float()
        if not amax.isfinite():
            raise ValueError(f"SRC: {module}{WEIGHT} needs finite values, got NaN or Inf")
        return amax


def _quantized(w: Tensor, p: Tensor, rounding: str) -> Packed:
    if rounding != RTN:
        return quantize_matrix(w, p, rounding)
    packed = quantize(w, p, LINEAR)
    return Packed(packed.data, packed.scales)


def _tensors(plan: Plan, module: str, packed: Packed, p: Tensor) -> dict[str, Tensor]:
    """A quantized layer's tensors by their names in the format."""
    format = plan.format
    return {
        f"{module}.{format.data}": packed.data,
        f"{module}.{format.scales}": packed.scales,
        f"{module}.{format.global_scale}": _scalar(plan, p),
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _input_scale(plan: Plan, amax: Amax, module: str) -> Tensor:
    expert, path = expert_of(module), plan.source.skeleton.path(module)
    if expert is not None and expert.part == DOWN:
        return global_scale(amax.of_expert(path, expert.expert))
    return global_scale(amax.inputs[path])


def _scalar(plan: Plan, p: Tensor) -> Tensor:
    return plan.format.to_stored(p).reshape(plan.format.scale_shape)


def _report(plan: Plan, options: Options, errors: list[LayerError]) -> dict[str, Any]:
    return {
        "method": options.method,
        "activation": plan.activation,
        "text": options.text.name if options.text else None,
        "max_tokens": options.max_tokens,
        "medians": plan.summary(errors).median_errors,
        "layers": [error._asdict() for error in errors],
    }


def _write_configs(folder: Path, plan: Plan) -> None:
    apart = plan.scheme.hf_quant_config()
    if apart is not None:
        _write_json(folder / QUANT_CONFIG_FILE, apart)
    config = plan.source.config_dict() | {"quantization_config": plan.scheme.config()}
    _write_json(folder / CONFIG_FILE, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
