"""Automated interpretability: units explained in sentences, and the sentences tested on held-out text.

`TokenStatistics` explains by counting, `prompts` asks a language model; `score` tests what is said by detection
and fuzzing, with hard negatives. A model is asked only where a caller hands one over.
"""

from prism.autointerp.examples import Examples, Sizes
from prism.autointerp.explainers import Explanation, TokenStatistics
from prism.autointerp.prompts import explain_prompt, parse_sentence, windows_to_explain
from prism.autointerp.remote import LocalModel
from prism.autointerp.scoring import SCORES, density_partners, score
