"""A typed line is the chain that it says, and nothing else."""

import pytest

from tis_jax import corrections
from tis_jax.corrections import from_text, presets


@pytest.mark.parametrize(
  ("text", "chain"),
  [
    ("none", corrections.chain()),
    ("tis", presets.tis()),
    (" truncate(high=3) ", corrections.chain(corrections.truncate(3))),
    (
      "veto(1e-4)|geometric_mask_tis(2.0)|normalize('batch')",
      corrections.chain(
        corrections.veto(1e-4),
        *presets.geometric_mask_tis(2.0).stages,
        corrections.normalize("batch"),
      ),
    ),
  ],
)
def test_a_line_is_its_chain(text, chain):
  assert repr(from_text(text)) == repr(chain)


_NEEDS = {
  "normalize": "'batch'",
  "reject": "high=2.0",
  "reject_divergence": "0.01",
  "reject_negative_divergence": "0.5",
  "reject_second_moment": "0.04",
  "reject_stale": "3",
}


@pytest.mark.parametrize("name", sorted(corrections.STAGES))
def test_every_stage_can_be_typed(name):
  after = "truncate(2.0) | " if name in ("normalize", "scale_by_ess") else ""
  typed = from_text(f"{after}{name}({_NEEDS.get(name, '')})")
  assert typed.stages[-1].name == name


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is no chain"),
    ("truncate(2", "is no chain"),
    ("truncate(2) + veto(1e-4)", "is no chain"),
    ("__import__('os').system('true')", "is no chain"),
    ("truncate(open('x'))", "is no chain"),
    ("truncate(**{})", "is no chain"),
    ("[truncate(2)]", "is no chain"),
    ("exec('1')", "no stage or preset 'exec'"),
    ("truncate(hihg=2)", "hihg"),
    ("truncate(-1)", "high"),
    ("(" * 9999, "is no chain"),
  ],
)
def test_what_is_no_chain_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    from_text(text)
