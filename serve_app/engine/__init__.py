"""Sessions on the networks: state, sampling, the step loop and its scheduler. Knows no Ray."""
