"""How NVFP4 is run: one folder a backend, each exporting BACKEND; none imports another."""
