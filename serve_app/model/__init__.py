"""The networks of SoulX-FlashHead and their checkpoints; no schedules, sessions or files in forward."""
