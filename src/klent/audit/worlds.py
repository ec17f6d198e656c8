"""Languages so small that every sentence can be listed, and policies whose prefixes share parameters.

An expectation over samples is then a finite sum, exact to the last digits of a float64, and what a loss
does in expectation can be compared with what it was meant to do.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

#: numbers that describe a policy's next-token logits after a prefix, where prefixes share parameters
FEATURES = 4


@dataclass(frozen=True)
class World:
    """Every sequence over a few words.

    Attributes:
        words: size of the vocabulary, V.
        tokens: the sequences, ``[n, T]`` word numbers, padded on the right.
        mask: True on their tokens, ``[n, T]`` bool.
        prefix: number of the prefix before each token, ``[n, T]``; N prefixes in all.
        visits: 1 where a sequence passes through a prefix, ``[n, N]``.
    """

    words: int
    tokens: Tensor
    mask: Tensor
    prefix: Tensor
    visits: Tensor


@dataclass(frozen=True)
class Scene:
    """A world and the three policies in it, softmax models with parameters ``[features, V]``.

    Attributes:
        features: what a policy sees of each prefix, ``[N, features]``.
        policy: the parameters being trained.
        reference: of the reference policy.
        behaviour: of the policy that sampled the sequences.
        reward: of each sequence, ``[n]``.
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
        """Of each word after each prefix, ``[N, V]`` nats."""
        return (self.features @ parameters).log_softmax(dim=1)

    def token_logp(self, parameters: Tensor) -> Tensor:
        """Of each token of each sequence, ``[n, T]`` nats, 0 on padding."""
        logp = self.log_probs(parameters)[self.world.prefix, self.world.tokens]
        return torch.where(self.world.mask, logp, 0.0)

    def sequence_logp(self, parameters: Tensor) -> Tensor:
        """Of each sequence, ``[n]`` nats."""
        return self.token_logp(parameters).sum(dim=1)

    def prefix_probability(self, parameters: Tensor) -> Tensor:
        """How often each prefix is met, ``[N]``."""
        return self.sequence_logp(parameters).exp() @ self.world.visits


@dataclass(frozen=True)
class Sample:
    """All sequences of a scene with what a trainer would know about each token, ``[n, T]``.

    Attributes:
        streams: name -> tensor, as a loss is given them; 0 off the mask.
        probability: of each sequence under the behaviour policy, ``[n]``.
        score: derivative of each token's log-probability in the parameters, ``[n, T, P]``.
        entropy_slope: derivative of each token's entropy, ``[n, T, P]``.
    """

    streams: dict[str, Tensor]
    probability: Tensor
    score: Tensor
    entropy_slope: Tensor


def sample(scene: Scene) -> Sample:
    """List a scene's sequences with their probabilities, log-probabilities, entropies and advantages."""
    world, mask = scene.world, scene.world.mask
    probability = scene.sequence_logp(scene.behaviour).exp()
    logp = scene.log_probs(scene.policy)
    entropy = -(logp.exp() * logp).sum(dim=1)
    logp_old = scene.token_logp(scene.behaviour)
    streams = {
        "logp": scene.token_logp(scene.policy),
        "logp_old": logp_old,
        "logp_gen": logp_old.clone(),
        "logp_ref": scene.token_logp(scene.reference),
        "entropy": torch.where(mask, entropy[world.prefix], 0.0),
        "advantage": torch.where(mask, (scene.reward - probability @ scene.reward)[:, None], 0.0),
        "mask": mask,
    }
    score, entropy_slope = _slopes(scene, logp, entropy)
    return Sample(
        streams,
        probability,
        score[world.prefix, world.tokens] * mask[..., None],
        entropy_slope[world.prefix] * mask[..., None],
    )


def _slopes(scene: Scene, logp: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives in the parameters: of the words' log-probabilities ``[N, V, P]``, the entropies ``[N, P]``.

    A softmax has d log p(v) / d logit(k) = [v = k] - p(k), and dH / d logit(k) = -p(k)·(log p(k) + H).
    """
    p = logp.exp()
    in_logits = torch.eye(scene.world.words, dtype=p.dtype) - p[:, None, :]
    score = torch.einsum("nvk,nf->nvfk", in_logits, scene.features)
    slope = torch.einsum("nk,nf->nfk", -p * (logp + entropy[:, None]), scene.features)
    return score.flatten(2), slope.flatten(1)


def build_world(words: int, length: int, *, stop: bool = False) -> World:
    """Every sequence of ``length`` tokens; with ``stop``, word 0 ends a sequence early."""
    sequences: list[list[int]] = [[]]
    for _ in range(length):
        sequences = [
            sequence + step
            for sequence in sequences
            for step in ([[]] if stop and 0 in sequence else [[word] for word in range(words)])
        ]
    prefixes = sorted({tuple(s[:t]) for s in sequences for t in range(len(s))})
    number = {prefix: index for index, prefix in enumerate(prefixes)}
    tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    prefix = torch.zeros(len(sequences), length, dtype=torch.long)
    visits = torch.zeros(len(sequences), len(prefixes), dtype=torch.float64)
    for row, sequence in enumerate(sequences):
        for t, word in enumerate(sequence):
            before = number[tuple(sequence[:t])]
            tokens[row, t], mask[row, t], prefix[row, t], visits[row, before] = word, True, before, 1.0
    return World(words, tokens, mask, prefix, visits)


def draw_scene(world: World, seed: int, *, apart: float = 0.6) -> Scene:
    """Random policies: a reference unrelated to the policy, a behaviour policy some updates away from it.

    Args:
        world: where they act.
        seed: of the draw.
        apart: standard deviation of a policy's logits. At 0.6 no token's log-ratio to the reference exceeds
            2.4, nor the one to the behaviour policy 1.2: what a run meets, and within the clamps that
            losses have.
    """
    random = np.random.default_rng(seed)
    prefixes = world.visits.shape[1]
    features = np.ones((1, 1))
    if prefixes > 1:
        features = random.uniform(-(3**0.5), 3**0.5, size=(prefixes, FEATURES))

    def parameters(scale: float) -> Tensor:
        count = features.shape[1]
        return torch.from_numpy(random.normal(scale=scale / count**0.5, size=(count, world.words)))

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
    """One token out of five words: where a sequence and its token are the same thing."""
    world = build_world(5, 1)
    return tuple(draw_scene(world, seed) for seed in range(4))


@functools.cache
def far_apart() -> tuple[Scene, ...]:
    """One token out of five words, by policies that hardly agree: log-ratios beyond 20 nats."""
    world = build_world(5, 1)
    return tuple(draw_scene(world, seed, apart=12.0) for seed in range(30, 33))


@functools.cache
def equal_lengths() -> tuple[Scene, ...]:
    """Three tokens out of three words: 27 sequences."""
    world = build_world(3, 3)
    return tuple(draw_scene(world, seed) for seed in range(10, 13))


@functools.cache
def two_tokens() -> tuple[Scene, ...]:
    """Two tokens out of three words: 9 sequences, so that pairs of them are few."""
    world = build_world(3, 2)
    return tuple(draw_scene(world, seed) for seed in range(40, 43))


@functools.cache
def unequal_lengths() -> tuple[Scene, ...]:
    """Up to three tokens out of three words, one of which ends the sequence: 15 sequences, some padded."""
    world = build_world(3, 3, stop=True)
    return tuple(draw_scene(world, seed) for seed in range(20, 23))
