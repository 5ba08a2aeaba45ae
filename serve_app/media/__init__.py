"""Uploads in, clusters out: decoding, portraits, VP9, Opus, WebM, MP4. The only layer that imports av."""
