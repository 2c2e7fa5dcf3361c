"""python -m nvfp4: info, demo, bench."""

from nvfp4.cli import app

app(prog_name="python -m nvfp4")
