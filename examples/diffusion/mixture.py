"""Each method against the truth on a mixture in one dimension: python examples/diffusion/mixture.py OUT.csv

A denoiser of 12 steps starts as the exact one of 0.7 N(-1.5, 0.4^2) + 0.3 N(1.5, 0.4^2) and is trained on a bump at
2. What it makes then is computed on a grid, so that no column is estimated from samples. Finished rows are kept.
"""

import csv
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from truth import GRID, Chain, best_of_gaussians, chain_of, follow, kl, tilted  # noqa: E402

import klent  # noqa: E402
from klent.policies.denoiser.actor import DenoisingActor  # noqa: E402
from klent.policies.denoiser.network import (  # noqa: E402
    Denoiser,
    DenoiserConfig,
    load_denoiser,
    save_denoiser,
)
from klent.policies.denoiser.sampler import make_steps  # noqa: E402

STEPS, TRAINED, BETAS, SEEDS = 12, 60, (0.3, 0.1), (0, 1, 2)
CONFIG = DenoiserConfig(
    size=1,
    hidden=48,
    layers=2,
    high=5.0,
    low=-6.0,
    means=((-1.5,), (1.5,)),
    stds=(0.4, 0.4),
    weights=(0.7, 0.3),
)
REWARD = np.exp(-((GRID - 2.0) ** 2) / 0.5)
FIRST = (BETAS[0], SEEDS[0])
ONCE = (
    "dpok_released",
)  # on this grid of log-SNRs its penalty is the KL times a constant: see docs/diffusion.md
COLUMNS = [
    "beta",
    "method",
    "seed",
    "kl_to_truth",
    "reward",
    "path_kl",
    "image_kl",
    "value",
    "best",
    "seconds",
]


def actor_of(net: Denoiser) -> DenoisingActor:
    """The network with the sampler of the study."""
    return DenoisingActor(net, make_steps("ddim", STEPS, high=CONFIG.high, low=CONFIG.low))


def noise_coefficient(actor: DenoisingActor) -> float:
    """What the released code's coefficient is in units of beta: the mean over steps of the factor it leaves out."""
    return float((actor.b.square() / (2 * actor.std.square())).mean())


def methods(beta: float, factor: float) -> dict[str, dict]:
    """Arms by name; each maximises E[r] - beta KL, as far as it does."""
    no_kl = {"token_kl": None}
    return {
        "ddpo": {"method": "ddpo"},
        "dpok": {"method": "dpok", "loss": {"token_kl": {"coef": beta}}},
        "dpok_released": {"method": "dpok_released", "loss": {"token_kl": {"coef": beta * factor}}},
        "kl_in_reward": {"method": "dpok", "loss": no_kl, "token_reward": {"kl_in_reward": {"coef": beta}}},
        "path_kl": {"method": "dpok", "loss": {**no_kl, "sequence_kl": {"coef": beta}}},
    }


def recipe_of(arm: dict, model: Path, seed: int) -> dict:
    """One run."""
    return {
        "name": "run",
        "model": str(model),
        "task": {"noise": 1},
        "reward": f"{HERE / 'rewards.py'}:bump",
        "steps": TRAINED,
        "seed": seed,
        "prompts_per_step": 2,
        "group_size": 48,
        "optimizer": {"lr": 5e-3, "schedule": "linear"},
        "checkpoint": {"every": 0},
        "eval": None,
        **arm,
        "rollout": {"engine": "policy", "actions": STEPS},
    }


def measured(chain: Chain, reference: Chain, beta: float) -> dict[str, float]:
    """What a chain makes, against the truth at this beta."""
    truth, best = tilted(reference, REWARD, beta)
    start, _ = follow(reference, reference)
    end, path_kl = follow(chain, reference)
    reward = float(end @ REWARD)
    return {
        "kl_to_truth": kl(end, truth),
        "reward": reward,
        "path_kl": path_kl,
        "image_kl": kl(end, start),
        "value": reward - beta * path_kl,
        "best": best,
    }


def main(out: Path) -> None:
    """Every method, beta and seed; DDPO, which has no beta, is trained once for each seed and measured at both."""
    torch.set_num_threads(1)
    logging.disable()
    done = set()
    if out.exists():
        done = {(row["beta"], row["method"], row["seed"]) for row in csv.DictReader(out.open())}
    with tempfile.TemporaryDirectory() as folder, out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        net = Denoiser(CONFIG, generator=torch.Generator().manual_seed(0))
        save_denoiser(net, Path(folder) / "reference")
        reference = chain_of(actor_of(net))

        def write(beta: float, method: str, seed: object, chain: Chain, seconds: float) -> None:
            numbers = measured(chain, reference, beta) | {"seconds": seconds}
            shown = {name: f"{value:.5g}" for name, value in numbers.items()}
            row = {"beta": f"{beta:g}", "method": method, "seed": str(seed)}
            if tuple(row.values()) not in done:
                writer.writerow(row | shown)
                file.flush()
                print(json.dumps(row | shown), flush=True)

        for beta in BETAS:
            write(beta, "reference", "", reference, 0.0)
            write(beta, "best of Gaussian steps", "", best_of_gaussians(reference, REWARD, beta), 0.0)
        factor = noise_coefficient(actor_of(net))
        for beta in BETAS:
            for seed in SEEDS:
                for method, arm in methods(beta, factor).items():
                    if (f"{beta:g}", method, str(seed)) in done or (method in ONCE and (beta, seed) != FIRST):
                        continue
                    if method == "ddpo" and beta != BETAS[0]:  # measured at both already
                        continue
                    started = time.perf_counter()
                    recipe = recipe_of(arm, Path(folder) / "reference", seed)
                    run = klent.train(recipe, runs=Path(folder) / f"{method}-{beta}-{seed}", quiet=True)
                    chain = chain_of(actor_of(load_denoiser(run.final)))
                    for at in BETAS if method == "ddpo" else (beta,):
                        write(at, method, seed, chain, time.perf_counter() - started)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
