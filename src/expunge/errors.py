"""Every error a user can meet; each message says what was seen, why it matters and what to do next."""


class ExpungeError(Exception):
    """Base of all errors that Expunge raises on purpose."""


class ExpungeWarning(UserWarning):
    """What a person should know of a result that came about all the same; the command prints it as a note."""


class ForgetSetError(ExpungeError):
    """The request does not name a usable forget set: empty, everything, out of range, or overlapping the retain set."""


class UnknownRowError(ForgetSetError):
    """A row to be forgotten is not, or no longer, among those of a deletion state, which remembers no deleted one."""


class AlreadyForgottenError(ForgetSetError):
    """A row that is named by its position in the data of an estimator was forgotten before."""


class MissingNeedError(ExpungeError):
    """A method or an audit needs a part of the problem that was not given."""


class UnsupportedTaskError(ExpungeError):
    """A method was asked to work on a kind of task that it is not defined for."""


class SettingError(ExpungeError):
    """A hyper-parameter or option has a value that cannot be used."""


class DataError(ExpungeError):
    """An example cannot be used: unreadable form, or fields that are absent."""


class NonFiniteDataError(DataError):
    """An input holds NaN or infinity."""


class LabelError(DataError):
    """A label lies outside the classes of the task."""


class ShapeError(DataError):
    """Examples disagree in shape with one another or with what the model accepts."""


class ModelError(ExpungeError):
    """A model does not fit the task: wrong number of outputs, no recognisable head."""


class NonFiniteModelError(ModelError):
    """A parameter or buffer of a model holds NaN or infinity."""


class ModelChangedError(ModelError):
    """A method wrote to the original model, which must stay as it was."""


class EncoderError(ModelError):
    """The encoder named does not exist, or covers the decoder."""


class DivergedError(ExpungeError):
    """Training produced a loss that is NaN or infinite."""


class StateError(ExpungeError):
    """A deletion state cannot be used: of another model or kind, or it disagrees with the data in shape."""


class LostPrecisionError(StateError):
    """Rows to be forgotten are so large that sums cannot give them back to the digits that an exact deletion needs."""


class CurvatureError(ExpungeError):
    """A curvature that must be positive definite is not, so there is no step and no bound to compute from it."""


class ConvergenceError(ExpungeError):
    """Weights are no optimum of the stated objective, or a linear system was not solved to the accuracy asked for."""


class BudgetError(ExpungeError):
    """A guarantee would need more than is left of what was set aside for it; the model must be retrained."""


class CheckpointError(ExpungeError):
    """A checkpoint cannot be read, or belongs to another run."""


class SavedModelError(ExpungeError):
    """Files of a saved result are damaged, or the model does not match its record."""


class OutputError(ExpungeError):
    """Something could not be written: no permission, no such folder, or no space left."""


class ReferenceModelError(ExpungeError):
    """The oracles do not serve as a reference, because the recipe failed or ignores its input."""


class JobError(ExpungeError):
    """A job file does not describe a job."""


class SourceError(ExpungeError):
    """A data source or a model source named on the command line cannot be loaded."""


class UnreadablePicturesError(SourceError):
    """Images cannot be decoded.

    Attributes:
        files: What is wrong with each, by name; all of them, where the message names ten.
    """

    def __init__(self, files: dict[str, str], count: int) -> None:
        self.files, self._count = dict(files), count
        shown = "; ".join(f"{name} ({reason})" for name, reason in list(self.files.items())[:10])
        more = f"; and {len(self.files) - 10} more" if len(self.files) > 10 else ""
        super().__init__(
            f"{len(self.files)} of {count} images cannot be read: {shown}{more}; restore them, or take them out"
        )

    def __reduce__(self) -> tuple[type["UnreadablePicturesError"], tuple[dict[str, str], int]]:
        """For background processes, which hand their errors on pickled."""
        return type(self), (self.files, self._count)


class TokenizerError(DataError):
    """A tokenizer is needed and absent, has no pad token, or does not belong to the model."""


class ContextError(DataError):
    """Texts are longer than a model can read, or longer than was allowed."""


class EmptyAnswerError(DataError):
    """A text has no token whose probability could be measured: its answer is empty, or all of it is prompt."""


class AdapterError(ModelError):
    """An adapter cannot be put on a model: it has no module of the names given."""


class CorruptionError(DataError):
    """A mask hides all of an image or nothing, or has a form that a model cannot take."""
