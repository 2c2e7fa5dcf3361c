"""How many clusters are launched: as many as the CUDA driver says that the GPU holds."""

import ctypes

import pytest
import torch

from nvfp4.backends.cutedsl.gemm import launch, launch_grouped
from nvfp4.backends.cutedsl.gemm.config import Kernel, Tile
from nvfp4.backends.cutedsl.gemm.layouts import layout_of
from nvfp4.backends.cutedsl.runtime import occupancy
from nvfp4.backends.cutedsl.runtime.compile import Compiled
from nvfp4.backends.target import Target
from nvfp4.calls import GroupedMm, Mm

PTX = ".visible .entry a_kernel(\n.param .b64 p\n)\n.reqntid 192, 1, 1\n.minnctapersm 1\n{ ret; }"
GPU = torch.device("cuda", 0)
KERNEL = Kernel(Tile(128, 16, split_k=8, swapped=True))
SMS = 148


class Driver:
    """A driver that holds `clusters`, keeps what it is asked, and may refuse one function."""

    def __init__(self, clusters: int = 16, refuses: str = "") -> None:
        self.clusters, self.refuses = clusters, refuses
        self.calls: list[str] = []
        self.asked: list[tuple] = []

    def _result(self, name: str) -> int:
        self.calls.append(name)
        return int(name == self.refuses)

    def cuModuleLoadData(self, module, image):
        assert image == b"cubin"
        module._obj.value = 1
        return self._result("cuModuleLoadData")

    def cuModuleGetFunction(self, function, module, name):
        assert module.value == 1 and name == b"a_kernel"
        function._obj.value = 2
        return self._result("cuModuleGetFunction")

    def cuFuncSetAttribute(self, function, attribute, value):
        self.asked.append((function.value, attribute, value))
        return self._result("cuFuncSetAttribute")

    def cuOccupancyMaxActiveClusters(self, count, function, config):
        config = config._obj
        attribute = config.attributes[0]
        asked = config.block[0], config.dynamic_shared, attribute.id, *attribute.value[:3]
        self.asked.append((function.value, config.grid[0], *asked))
        assert config.attribute_count == 1
        count._obj.value = self.clusters
        return self._result("cuOccupancyMaxActiveClusters")

    def cuModuleUnload(self, module):
        return self._result("cuModuleUnload")


@pytest.fixture
def with_driver(monkeypatch):
    """Pretend a B200 with a driver, or without one."""

    def pretend(driver: Driver | None, capturing: bool = False) -> None:
        occupancy.asked.cache_clear()
        monkeypatch.setattr(occupancy, "load_driver", lambda: driver)
        monkeypatch.setattr(occupancy, "compiled", lambda kernel, arch: _compiled(arch))
        monkeypatch.setattr(occupancy, "target_of", lambda device: Target("cuda", 100))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())

    yield pretend
    occupancy.asked.cache_clear()


def _compiled(arch: str) -> Compiled:
    assert arch == "sm_100a"
    return Compiled(b"object", PTX, b"cubin")


def test_more_clusters_were_launched_than_the_gpu_holds(with_driver):
    """Clusters of 8 CTAs do not reach every SM: 148 // 8 = 18 were launched."""
    driver = Driver(clusters=16)
    with_driver(driver)
    assert occupancy.clusters_on(KERNEL, GPU, SMS) == 16
    shared = layout_of(KERNEL).shared_bytes
    assert driver.asked == [
        (2, occupancy.MAX_DYNAMIC_SHARED, shared),
        (2, 8, 192, shared, occupancy.CLUSTER_DIMENSION, 8, 1, 1),
    ]
    assert driver.calls[-1] == "cuModuleUnload"


def test_the_driver_is_asked_once_a_kernel_and_device(with_driver):
    driver = Driver()
    with_driver(driver)
    for _ in range(3):
        occupancy.clusters_on(KERNEL, GPU, SMS)
    assert driver.calls.count("cuOccupancyMaxActiveClusters") == 1
    occupancy.clusters_on(KERNEL, torch.device("cuda", 1), SMS)
    occupancy.clusters_on(Kernel(Tile(256, 128, cluster_rows=2)), GPU, SMS)
    assert driver.calls.count("cuOccupancyMaxActiveClusters") == 3


