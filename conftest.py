"""Doctests of what needs another framework are collected where that is installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("tunix") else ["tis_jax/integrations/tunix"]
