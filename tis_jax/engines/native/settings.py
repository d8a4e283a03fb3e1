"""How the native engine generates, beside the law and the precision."""

import dataclasses

from tis_jax.numerics.checks import check_choice, check_number

HEADS = ("", "float32")
CACHES = ("", "int8")

NEW_PARAMS = ("after", "switch", "switch_recompute")
"""When newer params are taken: after a batch, or between its steps."""


@dataclasses.dataclass(frozen=True)
class NativeSettings:
  """This library's decoder, continuously batched.

  Attributes:
    slots: responses that are generated at once; the next one begins when one ends. 0
      for 16 on a CPU and 256 elsewhere, more where the model is so small that they cost
      nothing, and no more than a record has.
    capacity: tokens of prompt and response together that a slot holds; 0 for as many as
      there can be. A longer prompt is given up.
    head: "float32" multiplies the logits in it; empty in the activations' dtype.
    cache: "int8" keeps keys and values in it, with one scale a head and token; empty in
      the activations' dtype.
    new_params: when newer params are taken. "after" finishes a record by those that it
      began with; "switch" takes newer ones between steps, drops no response, and goes
      on with the keys and values of the old; "switch_recompute" computes those anew.
      The record has the version of every token.
    interrupt_after: tokens of a slot between two looks whether the groups of a record
      are finished; what is not is handed over then: the rest of it is drawn for a later
      record, by the params of then, with what it has said read again. A record holds
      the groups that are finished, whichever they are, so that short answers do not
      wait for the longest. 0 never interrupts.

  Raises:
    ValueError: a setting outside its range.
  """

  slots: int = 0
  capacity: int = 0
  head: str = ""
  cache: str = ""
  new_params: str = "after"
  interrupt_after: int = 0

  def __post_init__(self):
    check_number("slots", self.slots, at_least=0)
    check_number("capacity", self.capacity, at_least=0)
    check_number("interrupt_after", self.interrupt_after, at_least=0)
    check_choice("head", self.head, HEADS)
    check_choice("cache", self.cache, CACHES)
    check_choice("new_params", self.new_params, NEW_PARAMS)
