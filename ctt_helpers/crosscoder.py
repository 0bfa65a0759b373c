"""The crosscoder: one sparse dictionary for several checkpoints, with a decoder for each."""

import copy
import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ctt_helpers.arguments import checked, choose, whole_number
from ctt_helpers.files import load_folder, save_folder

if TYPE_CHECKING:
    from ctt_helpers.evaluation import Report

SPARSITIES = ("batch_topk", "l1")
SETTINGS = ("n_checkpoints", "d_model", "n_latents", "sparsity", "k", "seed", "decoder_norm")
FILES = ("crosscoder.safetensors", "config.json")


class Crosscoder(nn.Module):
    """A sparse crosscoder over checkpoints (Crosscoding Through Time, sec. 3; Anthropic 2024).

    With x~_c = s_c x_c, where s_c brings the mean norm of checkpoint c to sqrt(d_model):
    f = ReLU(sum_c x~_c W_enc^c + b_enc), and x~_c is rebuilt as f W_dec^c + b_dec^c. The parameters
    live in this scaled space; `encode` takes raw activations and `decode` gives them back raw.

    "l1" leaves f as it is and is trained with a penalty. "batch_topk" keeps, in training mode, the
    k largest code sizes f_i u_i a token on average over the batch (u_i = sum_c ||W_dec,i^c||), and
    in evaluation mode those above `threshold`, so that a token's features do not depend on its
    batch (Minder et al. 2025).

    Args:
        n_checkpoints: at least 2.
        d_model: width of the residual stream.
        n_latents: size of the dictionary.
        sparsity: "batch_topk" or "l1".
        k: latents kept for a token on average, "batch_topk" only.
        seed: of the initial weights.
        decoder_norm: norm of each initial decoder vector; W_enc starts as its transpose. The paper
            takes 0.08; a larger one leaves fewer latents dead. Take a smaller one for dozens of
            checkpoints, whose vectors are long together.
        scales: [n_checkpoints] s_c; None: all 1, until `train` sets them from its stream.
        source: what it was trained on: suite, revisions, layer, fingerprints ...

    Attributes:
        W_enc: [n_checkpoints, d_model, n_latents]; in memory the latents come first, as in W_dec,
            for training writes the gradient of one latent after another.
        W_dec: [n_latents, n_checkpoints, d_model].
        b_enc, b_dec: [n_latents], [n_checkpoints, d_model].
        scales, threshold: buffers, [n_checkpoints] and [].

    Raises:
        ValueError: a size or setting outside what is said above.
    """

    @checked
    def __init__(
        self,
        n_checkpoints: int,
        d_model: int,
        n_latents: int,
        sparsity: str = "batch_topk",
        k: int | None = 16,
        seed: int = 0,
        decoder_norm: float = 0.5,
        scales: Sequence[float] | Float[Tensor, " checkpoints"] | None = None,
        source: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.n_checkpoints = whole_number("n_checkpoints", n_checkpoints)
        if n_checkpoints < 2:
            raise ValueError(
                f"n_checkpoints={n_checkpoints}: a crosscoder compares checkpoints, so take at "
                "least 2."
            )
        self.d_model = whole_number("d_model", d_model)
        self.n_latents = whole_number("n_latents", n_latents)
        choose("sparsity", sparsity, SPARSITIES)
        self.sparsity = sparsity
        self.k = None
        if sparsity == "batch_topk":
            self.k = whole_number("k", k)
            if k > n_latents:
                raise ValueError(f"k={k}: take 1 <= k <= n_latents, here {n_latents}.")
        if not 0 < decoder_norm < float("inf"):
            raise ValueError(
                f"decoder_norm={decoder_norm} must be above 0: from zero weights nothing is learnt."
            )
        self.seed, self.decoder_norm = whole_number("seed", seed, 0), decoder_norm
        self.source = source or {}

        draw = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(n_latents, n_checkpoints, d_model, generator=draw)
        W_dec *= decoder_norm / W_dec.norm(dim=-1, keepdim=True)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone().permute(1, 2, 0))
        self.register_state_dict_post_hook(_contiguous)
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(n_checkpoints, d_model))
        self.register_buffer("scales", _checked_scales(scales, n_checkpoints))
        self.register_buffer("threshold", torch.zeros(()))
        # decoder norms from before folding, [checkpoints, latents]
        self.register_buffer("scaled_norms", None)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that shape it and its initial weights."""
        return {name: getattr(self, name) for name in SETTINGS}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={value!r}" for k, value in self.config.items() if value is not None)

    # ---- there and back

    @checked
    def pre_activations(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens latents"]:
        """What goes into the ReLU, from raw activations."""
        self._check(x)
        scaled = (x * self.scales[:, None]).flatten(-2)
        return _affine(scaled, self.W_enc.flatten(0, 1).T, self.b_enc)

    @checked
    def encode(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens latents"]:
        """Latents of raw activations; in evaluation mode a token's do not depend on its batch.

        Raises:
            ValueError: the last two sizes, the device or the dtype of `x` are not the crosscoder's.
        """
        pre = self.pre_activations(x)
        if self.sparsity == "l1":
            return pre.relu()
        if self.training:
            flat = pre.reshape(-1, self.n_latents)
            kept, _ = batch_topk(flat, self.code_norms().detach(), self.k)
            return kept.view(pre.shape)
        f = pre.relu()
        return f * (f * self.code_norms() > self.threshold)

    @checked
    def decode(
        self, f: Float[Tensor, "*tokens latents"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        """Raw reconstruction at every checkpoint."""
        return self.decode_scaled(f) / self.scales[:, None]

    @checked
    def decode_scaled(
        self, f: Float[Tensor, "*tokens latents"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        """Reconstruction in scaled space, where the loss is measured."""
        if f.shape[-1:] != (self.n_latents,):
            raise ValueError(
                f"Latents of shape {tuple(f.shape)} do not fit this crosscoder, which has "
                f"{self.n_latents}."
            )
        flat = _affine(f, self.W_dec.flatten(1).T, self.b_dec.flatten())
        return flat.unflatten(-1, (self.n_checkpoints, self.d_model))

    @checked
    def forward(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        """Raw reconstruction of raw activations."""
        return self.decode(self.encode(x))

    # ---- norms and spaces

    def decoder_norms(self) -> Float[Tensor, "checkpoints latents"]:
        """||W_dec,i^c|| in scaled space; folding does not change them."""
        return self.W_dec.norm(dim=-1).T if self.scaled_norms is None else self.scaled_norms

    def code_norms(self) -> Float[Tensor, " latents"]:
        """u_i = sum_c ||W_dec,i^c|| in scaled space: turns f_i into a size that can be compared."""
        return self.decoder_norms().sum(0)

    def raw_decoder(
        self,
    ) -> tuple[Float[Tensor, "latents checkpoints d_model"], Float[Tensor, "checkpoints d_model"]]:
        """(W_dec / s, b_dec / s): what a latent writes into each residual stream, and to what."""
        return self.W_dec / self.scales[:, None], self.b_dec / self.scales[:, None]

    def folded(self) -> "Crosscoder":
        """A copy with the scales folded into the weights, for tools that know no scales.

        Its `encode`, `decode` and `decoder_norms` give the same as before: the norms in scaled
        space, on which the threshold and RelDec rest, travel along.

        Raises:
            ValueError: it is folded already.
        """
        if self.scaled_norms is not None:
            raise ValueError(
                "This crosscoder is folded already: its scales are all 1. Fold the original, once."
            )
        other = copy.deepcopy(self).requires_grad_(False)
        other.scaled_norms = self.decoder_norms().detach().clone().contiguous()
        other.W_enc.mul_(self.scales[:, None, None])
        other.W_dec.div_(self.scales[:, None])
        other.b_dec.div_(self.scales[:, None])
        other.scales.fill_(1)
        return other

    @checked
    @torch.no_grad()
    def part(self, features: Sequence[int]) -> "Crosscoder":
        """A crosscoder of some of the latents, in this order, in evaluation mode.

        Its latents are those of the whole, for in evaluation mode none depends on another. It is
        for reading: what it rebuilds lacks the others.
        """
        features = list(features)
        if not features or not all(0 <= feature < self.n_latents for feature in features):
            raise ValueError(f"features={features}: give some of 0 to {self.n_latents - 1}.")
        settings = {**self.config, "n_latents": len(features)}
        if self.k is not None:
            settings["k"] = min(self.k, len(features))
        other = Crosscoder(**settings, scales=self.scales.tolist(), source=self.source)
        other = other.to(self.W_enc).requires_grad_(False).eval()
        other.W_enc.copy_(self.W_enc[:, :, features])
        other.W_dec.copy_(self.W_dec[features])
        other.b_enc.copy_(self.b_enc[features])
        other.b_dec.copy_(self.b_dec)
        other.scales.copy_(self.scales)  # in its own precision
        other.threshold.copy_(self.threshold)
        if self.scaled_norms is not None:
            other.scaled_norms = self.scaled_norms[:, features].clone()
        return other

    # ---- where it belongs

    @checked
    def check_source(self, here: Mapping[str, Any]) -> None:
        """Raise ValueError where this crosscoder was not trained on what `here` describes.

        Content decides: where both sides have fingerprints of the weights, equal fingerprints in
        the same order are enough, whatever suite and revisions are called. Names decide only where
        a fingerprint is missing.

        Args:
            here: suite, revisions, layer, fingerprints, as `Checkpoints.source` gives them, and
                begins_with, the token that the sequences to be read begin with. What is missing on
                either side is not compared.
        """
        check_source(self, here)

    # ---- files

    @checked
    def save(self, folder: str | Path) -> None:
        """Write crosscoder.safetensors and config.json (settings, source, versions, checksums).

        What else is in the folder stays.

        Raises:
            FileExistsError: the folder holds a file of one of these names that is no crosscoder's.
        """
        settings = {**self.config, "folded": self.scaled_norms is not None, "source": self.source}
        save_folder(folder, "crosscoder", self.state_dict(), settings, FILES, _is_config)

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> "Crosscoder":
        """Read what `save` wrote; the crosscoder comes back in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: there is no crosscoder in the folder.
            ValueError: a file is damaged, or weights and settings do not fit.
        """
        folder = Path(folder).expanduser()
        config, state = load_folder(folder, "crosscoder", FILES)
        needed = (*SETTINGS, "source", "folded")
        if missing := [name for name in needed if name not in config]:
            raise ValueError(
                f"{folder / FILES[1]} lacks {', '.join(missing)}: it is not a crosscoder's."
            )
        settings = {name: config[name] for name in SETTINGS}
        crosscoder = cls(**settings, source=config["source"])
        if config["folded"]:
            norms = torch.zeros(crosscoder.n_checkpoints, crosscoder.n_latents)
            crosscoder.scaled_norms = norms
        try:
            crosscoder.to(next(iter(state.values())).dtype).load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"The weights in {folder} do not fit its {FILES[1]}. Make or fetch it again. "
                f"{error}"
            ) from error
        return crosscoder.eval()

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        report: "Report | None" = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Put it on the hub with a model card, filled in from what is known of it.

        A repository that holds this or another crosscoder of ours gets this one in its place (the
        older one stays in its history); a card that somebody has written or changed stays.

        Args:
            repo_id: "org/name"; it is made where there is none.
            report: from `evaluate`, whose figures go into the card.
            private: whether others cannot see a repository that is made; None: as the account says.
            token: of an account that may write there; None: that of `hf auth login` or HF_TOKEN. It
                is written nowhere.

        Returns:
            The address of the commit.

        Raises:
            ConnectionError: the hub does not answer, or HF_HUB_OFFLINE forbids the network.
            PermissionError: the account may not write there.
            FileExistsError: the repository holds something else.
            ValueError: the report is another crosscoder's, or the name is none.
        """
        return _exchange().push(self, repo_id, report, private, token)

    @classmethod
    @checked
    def from_pretrained(
        cls,
        repo_id_or_folder: str | Path,
        revision: str | None = None,
        token: str | None = None,
        force_download: bool = False,
    ) -> "Crosscoder":
        """A crosscoder from the hub, its cache, or a folder, in evaluation mode, on the CPU.

        Args:
            repo_id_or_folder: "org/name", or what `save` wrote.
            revision: branch, tag or commit; None: the main branch as it is now. Give a commit for a
                result that is to be repeated.
            token: of an account that may read it; None: that of `hf auth login` or HF_TOKEN.
            force_download: fetch what is cached once more.

        Raises:
            FileNotFoundError: no such repository, revision or folder, no crosscoder in it, or not
                cached where HF_HUB_OFFLINE forbids the network.
            ConnectionError: the hub does not answer, or the download broke off.
            PermissionError: the repository is gated.
            ValueError: a file is damaged, or of another library.
        """
        return _exchange().pull(repo_id_or_folder, revision, token, force_download)

    def _check(self, x: Tensor) -> None:
        if x.shape[-2:] != (self.n_checkpoints, self.d_model):
            raise ValueError(
                f"Activations of shape {tuple(x.shape)} do not fit this crosscoder; it takes "
                f"[..., {self.n_checkpoints} checkpoints, {self.d_model} d_model], with the tokens "
                "in front."
            )
        mine = self.W_enc
        if (x.device, x.dtype) != (mine.device, mine.dtype):
            raise ValueError(
                f"Activations are {x.dtype} on {x.device}, this crosscoder is {mine.dtype} on "
                f"{mine.device}: use crosscoder.to(x.device, x.dtype)."
            )


