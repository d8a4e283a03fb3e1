"""Nine peers' whole configurations and command lines: each dialect takes its own."""

import re
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tis_jax import compat

# (peer, configurations as its users have them, its own section)
_SLIME = {
  "use_tis": True,
  "tis_mode": "clip",
  "tis_lower_bound": 0.8,
  "tis_upper_bound": 1.5,
  "tis_batch_normalize": False,
}
_TRL = {
  "vllm_importance_sampling_mode": "token_truncate",
  "vllm_importance_sampling_clip_max": 1.5,
}
_OPENRLHF = {"is_correction_enable": True, "is_correction_threshold": [0.5, 1.5]}
_NEMO_RL = {
  "use_importance_sampling_correction": True,
  "truncated_importance_sampling_type": "tis",
  "truncated_importance_sampling_ratio": 1.5,
  "seq_logprob_error_threshold": 1.2,
}
_AREAL = {"rejection_sampling": {"level": "sequence", "upper": 1.2}}
_MS_SWIFT = {
  "rollout_importance_sampling_mode": "token_mask",
  "rollout_importance_sampling_threshold": 1.2,
}
_PRIME_RL = {"type": "icepop", "ratio_low": 0.9, "ratio_high": 1.1}
_ROLL = {"is_weight": {"enabled": True, "upper_bound": 1.1}}
_TUNIX = {"sampler_is": "token", "sampler_is_threshold": 1.2}

_WHOLE = [
  (
    "slime",
    _SLIME,
    [
      """ray job submit --address="http://127.0.0.1:8265" \\
        --runtime-env-json='{"env_vars": {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}}' \\
        -- python3 train.py --actor-num-nodes 1 --colocate \\
        --hf-checkpoint models/Qwen3-4B --rollout-batch-size 32 --num-layers 36 \\
        --advantage-estimator grpo --tensor-model-parallel-size 2 --lr 1e-6 \\
        --sglang-mem-fraction-static 0.7 --router-log-level warn --balance-data \\
        --custom-tis-function-path examples.mis.compute_mis_weights_with_cp \\
        --use-tis --tis-mode clip --tis-lower-bound 0.8 --tis-upper-bound 1.5 \\
        --no-tis-batch-normalize""",
    ],
  ),
  (
    "trl",
    _TRL,
    [
      """accelerate launch --config_file zero3.yaml -m trl.grpo \\
        --model_name_or_path Qwen/Qwen3-4B --dataset_name trl-lib/DeepMath-103K \\
        --reward_funcs accuracy_reward my/reward.py --learning_rate 1e-6 --bf16 \\
        --use-vllm --vllm-importance-sampling-mode token_truncate --use_peft \\
        --vllm_importance_sampling_clip_max=1.5 --lora_r 32 --vllm_mode colocate""",
      {
        "model_name_or_path": "Qwen/Qwen3-4B",
        "per_device_train_batch_size": 8,
        "loss_type": "dapo",
        "chat_template_kwargs": {"enable_thinking": False},
        "env": {"WANDB_PROJECT": "x"},
        **_TRL,
      },
    ],
  ),
  (
    "openrlhf",
    _OPENRLHF,
    [
      """python3 -m openrlhf.cli.train_ppo_ray --ref.num_nodes 1 --actor.num_nodes 1 \\
        --train.colocate_all --actor.adam.lr 5e-7 --algo.kl.init_coef 0.01 \\
        --train.agent_func_path examples/agent.py --algo.advantage.gamma 1 \\
        --algo.advantage.is_correction_enable --ds.packing_samples \\
        --algo.advantage.is_correction_threshold 0.5 1.5""",
      {"algo": {"advantage": {**_OPENRLHF, "gamma": 1.0}}, "ds": {"lora": {"rank": 8}}},
    ],
  ),
  (
    "nemo_rl",
    _NEMO_RL,
    [
      {
        "defaults": "grpo_math_1B.yaml",
        "grpo": {
          "num_prompts_per_step": 32,
          "seq_logprob_error_threshold": 1.2,
          "adv_estimator": {"name": "grpo", "normalize_rewards": "${grpo.x}"},
        },
        "loss_fn": {
          "ratio_clip_min": 0.2,
          "use_importance_sampling_correction": True,
          "truncated_importance_sampling_type": "tis",
          "truncated_importance_sampling_ratio": 1.5,
        },
        "policy": {"model_name": "Qwen/Qwen2.5-1.5B"},
      },
      """uv run examples/run_grpo.py --async x cluster.num_nodes=2 \\
        grpo.seq_logprob_error_threshold=1.2 logger.wandb_enabled=True \\
        loss_fn.use_importance_sampling_correction=true \\
        ++loss_fn.truncated_importance_sampling_type=tis \\
        loss_fn.truncated_importance_sampling_ratio=1.5""",
    ],
  ),
  (
    "areal",
    _AREAL,
    [
      {
        "experiment_name": "gsm8k-grpo",
        "gconfig": {"n_samples": 4},
        "rollout": {"experiment_name": "${experiment_name}"},
        "actor": {
          "path": "Qwen/Qwen2.5-1.5B-Instruct",
          "optimizer": {"lr": 1.7e-5},
          "use_decoupled_loss": True,
          "rejection_sampling": {"level": "sequence", "upper": 1.2},
        },
        "ref": {"path": "${actor.path}"},
      },
      """python3 examples/math/gsm8k_rl.py scheduler.type=local actor.eps_clip=0.2 \\
        +actor.rejection_sampling.level=sequence actor.rejection_sampling.upper=1.2""",
    ],
  ),
  (
    "ms_swift",
    _MS_SWIFT,
    [
      """CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=2 swift rlhf --rlhf_type grpo \\
        --model Qwen/Qwen2.5-7B --external_plugins examples/train/grpo/plugin.py \\
        --reward_funcs external_r1v_acc format --use_vllm true --torch_dtype bfloat16 \\
        --rollout_importance_sampling_mode token_mask --gradient_checkpointing_kwargs \\
        '{"use_reentrant": false}' --rollout_importance_sampling_threshold 1.2""",
      {"rlhf_type": "grpo", "num_generations": 8, "deepspeed": "zero2", **_MS_SWIFT},
    ],
  ),
  (
    "prime_rl",
    _PRIME_RL,
    [
      {
        "max_steps": 100,
        "model": {"name": "Qwen/Qwen3-0.6B"},
        "trainer": {"optim": {"type": "adamw", "lr": 3e-6}, "loss": _PRIME_RL},
        "orchestrator": {"batch_size": 128, "train": {"env": [{"id": "reverse-text"}]}},
      },
      """uv run rl --trainer.optim.type muon --trainer.loss.type icepop \\
        --trainer.loss.ratio-low 0.9 --trainer.loss.ratio-high 1.1 --no-clean""",
      {"max_steps": 100, "model": {"name": "x"}, "loss": _PRIME_RL},
    ],
  ),
  (
    "roll",
    _ROLL,
    [
      {
        "defaults": ["../config/traj_envs@_here_"],
        "hydra": {"run": {"dir": "."}},
        "exp_name": "agentic_pipeline",
        "train_infer_correction": _ROLL,
        "actor_train": {"pg_variant": "topr"},
        "max_actions_per_traj": 5,
      },
      "start_rlvr_pipeline.py --config_name rlvr rollout_batch_size=64 "
      "train_infer_correction.is_weight.enabled=true "
      "train_infer_correction.is_weight.upper_bound=1.1",
    ],
  ),
  (
    "tunix",
    _TUNIX,
    [
      {"num_generations": 4, "beta": 0.0, "epsilon": 0.2, **_TUNIX},
      {
        "model_config": {"model_name": "llama-3.1-8b"},
        "training_mode": "agentic_grpo",
        "agentic_grpo_config": {"max_concurrency": 16, **_TUNIX},
      },
      """python3 -m tunix.cli.grpo_main batch_size=1 grpo_config.beta=0.08 \\
        grpo_config.sampler_is=token grpo_config.sampler_is_threshold=1.2""",
    ],
  ),
]
_EACH = [(name, whole, section) for name, section, wholes in _WHOLE for whole in wholes]


