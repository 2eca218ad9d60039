"""The training loop: schedules, dead features, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from operator import index
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prism.device import device as default_device
from prism.device import screens_in_bfloat16
from prism.fast import SparseGradients
from prism.files import replacing
from prism.sae import BatchTopK, SaeConfig, SparseAutoencoder, dense_gradients, fold_scale, make_sae
from prism.sae.architectures import FIRST_THRESHOLD
from prism.sae.base import Step
from prism.training.monitor import Monitor
from prism.training.sources import as_source


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run."""

    tokens: int = 4_000_000  # activations trained on, in all
    batch: int = 2_048  # activations a step
    lr: float = 3e-3  # Adam, for inputs of mean norm sqrt(d_in)
    warmup_share: float = 0.05  # first share of the steps, over which the learning rate rises
    decay_share: float = 0.25  # last share of the steps, over which it falls to zero
    sparsity_warmup_share: float = 0.1  # first share of the steps, over which the sparsity penalty rises
    target_l0: float | None = None  # active features a token that the penalty's coefficient is steered towards
    dead_after: int = 250_000  # activations without firing after which a feature counts as dead
    resample_every: int = 250_000  # activations between resamplings of dead features; for SAEs without AuxK
    freeze_decoder: bool = False  # leave the decoder at its random start: a control
    normalise_decoder: bool = True  # keep decoder rows at norm 1 (switch off to see what goes wrong)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return max(1, math.ceil(self.tokens / self.batch))

    def lr_scale(self, step: int) -> float:
        """Learning-rate factor at a step: linear warm-up, constant, linear decay to zero."""
        rise = (step + 1) / max(1.0, self.warmup_share * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return min(1.0, rise, fall)

    def sparsity_scale(self, step: int) -> float:
        """Factor of the sparsity penalty at a step."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup_share * self.steps))


MOST_ACTIVE = 800  # active features a token, above which the dense way is the quicker one
STEERING, AHEAD = 0.02, 2.0  # change of the penalty coefficient's logarithm a step; weight of where L0 is going
THRESHOLD_RATE = 8.0  # JumpReLU's thresholds learn so many times faster: else they lag behind the penalty
SETTLE_SHARE = 0.3  # last share of the steps in which no feature is resampled: it would not settle any more
SAME_SCALE = 1e-4  # input scales that differ by less (relative) are one: another number of threads rounds otherwise
NOT_FINITE = "activations are not finite in float32; check the model's weights and its number format"


def mean_norm(sample: Float[Tensor, "sample d_in"]) -> Float[Tensor, ""]:
    """Mean length of some activations.

    Raises:
        FloatingPointError: some have none in float32; ValueError: all are zero.
    """
    norms = sample.norm(dim=1)
    if bad := int((~norms.isfinite()).sum()):
        raise FloatingPointError(f"{bad:,} of {len(norms):,} {NOT_FINITE}")
    if not norms.any():
        raise ValueError("all activations are zero, so there is nothing to learn; check hook and text")
    return norms.mean()


class Trainer:
    """One run's state. `train` drives it; use it directly to take steps by hand.

    Args:
        config: settings; sae: what to train, or its settings.
        sample: activations from which the input scale, the decoder bias and the variance are read.
        way: "sparse", "dense", or None for the quicker one at each step.
    """

    def __init__(
        self,
        sae: SaeConfig | SparseAutoencoder,
        config: TrainConfig,
        sample: Float[Tensor, "sample d_in"],
        way: str | None = None,
        device: str | torch.device = "cpu",
    ):
        self.config, self.way, self.device = config, way, torch.device(device)
        self.sample = sample.to(self.device).float()
        self.scale_to(float(sample.shape[1] ** 0.5 / mean_norm(sample.float())))
        if self.variance < 1e-10 * sample.shape[1]:
            raise ValueError("all activations are the same, so there is nothing to learn; check hook and text")
        self.sae = make_sae(sae) if isinstance(sae, SaeConfig) else sae
        self.sae.b_dec.data = (self.sample * self.scale).mean(0).cpu()
        self.sae.to(self.device).train()
        weights = dict(self.sae.named_parameters())
        thresholds = [weights.pop("log_threshold")] if "log_threshold" in weights else []
        groups = [{"params": list(weights.values()), "factor": 1.0}, {"params": thresholds, "factor": THRESHOLD_RATE}]
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
        self.quiet = torch.zeros(self.sae.config.d_sae, device=self.device)  # activations since each feature last fired
        self.step, self.l0, self.sparsity = 0, float(self.sae.config.d_sae), self.sae.config.sparsity
        self.log_l0: float | None = None  # running mean of log L0
        self.quick = SparseGradients(self.sae, config.batch, screens_in_bfloat16(self.device))

    def scale_to(self, scale: float) -> None:
        """Multiply inputs by `scale` from now on, and take the variance of the sample under it."""
        scaled = self.sample * scale
        self.scale, self.variance = scale, float((scaled - scaled.mean(0)).pow(2).sum(1).mean())

    def gradients(self, x: Tensor, dead: Tensor, sparsity: float) -> Step:
        """By the way that was asked for, else the quicker one."""
        if (self.way or ("sparse" if self.l0 < MOST_ACTIVE or self.sae.revives else "dense")) == "sparse":
            return self.quick(x, dead, sparsity)
        return dense_gradients(self.sae, x, dead, sparsity)

    def take(self, x: Float[Tensor, "batch d_in"]) -> dict[str, float]:
        """One step on activations as the model gives them; returns what a monitor records.

        Raises:
            FloatingPointError: the loss is not finite; the message names the step.
        """
        config, x = self.config, x.to(self.device).float() * self.scale
        dead = (self.quiet > config.dead_after).nonzero()[:, 0]
        sparsity = self.sparsity * config.sparsity_scale(self.step)
        found = self.gradients(x, dead, sparsity)
        loss = found.error + sparsity * found.penalty
        if not math.isfinite(loss):
            why = "the usual cause is a learning rate that is too high" if x.isfinite().all() else NOT_FINITE
            raise FloatingPointError(f"the loss became {loss} at step {self.step} (learning rate {config.lr:g}); {why}")
        lr = config.lr * config.lr_scale(self.step)
        update(self.sae, self.optimizer, lr, config.freeze_decoder, config.normalise_decoder)
        self._after(x, found, dead)
        self.step += 1
        return {
            "loss": loss,
            "mse": found.error,
            "l0": self.l0,
            "explained_variance": 1 - found.error / self.variance,
            "dead": len(dead),
            "lr": lr,
            "sparsity": sparsity,
        }

    def _after(self, x: Tensor, found: Step, dead: Tensor) -> None:
        """Counts who fired, steers the penalty towards the wanted L0, and resamples the dead."""
        config = self.config
        self.l0 = int(found.fires.sum()) / len(x)
        self.quiet += len(x)
        self.quiet[found.fires > 0] = 0
        if config.target_l0 is not None:
            self._steer(math.log(max(self.l0, 0.01)))
        every = max(1, config.resample_every // config.batch)
        settling = self.step >= (1 - SETTLE_SHARE) * config.steps
        if not self.sae.revives and len(dead) and not settling and self.step % every == every - 1:
            resample(self.sae, self.optimizer, x, dead, seed=self.step)
            self.quiet[dead] = 0

    def _steer(self, log_l0: float) -> None:
        """Raise the penalty's coefficient while L0 is above what is wanted, less so while it is falling already."""
        self.log_l0 = log_l0 if self.log_l0 is None else 0.98 * self.log_l0 + 0.02 * log_l0  # over about 50 steps
        off = log_l0 - math.log(self.config.target_l0) + AHEAD * (log_l0 - self.log_l0)
        self.sparsity *= math.exp(STEERING * max(-1.0, min(1.0, off)))

    def finish(self) -> SparseAutoencoder:
        """Set the threshold that takes the batch's place, fold the input scale in, and hand the SAE over."""
        if isinstance(self.sae, BatchTopK):
            calibrate(self.sae, self.sample * self.scale)
        fold_scale(self.sae, self.scale)
        return self.sae.cpu().eval()

    # ---------------------------------------------------------------- checkpoints

    def save(self, path: Path, rows: list[dict]) -> None:
        """Everything that the next step depends on, and the log, as one safetensors file."""
        tensors = {f"sae.{name}": t for name, t in self.sae.state_dict().items()} | {"quiet": self.quiet}
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        state = {
            "key": self._key(),
            "step": self.step,
            "l0": self.l0,
            "log_l0": self.log_l0,
            "sparsity": self.sparsity,
            "low": self.quick.low,
            "pause": self.quick.pause,
            "rows": rows,
        }
        with replacing(path) as temporary:
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, {"state": json.dumps(state)})

    def load(self, path: Path) -> list[dict]:
        """Go on from a checkpoint, with its input scale; returns its log.

        Raises:
            ValueError: it belongs to another run, with the settings that differ; or it is no checkpoint.
        """
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            there, mine = state["key"], self._key()
            differ = [k for k in mine if there.get(k) != mine[k]]
            if math.isclose(there["input_scale"], self.scale, rel_tol=SAME_SCALE):
                differ = [k for k in differ if k != "input_scale"]
            if not differ:
                self._take_over(state, tensors)
        except Exception as error:  # safetensors has no exception of its own
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"'{path}' is no checkpoint of this trainer ({why}); delete it to start anew") from None
        if differ:
            what = ", ".join(f"{k} {there.get(k)} there and {mine[k]} here" for k in differ)
            raise ValueError(f"'{path}' belongs to another run: {what}. Delete it to start anew, or use its settings")
        return state["rows"]

    def _take_over(self, state: dict, tensors: dict[str, Tensor]) -> None:
        """Become what a checkpoint of the same settings holds; any error if it does not hold all of it."""

        def kept(name: str, like: Tensor) -> Tensor:
            found = tensors[name]
            if (found.shape, found.dtype) != (like.shape, like.dtype):
                raise ValueError(f"{name} is {tuple(found.shape)} {found.dtype}, not {tuple(like.shape)} {like.dtype}")
            return found

        self.sae.load_state_dict({name: kept(f"sae.{name}", t) for name, t in self.sae.state_dict().items()})
        self.quiet = kept("quiet", self.quiet)
        for name, parameter in self.sae.named_parameters():
            if not (self.config.freeze_decoder and parameter is self.sae.W_dec):
                like = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
                self.optimizer.state[parameter] = {key: kept(f"adam.{name}.{key}", t) for key, t in like.items()}
        if not all(isinstance(row, dict) and row.keys() & {"step", "round"} for row in state["rows"]):
            raise ValueError("its log has rows without a step")
        self.step, self.l0, self.sparsity = index(state["step"]), float(state["l0"]), float(state["sparsity"])
        self.log_l0, self.quick.low = (None if state[k] is None else float(state[k]) for k in ("log_l0", "low"))
        self.quick.pause = index(state.get("pause", 0))
        self.scale_to(state["key"]["input_scale"])

    def _key(self) -> dict:
        """What must be equal for a run to go on."""
        settings = {**asdict(self.sae.config), **asdict(self.config), "input_scale": self.scale}
        return json.loads(json.dumps(settings))


