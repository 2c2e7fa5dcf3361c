"""Converting a model in floats to an NVFP4 checkpoint, one tensor at a time."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvfp4.checkpoints.calibrate import Amax, calibrate
from nvfp4.checkpoints.files import TensorSpec
from nvfp4.checkpoints.float_model import load_float_model
from nvfp4.checkpoints.names import (
    DOWN,
    WEIGHT,
    expert_of,
    is_router,
    matches,
    siblings_of,
)
from nvfp4.checkpoints.schemes import (
    CONFIG_FILE,
    FORMATS,
    MODELOPT,
    QUANT_CONFIG_FILE,
    Group,
    Scheme,
)
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter, published, refuse_existing
from nvfp4.ops import global_scale, quantize
from nvfp4.ops.linear import FLOAT, QUANTIZED
from nvfp4.spec.format import BLOCK, DATA_DTYPE, FLOAT_DTYPES, LINEAR, SCALE_DTYPE

Step = Callable[[str, int], Callable[[], None]]

HEAD = "lm_head"


@dataclass(frozen=True)
class Options:
    """How to convert.

    format: "modelopt" or "compressed-tensors".
    exclude: layers to leave in floats: wildcards of their names ("*.o_proj"), or parts of these
        between dots ("self_attn").
    text: what the model is run over to find the inputs' scales; None: the checkpoint says that its
        weights alone are quantized (W4A16).
    max_tokens: how much of the text.
    separate_scales: give every layer its own global scale, those too that engines multiply by as
        one (q, k, v; gate, up). Engines that take one scale for all are then wrong; the gain is
        small, since block scales have an exponent of their own.
    shard_size: of a file, at most, such as "5GB".
    """

    format: str = MODELOPT.name
    exclude: tuple[str, ...] = ()
    text: Path | None = None
    max_tokens: int = 4096
    separate_scales: bool = False
    shard_size: str = "5GB"


@dataclass(frozen=True)
class Summary:
    """What was written."""

    format: str
    quantized_layers: int
    calibrated: bool
    left_in_floats: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def convert(source: Path, destination: Path, options: Options, step: Step) -> Summary:
    """Convert the model in a Hugging Face folder (safetensors) or a GGUF file to an NVFP4
    checkpoint in a new folder.

    Linear layers of the blocks are quantized, experts each; embeddings, the head, norms, routers
    and layers with K not a multiple of 16 are copied. `step(title, total)` opens a progress bar and
    returns the function that advances it.

    Memory is bounded by the largest tensor; calibration runs the whole model in bfloat16.

    Raises:
        ValueError: naming the option, file or tensor. Nothing is written then.
    """
    refuse_existing(destination)
    plan = Plan(Source(source), options)
    amax = None if options.text is None else _calibrated(plan, options, step)
    with published(destination) as folder:
        _write_weights(folder, plan, amax, options, step)
        plan.source.copy_others(folder)
        _write_configs(folder, plan)
    return plan.summary()


class Plan:
    """Which layers are quantized, and which tensors that makes."""

    def __init__(self, source: Source, options: Options) -> None:
        if options.format not in FORMATS:
            need = " or ".join(map(repr, FORMATS))
            raise ValueError(f"--format needs {need}, got {options.format!r}")
        self.source = source
        self.format = FORMATS[options.format]
        self.calibrated = options.text is not None
        self._exclude = options.exclude
        for pattern in options.exclude:
            if not any(matches(pattern, module) for module in self._linears):
                raise ValueError(f"--exclude needs a linear layer's name, got {pattern!r}")
        if not self.quantized:
            raise ValueError(f"SRC needs linear layers to quantize, got none in {source.path}")

    @cached_property
    def _linears(self) -> tuple[str, ...]:
        """The linear layers, routers too, by their names in the checkpoint."""
        return tuple(
            module
            for name, spec in self.source.tensors.items()
            if (module := name.removesuffix(WEIGHT)) != name and len(spec.shape) == 2
            if is_router(module) or self.source.skeleton.is_linear(module)
        )

    @cached_property
    def quantized(self) -> frozenset[str]:
        """Those to quantize. What engines multiply by as one is quantized whole or not at all."""
        left = {self._whole(module) for module in self._linears if self._stays(module)}
        return frozenset(each for each in self._linears if self._whole(each) not in left)

    def _stays(self, module: str) -> bool:
        shape, dtype = self.source.tensors[module + WEIGHT]
        return (
            is_router(module)
            or self.source.skeleton.is_head(module)
            or not self.source.skeleton.is_plain(module)
            or dtype not in FLOAT_DTYPES
            or shape[1] % BLOCK != 0
            or any(matches(pattern, module) for pattern in self._exclude)
        )

    def _whole(self, module: str) -> str:
        expert = expert_of(module)
        return expert.experts if expert else siblings_of(module)[0]

    @cached_property
    def scheme(self) -> Scheme:
        left = {each for each in self._linears if each not in self.quantized}
        # Experts that go by no names of their own, in one tensor [E, …], of whatever layout.
        left |= {
            name.rpartition(".")[0]
            for name, spec in self.source.tensors.items()
            if len(spec.shape) == 3 and name.rpartition(".")[0].endswith(".experts")
        }
        group = Group(
            calibrated=self.calibrated, activation=QUANTIZED if self.calibrated else FLOAT
        )
        ignore = dict.fromkeys([HEAD, *sorted(left)])
        return Scheme(self.format, (group,), tuple(ignore))

    @cached_property
    def outputs(self) -> dict[str, TensorSpec]:
        """Every tensor of the checkpoint."""
        found: dict[str, TensorSpec] = {}
        for name, spec in self.source.tensors.items():
            module = name.removesuffix(WEIGHT)
            if module not in self.quantized:
                found[name] = spec
                continue
            (n, k), format = spec.shape, self.format
            found[f"{module}.{format.data}"] = TensorSpec((n, k // 2), DATA_DTYPE)
            found[f"{module}.{format.scales}"] = TensorSpec((n, k // BLOCK), SCALE_DTYPE)
            scalar = TensorSpec(format.scale_shape, torch.float32)
            found[f"{module}.{format.global_scale}"] = scalar
            if self.calibrated:
                found[f"{module}.{format.input_global_scale}"] = scalar
        return found

    def siblings(self, module: str) -> tuple[str, ...]:
        """The quantized layers that share a global scale with this one."""
        return tuple(each for each in siblings_of(module) if each in self.quantized)

    def summary(self) -> Summary:
        return Summary(
            self.format.name,
            len(self.quantized),
            self.calibrated,
            self.scheme.ignore,
            sum(spec.nbytes for spec in self.source.tensors.values()),
            sum(spec.nbytes for spec in self.outputs.values()),
        )


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
    with ShardedWriter(folder, plan.outputs, options.shard_size) as writer:
        for name in plan.source.tensors:
            module = name.removesuffix(WEIGHT)
            if module not in plan.quantized:
                writer.write(name, plan.source.read(name))
            else:
                for leaf, tensor in _quantized(plan, scales, module).items():
                    writer.write(f"{module}.{leaf}", tensor)
                if amax is not None:
                    p = _input_scale(plan, amax, module)
                    writer.write(f"{module}.{plan.format.input_global_scale}", p)
            done()


class WeightScales:
    """The global scale that each weight is quantized with, found when first asked for: amax / 2688
    of the layer, or of all that engines multiply by as one.
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
    """A layer's tensors as the format has them."""
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
