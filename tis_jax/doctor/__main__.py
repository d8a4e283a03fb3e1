"""`python -m tis_jax.doctor` is `tis doctor`."""

from tis_jax.doctor.command import main

if __name__ == "__main__":
  main()