def check_source(dictionary: Any, here: Mapping[str, Any]) -> None:
    """`Crosscoder.check_source`, of whatever has `source` and `n_checkpoints`."""
    if "revisions" not in here:
        raise ValueError("here has no revisions: give what Checkpoints.source says.")
    revisions = list(here["revisions"])
    if len(revisions) != dictionary.n_checkpoints:
        raise ValueError(
            f"This crosscoder reads {dictionary.n_checkpoints} checkpoints, and here are "
            f"{revisions}."
        )

    def differ(name: str) -> bool:
        known = dictionary.source.get(name) is not None and here.get(name) is not None
        return known and dictionary.source[name] != here[name]

    advice = (
        "Load the checkpoints that it was trained on, in the same order, or train one on these."
    )
    told = [name for name in ("layer",) if differ(name)]
    marks = dictionary.source.get("fingerprints"), here.get("fingerprints")
    comparable = all(marks) and {len(m) for m in marks[0]} == {len(m) for m in marks[1]}
    if comparable:
        if differ("fingerprints"):
            if sorted(marks[0]) == sorted(marks[1]):
                raise ValueError(
                    "This crosscoder was trained on these checkpoints in another order: "
                    f"{dictionary.source.get('revisions')}, and here are {revisions}."
                )
            if not differ("suite") and not differ("revisions"):
                raise ValueError(
                    f"This crosscoder was trained on other weights than those of "
                    f"{here.get('suite')!r} at {', '.join(revisions)}: same names, different "
                    "fingerprints. Was the suite made anew? Train again."
                )
            told += [name for name in ("suite", "revisions") if differ(name)]
    else:
        told += [name for name in ("suite", "revisions") if differ(name)]
        if all(marks) and not told:
            warnings.warn(
                "This crosscoder was trained with fingerprints of another version: that it "
                "belongs to these weights goes by their names alone.",
                stacklevel=5,
            )
    if told:
        listed = "; ".join(
            f"{name}: trained on {dictionary.source[name]!r}, given {here[name]!r}" for name in told
        )
        raise ValueError(f"This crosscoder belongs to other checkpoints ({listed}). {advice}")
    if differ("begins_with"):
        raise ValueError(
            f"This crosscoder was trained on text that begins with token "
            f"{dictionary.source['begins_with']}, and these sequences begin with token "
            f"{here['begins_with']}. The first token draws the attention of all others, so "
            "their activations would be none that it has seen: make pairs and text with one "
            "tokenizer, by suite.pairs(...) and suite.text(...)."
        )


