"""The native engine behind the protocol: params in, responses out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tis_jax.engines.native.adapter import with_adapter
from tis_jax.engines.native.answers import INTERRUPTED, Answers
from tis_jax.engines.native.draw import GREEDY, Law, blank
from tis_jax.engines.native.health import Health
from tis_jax.engines.native.layout import Layout, layout
from tis_jax.engines.native.precision import Precision
from tis_jax.engines.native.requests import (
  Requests,
  beginning,
  checked_limits,
  going_on,
  ids_of,
)
from tis_jax.engines.native.schedule import Schedule, Version
from tis_jax.engines.native.settings import NativeSettings
from tis_jax.engines.native.steps import Plan
from tis_jax.engines.protocol import Generation
from tis_jax.logprobs import Sampling
from tis_jax.logprobs.contract import check_rules
from tis_jax.models import Base, decoder_graph, unflatten, unflatten_adapter
from tis_jax.models.params import config_of, dtype_of
from tis_jax.numerics.checks import check_number
from tis_jax.store import digest as digest_of

# Tokens drawn by one call, before the host looks again.
_STEPS = 32
# Multiply-adds of one step that cost little beside starting it.
_SMALL_STEP = 1e9
_CPU_SLOTS = 16
_SLOTS = 256

Newer = Callable[[], tuple[Mapping[str, Any], int, str] | None]


class NativeEngine:
  """Samples from this library's decoder, continuously batched.

  Responses share a fixed number of slots; one that has ended makes room for the next,
  and nothing is compiled again. A prompt is read once for all of its responses. The
  tokens of a response depend on the key, the params, its prompt and its number alone:
  in fp32 not on what is answered beside it, nor in which slot.

  Attributes:
    sampling: the law of sampling, with the precision in its `dtype`.
    params_digest: of the arrays by name that it was given; "" of a tree.
    newer: with `settings.new_params` other than "after", called between decoding calls
      for params newer than those in use: (arrays by name, version), or None. Params
      that do not fit are refused in a sentence, and the old ones used on.
    health: of the last batch: see `tis_jax.engines.native.health.Health.metrics`.

  Args:
    graph: from `decoder_graph`.
    sampling: temperature, top-k, top-p and min-p.
    max_new_tokens: T.
    eos_ids: a response ends with any of these.
    pad_id: fills the tokens after the end.
    kept_width: K, room for the ids of the tokens kept; 0 does not record them.
    top_logprobs: how many of the most probable tokens are recorded with their
      log-probs.
    routed_experts: record to which experts each layer sends each token, of a mixture.
    precision: "bfloat16", "float16" or "float32" for params and activations, "int8",
      "int4" or "float8" for params in it under bfloat16 activations. None computes with
      the params as they are, and the graph's activations.
    settings: slots, head, cache, and when newer params are taken.
    base: params that stay, in their own precision or `precision`; `update` then takes
      adapters, which are applied beside them and never merged. None: it takes params.
    say: told in a sentence what was refused.

  Raises:
    ValueError: a precision that there is not, a number outside its range, a stop token
      outside the vocabulary, routed experts of a model that has none.

  Example:
    >>> from tis_jax.models import DecoderConfig, flatten, init_params
    >>> config = DecoderConfig(vocab_size=5, hidden_size=8, intermediate_size=8,
    ...                        num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4)
    >>> engine = NativeEngine(decoder_graph(config), Sampling(temperature=0.7),
    ...                       max_new_tokens=4, eos_ids=(1,), pad_id=0,
    ...                       precision="bfloat16")
    >>> engine.update(flatten(init_params(config, jax.random.key(0))), version=3)
    >>> out = engine.generate(np.array([[0, 3, 4]]), np.array([[False, True, True]]),
    ...                       samples=2, key=jax.random.key(1))
    >>> out.tokens.shape, int(out.versions.max()), engine.sampling.dtype
    ((2, 4), 3, 'bfloat16')
  """

  def __init__(
    self,
    graph: nnx.GraphDef,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    kept_width: int = 0,
    top_logprobs: int = 0,
    routed_experts: bool = False,
    precision: str | None = None,
    settings: NativeSettings = NativeSettings(),
    base: Base | None = None,
    say: Callable[[str], None] = print,
  ):
    self._precision = Precision(precision, settings.head, settings.cache)
    self._config = config_of(graph)
    check_number("max_new_tokens", max_new_tokens, at_least=1)
    check_number("temperature", sampling.temperature, at_least=0)
    check_rules(sampling.top_k, sampling.top_p, sampling.min_p)
    if unknown := [i for i in eos_ids if not 0 <= i < self._config.vocab_size]:
      raise ValueError(
        f"stop tokens {unknown} are not in the vocabulary of {self._config.vocab_size}"
      )
    if routed_experts and not self._config.num_experts:
      raise ValueError(
        "routed_experts: the model is no mixture of experts, so there is nothing to "
        "record; leave it False"
      )
    if (dtype := self._precision.activations) is not None:
      graph = decoder_graph(self._config, dtype=dtype)
    if (words := self._precision.words) is not None:
      sampling = dataclasses.replace(sampling, dtype=words)
    self.sampling = sampling
    self.params_digest = ""
    self.newer: Newer = lambda: None
    self.health: dict[str, float] = {}
    self._graph, self._settings = graph, settings
    # Made once: under adapters a new version is a few small arrays.
    self._base = None if base is None else (self._layout(base.params), base.lora)
    self._room, self._pad_id, self._say = max_new_tokens, pad_id, say
    self._plan = Plan(
      config=self._config,
      dtype=dtype_of(graph),
      law=Law.of(
        sampling,
        kept_width=kept_width,
        top_logprobs=top_logprobs,
        routed_experts=routed_experts,
      ),
      eos_ids=tuple(eos_ids),
      steps=min(max_new_tokens, _STEPS),
    )
    self._version: Version | None = None

  def update(
    self, params: nnx.State | Mapping[str, Any], version: int, digest: str = ""
  ) -> None:
    """Generates with these params from now on, in the engine's precision.

    Args:
      params: the decoder's tree, or its arrays by name (`tis_jax.models.flatten`); the
        adapter's, where there is a `base`.
      version: said of each token they sample.
      digest: of the arrays, from whoever has made it already.

    Raises:
      ValueError: a name is missing or unknown, or a shape is wrong; the params that it
        had stay.
      ImportError: int8, int4 or float8 without qwix.
    """
    if not isinstance(params, nnx.State):
      digest = digest or digest_of(params)
      arrays = {name: jnp.asarray(array) for name, array in params.items()}
      params = self._tree(arrays)
    if self._base is None:
      made = self._layout(params)
    else:
      made = with_adapter(self._graph, *self._base, adapter=params)
    self._version, self.params_digest = Version(made, version), digest

  def _tree(self, arrays: Mapping[str, jax.Array]) -> nnx.State:
    if self._base is None:
      return unflatten(self._graph, arrays)
    return unflatten_adapter(self._config, self._base[1], arrays)

  def _layout(self, params: nnx.State) -> Layout:
    head = params if self._precision.head else None
    return layout(self._graph, self._precision.of(params), head)

  def generate(
    self,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    *,
    samples: int,
    key: jax.Array,
    greedy: bool = False,
    limits: Sequence[int] | np.ndarray | None = None,
  ) -> Generation:
    """Samples responses, see `Engine.generate`.

    A row without a prompt is padding, and gets no response. A prompt that fills a slot
    is given up (`ABORTED`) and named; the others go on.

    Args:
      prompts: int32 [N, P], left-padded.
      prompt_mask: bool [N, P].
      samples: responses a prompt.
      key: PRNG key; token t of a prompt's response s is drawn with
        `fold_in(fold_in(fold_in(key, prompt), s), t)`.
      greedy: take the most probable token each time; no newer params are taken then.
      limits: int [N * samples], tokens that each response may have, at most
        `max_new_tokens`; None for as many.

    Raises:
      RuntimeError: `update` has not been called.
      ValueError: the limits are not one a response, or outside their range.
    """
    rows = len(prompts) * samples
    wanted = checked_limits(limits, rows, self._room)
    given = ids_of(prompts, prompt_mask)
    lengths = np.array([len(ids) for ids in given], int)
    longest = self._longest(int(lengths.max(initial=1)))
    answers = self._no_answers(rows, prompts.shape[1], greedy)
    for prompt in np.flatnonzero(lengths > longest):
      answers.abort(slice(prompt * samples, (prompt + 1) * samples))
      self._say(
        f"prompt {prompt} has {lengths[prompt]} tokens, a slot holds {longest}: it is "
        "given up (raise the engine's capacity)"
      )
    answered = np.flatnonzero(np.repeat((lengths <= longest) & (lengths > 0), samples))
    slots = min(self._settings.slots or self._slots_for(rows), max(len(answered), 1))
    room = np.repeat(longest - lengths + 1, samples)
    requests = beginning(
      given,
      samples,
      answered=answered,
      limits=np.minimum(wanted, room),
      slots=slots,
      key=key,
    )
    return self._answer(requests, answers, slots, longest, greedy)

  @property
  def version(self) -> int:
    """Of the params in use.

    Raises:
      RuntimeError: `update` has not been called.
    """
    return self._in_use().number

  def begin(self, rows: int, prompt_length: int) -> Generation:
    """Responses of no token yet, for `go_on`.

    Args:
      rows: R.
      prompt_length: P of the prompts that they will answer.

    Raises:
      RuntimeError: `update` has not been called.
    """
    answers = self._no_answers(rows, prompt_length)
    answers.interrupt()
    return answers.generation(blank(self._plan.law, self._config.vocab_size))

  def go_on(
    self,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    begun: Generation,
    *,
    more: np.ndarray,
    keys: jax.Array,
    enough: Callable[[np.ndarray], bool] | None = None,
    every: int = 1,
  ) -> Generation:
    """Goes on with responses that were begun, and interrupts them again.

    What a response has said is read again with its prompt, by the params of now, so
    that its next tokens are of their law alone. Those that have ended stay as they are.

    Args:
      prompts: int32 [R, P], left-padded, of each response.
      prompt_mask: bool [R, P].
      begun: R responses, of `begin` or of an earlier call.
      more: int [R], at least 1: the most tokens that each may draw now.
      keys: PRNG keys [R], of each response the same in every call: its token t is drawn
        with `fold_in(key, t)`, however often it is interrupted.
      enough: asked every `every` tokens of a slot, with the finish reasons of then [R];
        True interrupts all. None: each draws what it may.
      every: tokens.

    Returns:
      Them, with what they have said now; `INTERRUPTED` is the finish reason of those
      that go on.

    Raises:
      RuntimeError: `update` has not been called.
    """
    self._in_use()
    check_number("every", every, at_least=1)
    rows, width = prompts.shape
    given = ids_of(prompts, prompt_mask)
    lengths = np.array([len(ids) for ids in given], int)
    longest = self._longest(width)
    room = np.where(lengths > 0, np.minimum(self._room, longest - lengths + 1), 0)
    ongoing = begun.finish_reasons == INTERRUPTED
    answers = Answers.of(begun, room)
    if len(too_long := np.flatnonzero(ongoing & (lengths > longest))):
      answers.abort(too_long)
      self._say(
        f"{len(too_long)} responses are given up: their prompts have up to "
        f"{lengths.max()} tokens, a slot holds {longest} (raise the engine's capacity)"
      )
    # A power of two, so that few numbers of slots are compiled.
    slots = self._settings.slots or self._slots_for(1 << (rows - 1).bit_length())
    requests = going_on(
      given,
      [ids[:count] for ids, count in zip(begun.tokens, answers.count, strict=True)],
      answered=np.flatnonzero(ongoing & (answers.count < room)),
      more=more,
      room=room,
      slots=slots,
      longest=longest,
      keys=keys,
    )
    return self._answer(
      requests, answers, slots, longest, greedy=False, enough=enough, every=every
    )

  def _answer(
    self,
    requests: Requests,
    answers: Answers,
    slots: int,
    longest: int,
    greedy: bool,
    enough: Callable[[np.ndarray], bool] | None = None,
    every: int = 1,
  ) -> Generation:
    law = GREEDY if greedy else self._plan.law
    plan, health = dataclasses.replace(self._plan, law=law), Health(slots)
    if requests.order:
      Schedule(
        plan,
        requests,
        answers,
        slots=slots,
        longest=longest,
        cache_dtype=jnp.dtype(self._precision.cache or plan.dtype),
        version=self._in_use(),
        newer=functools.partial(self._newer, greedy, health),
        recompute=self._settings.new_params == "switch_recompute",
        health=health,
        enough=enough,
        every=every,
      ).run()
    self.health = health.metrics()
    return answers.generation(blank(law, self._config.vocab_size))

  def _in_use(self) -> Version:
    if self._version is None:
      raise RuntimeError("there are no params to generate with: call `update` first")
    return self._version

  def _no_answers(self, rows: int, prompt_length: int, greedy: bool = False) -> Answers:
    routed, routing = None, self._config.routing
    if self._plan.law.routed_experts and routing is not None and not greedy:
      routed = np.full((rows, prompt_length + self._room, *routing), -1, np.int16)
    return Answers(rows, self._room, self._pad_id, self._in_use().number, routed)

  def _longest(self, prompt: int) -> int:
    """Places that a slot may need, behind a prompt of so many tokens."""
    longest = max(prompt, 1) + self._room - 1
    return min(longest, self._settings.capacity or longest)

  def _newer(self, greedy: bool, health: Health) -> Version | None:
    """Takes newer params, if there are any and now is the time."""
    if (
      self._settings.new_params == "after" or greedy or (found := self.newer()) is None
    ):
      return None
    try:
      self.update(*found)
    except ValueError as error:
      health.add(refused=1)
      self._say(f"version {found[1]} is refused, the old one used on: {error}")
      return None
    return self._version

  def _slots_for(self, rows: int) -> int:
    small = int(_SMALL_STEP / self._config.num_parameters)
    most = _CPU_SLOTS if jax.default_backend() == "cpu" else _SLOTS
    return min(rows, max(most, small))
