"""Each method against the truth on a mixture: python examples/diffusion/mixture.py line|plane OUT.csv

line   12 steps; 0.7 N(-1.5, 0.4^2) + 0.3 N(1.5, 0.4^2), and a reward that is a bump at 2
plane  10 steps; three Gaussians of deviation 0.5 in the plane, and a reward that is a bump beside the lightest

A denoiser starts as the exact one of the mixture. What it makes when trained is computed on a grid, so that no column
is estimated from samples. Finished rows are kept.
"""

import csv
import json
import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import plane  # noqa: E402
import truth  # noqa: E402
from truth import Chain  # noqa: E402

import klent  # noqa: E402
from klent.policies.denoiser.actor import DenoisingActor  # noqa: E402
from klent.policies.denoiser.network import (  # noqa: E402
    Denoiser,
    DenoiserConfig,
    load_denoiser,
    save_denoiser,
)
from klent.policies.denoiser.sampler import make_steps  # noqa: E402

TRAINED = 60


@dataclass(frozen=True)
class World:
    """A mixture whose denoiser is trained, its reward, and the grid that knows the truth.

    Attributes:
        config: the mixture.
        steps: from noise to a point.
        reward: function of rewards.py.
        values: the same on the grid, ``[G]``.
        grid: truth.py or plane.py.
        betas: prices of a nat.
        seeds: of the runs.
    """

    config: DenoiserConfig
    steps: int
    reward: str
    values: np.ndarray
    grid: ModuleType
    betas: tuple[float, ...]
    seeds: tuple[int, ...]

    def actor(self, net: Denoiser) -> DenoisingActor:
        """The network with the sampler of the study."""
        return DenoisingActor(net, make_steps("ddim", self.steps, high=self.config.high, low=self.config.low))

    def draw(self, count: int) -> np.ndarray:
        """Points of the mixture, the data of DDRL, ``[count, D]``."""
        random = np.random.default_rng(0)
        part = random.choice(len(self.config.weights), size=count, p=self.config.weights)
        noise = random.normal(size=(count, self.config.size))
        return np.array(self.config.means)[part] + np.array(self.config.stds)[part, None] * noise


WORLDS = {
    "line": World(
        DenoiserConfig(
            size=1,
            hidden=48,
            layers=2,
            high=5.0,
            low=-6.0,
            means=((-1.5,), (1.5,)),
            stds=(0.4, 0.4),
            weights=(0.7, 0.3),
        ),
        12,
        "bump",
        np.exp(-((truth.GRID - 2.0) ** 2) / 0.5),
        truth,
        (0.3, 0.1),
        (0, 1, 2),
    ),
    "plane": World(
        DenoiserConfig(
            size=2,
            hidden=48,
            layers=2,
            high=3.0,
            low=-5.0,
            means=((-1.5, 0.0), (1.0, -1.5), (1.5, 1.2)),
            stds=(0.5, 0.5, 0.5),
            weights=(0.5, 0.3, 0.2),
        ),
        10,
        "corner",
        np.exp(-((plane.GRID - np.array([2.0, 1.8])) ** 2).sum(1) / 0.72),
        plane,
        (0.3,),
        (0, 1, 2, 3, 4),
    ),
}
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


def noise_coefficient(actor: DenoisingActor) -> float:
    """What the released code's coefficient is in units of beta: the mean over steps of the factor it leaves out."""
    return float(actor.factor.mean() * actor.size)


def methods(beta: float, factor: float, images: str) -> dict[str, dict]:
    """Arms by name; each maximises E[r] - beta KL, as far as it does; DDRL's KL is the other one."""
    no_kl = {"token_kl": None}
    plain = {"advantage": {"group_advantage": None, "leave_one_out": {}}, "reduce": {"over": "constant"}}
    plain["reduce"]["denominator"] = 1.0
    data = {"ppo_clip": None, "reinforce": {}, "denoising": {"coef": beta}}
    return {
        "ddpo": {"method": "ddpo"},
        "dpok": {"method": "dpok", "loss": {"token_kl": {"coef": beta}}},
        "dpok_released": {"method": "dpok_released", "loss": {"token_kl": {"coef": beta * factor}}},
        "kl_in_reward": {"method": "dpok", "loss": no_kl, "token_reward": {"kl_in_reward": {"coef": beta}}},
        "path_kl": {"method": "dpok", "loss": {**no_kl, "sequence_kl": {"coef": beta}}},
        "diffusion_nft": {"method": "diffusion_nft", "loss": {"token_kl": {"coef": beta}}, **plain},
        "ddrl": {
            "method": "ddrl",
            "loss": data,
            "update": {"minibatches": 1},
            **plain,
            "task": {"images": images},
        },
    }


