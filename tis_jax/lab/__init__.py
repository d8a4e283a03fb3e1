"""Ground truth: policies small enough that every expectation is a finite sum."""

from tis_jax.lab import bias_table as bias_table
from tis_jax.lab import drift_table as drift_table
from tis_jax.lab import faults as faults
from tis_jax.lab.drawn import drawn as drawn
from tis_jax.lab.drift import Ascent as Ascent
from tis_jax.lab.drift import ascend as ascend
from tis_jax.lab.drift import drifted as drifted
from tis_jax.lab.enumerable import Exact as Exact
from tis_jax.lab.enumerable import Problem as Problem
from tis_jax.lab.enumerable import exact as exact
from tis_jax.lab.enumerable import exact_batch as exact_batch
from tis_jax.lab.enumerable import random_problem as random_problem
from tis_jax.lab.enumerable import true_gradient as true_gradient
from tis_jax.lab.mismatch import mismatched as mismatched
