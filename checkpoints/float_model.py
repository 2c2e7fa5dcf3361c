"""A language model in bfloat16, whole, as transformers loads it."""

import os
from pathlib import Path
from typing import Any

import torch


def load_float_model(path: Path, device: str) -> tuple[Any, Any]:
    """A causal language model in bfloat16 and its tokenizer, from a GGUF file (dequantized) or a
    Hugging Face folder; never downloaded.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # the commands draw their own progress bars
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
    return model.to(device).eval(), tokenizer
