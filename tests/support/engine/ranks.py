"""vLLM's models on several ranks, each a process, without the engine around them."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nvfp4.integrations.vllm import register


class Rank(NamedTuple):
    """One of several processes that hold a model together."""

    index: int
    count: int
    port: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_ranks(count: int, function: Callable[..., Any], *args: object) -> list[Any]:
    """function(rank, *args) in so many processes; what each returned."""
    port = free_port()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawn) as pool:
        ranks = [Rank(index, count, port) for index in range(count)]
        futures = [pool.submit(_started, function, rank, args) for rank in ranks]
        return [future.result() for future in futures]


def _started(function: Callable[..., Any], rank: Rank, args: tuple) -> Any:
    # vLLM's CPU worker has the accelerator's functions do nothing when it is imported.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.distributed import init_distributed_environment

    os.environ["VLLM_DIST_IDENT"] = str(rank.port)  # names the shared memory of a group
    torch.set_num_threads(1)
    register()
    address = f"tcp://127.0.0.1:{rank.port}"
    with _config_of_none():
        init_distributed_environment(rank.count, rank.index, address, rank.index, "gloo")
        return function(rank, *args)


@contextmanager
def _config_of_none() -> Iterator[None]:
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield


@contextmanager
def loaded(rank: Rank, folder: Path, **options: Any) -> Iterator[torch.nn.Module]:
    """This rank's part of the model, by vLLM's loader; options of vLLM's EngineArgs."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_model_parallel,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    args = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        tensor_parallel_size=rank.count,
        **options,
    )
    config = args.create_engine_config()
    with set_current_vllm_config(config), torch.inference_mode():
        initialize_model_parallel(rank.count)
        try:
            yield get_model(vllm_config=config)
        finally:
            destroy_model_parallel()
