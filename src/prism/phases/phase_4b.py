"""Phase 4b, the architectures: their learning rates, their figures, kin of a feature, and the exercises."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from sae_lens import SAE, LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata

from prism.data import DATA, token_table, tokenize
from prism.evaluation import Evaluation
from prism.exercises import check
from prism.exercises.hypothesis import try_hypothesis
from prism.features import encode_features
from prism.manifest import intact
from prism.models import FAMILY, SMOLLM2, ModelSpec
from prism.sae import SparseAutoencoder, save_saelens
from prism.training import TrainConfig
from prism.training.sources import ArraySource
from prism.visualization.style import BLUE, GREY, INK, OKABE_ITO, finish

RATES = DATA / "smollm2" / "rates.csv"  # made by `prism.build smollm2`, as its data card says
COLUMNS = ["architecture", "lr", "l0", "explained_variance"]


def learning_rates(spec: ModelSpec) -> pd.DataFrame:
    """What each architecture reached at each learning rate that was tried for it; no row where none was recorded."""
    return pd.read_csv(intact(RATES)) if spec is SMOLLM2 else pd.DataFrame(columns=COLUMNS)


def rates_figure(rates: pd.DataFrame, title: str = "No architecture is at its best at the lowest rate") -> go.Figure:
    """Explained variance at each learning rate, a line an architecture; the L0 beside each point.

    Args:
        rates: from `learning_rates`.
        title: the figure's title.
    """
    fig = go.Figure()
    for colour, (name, part) in zip(OKABE_ITO, rates.groupby("architecture", sort=False), strict=False):
        last = part.iloc[-1]
        fig.add_scatter(
            x=part["lr"],
            y=part["explained_variance"],
            mode="lines+markers",
            line=dict(color=colour, width=2.5),
            marker=dict(size=8),
            hovertemplate=f"{name}: %{{y:.3f}} at %{{x}}<extra></extra>",
            name=f"{FAMILY[name].title} (L0 {last['l0']:.0f})",
            legendrank=round(1000 * (1 - last["explained_variance"])),
        )
    fig.update_xaxes(
        type="log", tickvals=[1e-3, 3e-3, 1e-2], ticktext=["0.001", "0.003", "0.01"], title="learning rate"
    )
    fig.update_yaxes(title="explained variance")
    legend = dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top")
    return finish(
        fig, title, 430, "short runs; behind each name its L0 at the highest rate", legend=legend, showlegend=True
    )


def fidelity_figure(
    found: Mapping[str, Evaluation], seed: int = 0, title: str = "Explained variance at nearly the same L0"
) -> go.Figure:
    """A dot and its interval for each SAE, the best on top; seeds of one architecture and controls in grey.

    Args:
        found: name of a member of the family -> what was measured.
        seed: of the intervals.
        title: the figure's title.
    """
    order = sorted(found, key=lambda name: found[name].explained_variance)
    fig = go.Figure()
    for name in order:
        low, high = found[name].interval("explained_variance", seed=seed)
        value, colour = found[name].explained_variance, GREY if "-" in name else BLUE
        fig.add_scatter(
            x=[value],
            y=[FAMILY[name].title],
            mode="markers+text",
            marker=dict(size=11, color=colour),
            text=[f"L0 {found[name].l0:.0f}"],
            textposition="top center",
            textfont=dict(size=12, color=INK),
            error_x=dict(type="data", symmetric=False, array=[high - value], arrayminus=[value - low], color=colour),
            hovertemplate=f"{value:.3f} [{low:.3f}, {high:.3f}]<extra></extra>",
            showlegend=False,
        )
    fig.update_xaxes(title="explained variance (95 % intervals over documents)")
    return finish(fig, title, 130 + 50 * len(order), margin=dict(l=230))


def kin(saes: Mapping[str, object], home: str, feature: int) -> pd.DataFrame:
    """The feature of each other SAE whose decoder row points most nearly where one of the home SAE points.

    Returns:
        One row an SAE, the home one first: `feature` and `cosine`.
    """
    unit = {name: torch.nn.functional.normalize(sae.W_dec.detach(), dim=1) for name, sae in saes.items()}
    rows = {}
    for name in (home, *(other for other in saes if other != home)):
        cosines = unit[name] @ unit[home][feature]
        rows[name] = {"feature": int(cosines.argmax()), "cosine": float(cosines.max())}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"feature": int})


def last_values(
    model, saes: Mapping[str, object], texts: Sequence[str], features: Mapping[str, int], context: int
) -> pd.DataFrame:
    """What one feature of each SAE does on the *last* token of each text: a row a text, a column an SAE."""
    batch = tokenize(list(texts), model.tokenizer, context)
    table = token_table(batch, model.tokenizer)
    last = table.groupby("text").tail(1).index
    columns = {n: encode_features(model, saes[n], batch, table).column(i)[last] for n, i in features.items()}
    return pd.DataFrame(columns, index=list(texts))


def through_saelens(sae: SparseAutoencoder, metadata: SAEMetadata) -> SAE:
    """An SAE written to a folder, and read back by SAELens."""
    with tempfile.TemporaryDirectory() as folder:
        save_saelens(sae, Path(folder) / "sae", metadata)
        return SAE.load_from_disk(Path(folder) / "sae", dtype="float32")


def saelens_trained(x: Float[torch.Tensor, "tokens d_in"], d_sae: int, k: int, config: TrainConfig) -> SAE:
    """A TopK trained by SAELens' own trainer on the same activations, at our learning rate and with our batches.

    Its schedule, its start and its auxiliary loss are its own. Inputs are scaled as ours are, and unscaled after.
    """
    scale, steps = float(x.shape[1] ** 0.5 / x.norm(dim=1).mean()), config.steps
    settings = SAETrainerConfig(
        total_training_samples=config.tokens,
        train_batch_size_samples=config.batch,
        lr=config.lr,
        lr_end=config.lr / 100,
        lr_warm_up_steps=max(1, steps // 20),
        lr_decay_steps=max(1, steps // 4),
        dead_feature_window=max(1, config.dead_after // config.batch),
        logger=LoggingConfig(log_to_wandb=False),
    )
    torch.manual_seed(config.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=d_sae, k=k, normalize_activations="none"))
    sae.b_dec.data = x.mean(0) * scale
    trainer = SAETrainer(settings, sae, iter([]))
    for batch in ArraySource(x.numpy() * scale, config.batch, config.seed).batches():
        if trainer.n_training_samples >= config.tokens:
            break
        trainer._train_step(sae, batch)
        trainer.n_training_samples += len(batch)
    with torch.no_grad():
        sae.b_enc /= scale
        sae.b_dec /= scale
    return sae.eval()


# --- exercises -------------------------------------------------------------------------------------------------------


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """Of each token's pre-activations `[batch, d_sae]` the `k` largest, if positive; zero elsewhere."""
    value, index = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, index, value.relu())


