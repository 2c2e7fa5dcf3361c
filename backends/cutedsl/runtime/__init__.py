"""What runs the kernels: compilation, the cache on disk, warm-up, and the emulator's launch."""
