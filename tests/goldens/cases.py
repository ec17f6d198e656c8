"""Small whole runs whose numbers must not move by accident: recipes on the tiny model, and one on SmolLM2.

The recipes cross the places where a change of structure could change arithmetic: both packings, several
optimizer steps per batch, selection, a reference, two models, adapters, replayed data, votes, a controller.
"""

import json
from pathlib import Path
from typing import Any

from tiny import tiny_folder

REWARD = '''
def digits(prompts, completions, **columns):
    """The share of digits in a completion."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in t) / max(len(t), 1) for t in texts]
'''

BASE: dict[str, Any] = {
    "name": "golden",
    "model": "model",
    "method": "grpo",
    "task": {"data": "prompts.jsonl"},
    "reward": "reward.py:digits",
    "steps": 3,
    "prompts_per_step": 4,
    "group_size": 6,
    "rollout": {"max_tokens": 8},
    "optimizer": {"lr": 0.01},
    "eval": {"problems": 4, "samples": 2},
}
EMPTY: dict[str, Any] = {"eval": None, "reward": "absent"}
HINTED = {"target": {"model": "policy", "prompt": "{prompt} (it is {number})"}}

CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo_unpacked": {"update": {"packing": "off", "tokens_per_microbatch": 64}},
    "grpo_small_microbatches": {"update": {"tokens_per_microbatch": 96}},
    "dr_grpo": {"method": "dr_grpo"},
    "dapo": {"method": "dapo"},
    "gspo": {"method": "gspo", "update": {"minibatches": 2}},
    "rloo": {"method": "rloo"},
    "reinforce": {"method": "reinforce", "advantage": None},
    "sft": {"method": "sft", "rollout": {"engine": "dataset", "max_tokens": 8}, "group_size": 1},
    "distill": {"method": "distill", "rollout": {"max_tokens": 8, "mixture": HINTED}},
    "mixture": {"rollout": {"max_tokens": 8, "mixture": {**HINTED, "alpha": 0.5}}},
    "mixture_chernoff": {
        "rollout": {
            "max_tokens": 8,
            "mixture": {"target": {"model": "other"}, "alpha": "chernoff", "weights": {"ratio": "sequence"}},
        }
    },
    "kl_cov": {"method": "kl_cov", "select": {"penalised": {"kl_cov_tokens": {"fraction": 0.1}}}},
    "clip_cov": {"method": "clip_cov", "update": {"epochs": 2}},
    "top20": {"method": "top20"},
    "random20": {"method": "random20", "update": {"minibatches": 2}},
    "entropy_ratio_clip": {"method": "entropy_ratio_clip", "update": {"minibatches": 2}},
    "thermostat": {"method": "thermostat"},
    "thermostat_temperature": {
        "method": "thermostat",
        "thermostat": {"target": {"value": 3.0}, "steer": "temperature"},
    },
    "em": {"method": "em", "eval": None, "reward": "absent"},
    "em_released": {"method": "em_released", "eval": None, "reward": "absent"},
    "empo": {
        "method": "empo",
        "reward": {"empo": {"same": "text"}},
        "eval": {
            "problems": 4,
            "samples": 2,
            "reward": "reward.py:digits",
            "same": "text",
            "temperatures": [0, 0.5],
        },
    },
    "kl_in_loss": {"loss": {"kl_in_loss": {"coef": 0.05}}, "reference": "other"},
    "kl_in_reward": {
        "token_reward": {"kl_in_reward": {"coef": 0.05}},
        "update": {"epochs": 2, "minibatches": 2},
    },
    "lora": {"lora": {"rank": 4}, "loss": {"kl_in_loss": {"coef": 0.05}}},
    "truncated_sampling": {
        "rollout": {"max_tokens": 8, "top_p": 0.9, "top_k": 40, "temperature": 0.8, "stop": ["1"]}
    },
}

SMOLLM2: dict[str, Any] = {
    "name": "golden",
    "model": "smollm2-135m",
    "method": "grpo",
    "task": {
        "gym": "chain_sum",
        "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    },
    "reward": "last_number",
    "steps": 2,
    "prompts_per_step": 4,
    "group_size": 4,
    "rollout": {"max_tokens": 12},
    "optimizer": {"lr": 2e-5},
    "checkpoint": {"every": 0},
    "eval": {"problems": 4, "samples": 2},
}


def recipe_of(name: str) -> dict[str, Any]:
    """A case as the values of a recipe."""
    if name == "smollm2":
        return SMOLLM2
    return {key: value for key, value in (BASE | CASES[name]).items() if value != "absent"}


def make_world(folder: Path) -> None:
    """Two tiny models, a file of prompts and a file of rewards, in the working folder of the runs."""
    tiny_folder(folder / "model")
    tiny_folder(folder / "other", seed=1)
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"say {i}" + "!" * (i % 7), "number": i, "completion": f"{i}"} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