def _outcome(fn):
  rng = np.random.default_rng(0)
  sampler = -rng.exponential(1.0, (4, 6))
  old = sampler + rng.normal(0, 0.3, (4, 6))
  mask = np.arange(6) < np.array([[6], [4], [0], [5]])
  weight, mask, metrics = fn(jnp.float32(old), jnp.float32(sampler), jnp.asarray(mask))
  return [x for x in (weight, mask, *metrics.values()) if x is not None]


def _same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.filterwarnings("ignore:.*nothing here reads:UserWarning")
@pytest.mark.parametrize(("name", "whole", "section"), _EACH)
def test_a_config_pasted_whole_is_its_section(name, whole, section):
  peer = getattr(compat, name)
  alone = _outcome(peer.correction(section))
  default = _outcome(peer.correction())
  assert len(default) != len(alone) or not _same(default, alone)
  assert _same(_outcome(peer.correction(whole)), alone)
  assert peer.native(whole) == peer.native(section)
  used = peer.used(whole)
  own = {key for key, readers in used.items() if "correction" in readers}
  assert {key.rpartition(".")[2] for key in own} >= set(section)


@pytest.mark.filterwarnings("ignore:.*nothing here reads:UserWarning")
def test_prime_rl_takes_its_loss_from_the_whole():
  whole = {name: wholes for name, _, wholes in _WHOLE}["prime_rl"][0]
  logp, sampler = jnp.log(jnp.array([[0.5, 0.6]])), jnp.log(jnp.array([[0.5, 0.4]]))
  arrays = logp, sampler, jnp.ones((1, 2)), jnp.ones((1, 2))
  prime_rl = compat.prime_rl
  got, _ = prime_rl.policy_loss(whole)(*arrays)
  assert got == prime_rl.policy_loss(_PRIME_RL)(*arrays)[0]
  assert got != prime_rl.policy_loss()(*arrays)[0]


