"""tis_jax inside other people's trainers. A module a trainer, imported by name."""
