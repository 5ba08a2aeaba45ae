"""Makes and trains the embedded ``tiny`` checkpoint; see training/README.md."""
