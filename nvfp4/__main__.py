"""python -m nvfp4: the command line."""

from nvfp4.cli import app

app(prog_name="python -m nvfp4")