def recipe_of(world: World, arm: dict, model: Path, seed: int) -> dict:
    """One run."""
    return {
        "name": "run",
        "model": str(model),
        "reward": f"{HERE / 'rewards.py'}:{world.reward}",
        "steps": TRAINED,
        "seed": seed,
        "prompts_per_step": 2,
        "group_size": 48,
        "optimizer": {"lr": 5e-3, "schedule": "linear"},
        "checkpoint": {"every": 0},
        "eval": None,
        **arm,
        "task": {"noise": world.config.size} | arm.get("task", {}),
        "rollout": {"engine": "policy", "actions": world.steps},
    }


def measured(world: World, chain: Chain, reference: Chain, beta: float) -> dict[str, float]:
    """What a chain makes, against the truth at this beta."""
    end, path_kl = world.grid.follow(chain, reference)
    return of_end(world, end, reference, beta, path_kl)


def of_end(
    world: World, end: np.ndarray, reference: Chain, beta: float, path_kl: float | None = None
) -> dict[str, float]:
    """The same of probabilities of what is made; without paths, those that the reference takes to it."""
    ideal, best = world.grid.tilted(reference, world.values, beta)
    start, _ = world.grid.follow(reference, reference)
    reward, image_kl = float(end @ world.values), truth.kl(end, start)
    path_kl = image_kl if path_kl is None else path_kl
    return {
        "kl_to_truth": truth.kl(end, ideal),
        "reward": reward,
        "path_kl": path_kl,
        "image_kl": image_kl,
        "value": reward - beta * path_kl,
        "best": best,
    }


def main(world: World, out: Path) -> None:
    """Every method, beta and seed; DDPO, which has no beta, is trained once for each seed and measured at all."""
    torch.set_num_threads(1)
    logging.disable()
    done = set()
    if out.exists():
        done = {(row["beta"], row["method"], row["seed"]) for row in csv.DictReader(out.open())}
    with tempfile.TemporaryDirectory() as folder, out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        net = Denoiser(world.config, generator=torch.Generator().manual_seed(0))
        save_denoiser(net, Path(folder) / "reference")
        np.save(Path(folder) / "data.npy", world.draw(2000))
        reference = world.grid.chain_of(world.actor(net))

        def write(
            beta: float, method: str, seed: object, numbers: dict[str, float], seconds: float = 0.0
        ) -> None:
            shown = {name: f"{value:.5g}" for name, value in (numbers | {"seconds": seconds}).items()}
            row = {"beta": f"{beta:g}", "method": method, "seed": str(seed)}
            if tuple(row.values()) not in done:
                writer.writerow(row | shown)
                file.flush()
                print(json.dumps(row | shown), flush=True)

        for beta in world.betas:
            write(beta, "reference", "", measured(world, reference, reference, beta))
            chain = world.grid.best_of_gaussians(reference, world.values, beta)
            write(beta, "best of Gaussian steps", "", measured(world, chain, reference, beta))
            start, _ = world.grid.follow(reference, reference)
            beside = truth.beside_data(start, world.values, beta)
            write(beta, "optimum of DDRL", "", of_end(world, beside, reference, beta))
        factor = noise_coefficient(world.actor(net))
        first = world.betas[0]
        for beta in world.betas:
            for seed in world.seeds:
                for method, arm in methods(beta, factor, str(Path(folder) / "data.npy")).items():
                    if (f"{beta:g}", method, str(seed)) in done:
                        continue
                    if method in ONCE and (beta, seed) != (first, world.seeds[0]):
                        continue
                    if method == "ddpo" and beta != first:  # measured at all of them already
                        continue
                    started = time.perf_counter()
                    recipe = recipe_of(world, arm, Path(folder) / "reference", seed)
                    run = klent.train(recipe, runs=Path(folder) / f"{method}-{beta}-{seed}", quiet=True)
                    chain = world.grid.chain_of(world.actor(load_denoiser(run.final)))
                    for at in world.betas if method == "ddpo" else (beta,):
                        seconds = time.perf_counter() - started
                        write(at, method, seed, measured(world, chain, reference, at), seconds)


if __name__ == "__main__":
    main(WORLDS[sys.argv[1]], Path(sys.argv[2]))
