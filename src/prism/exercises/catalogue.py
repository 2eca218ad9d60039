"""Every exercise of every phase: its name in the notebook, its checks, how hard it is and how long it takes.

One named `hypothesis` is about meaning: its answer is two texts of the reader's, which nothing can be right or wrong
about, so that it has no reference answer; see `exercises.hypothesis`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        phase: such as '6a'.
        number: within its phase, from 1.
        name: what the notebook calls the answer; `hypothesis` for an exercise about meaning.
        level: easy, medium or hard.
        minutes: what it takes a reader.
        checks: names of its checks, without `check_`, in `prism.phases.phase_<phase>`, or in its `exercises` where that
            is a folder (of a phase without a room in `prism.exercises.phase_<phase>`).
    """

    phase: str
    number: int
    name: str
    level: str
    minutes: int
    checks: tuple[str, ...]


NOTEBOOKS = {
    "0": "phase_0_superposition",
    "1": "phase_1_first_look",
    "2": "phase_2_feature_exploration",
    "3": "phase_3_sae_comparison",
    "4": "phase_4_homebrew_sae",
    "4b": "phase_4b_architectures",
    "5": "phase_5_interactive_demo",
    "6a": "phase_6a_steering",
    "6b": "phase_6b_attribution_and_ablation",
    "6c": "phase_6c_across_layers",
    "6d": "phase_6d_automated_interpretability",
    "6e": "phase_6e_model_sizes",
    "6f": "phase_6f_auditing",
}

_TABLE = """
0   collision              easy    4   collision
0   critical_density       medium  8   critical_density
0   recovered              easy    5   recovered
0   hypothesis             medium  6   hypothesis
1   hypothesis             medium  5   hypothesis
1   l0_without_bos         easy    3   l0_without_bos
1   ev                     medium  6   ev
1   text_activation        easy    4   text_activation
2   specialist_score       easy    4   specialist_score
2   p_value                medium  6   p_value
2   hypothesis             medium  8   hypothesis
3   kept_share             easy    4   recovered
3   paired_interval        medium  8   paired_interval
3   hypothesis             medium  8   hypothesis
4   l1_loss                easy    5   l1_loss
4   firing_share           easy    5   density dead_share
4   hypothesis             medium  8   hypothesis
4   diagnosis              hard    12  diagnosis
4b  topk_activation        medium  8   topk
4b  nested_error           medium  8   nested_error
4b  hypothesis             medium  8   hypothesis
5   token_f1               easy    6   token_f1
5   hypothesis             medium  8   hypothesis
5   quantile_rows          medium  8   quantile_rows
6a  hypothesis             medium  8   hypothesis
6a  same_length            easy    4   matched
6a  luck                   medium  6   luck
6a  bought                 medium  8   at_level
6b  share_of_way           easy    4   share_of_way
6b  signed_share           medium  6   sign_agreement
6b  hypothesis             medium  8   hypothesis
6c  of_the_token           medium  6   of_the_token
6c  lost_twice             easy    5   lost_twice
6c  hypothesis             medium  8   hypothesis
6d  balanced_share         easy    4   balanced
6d  same_token_rows        medium  10  hard_negatives
6d  read_answer            medium  8   read_list
6d  hypothesis             medium  8   hypothesis
6e  byte_cost              easy    5   bits_per_byte
6e  common_ends            medium  8   shared_ends
6e  hypothesis             medium  8   hypothesis
6f  threshold_for          easy    5   threshold
6f  share_of_alarms_right  easy    4   precision
6f  effect_of_swap         medium  5   swap_effect
6f  hypothesis             medium  8   hypothesis
"""


def _read(table: str) -> dict[str, tuple[Exercise, ...]]:
    found: dict[str, tuple[Exercise, ...]] = {}
    for phase, name, level, minutes, *checks in map(str.split, table.split("\n")[1:-1]):
        before = found.get(phase, ())
        found[phase] = (*before, Exercise(phase, len(before) + 1, name, level, int(minutes), tuple(checks)))
    return found


EXERCISES = _read(_TABLE)  # phase -> its exercises, in order
