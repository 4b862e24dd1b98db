"""Expunge removes chosen training data from a trained model and measures how far that worked."""

import importlib
import sys
import types
import typing

if typing.TYPE_CHECKING:
    from expunge.audit import (
        AuditSettings,
        Evidence,
        Fleet,
        FleetSettings,
        Level,
        Margins,
        References,
        Relearning,
        TrainingJob,
        Verdict,
        audit,
    )
    from expunge.errors import ExpungeError
    from expunge.methods import (
        CFK,
        CT,
        EMMN,
        EUK,
        LFSSD,
        MSG,
        NPO,
        RMU,
        SCRUB,
        SISA,
        SSD,
        UNDIAL,
        UNSIR,
        Amnesiac,
        BadTeacher,
        BoundaryExpand,
        BoundaryShrink,
        ExactDiscriminant,
        ExactNaiveBayes,
        ExactRidge,
        Extrapolate,
        FineTune,
        FisherForgetting,
        Forgotten,
        GradDiff,
        GradientAscent,
        GradientReversal,
        IdkDPO,
        JustInTime,
        L1Sparse,
        LatentRemap,
        LoraSettings,
        Maturity,
        MaxLoss,
        Method,
        Need,
        NegGradPlus,
        NewtonRemoval,
        Noise,
        NoiseAndDistil,
        NoisyFineTune,
        NoisyLabel,
        RandomEncoder,
        RandomLabel,
        RetainLabel,
        Retrain,
        SalUn,
        SelectiveReset,
        SimNPO,
        Stage,
        TaskNegation,
    )
    from expunge.privacy import Certificate, Constant, DeletionBudget, Origin, Tier
    from expunge.problem import DeletionState, Problem, Recipe, Split, split
    from expunge.recommending import Recommendation, recommend
    from expunge.states import (
        ClosedForm,
        HeadOptimum,
        Sharded,
        load_state,
        record,
        save_state,
    )
    from expunge.tasks import CausalLM, Classification, ImageToImage, Regression, Task
    from expunge.training import Algorithm, Execution, Optimizer, Run, Schedule, Supervised, Term
    from expunge.unlearning import Record, Unlearned, unlearn

__all__ = [
    "CFK",
    "CT",
    "EMMN",
    "EUK",
    "LFSSD",
    "MSG",
    "NPO",
    "RMU",
    "SCRUB",
    "SISA",
    "SSD",
    "UNDIAL",
    "UNSIR",
    "Algorithm",
    "Amnesiac",
    "AuditSettings",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "CausalLM",
    "Certificate",
    "Classification",
    "ClosedForm",
    "Constant",
    "DeletionBudget",
    "DeletionState",
    "Evidence",
    "ExactDiscriminant",
    "ExactNaiveBayes",
    "ExactRidge",
    "Execution",
    "ExpungeError",
    "Extrapolate",
    "FineTune",
    "FisherForgetting",
    "Fleet",
    "FleetSettings",
    "Forgotten",
    "GradDiff",
    "GradientAscent",
    "GradientReversal",
    "HeadOptimum",
    "IdkDPO",
    "ImageToImage",
    "JustInTime",
    "L1Sparse",
    "LatentRemap",
    "Level",
    "LoraSettings",
    "Margins",
    "Maturity",
    "MaxLoss",
    "Method",
    "Need",
    "NegGradPlus",
    "NewtonRemoval",
    "Noise",
    "NoiseAndDistil",
    "NoisyFineTune",
    "NoisyLabel",
    "Optimizer",
    "Origin",
    "Problem",
    "RandomEncoder",
    "RandomLabel",
    "Recipe",
    "Recommendation",
    "Record",
    "References",
    "Regression",
    "Relearning",
    "RetainLabel",
    "Retrain",
    "Run",
    "SalUn",
    "Schedule",
    "SelectiveReset",
    "Sharded",
    "SimNPO",
    "Split",
    "Stage",
    "Supervised",
    "Task",
    "TaskNegation",
    "Term",
    "Tier",
    "TrainingJob",
    "Unlearned",
    "Verdict",
    "audit",
    "load_state",
    "recommend",
    "record",
    "save_state",
    "split",
    "unlearn",
]

_LAYERS = (
    "errors",
    "tasks",
    "problem",
    "training",
    "privacy",
    "states",
    "methods",
    "unlearning",
    "audit",
    "recommending",
)
"""Where the names above are, from the bottom up: what is looked through for a name lies below it."""


class _Package(types.ModuleType):
    """Imports a public name when it is first asked for: torch takes seconds, which `expunge --version` need not."""

    def __getattr__(self, name: str) -> typing.Any:
        if name in __all__:
            for layer in _LAYERS:
                names = vars(importlib.import_module(f"{__name__}.{layer}"))
                if name in names:
                    setattr(self, name, names[name])
                    return names[name]
        elif not name.startswith("_"):
            try:
                return importlib.import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: typing.Any) -> None:
        # `expunge.audit` is the function, also after an import of the package of that name
        if name not in __all__ or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return importlib.import_module, (__name__,)


sys.modules[__name__].__class__ = _Package
