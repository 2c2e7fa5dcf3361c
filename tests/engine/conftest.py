"""The vLLM plugin's tests: they need vLLM, and so an environment of their own (make vllm)."""

import os
from importlib.util import find_spec

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ["NVFP4_BACKEND"] = "reference"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # more ranks than cores
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
# The other tests' conftest has Triton's kernels interpreted; here nothing of Triton's is to run.
os.environ.pop("TRITON_INTERPRET", None)