def check_topk(answer: Callable) -> Callable:
    """Check exercise 1."""

    def kept(pre: torch.Tensor, k: int, by: torch.Tensor, dim: int = 1) -> torch.Tensor:
        index = by.topk(min(k, by.shape[dim]), dim=dim).indices
        return pre * torch.zeros_like(pre).scatter(dim, index, 1.0)

    def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
        return kept(pre.reshape(1, -1), k * len(pre), pre.reshape(1, -1)).view_as(pre).relu()

    mistakes = {
        "You took the k largest of each feature over the tokens; take them of each token, along the last axis.": (
            lambda pre, k: kept(pre, k, pre, 0).relu()
        ),
        "You chose by absolute value; a strongly negative pre-activation must not win a place.": (
            lambda pre, k: kept(pre, k, pre.abs())
        ),
        "You chose by absolute value and then dropped the negative ones, so fewer than k are left. Choose by value.": (
            lambda pre, k: kept(pre, k, pre.abs()).relu()
        ),
        "Negative values got through: one token here has fewer than k positive ones. Add a ReLU.": (
            lambda pre, k: kept(pre, k, pre)
        ),
        "One too many: where a cut is made *at* the (k + 1)-th value, `>=` keeps it too.": (
            lambda pre, k: kept(pre, k + 1, pre).relu()
        ),
        "One too few: where a cut is made *at* the k-th value, `>` drops it.": (
            lambda pre, k: kept(pre, k - 1, pre).relu()
        ),
        "You took batch × k over the whole batch: that is BatchTopK. Here every token has its own k.": batch_topk,
        "That says which features are active; return their values.": lambda pre, k: (topk(pre, k) > 0).float(),
        "That is the k values alone; put them back at their features' places in a [batch, d_sae] of zeros.": (
            lambda pre, k: pre.topk(k, dim=1).values.relu()
        ),
        "You kept every positive value: that is ReLU. Keep only k of them.": lambda pre, k: pre.relu(),
    }
    pre = torch.tensor(
        [
            [0.5, -3.0, 2.0, 1.0, 0.1, 1.5, -0.2, 0.3],
            [-1.0, 0.4, -0.5, -2.0, -0.3, -0.1, -4.0, -0.9],
            [3.0, 2.5, 0.2, 4.0, 3.5, -5.0, 1.1, 2.2],
            [0.6, -0.7, 1.2, 0.9, -1.3, 0.8, 1.4, 0.7],
            [1.7, 0.15, -2.1, 2.6, 0.45, 1.9, -0.6, -1.1],
        ]
    )
    return check(answer, topk, [(pre, 3), (pre[:2], 2), (pre, 1)], mistakes)