def _exchange() -> Any:
    """The module that knows the hub. It is not needed for anything else, nor imported before."""
    try:
        return importlib.import_module("ctt_helpers.sources.exchange")
    except ModuleNotFoundError as error:
        raise ImportError(
            "The hub is reached by the whole package, ctt_helpers, which is not installed here; "
            "`save` and `load` need no more than this file."
        ) from error


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b; under autocast only the product is rounded, not the bias."""
    if torch.is_autocast_enabled(x.device.type):
        return nn.functional.linear(x, weight) + bias  # which brings it back to float32
    return nn.functional.linear(x, weight, bias)


def _contiguous(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Give W_enc out in the order of its shape, as files of tensors want it."""
    name = f"{prefix}W_enc"
    state[name] = state[name].contiguous()


def _is_config(settings: Mapping[str, Any]) -> bool:
    """Whether a JSON file without a kind is a crosscoder's config of version 0.1."""
    return {"n_checkpoints", "n_latents", "sparsity", "folded"} <= set(settings)


def _checked_scales(
    scales: Sequence[float] | Tensor | None, n_checkpoints: int
) -> Float[Tensor, " checkpoints"]:
    if scales is None:
        return torch.ones(n_checkpoints)
    scales = torch.as_tensor(scales, dtype=torch.float32).clone()
    if scales.shape != (n_checkpoints,) or not ((scales > 0) & scales.isfinite()).all():
        raise ValueError(
            f"scales={scales.tolist()}: give {n_checkpoints} finite numbers above 0, one a "
            "checkpoint."
        )
    return scales


