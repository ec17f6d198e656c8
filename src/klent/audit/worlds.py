"""Languages small enough to list every sequence, and policies whose prefixes share parameters.

An expectation over samples is then a finite sum, exact to the last digits of a float64, and the expected
gradient of a loss can be compared with the gradient of its intended objective.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from klent.audit.measures import TO_REFERENCE, Measure, total_variation

#: features of a prefix from which next-token logits are computed, where prefixes share parameters
FEATURES = 4


@dataclass(frozen=True)
class World:
    """Every sequence over a small vocabulary.

    Attributes:
        vocabulary: its size, V.
        tokens: the sequences, ``[n, T]`` token ids, padded on the right.
        mask: True on their tokens, ``[n, T]`` bool.
        prefix: index of the prefix before each token, ``[n, T]``; N prefixes in total.
        visits: 1 where a sequence passes through a prefix, ``[n, N]``.
    """

    vocabulary: int
    tokens: Tensor
    mask: Tensor
    prefix: Tensor
    visits: Tensor


@dataclass(frozen=True)
class Scene:
    """A world and the three policies in it, softmax models with parameters ``[features, V]``.

    Attributes:
        world: the sequences.
        features: the input of a policy for each prefix, ``[N, features]``.
        policy: parameters of the policy being trained.
        reference: parameters of the reference policy.
        behaviour: parameters of the policy that sampled the sequences.
        reward: reward of each sequence, ``[n]``.
    """

    world: World
    features: Tensor
    policy: Tensor
    reference: Tensor
    behaviour: Tensor
    reward: Tensor

    @property
    def off_policy(self) -> bool:
        return self.behaviour is not self.policy

    def on_policy(self) -> "Scene":
        """The same scene where the policy itself has sampled the sequences."""
        return replace(self, behaviour=self.policy)

    def log_probs(self, parameters: Tensor) -> Tensor:
        """Log-probability of each token after each prefix, ``[N, V]`` nats."""
        return (self.features @ parameters).log_softmax(dim=1)

    def token_logp(self, parameters: Tensor) -> Tensor:
        """Log-probability of each token of each sequence, ``[n, T]`` nats, 0 on padding."""
        logp = self.log_probs(parameters)[self.world.prefix, self.world.tokens]
        return torch.where(self.world.mask, logp, 0.0)

    def sequence_logp(self, parameters: Tensor) -> Tensor:
        """Log-probability of each sequence, ``[n]`` nats."""
        return self.token_logp(parameters).sum(dim=1)

    def prefix_probability(self, parameters: Tensor) -> Tensor:
        """Probability that a sequence passes through each prefix, ``[N]``."""
        return self.sequence_logp(parameters).exp() @ self.world.visits


@dataclass(frozen=True)
class Sample:
    """All sequences of a scene with the numbers that a trainer has for each token, ``[n, T]``.

    Attributes:
        streams: name -> tensor, the arguments of a loss; 0 off the mask.
        probability: probability of each sequence under the behaviour policy, ``[n]``.
        slope: stream that is trained -> its derivative in the parameters at each token, ``[n, T, P]``.
    """

    streams: dict[str, Tensor]
    probability: Tensor
    slope: dict[str, Tensor]


@functools.lru_cache(maxsize=128)
def sample(scene: Scene) -> Sample:
    """List a scene's sequences with their probabilities and every stream that a loss may take."""
    world, mask = scene.world, scene.world.mask
    probability = scene.sequence_logp(scene.behaviour).exp()
    logp = scene.log_probs(scene.policy)
    reference, behaviour = scene.log_probs(scene.reference), scene.log_probs(scene.behaviour)
    entropy = -(logp.exp() * logp).sum(dim=1)
    measured = {name: measure(logp, reference) for name, measure in TO_REFERENCE.items()}
    logp_old = scene.token_logp(scene.behaviour)
    streams = {
        "logp": scene.token_logp(scene.policy),
        "logp_old": logp_old,
        "logp_gen": logp_old.clone(),
        "logp_ref": scene.token_logp(scene.reference),
        "entropy": torch.where(mask, entropy[world.prefix], 0.0),
        "advantage": torch.where(mask, (scene.reward - probability @ scene.reward)[:, None], 0.0),
        **{name: torch.where(mask, value[world.prefix], 0.0) for name, value in measured.items()},
        "distance": torch.where(mask, total_variation(logp, behaviour)[world.prefix], 0.0),
        "mask": mask,
    }
    score, entropy_slope = _slopes(scene, logp, entropy)
    slope = {"logp": score[world.prefix, world.tokens], "entropy": entropy_slope[world.prefix]}
    for name, measure in TO_REFERENCE.items():
        slope[name] = _slope_of(measure, scene, logp, reference)[world.prefix]
    return Sample(streams, probability, {name: of * mask[..., None] for name, of in slope.items()})


