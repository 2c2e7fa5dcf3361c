"""Running launches in order: on a GPU, emulated or interpreted."""

from nvfp4.backends.emulation import emulated_sm
from nvfp4.backends.recording import write_down
from nvfp4.backends.triton.runtime import emulated
from nvfp4.backends.triton.runtime.launch import Launch


def run(*launches: Launch) -> None:
    """Launch in order, on a GPU, emulated or interpreted; record if a recording is active."""
    if launches[0].device.type == "cpu" and (sm := emulated_sm()):
        emulated.run(launches, sm)
    else:
        for launch in launches:
            launch.run()
    write_down(*launches)
