"""The chunk engine: session state, sampler, step loop. Knows no Ray."""
