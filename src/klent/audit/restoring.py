"""Does a loss pull the policy back to the reference, and how hard?"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from klent.audit.call import Loss
from klent.audit.expectation import expected_gradient
from klent.audit.names import OF_REFERENCE
from klent.audit.worlds import Scene, one_position, sample

#: distances from the reference at which the pull is measured; the first is 10 times the second
DISTANCES = (1e-3, 1e-4)
#: a force below this share of a single sample's gradient is rounding
NOISE = {torch.float64: 1e-12}


def restoring_stiffness(loss: Loss) -> float:
    """The pull towards the reference per unit of distance, close to it; that of the KL is 1.

        k(ε) = u·[g(ref + εu; ref) - g(ref + εu; ref + εu)] / (ε·uᵀFu)

    ``g`` is the expected gradient on-policy, ``F`` the Fisher information. The gradient for a reference equal
    to the policy is subtracted, so that a reward or an entropy term does not count.

    Returns:
        The smallest k over several directions u. 0 if for one of them k falls with ε (a force of second
        order or higher) or is not positive; inf if k grows for all of them (a force that does not fade).
    """
    if not loss.reads.intersection(OF_REFERENCE):
        return 0.0
    smallest = math.inf
    for scene in one_position():
        direction = scene.behaviour - scene.policy
        far, near = (_pull(loss, scene, direction, distance) for distance in DISTANCES)
        if not (far > 0 and near > 0.5 * far):
            return 0.0
        smallest = min(smallest, near if near < 2 * far else math.inf)
    return smallest


def _pull(loss: Loss, scene: Scene, direction: Tensor, distance: float) -> float:
    moved = scene.reference + distance * direction
    away = replace(scene, policy=moved, behaviour=moved)
    without_pull = replace(away, reference=moved)
    total = expected_gradient(loss, away)
    force = total.gradient - expected_gradient(loss, without_pull).gradient
    if force.norm().item() <= NOISE.get(total.dtype, 1e-7) * total.scale:
        return 0.0
    listed = sample(away)
    score = listed.slope["logp"].sum(dim=1)
    along = direction.flatten()
    stretch = (listed.probability @ (score @ along).square()).item()
    return torch.dot(force, along).item() / (distance * stretch)
