"""`python -m tis_jax` is `tis`."""

from tis_jax.cli import main

if __name__ == "__main__":
  main()
