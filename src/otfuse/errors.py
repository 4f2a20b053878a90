"""One class per way to fail. Every message is one sentence: what is wrong, where, what to do next."""

from __future__ import annotations


class OtfuseError(Exception):
    """Anything the user can mend. The command line prints it as one sentence and exits with :attr:`status`."""

    status = 1


class UsageError(OtfuseError):
    """The command or call itself is malformed."""

    status = 2


class UnequalError(UsageError):
    """A scheme that joins models of equal sizes only is asked for others."""


class RecipeError(OtfuseError):
    """A recipe names an unknown key, an unknown value, or values that contradict each other."""


class CheckpointError(OtfuseError):
    """A checkpoint cannot be read, or may not be read as asked."""


class DataError(OtfuseError):
    """The data do not fit the model or cannot be read."""


class OutputError(OtfuseError):
    """The result cannot be written where it should go."""


class DeviceError(OtfuseError):
    """The device asked for does not exist or is out of memory."""


class ResourceError(OtfuseError):
    """The machine has less memory than the run is expected to need."""


class TraceError(OtfuseError):
    """The model cannot be turned into a program."""


class RuleError(OtfuseError):
    """An operator without a flow rule pins too much of the model."""


class GateError(OtfuseError):
    """The derived flow graph is not exact for this model: no weight may be changed with it."""


class MatchError(OtfuseError):
    """Two models cannot be fused because their graphs differ."""


class TrainError(OtfuseError):
    """Training cannot go on: nothing to train, a loss that is not finite, or progress that is not this run's."""


class DivergedError(TrainError):
    """Training left the finite numbers; going on from its progress would only fail again."""


class SolveError(OtfuseError):
    """A transport problem is malformed (shapes, marginals, values that are not finite)."""
