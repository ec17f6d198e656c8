"""Two penalties against each other, exactly: python examples/diffusion/penalty.py OUT.csv

On the line of mixture.py the best chain of Gaussian steps is known for any price of a step's KL. DPOK's released code
penalises mean (eps - eps_ref)^2, the KL of each step divided by b^2/(2 s^2): the best chain under it is that of
prices which differ from step to step. Both are compared at equal KL of paths.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mixture import WORLDS  # noqa: E402
from truth import best_of_gaussians, chain_of, follow, kl  # noqa: E402

from klent.policies.denoiser.actor import DenoisingActor  # noqa: E402
from klent.policies.denoiser.network import Denoiser  # noqa: E402
from klent.policies.denoiser.sampler import flow_steps, make_steps  # noqa: E402

PRICES = np.geomspace(0.05, 2.0, 24)


def main(out: Path) -> None:
    """A row for each sampler, penalty and coefficient."""
    world = WORLDS["line"]
    net = Denoiser(world.config, generator=torch.Generator().manual_seed(0))
    ends = {"high": world.config.high, "low": world.config.low}
    samplers = {
        "ddim": make_steps("ddim", world.steps, **ends),
        "ddpm": make_steps("ddpm", world.steps, **ends),
        "flow": flow_steps(world.steps, **ends),
    }
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sampler", "spread", "penalty", "coef", "reward", "path_kl", "image_kl"])
        for name, steps in samplers.items():
            actor = DenoisingActor(net, steps)
            reference, factor = chain_of(actor), actor.factor.double().numpy()
            start, _ = follow(reference, reference)
            for penalty, share in (("kl", np.ones(len(factor))), ("noise", factor.mean() / factor)):
                for coef in PRICES:
                    chain = best_of_gaussians(reference, world.values, coef * share)
                    end, path_kl = follow(chain, reference)
                    numbers = (coef, end @ world.values, path_kl, kl(end, start))
                    spread = f"{factor.max() / factor.min():.3g}"
                    writer.writerow([name, spread, penalty, *(f"{number:.5g}" for number in numbers)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