def nested_error(
    x: Float[torch.Tensor, "batch d_in"],
    f: Float[torch.Tensor, "batch d_sae"],
    W_dec: Float[torch.Tensor, "d_sae d_in"],
    b_dec: Float[torch.Tensor, " d_in"],
    widths: Sequence[int],
) -> torch.Tensor:
    """Squared error, summed over `d_in`, of each prefix of `m` features; mean over tokens and prefixes."""
    errors = [(x - b_dec - f[:, :m] @ W_dec[:m]).pow(2).sum(1).mean() for m in widths]
    return sum(errors) / len(errors)


def check_nested_error(answer: Callable) -> Callable:
    """Check exercise 2."""

    def each(x, f, W, b, widths, part=slice):
        return [(x - b - f[:, part(m)] @ W[part(m)]).pow(2).sum(1).mean() for m in widths]

    mistakes = {
        "You used all features each time; prefix m has the first m of them alone.": (
            lambda x, f, W, b, w: (x - b - f @ W).pow(2).sum(1).mean()
        ),
        "Each prefix must rebuild the whole activation: add b_dec every time.": (
            lambda x, f, W, b, w: sum((x - f[:, :m] @ W[:m]).pow(2).sum(1).mean() for m in w) / len(w)
        ),
        "You took the last m features; general ones come first.": (
            lambda x, f, W, b, w: sum(each(x, f, W, b, w, lambda m: slice(-m, None))) / len(w)
        ),
        "That is the sum over prefixes; here it is their mean.": lambda x, f, W, b, w: sum(each(x, f, W, b, w)),
        "Sum the squared error over d_in and average over tokens only.": (
            lambda x, f, W, b, w: sum((x - b - f[:, :m] @ W[:m]).pow(2).mean() for m in w) / len(w)
        ),
        "That is the error of the smallest prefix alone.": lambda x, f, W, b, w: each(x, f, W, b, w)[0],
    }
    draw = torch.Generator().manual_seed(0)
    x, f, W, b = (torch.randn(*shape, generator=draw) for shape in ((6, 4), (6, 8), (8, 4), (4,)))
    cases = [(x, f.relu(), W, b, (2, 4, 8)), (x, f.relu(), W, 2 * b, (1, 8))]
    return check(answer, nested_error, cases, mistakes)


def check_hypothesis(fire: str, silent: str, activation: Callable[[str], float]) -> None:
    """Exercise 3, about meaning: reads the reader's two texts and says what happened (`try_hypothesis`)."""
    try_hypothesis("4b", fire, silent, activation)
