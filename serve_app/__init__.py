"""FlashHead Serve: a portrait and speech in, a lip-synced talking head streamed out."""

__version__ = "0.1.0"