def train(
    activations,
    sae: SaeConfig,
    config: TrainConfig | None = None,
    monitor: Monitor | None = None,
    checkpoint: Path | None = None,
) -> SparseAutoencoder:
    """Train an SAE on activations; inputs are scaled to mean norm `sqrt(d_in)`, and the scale folded in at the end.

    It is trained where `PRISM_DEVICE` says, and returned on the CPU.

    Args:
        activations: `[samples, d_in]` (array, memory map, tensor), visited in random order as often as `config.tokens`
            asks for; or anything that `torch.utils.data` gives (see `sources.as_source`).
        monitor: keeps the run's measures, and shows them if it has a label; by default one that shows nothing.
        checkpoint: file written ten times in the run; if it is there, the run goes on from it, exactly.

    Raises:
        ValueError: activations of another width, or fewer than one batch; a checkpoint of another run.
        FloatingPointError: the loss is not finite; the message names the step. The last checkpoint stays.
    """
    config = config or TrainConfig()
    monitor = monitor or Monitor()
    source = as_source(activations, config.batch, config.seed)
    sample = source.sample()
    if sample.shape[1] != sae.d_in:
        raise ValueError(f"activations are {sample.shape[1]} wide; this SAE reads {sae.d_in}")
    trainer = Trainer(sae, config, sample, device=default_device())
    if checkpoint is not None and checkpoint.is_file():
        monitor.rows = trainer.load(checkpoint)
    monitor.start(config.steps, config.batch, trainer.step)
    every = max(1, config.steps // 10)
    try:
        batches = source.batches(trainer.step)
        while trainer.step < config.steps:
            monitor.record(trainer.step, **trainer.take(next(batches)))
            if checkpoint is not None and trainer.step % every == 0:
                trainer.save(checkpoint, monitor.rows)
    finally:
        monitor.close()
    return trainer.finish()


@torch.no_grad()
def update(
    sae: SparseAutoencoder, optimizer: torch.optim.Optimizer, lr: float, freeze: bool = False, normalise: bool = True
) -> None:
    """One Adam step that leaves decoder rows at norm 1 (Bricken et al. 2023, appendix).

    The part of the gradient along a row would only change its norm: it is taken out before, so that Adam's
    memory does not fill with it.
    """
    grad, rows = sae.W_dec.grad, sae.W_dec
    if freeze:
        sae.W_dec.grad = None
    elif normalise:
        for part, along in zip(grad.split(256), rows.split(256), strict=True):  # a block stays in cache
            part.addcmul_(along, (part * along).sum(1, keepdim=True), value=-1)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
    optimizer.step()
    if normalise and not freeze:
        rows.div_(rows.norm(dim=1, keepdim=True))


@torch.no_grad()
def resample(
    sae: SparseAutoencoder,
    optimizer: torch.optim.Optimizer,
    x: Float[Tensor, "batch d_in"],
    dead: Int[Tensor, "n_dead"],
    seed: int = 0,
) -> None:
    """Point dead features at badly rebuilt activations (Bricken et al. 2023, appendix 'Neuron resampling').

    Each gets the direction of another activation, drawn with the square of its loss, a small encoder (a fifth of the
    living features' mean norm), and no momentum in the optimiser. Two things differ from the paper, because at many
    dead features its recipe makes the loss leap by orders of magnitude: the bias keeps a newborn silent on activations
    that are not at least half as long in its direction (there: no bias), and Adam's second moments become those of the
    average living feature (at zero, the first steps would be several times too long).
    """
    dead = dead[: len(x)]
    loss = (x - sae(x)).pow(2).sum(1)
    generator = torch.Generator(x.device).manual_seed(seed)
    chosen = (loss.square().double() + 1e-30).multinomial(len(dead), replacement=False, generator=generator)
    target = x[chosen] - sae.b_dec
    rows = F.normalize(target, dim=1)
    alive = torch.ones(sae.config.d_sae, dtype=torch.bool, device=x.device)
    alive[dead] = False
    size = 0.2 * sae.encoder[alive].norm(dim=1).mean() if alive.any() else torch.tensor(0.2)
    sae.W_dec[dead] = rows
    if sae.config.tied:
        size = 1.0
    else:
        sae.W_enc[dead] = size * rows
    sae.b_enc[dead] = -size / 2 * target.norm(dim=1)
    fresh = {"r_mag": 0.0, "b_mag": 0.0, "log_threshold": math.log(FIRST_THRESHOLD)}
    for name in fresh.keys() & dict(sae.named_parameters()).keys():
        getattr(sae, name)[dead] = fresh[name]
    for parameter in sae.parameters():
        if parameter.shape[:1] == (sae.config.d_sae,) and parameter in optimizer.state:
            state = optimizer.state[parameter]
            state["exp_avg"][dead] = 0
            state["exp_avg_sq"][dead] = state["exp_avg_sq"][alive].mean(0) if alive.any() else 0


@torch.no_grad()
def calibrate(sae: BatchTopK, sample: Float[Tensor, "batch d_in"]) -> None:
    """Set the threshold under which `k` features a token are active on average over a sample."""
    rows = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(0)).to(sample.device)]
    pre = sae.pre_activations(rows[: max(1, 2**25 // sae.config.d_sae)]).flatten()  # 128 MB at most
    kept = min(len(pre) - 1, sae.config.k * len(pre) // sae.config.d_sae)
    sae.threshold.fill_(pre.kthvalue(len(pre) - kept).values.clamp(min=0))
