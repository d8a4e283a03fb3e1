"""What `tis train` and `tis evaluate` do with their command lines."""