def batch_topk(
    pre: Float[Tensor, "tokens latents"], code_norms: Float[Tensor, " latents"], k: int
) -> tuple[Float[Tensor, "tokens latents"], Float[Tensor, ""]]:
    """BatchTopK: of all f_i u_i in the batch keep the k * tokens largest (Bussmann et al. 2024).

    Args:
        pre: what goes into the ReLU.
        code_norms: u_i, in scaled space.
        k: latents kept for a token, on average.

    Returns:
        f with all others set to 0, at most k * tokens of them active however many are equal; and
        the smallest kept f_i u_i above 0 (infinite if there is none).
    """
    kept, smallest = largest_sizes(pre, code_norms, k * len(pre))
    values = pre.flatten().gather(0, kept).relu()
    return torch.zeros_like(pre).flatten().scatter(0, kept, values).view(pre.shape), smallest


@torch.no_grad()
def largest_sizes(
    pre: Float[Tensor, "tokens latents"],
    code_norms: Float[Tensor, " latents"],
    count: int,
    dtype: torch.dtype | None = None,
) -> tuple[Int[Tensor, " kept"], Float[Tensor, ""]]:
    """Where BatchTopK's `count` largest f_i u_i are: token * n_latents + latent.

    Ascending on a CPU. Some may be below 0, where fewer are above it. The second result is that of
    `batch_topk`.

    Args:
        pre, code_norms: as for `batch_topk`.
        count: how many, of all tokens and latents.
        dtype: in which sizes are compared, not on a CPU; None: that of `pre`. Which of equal ones
            are taken is left open. A GPU goes through half precision in half the time.
    """
    count = min(count, pre.numel())
    if pre.device.type == "cpu":
        kept, largest = map(torch.from_numpy, _largest((pre * code_norms).numpy(), count))
    else:
        sizes = torch.empty_like(pre, dtype=dtype)
        torch.mul(pre, code_norms, out=sizes)
        largest, kept = sizes.flatten().topk(count, sorted=False)
    return kept, torch.where(largest > 0, largest, torch.inf).min().to(pre)


def _largest(sizes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the `count` largest, ascending, and what is there; of equal ones the first.

    Several times faster than a partition of all: a sample tells above what they are, and a look at
    all of them, whether enough are above it.
    """
    # one in 61 or 67, whichever does not meet the same latents again and again
    sample = sizes.ravel()[:: 61 if sizes.shape[1] % 61 else 67]
    expected = count * len(sample) / sizes.size
    rank = int(expected + 5 * expected**0.5 + 5)  # five standard errors more
    sizes = sizes.ravel()
    near = np.flatnonzero(sizes > _ranked(sample, rank)) if rank < len(sample) else sizes[:0]
    if len(near) < count:
        near = np.arange(len(sizes))
    sizes = sizes[near]
    smallest = _ranked(sizes, count)
    kept = sizes > smallest
    equal = np.flatnonzero(sizes == smallest)
    kept[equal[: count - kept.sum()]] = True
    return near[kept], sizes[kept]


def _ranked(values: np.ndarray, rank: int) -> float:
    """The rank-th largest."""
    return np.partition(values, len(values) - rank)[len(values) - rank]
