"""Which method suits a request: the suitable ones are tried on a rehearsal, ranked, and the nearest is run."""

from expunge.recommending.candidates import CANDIDATES, Candidate, Spending
from expunge.recommending.recommendation import Recommendation, recommend

__all__ = ["CANDIDATES", "Candidate", "Recommendation", "Spending", "recommend"]