@pytest.mark.parametrize(
  ("name", "whole", "message"),
  [
    ("slime", "train.py --colocate --use-tsi", "slime has no .*'use_tsi'.*'use_tis'"),
    ("slime", "--use-tis --rollout-batchsize 3", "'rollout_batch_size'"),
    (
      "slime",
      "--use-tis --tensor-model-paralel-size 2",
      "'tensor_model_parallel_size'",
    ),
    ("trl", "trl grpo --lerning-rate 1 --use_vllm", "TRL has no .*'learning_rate'"),
    ("trl", {"use_vlm": True}, "'use_vlm'; did you mean 'use_vllm'"),
    ("openrlhf", "--algo.advantage.is_corection_enable", "'is_correction_enable'"),
    ("openrlhf", "--algo.advantge.gamma 1", "'advantge' in algo.*'advantage'"),
    ("nemo_rl", "loss_fn.ratio_clip_mn=0.2", "in loss_fn; .*'ratio_clip_min'"),
    ("nemo_rl", {"polcy": {"model_name": "x"}}, "'polcy'; did you mean 'policy'"),
    ("areal", {"actor": {"rejection_samplng": {}}}, "in actor; .*'rejection_sampling'"),
    ("areal", {"actr": {"path": "x"}}, "'actr'; did you mean 'actor'"),
    ("ms_swift", "swift rlhf --rollout_importance_sampling_mod x", "_sampling_mode'"),
    (
      "prime_rl",
      {"trainer": {"loss": {"rato_low": 0.1}}},
      "trainer.loss; .*'ratio_low'",
    ),
    ("prime_rl", "rl --trainer.los.type ipo", "'los' in trainer; did you mean 'loss'"),
    ("roll", {"train_infer_corection": {"is_weight": {}}}, "'train_infer_correction'"),
    (
      "tunix",
      {"grpo_config": {"sampler_iss": "token"}},
      "in grpo_config; .*'sampler_is'",
    ),
    ("tunix", {"num_generation": 4}, "did you mean 'num_generations'"),
  ],
)
def test_a_misspelt_key_is_refused_with_the_nearest(name, whole, message):
  with pytest.raises(ValueError, match=message):
    getattr(compat, name).correction(whole)


@pytest.mark.parametrize(
  ("name", "whole", "unread"),
  [
    ("slime", "--use-tis --colocate", "colocate"),
    ("slime", "--use-tis --sglang-tp-size 2", "sglang_tp_size"),
    ("trl", "--use_vllm", "use_vllm"),
    ("openrlhf", "--algo.kl.target 1", "algo.kl.target"),
    ("nemo_rl", {"policy": {"model_name": "x"}}, "policy"),
    ("areal", "actor.eps_clip=0.2", "actor.eps_clip"),
    ("ms_swift", "--rlhf_type grpo", "rlhf_type"),
    ("prime_rl", "--trainer.optim.lr 1", "trainer.optim"),
    ("roll", {"gamma": 1.0}, "gamma"),
    ("tunix", {"beta": 0.1}, "beta"),
  ],
)
def test_what_nothing_here_reads_is_said(name, whole, unread):
  peer = getattr(compat, name)
  with pytest.warns(UserWarning, match=f"nothing here reads {unread}$") as said:
    peer.correction(whole)
  assert [w.filename for w in said] == [__file__]
  assert peer.used(whole)[unread] == ()


@pytest.mark.parametrize(
  ("name", "whole", "file"),
  [
    ("slime", "--use-tis --custom-config-path mis.yaml", "mis.yaml"),
    (
      "trl",
      "trl grpo --config grpo.yaml --vllm_importance_sampling_cap 2",
      "grpo.yaml",
    ),
    ("ms_swift", "swift rlhf grpo.yaml", "grpo.yaml"),
    ("prime_rl", "rl @ rl.toml --trainer.loss.type ipo", "rl.toml"),
    ("prime_rl", "rl --trainer @ t.toml --trainer.loss.type ipo", "t.toml"),
    (
      "nemo_rl",
      "run.py --config g.yaml loss_fn.use_importance_sampling_correction=true",
      "g.yaml",
    ),
    ("tunix", "-m grpo_main b.yaml grpo_config.sampler_is=token", "b.yaml"),
  ],
)
def test_a_file_of_options_is_not_passed_over_in_silence(name, whole, file):
  with pytest.warns(UserWarning, match=f"the options in {file} are not here"):
    getattr(compat, name).correction(whole)


@pytest.mark.parametrize("name", compat.PEERS)
def test_a_section_alone_warns_of_nothing(name):
  section = {n: section for n, section, _ in _WHOLE}.get(name, {})
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    getattr(compat, name).correction(section)


_PAGE = (Path(__file__).parents[2] / "docs" / "translation.md").read_text()
_LINES = re.findall(r"^\| `(\w+)` \| .+ \| `((?:--|\w+\.).+)` \|$", _PAGE, re.MULTILINE)


def test_the_page_has_a_command_line_of_every_peer():
  assert sorted(name for name, _ in _LINES) == list(compat.PEERS)
  for name, line in _LINES:
    read = getattr(compat, name).used(line)
    assert read and all(read.values()), (name, read)
