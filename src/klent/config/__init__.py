"""Typed recipes: read in layers, checked before anything is loaded, refused with the line that is wrong."""

from klent.config.checks import describe_fields, streams
from klent.config.load import dump_recipe, find_recipe, load_recipe, make_recipe, recipes_folder
from klent.config.mixture import Distill, Mixture
from klent.config.model import (
    Checkpoint,
    DatasetRollout,
    DataSettings,
    Eval,
    GymSettings,
    Limits,
    Lora,
    Optimizer,
    Recipe,
    Reduce,
    Reward,
    Target,
    Thermostat,
    TransformersRollout,
    Update,
)

__all__ = [
    "Checkpoint",
    "DataSettings",
    "DatasetRollout",
    "Distill",
    "Eval",
    "GymSettings",
    "Limits",
    "Lora",
    "Mixture",
    "Optimizer",
    "Recipe",
    "Reduce",
    "Reward",
    "Target",
    "Thermostat",
    "TransformersRollout",
    "Update",
    "describe_fields",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "make_recipe",
    "recipes_folder",
    "streams",
]
