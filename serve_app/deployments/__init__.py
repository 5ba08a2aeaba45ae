"""The Serve deployments: thin shells around engine, session and media."""
