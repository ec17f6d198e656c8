"""vLLM as a server, over a local stub of its protocol: what is asked over HTTP, and what is made of the answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers_training import PROMPTS
from safetensors.torch import load_file
from tiny import END, TURN_END, tiny_model, tiny_tokenizer
from worlds import Threads

from klent.config import make_recipe
from klent.errors import ConfigError, ModelError, SyncError
from klent.models.load import LoadedModel
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.transformers_engine import SamplingOptions
from klent.rollout.vllm_engine import VllmEngine
from klent.rollout.vllm_server import VllmServer
from klent.runs.build import build_parts
from klent.runs.parts import Around


class Stub:
    """A server over a tiny model of its own; ``fault`` is what it does wrong."""

    def __init__(self, fault: str = "") -> None:
        self.model = tiny_model(seed=5)
        self.fault = fault
        self.asked: list[tuple[str, dict]] = []
        self.resets = 0

    @torch.no_grad()
    def answer(self, path: str, body: dict) -> dict | None:
        """None = there is no such path."""
        self.asked.append((path, body))
        if path == "/v1/models":
            return {"data": [{"id": "tiny"}]}
        if path == "/v1/completions":
            choices = [self.choice(body, index) for index in range(body.get("n", 1))]
            return {"choices": choices[::-1]}  # in any order, as they end
        if self.fault == "no dev mode":
            return None
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            if self.fault != "old weights":
                (file,) = Path(body["kwargs"]["weights_path"]).glob("*.safetensors")
                missing = self.model.load_state_dict(load_file(file), strict=False)
                assert missing.missing_keys in ([], ["lm_head.weight"])  # tied
            return {"results": [None]}
        assert path == "/reset_prefix_cache"
        self.resets += 1
        return {}

    @torch.no_grad()
    def choice(self, body: dict, index: int) -> dict:
        generator = torch.Generator().manual_seed(body.get("seed", 0) + index)
        prompt, tokens, logp = body["prompt"], [], []
        temperature = 2.0 if self.fault == "wrong temperature" else body["temperature"]
        finish = "length"
        while len(tokens) < body["max_tokens"] and finish == "length":
            logits = self.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            distribution = (logits / temperature).softmax(-1)
            tokens.append(int(torch.multinomial(distribution, 1, generator=generator)))
            logp.append(float(distribution[tokens[-1]].log()))
            finish = "stop" if tokens[-1] in body.get("stop_token_ids", ()) else "length"
        made = {"index": index, "text": "", "finish_reason": finish}
        if "logprobs" in body:
            made |= {"token_ids": tokens, "logprobs": {"token_logprobs": logp}}
        if "prompt_logprobs" in body:
            every = self.model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
            said = [{str(t): {"logprob": float(row[t])}} for row, t in zip(every, prompt[1:], strict=True)]
            made["prompt_logprobs"] = [None, *said]
        return made


@pytest.fixture
def serve():
    """Starts a stub; gives its address."""
    started = []

    def start(stub: Stub) -> str:
        class Handler(BaseHTTPRequestHandler):
            def respond(self, body: dict) -> None:
                said = stub.answer(self.path, body)
                self.send_response(404 if said is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(said or {"detail": "Not Found"}).encode())

            def do_GET(self) -> None:
                self.respond({})

            def do_POST(self) -> None:
                self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


VALUES = {
    "model": "model",
    "method": "grpo",
    "task": {"data": "x.jsonl"},
    "reward": "last_number",
    "steps": 1,
}


def engine(url: str, folder: Path | None = None) -> VllmEngine:
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (END, TURN_END))
    options = SamplingOptions(max_tokens=12, temperature=0.8, stop=("never",))
    return VllmEngine(loaded, options, VllmServer(url, folder), dtype="float32")


def policy_of(sampler: VllmEngine) -> CausalPolicy:
    return CausalPolicy(sampler.loaded.model, temperature=0.8)


def test_weights_arrive_and_numbers_are_those_of_the_distribution_sampled(serve, tmp_path):
    stub = Stub()
    sampler = engine(serve(stub) + "/v1/", tmp_path)
    policy = policy_of(sampler)
    assert sampler.sync(policy).gap < 1e-5
    with torch.no_grad():
        for parameter in sampler.loaded.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert sampler.sync(policy).arrived == pytest.approx(1.0, abs=1e-3)
    assert stub.resets == 2
    episodes = sampler.generate(PROMPTS, group_size=3, seed=1)
    assert [episode.prompt.id for episode in episodes] == [p.id for p in PROMPTS for _ in range(3)]
    assert {episode.finish for episode in episodes} == {"stop", "length"}
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        logits = sampler.loaded.model(ids).logits[0, len(episode.prompt_ids) - 1 : -1].detach() / 0.8
        taken = logits.log_softmax(-1).gather(1, episode.tokens[:, None])[:, 0]
        assert torch.allclose(episode.logp, taken, atol=1e-5)
        assert (episode.finish == "stop") == (episode.tokens[-1] in (END, TURN_END))
    body = [body for path, body in stub.asked if path == "/v1/completions"][-1]
    last = [episode for episode in episodes if episode.prompt_ids == body["prompt"]]
    assert [e.tokens.tolist() for e in last] == [stub.choice(body, k)["token_ids"] for k in range(3)]
    again = sampler.generate(PROMPTS[:1], group_size=3, seed=1)
    assert [e.tokens.tolist() for e in again] == [e.tokens.tolist() for e in episodes[:3]]
    assert len({str(e.tokens.tolist()) for e in again}) > 1


def test_what_is_asked_leaves_nothing_to_the_servers_defaults(serve):
    stub = Stub()
    sampler = engine(serve(stub))
    sampler.generate(PROMPTS[:1], group_size=2, seed=1)
    (body,) = [body for path, body in stub.asked if path == "/v1/completions"]
    assert isinstance(body.pop("seed"), int)
    assert body.pop("prompt") == sampler._encode(PROMPTS[0])
    assert body == {
        "model": "tiny",
        "n": 2,
        "max_tokens": 12,
        "temperature": 0.8,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": ["never"],
        "stop_token_ids": [END, TURN_END],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


@pytest.mark.parametrize(("fault", "cause"), [("old weights", "other weights"), ("wrong temperature",) * 2])
def test_a_server_that_does_otherwise_stops_the_run(serve, fault, cause):
    sampler = engine(serve(Stub(fault)))
    with pytest.raises(SyncError) as caught:
        sampler.sync(policy_of(sampler))
    assert caught.value.cause == cause


def test_what_is_wrong_with_the_server_is_said(serve, tmp_path):
    with pytest.raises(ModelError, match=r"no vLLM answers at http://127\.0\.0\.1:1 .*vllm serve MODEL"):
        VllmServer("http://127.0.0.1:1")
    url = serve(Stub("no dev mode"))
    with pytest.raises(ModelError, match=r"server_folder: cannot write weights below .*nowhere"):
        VllmServer(url, tmp_path / "nowhere")
    sampler = engine(url)
    with pytest.raises(ModelError, match=r"collective_rpc is not there.*VLLM_SERVER_DEV_MODE=1"):
        sampler.sync(policy_of(sampler))


def test_several_ranks_are_refused_before_a_model_is_loaded():
    made = make_recipe(VALUES | {"rollout": {"engine": "vllm", "server": "http://127.0.0.1:1"}})
    around = Around(lambda done, of: None, pytest.fail, world=Threads(2).seat(0))
    with pytest.raises(ConfigError, match=r"rollout\.server is one engine, and 2 ranks"):
        build_parts(made, around)


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        ({"server": "localhost:8000"}, r"rollout\.server"),
        ({"server_folder": "weights"}, r"rollout\.server_folder: is not used without rollout\.server"),
        ({"server": "http://x:1", "cache_gb": 2}, r"rollout\.cache_gb: is not used with rollout\.server"),
        ({"server": "http://x:1", "engine": "transformers"}, "only by a vllm engine"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(rollout, reason):
    with pytest.raises(ConfigError, match=reason):
        make_recipe(VALUES | {"rollout": {"engine": "vllm", **rollout}})
