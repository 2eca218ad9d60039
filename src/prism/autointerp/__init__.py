"""Automated interpretability: units explained in sentences, and the sentences tested on held-out text.

`TokenStatistics` explains by counting, `explain_with` asks a language model; `score` and `study` test what is said by
detection and fuzzing, with hard negatives and shuffled explanations. Models are off unless the environment names one.
"""

from prism.autointerp.examples import Examples, Sizes, Windows, scorable_units
from prism.autointerp.explainers import Explanation, Term, TokenStatistics, best_cut, quoted
from prism.autointerp.prompts import (
    AnswerError,
    ModelJudge,
    detect_prompt,
    escaped,
    explain_prompt,
    explain_with,
    fuzz_prompt,
    parse_answers,
    parse_sentence,
)
from prism.autointerp.remote import HOW, Endpoint, EndpointError, LocalModel, model_from_environment
from prism.autointerp.scoring import (
    SCORES,
    AlwaysNo,
    RuleJudge,
    accuracy,
    balanced_accuracy,
    density_partners,
    found_by_strength,
    other_places,
    score,
    single_token,
    study,
    summarise,
)
