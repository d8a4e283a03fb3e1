"""Values and gradients of every policy loss against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import loss_oracles
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from tis_jax import losses
from tis_jax.losses import POLICY_LOSSES, call_loss
from tis_jax.numerics.metrics import finalize

OPTIONS = {
  "dro": {"beta": 0.3},
  "kl_cov": {"select": 0.2},
  "clip_cov": {"select": 0.2, "covariance_low": 0.1},
}
NAMES = sorted(POLICY_LOSSES)
ROWS, TOKENS = 8, 7


def make_batch(seed=0, spread=0.5):
  """Ragged rows, one with a hole, one empty; garbage under the mask."""
  rng = np.random.default_rng(seed)
  lengths = np.array([7, 5, 1, 0, 6, 7, 3, 4])
  mask = np.arange(TOKENS) < lengths[:, None]
  mask[0, 2:4] = False
  logp = -rng.gamma(2.0, 0.6, (ROWS, TOKENS))
  old = logp + spread * rng.normal(size=logp.shape)
  mu = old + 0.3 * rng.normal(size=logp.shape)
  advantages = rng.normal(size=logp.shape)
  batch = {"logp": logp, "old_logp": old, "sampler_logp": mu, "advantages": advantages}
  garbage = rng.choice([np.nan, np.inf, -np.inf, 1e30], (4, ROWS, TOKENS))
  for poison, (name, x) in zip(garbage, batch.items(), strict=True):
    batch[name] = np.where(mask, x, poison).astype(np.float32)
  return batch | {"mask": mask}


BATCH = make_batch()
WEIGHTS = np.random.default_rng(1).normal(size=(ROWS, TOKENS)).astype(np.float32)


def bound(name):
  return functools.partial(POLICY_LOSSES[name], **OPTIONS.get(name, {}))


@functools.cache
def compiled(name):
  """`batch -> (token_loss, metrics, gradient of the weighted sum)`."""

  def scalar(logp, batch):
    arrays = batch | {"logp": logp, "key": jax.random.key(0)}
    token_loss, metrics = call_loss(bound(name), **arrays)
    return (WEIGHTS * token_loss).sum(), (token_loss, metrics)

  def run(batch):
    grad, (token_loss, metrics) = jax.grad(scalar, has_aux=True)(batch["logp"], batch)
    return token_loss, metrics, grad

  return jax.jit(run)


def oracle(name, batch, cut=None):
  """Value, and the gradient by central differences in the argument that carries it."""
  b = {k: np.asarray(v, np.float64) for k, v in batch.items() if k != "mask"}
  mask = batch["mask"]
  rest = (b["logp"], b["old_logp"], b["sampler_logp"], b["advantages"], mask)

  def token_loss(x):
    if name == "clip_cov":
      cleaned = [np.where(mask, y, 0.0) for y in (x, *rest[:4])]
      return np.where(mask, loss_oracles.clip_cov(*cleaned, mask, cut), 0.0)
    return loss_oracles.apply(name, x, *rest)

  grad = np.zeros(mask.shape)
  for at in np.argwhere(mask):
    at, step = tuple(at), 1e-6
    up, down = b["logp"].copy(), b["logp"].copy()
    up[at] += step
    down[at] -= step
    change = token_loss(up) - token_loss(down)
    grad[at] = (WEIGHTS * change)[mask].sum() / (2 * step)
  return token_loss(b["logp"]), grad


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_oracle(name):
  token_loss, metrics, grad = compiled(name)(BATCH)
  cut = None
  if name == "clip_cov":
    cut = BATCH["mask"] & (np.asarray(token_loss) == 0)
    assert cut.sum() == int(0.2 * BATCH["mask"].sum())
    # Only tokens of the covariances asked for, and that PPO does not clip.
    names = ("advantages", "logp", "old_logp")
    a, x, old = (np.where(BATCH["mask"], BATCH[k], 0.0) for k in names)
    c = loss_oracles.covariance(x, a, BATCH["mask"])[cut]
    assert ((c > 0.1) & (c < 5.0)).all()
    free, r = loss_oracles.surrogate, loss_oracles.ratio(x[cut], old[cut])
    np.testing.assert_array_equal(free(r, a[cut], 0.2, 0.2), -a[cut] * r)
  want, want_grad = oracle(name, BATCH, cut)
  np.testing.assert_allclose(token_loss, want, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(grad, want_grad, rtol=2e-4, atol=2e-5)
  # Garbage under the mask reaches neither.
  assert (np.asarray(token_loss)[~BATCH["mask"]] == 0).all()
  assert (np.asarray(grad)[~BATCH["mask"]] == 0).all()
  assert token_loss.dtype == jnp.float32
  assert all(np.isfinite(value) for value in finalize(metrics).values())


# Where nothing is stopped the loss's gradient is the slope of its own value.
DIFFERENTIABLE = ("dro", "gmpo", "gspo", "importance_sampling", "luspo", "ppo", "sapo")


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_and_reverse_derivatives_are_the_slope_of_the_value(name):
  with jax.enable_x64(True):
    arrays = {k: np.asarray(v, np.float64) for k, v in BATCH.items() if k != "mask"}
    mask = BATCH["mask"]
    logp = np.where(mask, arrays.pop("logp"), -1.0)
    call = jax.jit(lambda x: call_loss(bound(name), logp=x, **arrays, mask=mask)[0])
    check_grads(call, (logp,), order=1, modes=["fwd", "rev"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fully_masked_batch_gives_zero(name):
  batch = BATCH | {"mask": np.zeros_like(BATCH["mask"])}
  token_loss, metrics, grad = compiled(name)(batch)
  assert (np.asarray(token_loss) == 0).all()
  assert (np.asarray(grad) == 0).all()
  assert all(np.isfinite(value) for value in finalize(metrics).values())


@pytest.mark.parametrize("name", NAMES)
def test_far_off_policy_stays_finite(name):
  batch = make_batch(spread=60.0)
  token_loss, metrics, grad = compiled(name)(batch)
  assert np.isfinite(token_loss).all() and np.isfinite(grad).all()
  assert all(np.isfinite(value) for value in finalize(metrics).values())


def test_sharded_equals_one_device():
  """On Auto and Explicit axes; one loss of each way to sum over a row or the batch."""
  names = ("ppo", "gspo", "gmpo", "topr", "clip_cov", "kl_cov", "m2po")
  run = {name: compiled(name) for name in names}
  want = {name: run[name](BATCH) for name in names}
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
      sharding = NamedSharding(mesh, PartitionSpec("data"))
      batch = {k: jax.device_put(v, sharding) for k, v in BATCH.items()}
      got = jax.jit(lambda batch: {n: f(batch) for n, f in run.items()})(batch)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want
    )


@pytest.mark.parametrize("name", NAMES)
def test_only_the_selecting_losses_depend_on_the_other_rows(name):
  """So that micro-batches are exact for every loss that does not say otherwise."""
  others = {k: v.copy() for k, v in BATCH.items()}
  for k, v in make_batch(7, spread=0.02).items():
    others[k][4:] = v[4:]
  others["advantages"][4:] += 2.0
  got = np.asarray(compiled(name)(others)[0])[:4]
  want = np.asarray(compiled(name)(BATCH)[0])[:4]
  assert (got != want).any() == losses.traits(bound(name)).selects


def test_every_loss_and_its_gradient_lower_for_tpu_and_cuda():
  shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in BATCH.items()}
  run = jax.jit(lambda batch: {name: compiled(name)(batch) for name in NAMES})
  exported = jax.export.export(run, platforms=["tpu", "cuda"])(shapes)
  assert exported.platforms == ("tpu", "cuda")


def test_masks_of_any_dtype_and_row_advantages():
  by_row = BATCH["advantages"][:, 0]
  repeated = np.repeat(by_row[:, None], TOKENS, 1)
  arrays = [BATCH[k] for k in ("logp", "old_logp")]
  run = jax.jit(losses.ppo)
  want, _ = run(*arrays, repeated, BATCH["mask"])
  for dtype in (np.int32, np.float32):
    got, _ = run(*arrays, by_row, BATCH["mask"].astype(dtype))
    np.testing.assert_array_equal(got, want)


def test_half_precision_in_gives_fp32_out():
  batch = {k: BATCH[k].astype(jnp.bfloat16) for k in ("logp", "old_logp", "advantages")}
  token_loss, _ = jax.eval_shape(lambda: losses.ppo(**batch, mask=BATCH["mask"]))
  assert token_loss.dtype == jnp.float32


def test_vmap_over_batches():
  names = ("logp", "old_logp", "advantages", "mask")
  two = [make_batch(seed) for seed in (2, 3)]
  stacked = [np.stack([b[n] for b in two]) for n in names]
  run = jax.jit(losses.gspo)
  got, _ = jax.vmap(run)(*stacked)
  want = [run(*(b[n] for n in names))[0] for b in two]
  np.testing.assert_allclose(got, np.stack(want), rtol=1e-6)


def test_packed_rows_equal_separate_rows():
  """Two sequences in one row, told apart by their ids, or one a row."""
  rng = np.random.default_rng(4)
  names = ("gspo", "gspo_token", "luspo", "gmpo", "topr", "vespo")
  arrays = ("logp", "old_logp", "sampler_logp", "advantages")
  apart = {k: rng.normal(size=(2, 5)).astype(np.float32) for k in arrays}
  apart["mask"] = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]], bool)
  packed = {k: v.reshape(1, 10) for k, v in apart.items()}
  packed["segment_ids"] = np.repeat([3, 8], 5)[None]
  run = jax.jit(lambda batch: [call_loss(bound(n), **batch)[0] for n in names])
  for got, want in zip(run(packed), run(apart), strict=True):
    np.testing.assert_allclose(got.ravel(), want.ravel(), rtol=1e-5)


def test_dppo_kl_cuts_outward_moves_beyond_the_divergence():
  mask = BATCH["mask"]
  names = ("logp", "sampler_logp", "advantages")
  logp, mu, a = (np.where(mask, BATCH[k], -1.0).astype(np.float32) for k in names)
  keep = np.asarray(losses.dppo_mask(logp, mu, a, divergence="kl", low=0.01, high=0.02))
  p, q = (np.exp(x.astype(np.float64)) for x in (logp, mu))
  rest = (1 - q) * np.log(np.maximum(1 - q, 1e-9) / np.maximum(1 - p, 1e-9))
  apart = q * (mu.astype(np.float64) - logp) + rest
  cut = np.where(a > 0, (p > q) & (apart > 0.02), (p < q) & (apart > 0.01))
  valid = mask & (p < 1) & (q < 1)
  np.testing.assert_array_equal(keep[valid], ~cut[valid])
  assert 0 < cut[valid].sum() < valid.sum()


def test_dppo_kl_takes_a_log_prob_that_rounding_lifted_above_zero():
  logp = np.array([[1e-7, -1e-9, 0.0]], np.float32)
  keep = losses.dppo_mask(logp, np.full((1, 3), -2.0), np.ones((1, 3)), divergence="kl")
  assert not keep.any()


def test_topr_at_token_level_tapers_each_token():
  names = ("logp", "sampler_logp", "advantages", "mask")
  got, _ = losses.topr(*(BATCH[k] for k in names), level="token")
  mask = BATCH["mask"]
  logp, mu, a = (np.where(mask, BATCH[k], 0.0) for k in names[:3])
  weight = np.where(a > 0, 1.0, np.minimum(np.exp(logp - mu), 1.0))
  np.testing.assert_allclose(got, -a * weight * logp, rtol=1e-5)


BAD_SHAPE = [
  ({"logp": np.zeros(7, np.float32)}, r"logp must be \[B, T\]"),
  ({"old_logp": np.zeros((8, 6), np.float32)}, "old_logp must have shape"),
  ({"mask": np.ones((8, 1), bool)}, "mask must have shape"),
  ({"advantages": np.zeros((8, 1), np.float32)}, "advantages must be"),
  ({"advantages": np.zeros(8, np.int32)}, "advantages must be floating point"),
  ({"clip_low": -0.1}, "clip_low must be at least 0"),
  ({"dual_clip": 0.9}, "dual_clip must be above 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SHAPE)
def test_bad_input_is_named(change, message):
  names = ("logp", "old_logp", "advantages", "mask")
  arguments = {name: BATCH[name] for name in names} | change
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: losses.ppo(**arguments))


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("dppo", {"divergence": "js"}, "divergence must be one of"),
    ("dro", {"beta": 0.0}, "beta must be above 0"),
    ("kl_cov", {"select": 1.5}, "select must be at least 0 and at most 1"),
    ("m2po", {"high": -1.0}, "high must be at least 0"),
    ("rollout_is", {"low": 2.0, "high": 1.0}, "high must be above"),
    ("sapo", {"temperature_positive": 0.0}, "temperature_positive must be above"),
    ("topr", {"level": "turn"}, "level must be one of"),
    ("vespo", {"power_negative": -1.0}, "power_negative must be at least"),
    ("gspo", {"segment_ids": np.zeros((8, 7))}, "segment_ids must be"),
  ],
)
def test_bad_options_are_named(name, options, message):
  loss = functools.partial(POLICY_LOSSES[name], **options)
  with pytest.raises(ValueError, match=message):
    call_loss(loss, **BATCH)
