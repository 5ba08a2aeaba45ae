"""Tests on several Ray nodes; a package, so that its cluster ends with it."""
