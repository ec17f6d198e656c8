"""klent's objective over Tinker's protocol, here a local stub: forward, custom loss, backward of a surrogate."""

from dataclasses import dataclass, field

import pytest
import torch
from helpers_training import GRPO, batch, gradient, updater
from tiny import tiny_model

from klent.errors import ConfigError, DataError
from klent.integrations.tinker import custom_loss
from klent.training.objective import Objective


class TensorData:
    """As Tinker's: a tensor behind ``to_torch``."""

    def __init__(self, values) -> None:
        self.values = torch.as_tensor(values)

    def to_torch(self) -> torch.Tensor:
        return self.values


@dataclass
class Datum:
    ids: list[int]
    loss_fn_inputs: dict[str, TensorData] = field(default_factory=dict)


class Client:
    """``forward_backward_custom`` in two phases: the server sees log-probabilities' coefficients, and no loss."""

    def __init__(self, model) -> None:
        self.model = model

    def forward(self, data):
        rows = []
        for datum in data:
            ids = torch.tensor([datum.ids])
            logits = self.model(ids[:, :-1]).logits.log_softmax(-1)
            rows.append(logits.gather(-1, ids[:, 1:, None])[0, :, 0])
        return rows

    def forward_backward_custom(self, data, loss_fn):
        with torch.no_grad():
            shown = self.forward(data)
        leaves = [row.clone().requires_grad_() for row in shown]
        loss, metrics = loss_fn(data, leaves)
        loss.backward()
        surrogate = sum((leaf.grad * row).sum() for leaf, row in zip(leaves, self.forward(data), strict=True))
        surrogate.backward()
        return float(loss), metrics


def data_of(rows, *, with_reference=False) -> list[Datum]:
    """The completions of a batch, with the prompt's targets masked out."""
    made = []
    sampled = rows.streams.logp_gen if rows.streams.logp_old is None else rows.streams.logp_old
    for row, episode in enumerate(rows.episodes):
        ids = [*episode.prompt_ids, *episode.tokens.tolist()]
        before = len(episode.prompt_ids) - 1
        zeros = torch.zeros(before)
        inputs = {
            "target_tokens": TensorData(ids[1:]),
            "mask": TensorData(torch.cat([zeros, torch.ones(len(episode.tokens))])),
            "logprobs": TensorData(torch.cat([zeros, sampled[row, : len(episode.tokens)]])),
            "reward": TensorData([float(rows.reward[row])]),
            "group": TensorData([int(rows.group[row])]),
        }
        if with_reference:
            reference = rows.streams.logp_ref[row, : len(episode.tokens)]
            inputs["logp_ref"] = TensorData(torch.cat([zeros, reference]))
        made.append(Datum(ids, inputs))
    return made


@pytest.mark.parametrize("over", ["tokens", "sequences"])
@pytest.mark.parametrize("reference", [False, True])
def test_its_gradient_is_klents(over, reference):
    """Away from the sampler's policy, with prompts and completions of unequal length, one unscorable."""
    rows = batch([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, float("nan"), 0.25, 0.0, 0.0, 0.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    moved = 0.2 * torch.randn(rows.mask.shape, generator=generator)
    rows.streams.logp_old = torch.where(rows.mask, rows.streams.logp_gen + moved, 0.0)
    rows.streams.logp_ref = torch.where(rows.mask, rows.streams.logp_gen - moved, 0.0)
    terms = {**GRPO[0], **({"kl_in_loss": {"coef": 0.3}} if reference else {})}
    expected = gradient(updater(Objective(terms, *GRPO[1:]), reduce={"over": over}, shared=False), rows)
    model = tiny_model()
    sections = {"loss": terms, "advantage": GRPO[1], "reduce": {"over": over}}
    loss, metrics = Client(model).forward_backward_custom(
        data_of(rows, with_reference=reference), custom_loss(sections, group_size=4)
    )
    size = max(float(value.abs().max()) for value in expected.values())
    assert size > 1e-3
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=2e-6 * max(size, 1), rtol=1e-4)
    assert 0 < metrics["klent/clip_high"] < 1
    assert loss != 0


def test_advantages_of_the_data_are_taken_as_they_are():
    rows = batch()
    data = data_of(rows)
    logp = [torch.full((len(d.ids) - 1,), -1.0, requires_grad=True) for d in data]
    for datum in data:
        del datum.loss_fn_inputs["reward"], datum.loss_fn_inputs["logprobs"]
        datum.loss_fn_inputs["advantages"] = TensorData(torch.full((len(datum.ids) - 1,), 2.0))
    loss, _ = custom_loss({"loss": {"reinforce": {}}, "reduce": {"over": "tokens"}}, group_size=4)(data, logp)
    assert float(loss) == pytest.approx(2.0)


def test_a_step_in_which_nothing_is_counted_is_0_and_not_nan():
    data = data_of(batch())
    for datum in data:
        datum.loss_fn_inputs["mask"] = TensorData(torch.zeros(len(datum.ids) - 1))
    logp = [torch.zeros(len(d.ids) - 1, requires_grad=True) for d in data]
    loss, _ = custom_loss("dapo", group_size=4)(data, logp)
    loss.backward()
    assert float(loss) == 0
    assert not any(row.grad.any() for row in logp)


def test_what_cannot_be_is_refused():
    for objective, words in (
        ({"method": "grpo", "loss": {"entropy_loss": {"coef": -0.1}}}, "reads entropy, and Tinker gives"),
        ("top20", "reads entropy"),
        ("ppo", "objective needs value"),
        ({"method": "grpo", "lr": 1.0}, "objective has lr"),
    ):
        with pytest.raises(ConfigError, match=words):
            custom_loss(objective, group_size=4)
    loss = custom_loss("grpo", group_size=4)
    data = data_of(batch())
    logp = [torch.zeros(len(d.ids) - 1) for d in data]
    data[3].loss_fn_inputs["mask"] = TensorData([1.0])
    with pytest.raises(DataError, match="datum 3 has 1 values of `mask`"):
        loss(data, logp)
    data = data_of(batch())
    for datum in data:
        del datum.loss_fn_inputs["reward"]
    with pytest.raises(DataError, match="give each datum `reward`"):
        loss(data, logp)
    data = data_of(batch())
    del data[5].loss_fn_inputs["reward"]
    with pytest.raises(DataError, match="give `reward` to every datum, as one number, or to none; 1 of 12"):
        loss(data, logp)
