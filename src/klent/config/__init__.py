"""Typed recipes: read in layers, checked before anything is loaded, refused with the line that is wrong."""

from klent.config.checks import streams
from klent.config.evaluation import EarlyStop, Eval, Limits, Reward
from klent.config.fields import describe_fields
from klent.config.load import dump_recipe, find_recipe, load_recipe, make_recipe, recipes_folder
from klent.config.mismatch import Mismatch
from klent.config.mixture import Distill, MixtureSettings
from klent.config.policy import CausalSettings, DenoiserSettings, GaussianSettings, RewardModelSettings
from klent.config.precision import Precision
from klent.config.recipe import Recipe
from klent.config.rollout import DatasetRollout, PolicyRollout, TransformersRollout, VllmRollout
from klent.config.task import (
    DataSettings,
    EnvironmentSettings,
    FileSettings,
    GymSettings,
    NoiseSettings,
    PairsSettings,
    PlaySettings,
    SegmentSettings,
    TrajectorySettings,
)
from klent.config.thermostat import EntropyBand, EntropyTarget, Thermostat
from klent.config.training import AdaptiveKL, Bellman, Checkpoint, Critic, Lora, Optimizer, Reduce, Update

__all__ = [
    "AdaptiveKL",
    "Bellman",
    "CausalSettings",
    "Checkpoint",
    "Critic",
    "DataSettings",
    "DatasetRollout",
    "DenoiserSettings",
    "Distill",
    "EarlyStop",
    "EntropyBand",
    "EntropyTarget",
    "EnvironmentSettings",
    "Eval",
    "FileSettings",
    "GaussianSettings",
    "GymSettings",
    "Limits",
    "Lora",
    "Mismatch",
    "MixtureSettings",
    "NoiseSettings",
    "Optimizer",
    "PairsSettings",
    "PlaySettings",
    "PolicyRollout",
    "Precision",
    "Recipe",
    "Reduce",
    "Reward",
    "RewardModelSettings",
    "SegmentSettings",
    "Thermostat",
    "TrajectorySettings",
    "TransformersRollout",
    "Update",
    "VllmRollout",
    "describe_fields",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "make_recipe",
    "recipes_folder",
    "streams",
]
