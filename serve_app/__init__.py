"""FlashHead Serve: a portrait and speech in, a lip-synced talking head streamed out."""

import time

__version__ = "0.1.0"

IMPORTED_S = time.monotonic()
"""When this process began to import the package: what follows are seconds of torch and its friends."""
