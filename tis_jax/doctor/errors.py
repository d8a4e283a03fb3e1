"""What a dump can be refused for."""


class DumpError(ValueError):
  """A file that the doctor cannot read, or that holds nothing to compare; says why."""
