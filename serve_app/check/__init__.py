"""``flashhead-serve check-config``: what is wrong with a Serve config, before anything is started."""
