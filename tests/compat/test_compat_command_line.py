"""A peer's command line: which words are its options, and which its launcher's."""

import pytest

from tis_jax.compat.options import parse

_HAS = {
  *("use_tis", "tis_clip", "rewards", "plugin", "seed", "correct", "prompt"),
  "algo.advantage.is_enable",
}.__contains__


@pytest.mark.parametrize(
  ("line", "tree"),
  [
    ("--use-tis", {"use_tis": True}),
    ("--use_tis --tis-clip 2.0", {"use_tis": True, "tis_clip": 2.0}),
    ("--tis-clip=1e-4 --seed=-1", {"tis_clip": 1e-4, "seed": -1}),
    ("--tis-clip -0.5 5", {"tis_clip": [-0.5, 5]}),
    ("--use_tis False --seed None", {"use_tis": False, "seed": None}),
    ("--no-correct --no_use_tis", {"correct": False, "use_tis": False}),
    ("--seed 1 --seed 2", {"seed": 2}),
    ("--prompt 'a --seed b'", {"prompt": "a --seed b"}),
    (
      "--algo.advantage.is-enable",
      {"algo": {"advantage": {"is_enable": True}}},
    ),
    # What a launcher's own flags and words say is not the peer's.
    ("CUDA_VISIBLE_DEVICES=0,1 swift rlhf --seed 1", {"seed": 1}),
    ('torchrun --nproc_per_node 8 a/train.py --seed 1 "$@"', {"seed": 1}),
    ("accelerate launch --num 8 --module trl.grpo --seed 1", {"seed": 1}),
    (
      """ray job submit --address="http://x" \\
        --runtime-env-json='{"working_dir": "."}' -- python3 -m cli.train \\
        --seed 1  # a seed""",
      {"seed": 1},
    ),
    # A script that is the value of an option is no launcher's.
    ("swift rlhf --seed 1 --plugin a/b.py c.py --use-tis", None),
    ("python train.py --seed 1 --plugin a/b.py c.py --use-tis", None),
    (["--seed", "1", "--plugin", "a/b.py", "c.py", "--use-tis"], None),
  ],
)
def test_flags(line, tree):
  plugged = {"seed": 1, "plugin": ["a/b.py", "c.py"], "use_tis": True}
  assert parse("a peer", line, _HAS) == (plugged if tree is None else tree)


def test_what_no_option_has_is_left_to_be_refused():
  """With the words around it, and not taken for a launcher's."""
  line = "train.py --seed 1 --plugn a.py --use-tis"
  tree = {"seed": 1, "plugn": "a.py", "use_tis": True}
  assert parse("a peer", line, _HAS) == tree
  assert parse("a peer", "train.py --sed 1", _HAS) == {"sed": 1}


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("use_tis: true", "'use_tis:' is no '--flag'; load a file"),
    ("use_tis: true --seed 1", "'use_tis:' is no '--flag'"),
    ("use_tis=true", "'use_tis=true' is no '--flag'"),
    ("use_tis=true --seed 1", "'use_tis=true' is no '--flag'"),
    ("--seed 1 ${GRPO_ARGS[@]}", r"the options in \$\{GRPO_ARGS\[@\]\} are not here"),
  ],
)
def test_what_is_no_command_line_is_refused(line, message):
  with pytest.raises(ValueError, match=message):
    parse("a peer", line, _HAS)


def test_a_path_among_overrides_ends_no_launcher():
  line = "algorithm.gamma=0.9 custom_reward_function.path=reward.py data.seed=1"
  tree = parse("verl", line)
  assert tree["algorithm"] == {"gamma": 0.9}
  assert tree["custom_reward_function"] == {"path": "reward.py"}
  assert tree == parse("verl", "python3 a/main.py " + line)
