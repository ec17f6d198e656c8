"""All 27 sequences of three tokens, from a policy whose next token depends on the last one."""

from itertools import product

import torch
from torch import Tensor

from klent.claims.worlds.simplex import random_logits

_SYMBOLS, _LENGTH = 3, 3

#: every sequence, ``[27, 3]``
TOKENS = torch.tensor(list(product(range(_SYMBOLS), repeat=_LENGTH)))
#: the previous token plus 1, ``[27, 3]``; 0 is the start
BEFORE = torch.cat([torch.zeros(len(TOKENS), 1, dtype=torch.long), TOKENS[:, :-1] + 1], dim=1)
#: every token counts
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def table(seed: int, scale: float = 1.0) -> Tensor:
    """Logits of a policy: one row per previous token, ``[4, 3]``."""
    return random_logits(seed, _SYMBOLS + 1, _SYMBOLS, scale=scale)


def token_logp(logits: Tensor) -> Tensor:
    """Log-probability of every token of every sequence, ``[27, 3]``."""
    return logits.log_softmax(-1)[BEFORE, TOKENS]


def probability(logits: Tensor) -> Tensor:
    """Probability of each sequence, ``[27]``, without gradient."""
    return token_logp(logits.detach()).sum(1).exp()


def sequence_kl_gradient(logits: Tensor, reference: Tensor) -> Tensor:
    """Gradient of KL(policy ‖ reference) between whole sequences, by differentiating the sum itself."""
    logits = logits.detach().requires_grad_()
    logp = token_logp(logits).sum(1)
    kl = (logp.exp() * (logp - token_logp(reference).sum(1))).sum()
    return torch.autograd.grad(kl, logits)[0]
