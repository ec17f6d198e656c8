"""The runs behind entropy_seeds.py: a small policy, klent and TRL on it, and TRL on klent's completions.

python benchmarks/entropy_workers.py JOB.json        # as entropy_seeds.py calls it
"""

import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Rows = list[dict[str, Any]]
RECIPE = """\
name: digits
model: {folder}
method: grpo
task: {{data: {folder}/problems.jsonl}}
reward: last_number
steps: {steps}
prompts_per_step: 8
group_size: 8
rollout: {{max_tokens: 12}}
optimizer: {{lr: {lr}, schedule: linear}}
"""
WAYS = ("a {b},{n}", "b>{n}", "{n}", "d #{n}")
SLIP = 0.7  # share of the later pretraining texts whose digit is drawn at random


def pretrain(folder: Path, steps: int, lr: float) -> Path:
    """The model, all 100 problems, and the recipe, whose path is returned."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    sys.path.insert(0, str(ROOT / "examples" / "small_model"))
    from pretrain import END, IGNORED, PAD, build_model, build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer, model = build_tokenizer(), build_model(64, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(250):
        slip = SLIP if step >= 150 else 0.0
        texts = []
        for _ in range(64):
            a, b = rng.randrange(10), rng.randrange(10)
            n = rng.randrange(10) if rng.random() < slip else a
            text = f"{a},{b}=?" + rng.choice(WAYS).format(a=a, b=b, n=n)
            texts.append(torch.tensor([*tokenizer(text).input_ids, END]))
        ids, labels = (pad_sequence(texts, batch_first=True, padding_value=value) for value in (PAD, IGNORED))
        labels[:, :5] = IGNORED  # the prompt
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"{a},{b}=?", "answer": str(a)} for a, b in product(range(10), repeat=2)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, steps=steps, lr=lr))
    return folder / "recipe.yaml"


def recipe_of(job: dict[str, Any], seed: int) -> Any:
    """The recipe of one run; the problems do not depend on the seed."""
    from klent.config import load_recipe

    fixed = ["eval=null", "checkpoint.every=0", "task.seed=0", f"seed={seed}"]
    return load_recipe(job["recipe"], [*job["set"], *fixed])


def surprise(logp: Any, entropy: Any, mask: Any) -> dict[str, float]:
    """The sum of ``-log p - H`` over tokens, the sum of its squares, and the number of tokens."""
    excess = (-logp - entropy)[mask].double()
    return {
        "surprise": float(excess.sum()),
        "surprise_squares": float(excess.square().sum()),
        "tokens": int(mask.sum()),
    }


@contextmanager
def gradients(named: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The gradient by name as it is when it is clipped, which both trainers do in torch's function."""
    import torch

    seen: dict[str, Any] = {}
    original = torch.nn.utils.clip_grad_norm_

    def watched(*args: Any, **options: Any) -> Any:
        seen.clear()
        seen.update({name: p.grad.detach().clone() for name, p in named().items() if p.grad is not None})
        return original(*args, **options)

    torch.nn.utils.clip_grad_norm_ = watched
    try:
        yield seen
    finally:
        torch.nn.utils.clip_grad_norm_ = original


def weights(named: dict[str, Any]) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in named.items()}


def run_klent(job: dict[str, Any], seed: int, folder: Path) -> Rows:
    """A run whose final weights are left in ``folder``; with ``keep`` all that a replay needs, step by step."""
    import torch

    from klent.runs.loop import Loop
    from klent.runs.train import train

    rows: Rows = []
    named: dict[str, Any] = {}
    original = Loop.step
    keep = job.get("keep")

    def step(self: Loop, number: int) -> Any:
        named.update(self.updater.policy.trainable())
        if keep and number == 1:
            torch.save(weights(named), f"{keep}/weights_0.pt")
        seen.clear()  # where no group has a gradient there is no update, and nothing to clip
        record = original(self, number)
        streams, mask = record.batch.streams, record.batch.mask
        rows.append(
            {
                "reward": record.row["reward/mean"],
                "entropy": float(streams.entropy_gen[mask].double().mean()),
                "length": float(mask.sum(1).double().mean()),
            }
            | surprise(streams.logp_gen, streams.entropy_gen, mask)
        )
        if keep:
            kept = {
                "prompts": [e.prompt_ids for e in record.batch.episodes],
                "completions": [e.tokens.tolist() for e in record.batch.episodes],
                "gradient": dict(seen),
                "advantage": streams.advantage,
            }
            torch.save(kept, f"{keep}/step_{number}.pt")
            torch.save(weights(named), f"{keep}/weights_{number}.pt")
        return record

    Loop.step = step  # type: ignore[method-assign]
    try:
        with gradients(lambda: named if keep else {}) as seen:
            train(recipe_of(job, seed), folder, command="benchmarks/entropy_seeds.py")
    finally:
        Loop.step = original  # type: ignore[method-assign]
    return rows


