"""A denoiser of scikit-learn's 8x8 digits, trained in about a minute, and the study on it.

python examples/diffusion/digits.py pretrain MODEL       writes the model's folder
python examples/diffusion/digits.py study MODEL OUT.csv  reward against exact path KL of each method
"""

import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import klent
from klent.policies.denoiser.network import Denoiser, DenoiserConfig, save_denoiser

HERE = Path(__file__).parent
CONFIG = DenoiserConfig(size=64, hidden=256, layers=3, high=5.0, low=-6.0)
STEPS, TRAINED, SEEDS, COEF = 20, 25, (0, 1, 2), 0.1
ARMS = {
    "ddpo": {"method": "ddpo"},
    "dpok": {"method": "dpok", "loss": {"token_kl": {"coef": COEF}}},
    "path_kl": {"method": "dpok", "loss": {"token_kl": None, "sequence_kl": {"coef": COEF}}},
}


def images() -> torch.Tensor:
    """1,797 digits, ``[N, 64]``, from -1 (white) to 1 (black)."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1


def pretrain(folder: Path, *, steps: int = 4000, batch: int = 256, lr: float = 2e-3, seed: int = 0) -> float:
    """Least squares on the noise, at log-SNRs drawn uniformly; the loss at the end."""
    generator = torch.Generator().manual_seed(seed)
    data, net = images(), Denoiser(CONFIG, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    recent = 0.0
    for _ in range(steps):
        clean = data[torch.randint(len(data), (batch,), generator=generator)]
        log_snr = CONFIG.low + (CONFIG.high - CONFIG.low) * torch.rand(batch, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        x = torch.sigmoid(log_snr).sqrt()[:, None] * clean + torch.sigmoid(-log_snr).sqrt()[:, None] * noise
        loss = (net(x, log_snr) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent = 0.99 * recent + 0.01 * loss.item() if recent else loss.item()
    save_denoiser(net, folder)
    return recent


def study(model: Path, out: Path) -> None:
    """A row for each step of each run; finished runs are kept."""
    done = set()
    if out.exists():
        done = {(row["method"], row["seed"]) for row in csv.DictReader(out.open())}
    with out.open("a", newline="") as file, tempfile.TemporaryDirectory() as folder:
        writer = csv.writer(file)
        if not done:
            writer.writerow(["method", "seed", "step", "reward", "path_kl", "seconds"])
        for seed in SEEDS:
            for method, arm in ARMS.items():
                if (method, str(seed)) in done:
                    continue
                run = klent.train(
                    {
                        "name": "run",
                        "model": str(model),
                        "task": {"noise": 64},
                        "reward": f"{HERE / 'rewards.py'}:looks_like",
                        "steps": TRAINED,
                        "seed": seed,
                        "prompts_per_step": 2,
                        "group_size": 48,
                        "optimizer": {"lr": 2e-5},
                        "checkpoint": {"every": 0},
                        "eval": None,
                        **arm,
                        "rollout": {"engine": "policy", "actions": STEPS},
                    },
                    runs=Path(folder) / f"{method}-{seed}",
                    quiet=True,
                )
                for row in run.metrics:
                    numbers = (row["reward/mean"], row["kl/sequence"], row["time/step"])
                    writer.writerow([method, seed, row["step"], *(f"{number:.5g}" for number in numbers)])
                file.flush()
                print(json.dumps({"method": method, "seed": seed, "reward": run.metrics[-1]["reward/mean"]}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "pretrain":
        started = time.perf_counter()
        print(f"loss {pretrain(Path(sys.argv[2])):.4f}, {time.perf_counter() - started:.0f} s")
    else:
        study(Path(sys.argv[2]), Path(sys.argv[3]))
