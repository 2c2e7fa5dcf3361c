"""Where sub-packages are imported from: in a checkout, nvfp4/ops and so on are links."""

import os


def real_folders(name: str, file: str) -> list[str]:
    """The `__path__` of the package that is imported as `name` from `file`, its __init__.py.

    In a checkout, the repository's root comes first. So nvfp4.ops is loaded from ops/, not through
    the link nvfp4/ops, and tracebacks, breakpoints and coverage name the file that git tracks.
    In a wheel nothing is a link, and the path stays as it is.
    """
    folder = os.path.dirname(file)
    spec = os.path.join(folder, "spec")
    if not os.path.isdir(spec):
        raise ImportError(
            f"nvfp4: {spec} needs to be a folder or a link to one: this copy lost its links when "
            "it was unpacked, so clone the repository with git, or install a wheel"
        )
    if not os.path.islink(spec):
        return [folder]
    # The root holds nvfp4/ too, which is not to be imported again as nvfp4.nvfp4.
    if name != "nvfp4":
        raise ImportError(f"nvfp4: needs to be imported as nvfp4, got {name}")
    return [os.path.dirname(os.path.realpath(spec)), folder]