def run_trl(job: dict[str, Any], seed: int, folder: Path) -> Rows:
    """TRL's GRPOTrainer on the same problems; with ``keep`` on klent's completions, compared step by step."""
    import torch
    from datasets import Dataset
    from step import messages
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from klent.models.locate import locate_model
    from klent.tasks import load_task
    from klent.tasks.verifiers import last_number

    recipe = recipe_of(job, seed)
    source = str(locate_model(recipe.model))
    tokenizer = AutoTokenizer.from_pretrained(source)
    chat = tokenizer.chat_template is not None
    task = load_task(recipe.task, seed=seed, heldout=0, needed=())
    problems = [task.train(i) for i in range(recipe.steps * recipe.prompts_per_step)]
    data = Dataset.from_list(
        [
            {"prompt": messages(p.prompt) if chat else p.prompt, "answer": p.columns["answer"]}
            for p in problems
        ]
    )
    rows: Rows = []
    replay = job.get("keep")

    class Watched(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **options: Any) -> Any:
            if not replay:
                return super()._generate_single_turn(prompt_ids, *args, **options)
            kept = torch.load(f"{replay}/step_{self.state.global_step + 1}.pt")
            if prompt_ids != kept["prompts"]:
                sys.exit("the trainers do not read the same prompts")
            return kept["completions"], None

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, **options: Any
        ) -> Any:
            out = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
            mask = attention_mask[:, -logits_to_keep:].bool()
            rows.append(surprise(out[0].detach(), out[1].detach(), mask))
            return out

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **__: Any) -> None:
            if replay:
                rows[-1] |= compared(Path(replay), state.global_step, dict(seen), weights(named))

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **__: Any) -> None:
            if "reward" in logs:
                rows[-1] |= {"reward": logs["reward"], "entropy": logs["entropy"]}
                rows[-1] |= {"length": logs["completions/mean_length"]}

    def reward(prompts: Any, completions: Any, answer: Any, **_: Any) -> Any:
        texts = [c[0]["content"] if chat else c for c in completions]
        return last_number(prompts, texts, answer=answer)

    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.prompts_per_step * recipe.group_size,
        num_generations=recipe.group_size,
        max_completion_length=recipe.rollout.max_tokens,
        max_steps=recipe.steps,
        learning_rate=recipe.optimizer.lr,
        lr_scheduler_type=recipe.optimizer.schedule,
        adam_beta1=recipe.optimizer.betas[0],
        adam_beta2=recipe.optimizer.betas[1],
        loss_type="grpo",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=True,
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    policy = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    named = dict(policy.named_parameters())
    trainer = Watched(
        policy,
        reward,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    with gradients(lambda: named if replay else {}) as seen:
        trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    plain.load_state_dict(policy.state_dict())
    plain.save_pretrained(folder / "final")
    tokenizer.save_pretrained(folder / "final")
    return rows


def compared(kept: Path, step: int, gradient: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """How far TRL's gradient and weights are from klent's, as shares of the gradient and of the way gone."""
    import torch

    ours = torch.load(kept / f"step_{step}.pt")
    start, end = torch.load(kept / "weights_0.pt"), torch.load(kept / f"weights_{step}.pt")

    def norm(of: Callable[[str], Any]) -> float:
        return math.sqrt(sum(float(of(name).double().square().sum()) for name in end))

    our = ours["gradient"]
    if any(set(names) != set(end) for names in (gradient, our or end)):
        sys.exit("the trainers do not train the same parameters")
    way = norm(lambda n: end[n] - start[n])
    apart = {"way": way, "weights_gap": norm(lambda n: after[n] - end[n]) / way}
    if not our:
        return {"gradient_norm": 0.0, "gradient_gap": norm(lambda n: gradient[n])} | apart
    length = norm(lambda n: our[n])
    return {
        "gradient_norm": length,
        "gradient_gap": norm(lambda n: gradient[n] - our[n]) / length,
    } | apart


WORKERS = {"klent": run_klent, "trl": run_trl}


def worker(path: Path) -> None:
    """The runs of a job, one seed after another; rows go to its ``out``."""
    import torch

    torch.set_num_threads(1)
    job = json.loads(path.read_text())
    for seed in job["seeds"]:
        folder = Path(job["folder"]) / f"{job['trainer']}_{seed}"
        rows = WORKERS[job["trainer"]](job, seed, folder)
        (Path(job["folder"]) / f"{job['trainer']}_{seed}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
