"""What papers claim, and which claim card speaks to it; `documents` puts the cards' figures beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperClaim:
    """One claim of a paper, in Markdown, and our card that speaks to it.

    Attributes:
        paper: whose claim it is.
        says: the claim.
        figure: the paper's own number; a dash where it gives none that could be put beside ours.
        phase: of the notebook with the card.
        card: the claim on the card, word by word.
        supported: the card's verdict that `same` and `why` were written for.
        same: whether our result points the same way: 'yes', 'no', 'in part', 'undecided' or 'not testable'; a dash
            where the paper claims nothing of the kind.
        why: what explains the difference, or limits the agreement.
    """

    paper: str
    says: str
    figure: str
    phase: str
    card: str
    supported: bool
    same: str
    why: str


_TOY = "[Toy Models of Superposition](https://transformer-circuits.pub/2022/toy_model/index.html) (Elhage et al. 2022)"
_TOWARDS = (
    "[Towards Monosemanticity](https://transformer-circuits.pub/2023/monosemantic-features) (Bricken et al. 2023)"
)
_SCALING = (
    "[Scaling Monosemanticity](https://transformer-circuits.pub/2024/scaling-monosemanticity/) (Templeton et al. 2024)"
)
_GAO = "[Scaling and evaluating SAEs](https://arxiv.org/abs/2406.04093) (Gao et al. 2024)"
_GATED = (
    "[Gated](https://arxiv.org/abs/2404.16014) and [JumpReLU](https://arxiv.org/abs/2407.14435) SAEs "
    "(Rajamanoharan et al. 2024)"
)
_AXBENCH = "[AxBench](https://arxiv.org/abs/2501.17148) (Wu et al. 2025)"
_HEAP = "[SAEs on random transformers](https://arxiv.org/abs/2501.17727) (Heap et al. 2025)"
_PROBING = "[Are SAEs useful? Sparse probing](https://arxiv.org/abs/2502.16681) (Kantamneni et al. 2025)"
_SEEDS = "[SAEs trained on the same data](https://arxiv.org/abs/2501.16615) (Paulo & Belrose 2025)"
_OUTPUT = "[SAEs are good for steering](https://arxiv.org/abs/2505.20063) (Arad et al. 2025)"
_ABSORB = "[A is for absorption](https://arxiv.org/abs/2409.14507) (Chanin et al. 2024)"

PAPER_CLAIMS = (
    PaperClaim(
        _TOY, "Sparse features let a model represent more of them than it has dimensions", "—", "0",
        "In the toy model, sparser features let it represent more features than it has dimensions", True, "yes",
        "The same toy model, trained again in the notebook.",
    ),
    PaperClaim(
        _TOY, "Whether a feature is left out, has a dimension or shares one follows a phase diagram, as theory says",
        "a diagram, agreement judged by eye", "0",
        "The phases of trained toy models agree with the theory of three candidate solutions", True, "yes",
        "Two features and one dimension, where the theory can be worked out; the agreement is counted cell by cell.",
    ),
    PaperClaim(
        _TOY, "Neurons of real models are polysemantic", "—", "0",
        "A typical neuron's top texts mix categories, though less than blind draws do", True, "yes",
        "Mixed texts fit superposition and do not prove it.",
    ),
    PaperClaim(
        _TOWARDS, "Most of the loss survives when the SAE's reconstruction takes the activation's place",
        "79 % of the loss recovered", "4",
        "Most of what the activation does for next-token prediction survives the SAE (loss recovered)", True, "yes",
        "Theirs is the MLP of a one-layer model, ours a residual stream, which is easier to rebuild; and the share "
        "depends on the ablation that stands for 0, so the card gives two.",
    ),
    PaperClaim(
        _TOWARDS, "Features are more interpretable than neurons", "median 12 of 14 rubric points, neurons 0", "4",
        "Features are more interpretable than neurons (Bricken et al. 2023), by token purity and intruders", True,
        "yes", "Two automatic measures in place of human ratings; see the next two rows for what they hide.",
    ),
    PaperClaim(
        _TOWARDS, "(our question, not the paper's) Is it so among units that fire equally often, too?", "—", "4",
        "Features keep that lead among units that fire on 1 % of tokens or more, as neurons do", False, "—",
        "Among frequent units the lead turns round on this model: a rare unit is easily pure, and most features are "
        "rare. The paper does not match frequencies in this way.",
    ),
    PaperClaim(
        _TOWARDS, "Automatic explanations predict features better than neurons", "—", "6d",
        "Features are easier to describe than neurons that fire as often, on easy and on hard negatives", False,
        "in part",
        "Our explainer counts tokens, theirs was a large language model; on strong activations alone, easy detection "
        "points their way; on hard fuzzing neurons lead in both comparisons.",
    ),
    PaperClaim(
        _TOWARDS, "Feature densities fall into two clusters, one of them ultralow",
        "168 dead and 292 ultralow of 4,096", "4",
        "The densities of a ReLU SAE's features have two humps (Bricken et al. 2023)", False, "no",
        "Our SAE trains for minutes on a small corpus; the ultralow cluster may belong to their recipe and its length.",
    ),
    PaperClaim(
        _TOWARDS, "Features split into finer ones in wider dictionaries", "512 to 131,072 features, shown by examples",
        "3",
        "Some narrow features split: they have two or more children in the wide SAE, more often than by chance", True,
        "yes", "A bar on cosine decides what counts as a child; the chance level is measured with the same bar.",
    ),
    PaperClaim(
        _TOWARDS, "Features of two models correspond more than their neurons do", "—", "6e",
        "Features of two models correlate more than their neurons do (Bricken et al. 2023), "
        "by more than tokens explain",
        False, "in part",
        "The raw correlation is higher for features here too, but shuffling partners among equal tokens gives a "
        "larger lead: the token itself explains it.",
    ),
    PaperClaim(
        _SCALING, "SAEs rebuild most of the variance with few active features",
        "at least 65 % of the variance, under 300 active of 1M to 34M", "4",
        "An SAE trained in this notebook rebuilds activations of documents that it never saw", True, "yes",
        "A residual stream of width 192 is far easier than that of a production model.",
    ),
    PaperClaim(
        _SCALING, "Pushing a feature steers what the model writes",
        "clamped at several times its maximum (10 × in the best-known example), shown by examples", "6a",
        "At equal length, the feature by trial raises the target's share more than random directions do", True, "yes",
        "The feature was chosen by trial, and ten random directions get the same trial as a control.",
    ),
    PaperClaim(
        _GAO, "At equal sparsity TopK rebuilds better than ReLU with L1", "—", "4",
        "At the same sparsity and budget, TopK explains more variance than ReLU with L1 (Gao et al. 2024)", True, "yes",
        "One width and one short budget; ReLU may catch up with longer training.",
    ),
    PaperClaim(
        _GAO, "That also holds for the loss of the model behind it", "—", "3",
        "At matched L0 the choice of architecture matters more than the seed", True, "yes",
        "The card compares ReLU with BatchTopK, a relative of TopK.",
    ),
    PaperClaim(
        _GATED, "Gated and JumpReLU SAEs remove the shrinkage of L1",
        "half as many firing features at equal fidelity (Gated)", "4",
        "Gated and JumpReLU SAEs shrink their reconstructions less than ReLU with L1 (Rajamanoharan et al. 2024)",
        True, "yes", "The card measures the shrinkage itself, not the saving in features.",
    ),
    PaperClaim(
        _AXBENCH, "For steering, a difference of means beats SAE features", "DiffMean .239, SAE .165", "6a",
        "At equal cost, SAE features steer further than DiffMean does", False, "in part",
        "Neither is ahead by more than chance here: seven kinds of text are few, and the measure is the share of "
        "typical tokens, not a judge's rating.",
    ),
    PaperClaim(
        _AXBENCH, "For steering, a prompt beats SAE features by far", "prompt .894, SAE .165", "6a",
        "At equal cost, SAE features steer further than a prompt does", True, "no",
        "`mini` was never trained to follow instructions: its prompt is a few tokens of example text.",
    ),
    PaperClaim(
        _AXBENCH, "For detecting a concept, simple methods beat SAE features",
        "AUROC: DiffMean .942, probe .940, bag of words .914, SAE .695", "6f",
        "On a new source, SAE features make a better monitor than the raw activation, words and random directions",
        False, "in part",
        "A regression on the raw activation is ahead here too, a bag of words is not. Ours reads all features, a "
        "stronger use than the single feature of AxBench.",
    ),
    PaperClaim(
        _HEAP, "Explanations of features score alike on trained and on random transformers",
        "similar scores in many settings", "6d",
        "This model's features are easier to describe than those of a model that has learned nothing", True, "no",
        "The lead is real but small, and even random directions are above chance, which is the paper's warning. "
        "Our explainer counts tokens; theirs reads contexts.",
    ),
    PaperClaim(
        _HEAP, "Features of random transformers are simple, mostly single tokens", "—", "6e",
        "Fewer features of mini than of its untrained twin answer to a single token", False, "undecided",
        "The difference is within chance; another count (phase 6d) leans the paper's way. Neither finds that *most* "
        "features of the random model are single tokens.",
    ),
    PaperClaim(
        _PROBING, "SAE features give probes no consistent gain over baselines", "no consistent gain on 113 data sets",
        "3", "Five SAE features read the category of a text better than five columns of any baseline", False, "yes",
        "One data set of seven categories, which every method reads almost perfectly.",
    ),
    PaperClaim(
        _SEEDS, "Two seeds share only part of their features", "about 30 % at 131,072 features", "4",
        "Two seeds find corresponding features", False, "yes",
        "Our card asks for a correspondence beyond equal tokens, and does not find it in most features.",
    ),
    PaperClaim(
        _OUTPUT, "An output score tells which features steer", "—", "6a",
        "The output score tells which features steer better than the input score or the mere length of the push does",
        False, "in part",
        "It predicts a little more than the input score, within chance; the mere length of the push predicts better "
        "on this model, and a trial best.",
    ),
    PaperClaim(
        _ABSORB, "First-letter features are absorbed by more specific ones", "—", "3",
        "First-letter absorption can be measured on this model", False, "not testable",
        "`mini` hardly knows first letters, so there is nothing to absorb.",
    ),
)  # fmt: skip
