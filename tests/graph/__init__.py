"""Tests on one Ray instance; a package, so that its fixtures end with it."""
