"""A trained policy moves a robot: episodes from given starts, in a process that has a simulator."""

from collections.abc import Sequence
from pathlib import Path

import torch

from klent.environments.robot import Simulator, make_simulator
from klent.policies.motor.network import MotorNetwork, load_motor


def play_policy(
    task: str, folder: str, seeds: Sequence[int], until_success: bool = False
) -> list[tuple[float, bool]]:
    """Play an episode from each start by the policy's mean action; JSON in, JSON out.

    Args:
        task: as of :func:`klent.environments.robot.make_simulator`.
        folder: of the policy, as :func:`klent.policies.motor.network.save_motor` wrote it.
        seeds: of the starts.
        until_success: end an episode where the task is solved, which its return then does not tell.

    Returns:
        Of each episode its return, and whether the task was solved in any of its states.
    """
    simulator = make_simulator(task)
    network = load_motor(Path(folder)).eval()
    return [play_episode(simulator, network, seed, until_success) for seed in seeds]


@torch.no_grad()
def play_episode(
    simulator: Simulator, network: MotorNetwork, seed: int, until_success: bool = False
) -> tuple[float, bool]:
    """Return and success of one episode."""
    seen, total, success = simulator.reset(seed), 0.0, False
    for _ in range(simulator.horizon):
        action = network(torch.from_numpy(seen).float()[None]).mean[0].double().numpy()
        outcome = simulator.step(action)
        seen, total, success = outcome.observation, total + outcome.reward, success or outcome.success
        if success and until_success:
            break
    return total, success
