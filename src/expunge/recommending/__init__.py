"""Which method suits a request: the suitable ones are tried on a rehearsal, ranked, and the nearest is run."""

from expunge.recommending.budget import Budget
from expunge.recommending.candidates import CANDIDATES, Candidate, Spending
from expunge.recommending.recommendation import RATES, Recommendation, recommend

__all__ = ["CANDIDATES", "RATES", "Budget", "Candidate", "Recommendation", "Spending", "recommend"]
