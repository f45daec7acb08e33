"""A dictionary as a custom SAE of SAEBench."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor, nn

from bae_lens.architectures.sae_fields import SCALES_BY_TOKEN
from bae_lens.dictionaries import Dictionary
from bae_lens.export.folder import NOTE_FILENAME, check_export_folder, export_folder
from bae_lens.files.json_file import read_json
from bae_lens.files.whole import write_text
from bae_lens.fingerprint import weights_sha256
from bae_lens.loading.saved_saes import FOLDED_AT_THE_END, load_sae

INSTALL = "pip install --no-deps sae-bench"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_SCRIPT = '''\
"""The SAE in this folder as SAEBench takes it: ``selected_saes=[("name", load())]`` of any of its evals."""

from pathlib import Path

from bae_lens.export import load_saebench


def load(device="cpu", dtype="float32"):
    return load_saebench(Path(__file__).parent, device, dtype)
'''


class SAEBenchSAE(nn.Module):
    """What SAEBench asks of a custom SAE, over an SAE of SAELens.

    Attributes:
        cfg: SAEBench's ``CustomSAEConfig``, as plain attributes where SAEBench is not installed.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(self, sae: SAE[Any], cfg: Any) -> None:
        super().__init__()
        self.sae = sae
        self.cfg = cfg

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.sae.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.sae.W_dec.dtype

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """What pre-activations are the products with."""
        return self.sae.W_enc

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """Rows of norm 1."""
        return self.sae.W_dec

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """The encoder's bias; zeros where there is none."""
        bias: Tensor | None = getattr(self.sae, "b_enc", None)
        return self.sae.W_dec.new_zeros(len(self.sae.W_dec)) if bias is None else bias

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """The decoder's bias."""
        return self.sae.b_dec

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Activations of the latents, dense."""
        acts = self.sae.encode(x)
        return acts if acts.layout == torch.strided else acts.to_dense()

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction."""
        return self.sae.decode(feature_acts)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """Whether the rows of the decoder have norm 1, as SAEBench's own check."""
        return _has_rows_of_norm_1(self.W_dec)


def _has_rows_of_norm_1(W_dec: Float[Tensor, "d_sae d_in"]) -> bool:
    norms = W_dec.float().norm(dim=1)
    atol = 1e-5 if W_dec.dtype == torch.float32 else 1e-2
    return torch.allclose(norms, torch.ones_like(norms), atol=atol)


def write_saebench(path: str | Path, sae: SAE[Any], sha256: str | None = None) -> None:
    """Write an SAE for SAEBench: its folded weights as SAELens saves them, and ``saebench_sae.py`` with ``load()``.

    The decoder's rows get norm 1 (``fold_W_dec_norm``, of a copy), as SAEBench asks. What an activation is then:
    of a bit its scale times the norm that its row had, where it is on. Latents whose row is zero stay so.

    Args:
        path: of the folder.
        sae: of any architecture with one hook point.
        sha256: of the weights before anything was folded into them; default: of the SAE's.

    Raises:
        ValueError: if the SAE writes elsewhere than it reads, is a code of vectors, has a skip connection or one of several heads, normalizes
            each token, has not the scale of its inputs in its weights, or has rows of other norms that cannot be folded
            (a TopK SAE without rescale_acts_by_decoder_norm, matching pursuit); or the folder is of another export.
    """
    dictionary = Dictionary(sae)
    hook = dictionary.hook_name
    name = dictionary.name
    if dictionary.writes_elsewhere or dictionary.is_cross_layer or dictionary.has_skip:
        raise ValueError(
            f"SAEBench evaluates an SAE at one hook point, and this {name} reads {hook!r} and writes "
            f"{dictionary.hook_names[1]!r}. See bae-lens eval, which evaluates both."
        )
    if dictionary.kind.is_one_hot:
        raise ValueError(
            f"SAEBench evaluates latents with directions of norm 1, and a {name} has a code of vectors."
        )
    if dictionary.head_index is not None or hook.endswith("hook_z"):
        raise ValueError(f"SAEBench knows no heads, and the SAE reads those of {hook!r}.")
    if sae.cfg.normalize_activations in SCALES_BY_TOKEN:
        raise ValueError(
            f"The SAE divides each token by a number of its own ({sae.cfg.normalize_activations}), which SAEBench, that "
            "decodes other codes than it has just encoded, cannot know."
        )
    if sae.cfg.normalize_activations in FOLDED_AT_THE_END:
        raise ValueError(
            f"The scale of this {name}'s inputs is not in its weights (normalize_activations is "
            f"{sae.cfg.normalize_activations!r}), and SAEBench would read unscaled ones. Fold it, as training does in the end: "
            "sae.fold_activation_norm_scaling_factor(scale)."
        )
    block = _BLOCK.search(hook)
    if block is None:
        raise ValueError(f"SAEBench stops the model after a layer, and {hook!r} is in none.")
    sha256 = sha256 or weights_sha256(sae)
    check_export_folder(path, "saebench", sha256)
    sae = copy.deepcopy(sae)
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError as error:
        # Of one whose rows have that norm nothing need be folded.
        if not _has_rows_of_norm_1(sae.W_dec):
            raise ValueError(
                f"SAEBench asks for rows of norm 1, and those of this {name} have other norms, which cannot be folded. "
                f"SAELens: {error}."
            ) from error
    about = {"hook_name": hook, "hook_layer": int(block[1]), "install": INSTALL}
    with export_folder(path, "saebench", sha256, about) as folder:
        sae.save_model(folder)
        write_text(folder / "saebench_sae.py", _SCRIPT)


def load_saebench(
    path: str | Path, device: str = "cpu", dtype: str | torch.dtype = "float32"
) -> SAEBenchSAE:
    """Load what ``write_saebench`` wrote.

    Args:
        path: of the folder.
        device: where to put it.
        dtype: of the weights.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no export for SAEBench, or the type is none of float32, bfloat16 and float16.
    """
    note = read_json(Path(path) / NOTE_FILENAME, "note of an export", "export", "hook_layer")
    if note["export"] != "saebench" or type(note["hook_layer"]) is not int:
        raise ValueError(f"{path} is no export for SAEBench: see bae-lens export saebench.")
    kind = _DTYPES.get(str(dtype).removeprefix("torch."))
    if kind is None:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}.")
    sae = load_sae(path, device).to(kind)
    metadata = sae.cfg.metadata
    fields = {
        "model_name": metadata.model_name,
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "hook_layer": note["hook_layer"],
        "hook_name": metadata.hook_name,
        "context_size": metadata.context_size,
        "architecture": sae.cfg.architecture(),
        "apply_b_dec_to_input": sae.cfg.apply_b_dec_to_input,
        "prepend_bos": metadata.prepend_bos is not False,
        "dtype": str(kind).removeprefix("torch."),
        "device": str(device),
        "dataset_path": metadata.dataset_path or "",
    }
    return SAEBenchSAE(sae, _config(fields))


def _config(fields: dict[str, Any]) -> Any:
    try:
        from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            f"SAEBench is not installed, whose config its evals need. Install it with: {INSTALL}"
        ) from error
    return CustomSAEConfig(**fields)
