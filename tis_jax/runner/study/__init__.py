"""Studies: the same recipe under several settings, over seeds, and what that comes to.

A `Study` says which runs; `plan` lists them, `make_runs` makes those that are not made,
`report` writes the tables and the figure. `tis study` does all three.
"""

from tis_jax.runner.statistics import Interval as Interval
from tis_jax.runner.statistics import interval as interval
from tis_jax.runner.statistics import paired as paired
from tis_jax.runner.study.make import default_jobs as default_jobs
from tis_jax.runner.study.make import make_runs as make_runs
from tis_jax.runner.study.plan import PlannedRun as PlannedRun
from tis_jax.runner.study.plan import Study as Study
from tis_jax.runner.study.plan import load_study as load_study
from tis_jax.runner.study.plan import plan as plan
from tis_jax.runner.study.report import rebuilt as rebuilt
from tis_jax.runner.study.report import report as report
from tis_jax.runner.study.results import Result as Result
from tis_jax.runner.study.results import collect as collect
from tis_jax.runner.study.results import from_csv as from_csv
from tis_jax.runner.study.results import to_csv as to_csv
from tis_jax.runner.study.vary import varied as varied
