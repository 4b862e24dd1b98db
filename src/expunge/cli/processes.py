"""Which of the processes of a launch this is; known before accelerate is imported."""

import os

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints, by the variables that accelerate reads too."""
    ranks = [int(os.environ[name]) for name in _RANKS if name in os.environ]
    return next((rank for rank in ranks if rank >= 0), 0) == 0