def _slopes(scene: Scene, logp: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives in the parameters: of log-probabilities, ``[N, V, P]``, and of entropies, ``[N, P]``.

    A softmax has d log p(v) / d logit(k) = [v = k] - p(k), and dH / d logit(k) = -p(k)·(log p(k) + H).
    """
    p = logp.exp()
    in_logits = torch.eye(scene.world.vocabulary, dtype=p.dtype) - p[:, None, :]
    score = torch.einsum("nvk,nf->nvfk", in_logits, scene.features)
    slope = torch.einsum("nk,nf->nfk", -p * (logp + entropy[:, None]), scene.features)
    return score.flatten(2), slope.flatten(1)


def _slope_of(measure: Measure, scene: Scene, logp: Tensor, other: Tensor) -> Tensor:
    """Derivative in the parameters of a measure of each prefix's distribution, ``[N, P]``.

    With d the derivative in the log-probabilities, that in the logits is d - p·Σd.
    """
    leaf = logp.clone().requires_grad_()
    (of_logp,) = torch.autograd.grad(measure(leaf, other).sum(), leaf)
    in_logits = of_logp - logp.exp() * of_logp.sum(dim=1, keepdim=True)
    return torch.einsum("nk,nf->nfk", in_logits, scene.features).flatten(1)


def build_world(vocabulary: int, length: int, *, stop: bool = False) -> World:
    """Every sequence of ``length`` tokens; with ``stop``, token 0 ends a sequence early."""
    sequences: list[list[int]] = [[]]
    for _ in range(length):
        sequences = [
            sequence + step
            for sequence in sequences
            for step in ([[]] if stop and 0 in sequence else [[token] for token in range(vocabulary)])
        ]
    prefixes = sorted({tuple(s[:t]) for s in sequences for t in range(len(s))})
    index_of = {prefix: index for index, prefix in enumerate(prefixes)}
    tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    prefix = torch.zeros(len(sequences), length, dtype=torch.long)
    visits = torch.zeros(len(sequences), len(prefixes), dtype=torch.float64)
    for row, sequence in enumerate(sequences):
        for t, token in enumerate(sequence):
            before = index_of[tuple(sequence[:t])]
            tokens[row, t], mask[row, t], prefix[row, t], visits[row, before] = token, True, before, 1.0
    return World(vocabulary, tokens, mask, prefix, visits)


def draw_scene(world: World, seed: int, *, apart: float = 0.6) -> Scene:
    """Random policies: a reference unrelated to the policy, a behaviour policy some updates away from it.

    Args:
        world: the sequences.
        seed: seed of the draw.
        apart: standard deviation of the logits of a policy. At 0.6 the log-ratio of a token to the reference
            stays below 2.4 and that to the behaviour policy below 1.2: as in a run, and within the clamps of
            common losses.
    """
    random = np.random.default_rng(seed)
    prefixes = world.visits.shape[1]
    features = np.ones((1, 1))
    if prefixes > 1:
        features = random.uniform(-(3**0.5), 3**0.5, size=(prefixes, FEATURES))

    def parameters(scale: float) -> Tensor:
        count = features.shape[1]
        return torch.from_numpy(random.normal(scale=scale / count**0.5, size=(count, world.vocabulary)))

    policy = parameters(apart)
    return Scene(
        world,
        torch.from_numpy(features),
        policy,
        reference=parameters(apart),
        behaviour=policy + parameters(apart / 2),
        reward=torch.from_numpy(random.normal(size=len(world.tokens))),
    )


@functools.cache
def one_position() -> tuple[Scene, ...]:
    """One token from a vocabulary of five: a sequence and its token are the same thing."""
    world = build_world(5, 1)
    return tuple(draw_scene(world, seed) for seed in range(6))


@functools.cache
def far_apart() -> tuple[Scene, ...]:
    """One token from a vocabulary of five, by policies that hardly agree: log-ratios beyond 20 nats."""
    world = build_world(5, 1)
    return tuple(draw_scene(world, seed, apart=12.0) for seed in range(30, 33))


@functools.cache
def equal_lengths() -> tuple[Scene, ...]:
    """Three tokens from a vocabulary of three: 27 sequences."""
    world = build_world(3, 3)
    return tuple(draw_scene(world, seed) for seed in range(10, 13))


@functools.cache
def two_tokens() -> tuple[Scene, ...]:
    """Two tokens from a vocabulary of three: 9 sequences, so that there are few pairs of them."""
    world = build_world(3, 2)
    return tuple(draw_scene(world, seed) for seed in range(40, 43))


@functools.cache
def unequal_lengths() -> tuple[Scene, ...]:
    """Up to three tokens from a vocabulary of three with a stop token: 15 sequences, some padded."""
    world = build_world(3, 3, stop=True)
    return tuple(draw_scene(world, seed) for seed in range(20, 23))
