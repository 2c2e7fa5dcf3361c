"""The backends, in order of preference. A new one is a folder under backends/ and a line here."""

from nvfp4.backends import cutedsl, reference, triton

BACKENDS = (cutedsl.BACKEND, triton.BACKEND, reference.BACKEND)
