"""What can go wrong with a store, each under its own name."""


class StoreError(RuntimeError):
  """Any failure of the store itself; the message names its URL."""


class StoreUnreachableError(StoreError):
  """The URL cannot be opened, or does not answer."""


class StoreReadOnlyError(StoreError):
  """The URL answers, and refuses to be written."""


class StoreFullError(StoreError):
  """There is no room left where the store is."""


class WrongRunError(StoreError):
  """There is no run at this URL, or it is another one."""


class TakenOverError(StoreError):
  """Another learner has gone on with the run since; this one must write no more."""


class WrongStoreSchemaError(StoreError):
  """The run was written by a version of the library with another layout."""


class AlreadyExistsError(StoreError):
  """A key that is written once, was."""


class ParamsGoneError(StoreError):
  """This version's params were deleted (newer ones exist) or never finished."""


class NoRolloutsError(StoreError, TimeoutError):
  """Not enough rollouts came in time; the message says who was writing."""
