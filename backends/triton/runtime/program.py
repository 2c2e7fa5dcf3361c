"""Running launches in order: on a GPU, emulated or interpreted."""

from nvfp4.backends.emulation import emulated_sm
from nvfp4.backends.recording import write_down
from nvfp4.backends.triton.runtime import emulated
from nvfp4.backends.triton.runtime.launch import Launch


def run(*launches: Launch) -> None:
    """Launch in order, on a GPU, emulated or interpreted; record if a recording is active."""
    sm = emulated_sm() if launches[0].device.type == "cpu" else 0
    for launch in launches:
        if sm:
            emulated.run(launch, sm)
        else:
            launch.run()
    write_down(*launches)
