"""Inspection of an NVFP4 checkpoint: quantized layers, their scales, damage and oddities."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from nvfp4.checkpoints.checkpoint import Checkpoint
from nvfp4.checkpoints.files import FLOATS
from nvfp4.checkpoints.names import WEIGHT, expert_of, is_router, is_selector, siblings_of
from nvfp4.checkpoints.schemes import BIAS
from nvfp4.checkpoints.storage import NVFP4, QUANTIZED_DTYPES
from nvfp4.spec.format import BLOCK, E2M1_MAX, E4M3_MAX, W4A4

MANY = 0.05
"""A note is made where more than this share of a layer's blocks has the scale 448, or 0."""

HUGE = 1e4
"""A note is made of a layer whose weights exceed this; those of real models are below 1000."""

MOST_MISSING = 100
"""The most missing experts of a block that are named."""

DAMAGE, NOTE = "damage", "note"


class Finding(NamedTuple):
    """Damage, which cannot be read or gives wrong results, or a note about a tensor or a layer."""

    kind: str
    module: str
    what: str


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer.

    saturated, zero: the shares of its blocks whose scale is 448, the largest, and 0.
    """

    module: str
    shape: tuple[int, int]
    global_scale: float
    input_global_scale: float | None
    scale_min: float
    scale_max: float
    saturated: float
    zero: float
    nbytes: int

    @property
    def nbytes_bf16(self) -> int:
        return 2 * self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Inspection:
    """All that was found; layers that could not be read appear only in the findings.

    others: the form, such as "FP8", of each layer that is quantized to another one than NVFP4.
    """

    folder: str
    format: str
    calibrated: bool
    quantizes_activations: bool
    layers: list[Layer] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    unquantized: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        return any(finding.kind == DAMAGE for finding in self.findings)

    @property
    def bytes_saved(self) -> int:
        """The bytes saved, compared with the same layers in bfloat16."""
        return sum(layer.nbytes_bf16 - layer.nbytes for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["findings"] = [finding._asdict() for finding in self.findings]
        return found | {"damaged": self.damaged, "bytes_saved": self.bytes_saved}


def inspect(folder: Path, step: Callable[[str, int], Callable[[], None]]) -> Inspection:
    """Read every quantized layer of a checkpoint, one at a time, and the shapes of the others.

    Raises:
        ValueError: the folder's configuration or a whole file cannot be read.
    """
    checkpoint = Checkpoint(folder)
    groups = checkpoint.scheme.groups
    found = Inspection(
        str(folder),
        checkpoint.format.name,
        calibrated=any(group.calibrated for group in groups),
        quantizes_activations=any(group.activation == W4A4 for group in groups),
        others=checkpoint.others,
    )
    done = step("read the layers", len(checkpoint.modules))
    for module in checkpoint.modules:
        try:
            found.layers.append(_layer(checkpoint, module))
        except ValueError as error:
            found.findings.append(Finding(DAMAGE, module, str(error)))
        done()
    for layer in found.layers:
        found.findings.extend(_notes(checkpoint, layer))
    found.findings.extend(_differing_siblings(found.layers))
    found.findings.extend(_biases_missing(checkpoint))
    found.findings.extend(_experts_missing(checkpoint))
    found.findings.extend(_not_layers(checkpoint))
    for module in _unquantized_linears(checkpoint):
        found.unquantized.append(module)
        found.findings.extend(_could_be(checkpoint, module))
    return found


def _layer(checkpoint: Checkpoint, module: str) -> Layer:
    weight, p_input = checkpoint.weight(module), checkpoint.input_global_scale(module)
    checkpoint.pre_quant_scale(module), checkpoint.bias(module)  # whether they can be read
    scales = weight.linear_scales().float()
    n, k = weight.shape
    return Layer(
        module,
        (n, k),
        weight.global_scale.item(),
        None if p_input is None else p_input.item(),
        scales.amin().item(),
        scales.amax().item(),
        (scales == E4M3_MAX).float().mean().item(),
        (scales == 0).float().mean().item(),
        weight.nbytes,
    )


def _notes(checkpoint: Checkpoint, layer: Layer) -> Iterator[Finding]:
    group = checkpoint.group_of(layer.module)
    if group is None:
        yield Finding(NOTE, layer.module, "quantized, though the configuration ignores it")
    elif group.calibrated and layer.input_global_scale is None:
        need = "the configuration says that inputs are calibrated"
        yield Finding(NOTE, layer.module, f"no input scale, though {need}: each token's is taken")
    largest = E2M1_MAX * layer.scale_max * layer.global_scale
    if largest > HUGE:
        what = "a global scale that should be inverted looks so"
        yield Finding(NOTE, layer.module, f"weights of up to {largest:.1e}: {what}")
    for share, what in ((layer.saturated, "the largest scale, 448"), (layer.zero, "the scale 0")):
        if share > MANY:
            yield Finding(NOTE, layer.module, f"{share:.1%} of the blocks have {what}")


def _differing_siblings(layers: list[Layer]) -> Iterator[Finding]:
    p = {layer.module: layer.global_scale for layer in layers}
    for layer in layers:
        together = [each for each in siblings_of(layer.module) if each in p]
        scales = [p[each] for each in together]
        if layer.module == together[0] and len(set(scales)) > 1:
            ratio = max(scales) / min(scales)
            names = ", ".join(each.rpartition(".")[2] for each in together)
            what = f"global scales of {names} differ, {ratio:.3g} times: some engines take one"
            yield Finding(NOTE, layer.module, what)


def _biases_missing(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Note where some of q, k and v have a bias: the files do not say whether a model has them."""
    for module in checkpoint.modules:
        others = [each for each in siblings_of(module) if checkpoint.is_quantized(each)]
        having = [each for each in others if f"{each}.{BIAS}" in checkpoint.files]
        if having and module not in having:
            names = ", ".join(each.rpartition(".")[2] for each in having)
            yield Finding(NOTE, module, f"no bias, though {names} beside it have one")


