"""What goes wrong with an engine that is somebody else's process."""


class EngineError(RuntimeError):
  """An engine behind a server cannot be sampled from; the message names its URL."""


class EngineDownError(EngineError):
  """It does not answer: it died, hangs, or was never there."""


class EngineRefusedError(EngineError):
  """It answered, and said no."""


class EngineAnswerError(EngineError):
  """It answered with what cannot be an answer to what was asked."""


class WrongParamsError(EngineError):
  """It samples from other params than it was given, or by another law."""
