"""From a kernel to a launch: architectures, the compile cache, compiling ahead, replaying."""
