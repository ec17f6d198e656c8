"""TRL's losses, called without its trainers: no model, no data, no generation.

A trainer object is made without running its ``__init__`` and given the attributes that its loss reads; its
log-probabilities come from the auditor instead of a model. What is computed from them is TRL's own code.
"""

import importlib
from collections import defaultdict
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from klent.audit.call import Loss, LossFunction
from klent.audit.certificate import Certificate, audit_loss
from klent.audit.names import STREAMS
from klent.audit.peers import PeerAudit
from klent.audit.peers.linear import per_token
from klent.errors import ConfigError, KlentError

INSTALL = "pip install 'trl>=1.16'"
#: weight of the KL term where the defaults omit it
BETA = 0.04
#: settings that let a configuration be made on any machine
QUIET = {"output_dir": "unused", "report_to": "none", "bf16": False, "use_cpu": True}


def audit(settings: Mapping[str, object]) -> PeerAudit:
    """The certificates of GRPO and RLOO, as configured by default and with their KL term alone."""
    trl = load()
    grpo: list[tuple[Mapping[str, object], bool]] = [
        (settings, False),
        ({"beta": BETA, **settings}, False),
        ({**settings, "beta": 1.0}, True),
        ({**settings, "beta": 1.0, "use_bias_correction_kl": False}, True),
        ({**settings, "beta": 1.0, "importance_sampling_level": "sequence"}, True),
    ]
    certificates = [audit_grpo(trl, chosen, kl_alone=alone) for chosen, alone in grpo]
    certificates += [
        audit_rloo(trl, settings, kl_alone=False),
        audit_rloo(trl, {**settings, "beta": 1.0}, kl_alone=True),
    ]
    return PeerAudit("trl", trl.__version__, tuple(certificates))


def load() -> ModuleType:
    """The installed TRL.

    Raises:
        KlentError: it is not installed, or cannot be imported.
    """
    try:
        trl = importlib.import_module("trl")
        trl.GRPOTrainer, trl.RLOOTrainer  # noqa: B018 - loaded when first named
    except (ImportError, RuntimeError, AttributeError) as error:
        raise KlentError(f"TRL cannot be imported ({error}); install it: {INSTALL}") from error
    return trl


def audit_grpo(trl: ModuleType, settings: Mapping[str, object], *, kl_alone: bool) -> Certificate:
    """``GRPOTrainer._compute_loss``; with ``kl_alone`` on advantages of 0."""
    trainer = _bare(trl.GRPOTrainer, _config(trl.GRPOConfig, settings))
    shown = dict(settings)
    if kl_alone and hasattr(trainer.args, "use_bias_correction_kl"):
        shown.setdefault("use_bias_correction_kl", trainer.args.use_bias_correction_kl)

    def loss(logp: Tensor, entropy: Tensor, mask: Tensor, **streams: Tensor) -> Tensor:
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropy, None)
        ones = torch.ones_like(mask, dtype=torch.long)
        inputs = {
            "prompt_ids": ones[:, :1],
            "prompt_mask": ones[:, :1],
            "completion_ids": ones,
            "completion_mask": mask.long(),
            "advantages": streams["advantage"] * (not kl_alone),
            "old_per_token_logps": streams["logp_old"],
            "ref_per_token_logps": streams["logp_ref"],
            "num_items_in_batch": torch.tensor(1.0),  # the divisor of the default loss: a sum over tokens
        }
        return per_token(trainer._compute_loss(None, inputs), logp, entropy)

    return audit_loss(_wired(loss), _title("GRPOTrainer", shown, kl_alone))


def audit_rloo(trl: ModuleType, settings: Mapping[str, object], *, kl_alone: bool) -> Certificate:
    """``RLOOTrainer``, from the rewards of two completions to the loss; ``kl_alone``: rewards of 0."""
    trainer = _bare(trl.RLOOTrainer, _config(trl.RLOOConfig, settings))
    trainer.num_generations = trainer.num_generations_eval = 2

    def loss(logp: Tensor, entropy: Tensor, mask: Tensor, **streams: Tensor) -> Tensor:
        length = int(mask.sum(dim=1).max())
        kept = slice(0, length)
        rows = [[1] * int(count) for count in mask.sum(dim=1)]
        trainer._generate = lambda prompts: ([[1]] * len(prompts), rows, [""] * len(prompts))
        rewards = streams["advantage"][:, :1] * (not kl_alone)  # the baseline of the group cancels any shift
        trainer._calculate_rewards = lambda *_, **__: rewards
        logp_of = {id(trainer.model): streams["logp_old"], id(trainer.ref_model): streams["logp_ref"]}
        trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
            logp_of[id(model)][:, kept],
            None,
            None,
        )
        inputs = trainer._generate_and_score_completions([{"prompt": ""}] * len(rows))
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp[:, kept], entropy[:, kept], None)
        return per_token(trainer._compute_loss(None, inputs) * len(rows), logp, entropy)

    return audit_loss(_wired(loss, rows=2), _title("RLOOTrainer", settings, kl_alone))


def _wired(loss: LossFunction, rows: int | None = None) -> Loss:
    names = [name for name in STREAMS if name != "logp_gen"]
    return Loss(loss, {}, {name: name for name in names}, rows)


def _config(config: type[Any], settings: Mapping[str, object]) -> Any:
    try:
        return config(**{**QUIET, **settings})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{config.__name__}: {error}") from error


def _bare(trainer: type[Any], args: Any) -> Any:
    """A trainer of one process without a model, with the attributes that its loss reads."""
    bare = object.__new__(trainer)
    model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    attributes = {
        "args": args,
        "model": model,
        "ref_model": SimpleNamespace(),
        "beta": args.beta,
        "epsilon_low": args.epsilon,
        "epsilon_high": args.epsilon if args.epsilon_high is None else args.epsilon_high,
        "accelerator": _one_process(),
        "current_gradient_accumulation_steps": 1,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_step": 0,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": getattr(args, "entropy_coef", 0.0) != 0.0,
        # read by RLOO between rewards and advantages
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "eos_token_ids": [0],
        "pad_to_multiple_of": None,
        "reward_weights": torch.ones(1),
        "reward_func_names": ["reward"],
        "_logs": {
            "prompt": [],
            "completion": [],
            "rewards": defaultdict(list),
            "advantages": [],
            "extra": {},
        },
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "images": None,
    }
    settings = {name: getattr(args, name) for name in vars(args) if not name.startswith("_")}
    for name, value in {**settings, **attributes}.items():
        setattr(bare, name, value)
    return bare


def _one_process() -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=1,
        process_index=0,
        device=torch.device("cpu"),
        sync_gradients=False,
        gather=lambda value: value,
        gather_for_metrics=lambda value: value,
        reduce=lambda value, reduction="sum": value,
    )


def _title(name: str, settings: Mapping[str, object], kl_alone: bool) -> str:
    shown = ", ".join(f"{key}={value}" for key, value in settings.items() if not (kl_alone and key == "beta"))
    return f"{name} {'KL term alone' if kl_alone else 'loss'}, {shown or 'defaults'}"
