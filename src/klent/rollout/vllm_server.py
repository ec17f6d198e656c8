"""vLLM as a server, as far as klent asks it: sample and score over HTTP, and load weights from a folder.

    POST /v1/completions      prompts as token ids; completions with their ids and log-probabilities
    POST /collective_rpc      reload_weights, from a folder that this process has written
    POST /reset_prefix_cache  forget keys and values of the earlier weights

The last two are there when the server was started with ``VLLM_SERVER_DEV_MODE=1``.
"""

import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypedDict, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from klent.errors import ModelError
from klent.rollout.transformers_engine import SamplingOptions
from klent.rollout.vllm_library import Answer, Question

TOGETHER = 64  # requests under way at a time; the server batches them
PATIENCE = 1800.0  # seconds for one answer
START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm"


class _Logprobs(TypedDict):
    token_logprobs: list[float]


class _Choice(TypedDict):
    index: int
    token_ids: list[int]
    logprobs: _Logprobs
    finish_reason: str
    prompt_logprobs: list[dict[str, dict[str, float]] | None]


class VllmServer:
    """One model in a vLLM server; a :class:`klent.rollout.vllm_engine.Library`.

    Args:
        url: where it listens, such as ``http://localhost:8000``.
        folder: where weights are written for it to read; None = a temporary folder of this machine.

    Raises:
        ModelError: nothing answers there, or no vLLM does; or the folder cannot be written.
    """

    tokenizer = None
    """It is asked about token ids alone, and a certificate shows whether they mean the same."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        models = self._ask("/v1/models")["data"]
        self.name = cast("list[dict[str, str]]", models)[0]["id"]
        try:
            self._scratch = tempfile.TemporaryDirectory(prefix="klent-weights-", dir=folder)
        except OSError as error:
            raise ModelError(
                f"rollout.server_folder: cannot write weights below {folder} ({error.strerror}). Name a folder that "
                "exists, and that the server sees under the same name"
            ) from error

    def sample(
        self, questions: Sequence[Question], options: SamplingOptions, stop_ids: Sequence[int]
    ) -> list[list[Answer]]:
        """Completions of every prompt, in its order."""
        shared: dict[str, object] = {
            "temperature": options.temperature,
            "stop": list(options.stop),
            "stop_token_ids": list(stop_ids),
            "ignore_eos": True,  # the policy's own stop tokens are asked for, and no others
            "skip_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
        }
        asked = [
            {
                **shared,
                "prompt": list(question.ids),
                "n": question.answers,
                "seed": question.seed,
                "max_tokens": question.longest,
            }
            for question in questions
        ]
        return [[_answer(choice) for choice in choices] for choices in self._complete(asked)]

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """Of (prompt, tokens): the log-probability of each token at temperature 1, nats."""
        asked = [
            {"prompt": [*prompt, *tokens], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
            for prompt, tokens in rows
        ]
        scored = []
        for (choice,), (_, tokens) in zip(self._complete(asked), rows, strict=True):
            given = choice["prompt_logprobs"][-len(tokens) :]
            by_token = [(by_id or {})[str(token)] for by_id, token in zip(given, tokens, strict=True)]
            scored.append(torch.tensor([one["logprob"] for one in by_token]))
        return scored

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Have the server take over weights under Hugging Face's names, and forget its cache of earlier ones."""
        folder = Path(self._scratch.name)
        unfinished, file = folder / "weights.part", folder / "model.safetensors"
        seen: dict[int, str] = {}
        own: dict[str, Tensor] = {}
        for name, weight in weights:  # a tied head is written once, and tied there too
            if seen.setdefault(weight.data_ptr(), name) == name:
                own[name] = weight.detach().contiguous()
        save_file(own, unfinished, metadata={"format": "pt"})
        os.chmod(folder, 0o755)  # the server may be another user
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, file)
        self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self._ask("/reset_prefix_cache", {})

    def _complete(self, asked: Sequence[Mapping[str, object]]) -> list[list[_Choice]]:
        """The choices of each request, in order; what a model's folder would set otherwise is set here."""
        usual = {"model": self.name, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

        def one(request: Mapping[str, object]) -> list[_Choice]:
            choices = cast("list[_Choice]", self._ask("/v1/completions", {**usual, **request})["choices"])
            return sorted(choices, key=lambda choice: choice["index"])

        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(one, asked))

    def _ask(self, path: str, body: Mapping[str, object] | None = None) -> Mapping[str, object]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                content = answer.read()
                said = json.loads(content) if content.strip() else {}
        except urllib.error.HTTPError as error:
            raise ModelError(_refused(self.url + path, error)) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ModelError(
                f"rollout.server: no vLLM answers at {self.url} ({reason}). Start one with `{START}`, or correct the "
                "address"
            ) from error
        return said if isinstance(said, dict) else {}


def _answer(choice: _Choice) -> Answer:
    finish: Literal["stop", "length"] = "stop" if choice["finish_reason"] == "stop" else "length"
    return Answer(
        list(choice["token_ids"]), [float(one) for one in choice["logprobs"]["token_logprobs"]], finish
    )


def _refused(address: str, error: urllib.error.HTTPError) -> str:
    said = error.read().decode("utf-8", "replace").strip()[:300] or error.reason
    if error.code == 404 and not address.endswith("/completions"):
        return f"rollout.server: {address} is not there, so weights cannot be loaded. Start it with `{START}`"
    return f"rollout.server: {address} refuses with status {error.code}: {said}"