def _experts_missing(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Report experts that are missing, and note those in another form beside ones in NVFP4."""
    there: dict[str, set[int]] = defaultdict(set)
    for name in checkpoint.floats.names:
        module = name.removesuffix(WEIGHT)
        if (expert := expert_of(module)) and expert.experts in checkpoint.experts:
            there[expert.experts].add(expert.expert)
            if module != name and not checkpoint.is_quantized(module):
                what = f"in {checkpoint.others.get(module, 'floats')}, beside experts in NVFP4"
                yield Finding(NOTE, module, f"{what}: load_model dequantizes all of them")
    for experts, count in checkpoint.experts.items():
        known = there[experts] | {
            e.expert for m in checkpoint.modules if (e := expert_of(m)) and e.experts == experts
        }
        if len(known) == count:
            continue
        missing = (index for index in range(count) if index not in known)
        for index in islice(missing, MOST_MISSING):
            yield Finding(DAMAGE, f"{experts}.{index}", f"missing, though there are {count}")


def _not_layers(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Note NVFP4 experts in one tensor, and data of quantized dtypes in no known form."""
    files, stored = checkpoint.files, checkpoint.floats.stored
    known = {name for weight in stored.values() for name in weight.parts.values()}
    for stack in checkpoint.stacks.apart:
        what = f"{stack.count} experts in one tensor: load_model takes them apart, engines may not"
        yield Finding(NOTE, stack.weight, what)
    for weight, each in stored.items():
        if each.form == NVFP4 and not checkpoint.is_quantized(weight.removesuffix(WEIGHT)):
            what = f"{list(each.shape)} in NVFP4 in one tensor: load_model dequantizes it"
            reason = checkpoint.stacks.kept.get(weight)
            yield Finding(NOTE, weight, f"{what}, because {reason}" if reason else what)
    for name in files.names:
        packed = files.dtype(name) in QUANTIZED_DTYPES and len(files.shape(name)) > 1
        if packed and name not in known and not checkpoint.is_quantized(name.rpartition(".")[0]):
            what = f"{files.dtype(name)} {list(files.shape(name))}, which is of no known form"
            yield Finding(NOTE, name, what)


def _unquantized_linears(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the blocks' layers in floats that are linear, as far as their names can say."""
    for name in checkpoint.files.names:
        module = name.removesuffix(WEIGHT)
        if module != name and not checkpoint.is_quantized(module):
            floats = checkpoint.files.dtype(name) in FLOATS
            if floats and ".layers." in f".{module}" and len(checkpoint.files.shape(name)) == 2:
                yield module


def _could_be(checkpoint: Checkpoint, module: str) -> Iterator[Finding]:
    n, k = checkpoint.files.shape(module + WEIGHT)
    if checkpoint.scheme.quantizes(module):
        what = "in floats, though the configuration has it quantized: engines may refuse it"
        yield Finding(NOTE, module, what)
    elif not is_router(module) and not is_selector(module) and k % BLOCK == 0:
        yield Finding(NOTE, module, f"[{n}, {k}] in floats, which could be quantized")