def test_no_more_clusters_than_sms_are_planned_for(with_driver):
    with_driver(Driver(clusters=18))
    assert occupancy.clusters_on(KERNEL, GPU, 80) == 10


@pytest.mark.parametrize(
    "driver",
    [
        None,
        Driver(clusters=0),
        *(
            Driver(refuses=name)
            for name in (
                "cuModuleLoadData",
                "cuModuleGetFunction",
                "cuFuncSetAttribute",
                "cuOccupancyMaxActiveClusters",
            )
        ),
    ],
    ids=lambda driver: driver and (driver.refuses or "holds none"),
)
def test_without_an_answer_each_sm_is_taken_to_be_reachable(driver, with_driver):
    with_driver(driver)
    assert occupancy.clusters_on(KERNEL, GPU, SMS) == 18
    loaded = driver is not None and driver.refuses != "cuModuleLoadData"
    assert not loaded or driver.calls[-1] == "cuModuleUnload"


def test_nobody_is_asked_while_a_graph_is_captured(with_driver):
    driver = Driver()
    with_driver(driver, capturing=True)
    assert occupancy.clusters_on(KERNEL, GPU, SMS) == 18 and not driver.calls
    with_driver(driver)
    assert occupancy.clusters_on(KERNEL, GPU, SMS) == 16, "and asked afterwards"


def test_single_ctas_and_the_emulator_ask_nobody(with_driver):
    driver = Driver()
    with_driver(driver)
    assert occupancy.clusters_on(Kernel(Tile(128, 128)), GPU, SMS) == SMS
    assert occupancy.clusters_on(KERNEL, torch.device("cpu"), SMS) == 18
    assert not driver.calls


def test_a_machine_without_a_driver(monkeypatch):
    occupancy.load_driver.cache_clear()
    monkeypatch.setattr(occupancy, "DRIVER", "no-such-library.so")
    assert occupancy.load_driver() is None
    occupancy.load_driver.cache_clear()


def test_the_layout_of_what_the_driver_reads():
    """cuda.h on a 64-bit machine: seven numbers, a pointer on 8 bytes, a pointer, a count."""
    offsets = {
        name: getattr(occupancy.Config, name).offset for name, _ in occupancy.Config._fields_
    }
    assert offsets["dynamic_shared"] == 24 and offsets["stream"] == 32
    assert offsets["attributes"] == 40 and offsets["attribute_count"] == 48
    assert ctypes.sizeof(occupancy.Config) == 56 and ctypes.sizeof(occupancy.Attribute) == 72


def test_plans_launch_what_the_gpu_holds(monkeypatch):
    for module in (launch, launch_grouped):
        monkeypatch.setattr(module, "clusters_on", lambda kernel, device, sms: 3)
    data, out = torch.zeros(1024, 64, dtype=torch.uint8), torch.empty(1024, 1024)
    scales = torch.zeros(1024, 8).to(torch.float8_e4m3fn)
    alpha, offsets = torch.ones(1, 1), torch.tensor([0, 1024], dtype=torch.int32)
    dense = launch.plan(Mm(data, data, scales, scales, alpha), out, Tile(128, 128), SMS)
    assert dense.sizes[-2] == 3  # the band of tiles stands last
    operands = data, data[None], scales, scales[None], alpha, offsets
    grouped = launch_grouped.plan_grouped(GroupedMm(*operands), out, Tile(128, 128), SMS)
    assert grouped.sizes[-2] == 3  # the limit of a gated linear unit stands last


@pytest.mark.usefixtures("emulated")
def test_the_name_and_the_threads_of_a_compiled_kernel():
    from nvfp4.backends.cutedsl.runtime.compile import compiled

    code = compiled(KERNEL, "sm_100a")
    assert occupancy.entry_of(code).encode() in code.cubin
    assert occupancy.threads_of(code) % 32 == 0
