"""Everything that ramo_ray raises on purpose.

    RamoError                    one sentence for the user: the fault, and what would do
    ├── ConfigError              a key, a value or a path of the configuration
    ├── SourceError              a file or data set that cannot be read as what it should be
    ├── RulePoolError            a rule pool that is empty, repeats itself or is too small
    ├── ModelError               a model folder or tokenizer that cannot serve its purpose
    │   ├── LabelError           label words that a judge cannot tell apart by one token
    │   └── RolesError           a dialogue whose order of roles a model's chat template does not take
    ├── EngineError              an engine that gave no finite answer
    ├── ServerError              a model server that is not there, refuses the key or lacks the model
    ├── TrainingError            a training run that cannot go on
    ├── PlacementError           machines that cannot hold what a run would put there
    ├── FingerprintError         results of another judge, template or pool in the same place
    ├── MissingPackageError      an optional package that is not installed
    ├── TooManyBadRowsError      more rows in quarantine than the run allows (exit status 3)
    └── StoppedError             a run that was asked to end, and kept what was done (exit status 143)

Each is made from one string, so that it pickles across Ray's processes. Below `RamoError` nothing is
caught to be hidden: an exception of another type is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class RamoError(Exception):
    """Base of the tree. `exit_status` is what a job ends with when it lets one through."""

    exit_status = 1


class ConfigError(RamoError):
    """The configuration cannot be run. Names the key, the value and what would do."""

    exit_status = 2


class SourceError(RamoError):
    """An input cannot be read as what it should be. Names the file and the remedy."""

    exit_status = 2


class RulePoolError(RamoError):
    """A rule pool is empty, repeats a text, or holds fewer rules than are asked for."""

    exit_status = 2


class ModelError(RamoError):
    """A model or tokenizer cannot serve its purpose (no chat template, no pad token, no weights)."""

    exit_status = 2


class LabelError(ModelError):
    """Label words do not each begin with one known token that differs from the others'."""


class RolesError(ModelError):
    """A model's chat template refuses a dialogue's roles: a fault of the row for this model, not of the run."""


class EngineError(RamoError):
    """An engine gave no finite answer, or none at all. Never turned into a score."""


class ServerError(RamoError):
    """A model server cannot be reached, refuses the key, has not the model, or is not what was asked for.

    Ends the run: no row is at fault. Names the server and the remedy, never the key.
    """


class TrainingError(RamoError):
    """A training run cannot go on (no data, a loss that is not finite, a checkpoint of another run)."""


class PlacementError(RamoError):
    """The cluster has not what a run's roles need, or a run is not for it. Names each role's part."""

    exit_status = 2


class FingerprintError(RamoError):
    """Results made under another fingerprint lie where this run would write."""

    exit_status = 2


class MissingPackageError(RamoError):
    """An optional package is needed and not installed. Names the command that installs it."""

    exit_status = 2


class TooManyBadRowsError(RamoError):
    """The quarantined share of the rows exceeds `max_bad_fraction`."""

    exit_status = 3


class StoppedError(RamoError):
    """A run was asked to end (SIGTERM) before its work was done; what was under way is committed."""

    exit_status = 143
    """What a shell reports of a process that SIGTERM ended."""
