"""The conductor of a session and the protocols it is written against. Knows neither Ray nor torch."""
