"""SAEs from files: what their metadata says is honoured or refused in one sentence, and what is damaged is named."""

import copy
import json
import subprocess
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

from prism.data import DATA
from prism.models import get_spec, load_sae
from prism.sae import SaeConfig, make_sae, read_sae, save_saelens
from prism.sae.saelens import from_saelens

HOOK = "blocks.1.hook_resid_pre"
X = torch.randn(60, 12, generator=torch.Generator().manual_seed(1)) * 3


def theirs(architecture: str, training: bool = False, metadata: dict | None = None, **settings):
    """An SAE of SAELens with random weights, 12 channels and 40 features."""
    kind, config = (get_sae_training_class if training else get_sae_class)(architecture)
    sae = kind(config(d_in=12, d_sae=40, metadata=SAEMetadata(**{"hook_name": HOOK} | (metadata or {})), **settings))
    generator = torch.Generator().manual_seed(0)
    for name, weights in [*sae.named_parameters(), *sae.named_buffers()]:
        size = 0.5 if name in ("W_enc", "W_dec", "b_dec") else 0.1
        weights.data = size * torch.randn(weights.shape, generator=generator, dtype=weights.dtype).abs_()
    for weights in (sae.W_enc, sae.W_dec):
        weights.data *= torch.rand(weights.shape, generator=generator).sub(0.5).sign()
    return sae.eval()


def rewrite(folder, metadata: dict | None = None, drop: str = "", **settings):
    """Other settings in a saved SAE's `cfg.json`."""
    cfg = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    cfg |= settings | {"metadata": cfg["metadata"] | (metadata or {})}
    cfg.pop(drop, None)
    (folder / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")


def said(folder) -> str:
    """The one sentence that refuses an SAE; it names the folder."""
    with pytest.raises(ValueError) as error:
        read_sae(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def saved(tmp_path):
    """A sound SAE's folder."""
    theirs("jumprelu").save_model(tmp_path / "one")
    return tmp_path / "one"


class TestSettingsFile:
    @pytest.mark.parametrize(
        "text, words",
        [
            ("[]", "does not hold the settings of an SAE"),
            ('"x"', "does not hold the settings"),
            ("null", "does not hold"),
            ("{", "is damaged"),
            ("", "is damaged"),
            ('{"d_in": 12, "d_s', "is damaged"),
            ("{}", "d_in = None; needed is a whole number above 0"),
        ],
    )
    def test_what_is_no_settings(self, saved, text, words):
        (saved / "cfg.json").write_text(text, encoding="utf-8")
        assert words in said(saved) and "cfg.json'" in said(saved)

    @pytest.mark.parametrize(
        "field, value",
        [
            ("d_sae", "many"),
            ("d_sae", None),
            ("d_sae", 40.0),
            ("d_sae", -1),
            ("d_sae", True),
            ("d_sae", [40]),
            ("d_in", "12"),
            ("metadata", "x"),
            ("metadata", [1]),
            ("architecture", 3),
        ],
    )
    def test_a_field_of_another_kind(self, saved, field, value):
        path = saved / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {field: value}), encoding="utf-8")
        assert (repr(value) in said(saved) or field in said(saved)) and "is damaged" not in said(saved)

    @pytest.mark.parametrize(
        "field, value",
        [
            ("hook_name", 7),
            ("hook_name", None),
            ("hook_name", ["blocks.1.hook_resid_pre"]),
            ("hook_name", "hook_embed"),
            ("hook_name", "blocks.x.hook_resid_pre"),
            ("model_name", 1),
            ("prepend_bos", "no"),
            ("context_size", "all"),
            ("model_from_pretrained_kwargs", [1]),
            ("seqpos_slice", 5),
        ],
    )
    def test_a_piece_of_metadata_of_another_kind(self, saved, field, value):
        rewrite(saved, {field: value})
        assert "cfg.json'" in said(saved) and repr(value) in said(saved)

    def test_no_d_sae(self, saved):
        rewrite(saved, drop="d_sae")
        assert "has d_sae = None" in said(saved)

    def test_no_architecture(self, saved):
        rewrite(saved, drop="architecture")
        assert "no counterpart of SAELens' 'None' here; there is one of standard, topk" in said(saved)

    def test_no_version_loses_nothing(self, saved):
        """SAELens reads settings without its version in its old format, and finds no metadata there."""
        cfg = json.loads((saved / "cfg.json").read_text(encoding="utf-8"))
        del cfg["metadata"]["sae_lens_version"]
        (saved / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
        assert read_sae(saved).cfg.metadata.hook_name == HOOK

    def test_the_format_before_saelens_6(self, tmp_path):
        expected = theirs("standard")
        expected.save_model(tmp_path)
        old = {
            "d_in": 12,
            "d_sae": 40,
            "dtype": "torch.float32",
            "hook_point": HOOK,
            "model_name": "gpt2-small",
            "activation_fn_str": "relu",
            "prepend_bos": False,
            "normalize_activations": False,
        }
        (tmp_path / "cfg.json").write_text(json.dumps(old), encoding="utf-8")
        sae = read_sae(tmp_path)
        torch.testing.assert_close(sae(X), expected(X))
        assert (sae.cfg.metadata.hook_name, sae.cfg.metadata.prepend_bos) == (HOOK, False)
        for field in ("activation_fn", "activation_fn_str"):
            (tmp_path / "cfg.json").write_text(json.dumps(old | {field: "tanh-relu"}), encoding="utf-8")
            assert "activation_fn = 'tanh-relu', which is not honoured" in said(tmp_path)


class TestWeights:
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_a_file_cut_short(self, saved, share):
        path = saved / "sae_weights.safetensors"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert f"the file '{path}' is damaged" in said(saved) and "write or fetch it again" in said(saved)

    @pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
    def test_git_restores_what_it_keeps(self, saved, name):
        for command in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *command], cwd=saved, check=True)
        (saved / name).write_bytes((saved / name).read_bytes()[:40])
        assert f"`git checkout -- {saved / name}` restores it" in said(saved)

    @pytest.mark.parametrize(
        "tensor, where",
        [
            ("W_dec", "row 7"),
            ("W_enc", "row 7"),
            ("b_enc", "entry 7"),
            ("b_dec", "entry 7"),
            ("threshold", "entry 7"),
        ],
    )
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_not_finite(self, saved, tensor, where, value):
        weights = load_file(saved / "sae_weights.safetensors")
        weights[tensor][7] = value
        save_file(weights, saved / "sae_weights.safetensors")
        assert f"{where} of {tensor} is NaN or infinite" in said(saved)

    def test_an_embedded_sae_with_one_nan(self, tmp_path):
        spec = get_spec("mini")
        weights = load_file(DATA / "saes" / "2-res" / "sae_weights.safetensors")
        weights["W_dec"][831, 5] = float("nan")
        save_file(weights, tmp_path / "sae_weights.safetensors")
        (tmp_path / "cfg.json").write_bytes((DATA / "saes" / "2-res" / "cfg.json").read_bytes())
        with pytest.raises(ValueError, match="row 831 of W_dec is NaN"):
            load_sae(replace(spec, saes={"2-res": replace(spec.sae("2-res"), folder=tmp_path)}))

    @pytest.mark.parametrize(
        "settings, words",
        [({"d_sae": 41}, "size mismatch"), ({"d_in": 13}, "size mismatch"), ({"architecture": "gated"}, "Missing key")],
    )
    def test_weights_of_another_sae(self, saved, settings, words):
        rewrite(saved, **settings)
        assert words in said(saved)


class TestNotHonoured:
    @pytest.mark.parametrize(
        "settings, metadata, words",
        [
            ({"normalize_activations": "expected_average_only_in"}, {}, "fold what training measured into the weights"),
            ({"normalize_activations": "covariance_whitening"}, {}, "normalize_activations = 'covariance_whitening'"),
            ({"normalize_activations": "twice"}, {}, "normalize_activations must be none"),
            (
                {"reshape_activations": "hook_z"},
                {"hook_name": "blocks.1.attn.hook_z"},
                "reshape_activations = 'hook_z'",
            ),
            ({}, {"hook_name": "blocks.1.attn.hook_z"}, "blocks.L.hook_attn_out reads them together"),
            ({}, {"hook_name": "blocks.1.attn.hook_k"}, "heads are not read one by one"),
            ({}, {"hook_head_index": 0}, "hook_head_index = 0"),
            ({}, {"hook_name_out": "blocks.1.hook_mlp_out"}, "hook_name_out = 'blocks.1.hook_mlp_out'"),
            ({}, {"model_from_pretrained_kwargs": {"checkpoint_value": 512}}, "checkpoint_value = 512"),
            ({}, {"model_from_pretrained_kwargs": {"checkpoint_index": 0}}, "other weights of its model"),
            ({}, {"model_from_pretrained_kwargs": {"revision": "step1000"}}, "revision = 'step1000'"),
            ({"architecture": "temporal"}, {}, "no counterpart of SAELens' 'temporal'"),
            (
                {"architecture": "abstopk"},
                {},
                "there is one of standard, topk, gated, jumprelu",
            ),  # half of it is negative
        ],
    )
    def test_settings(self, saved, settings, metadata, words):
        rewrite(saved, metadata, **settings)
        assert words in said(saved)

    @pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
    def test_transcoders(self, tmp_path, architecture):
        theirs(architecture, apply_b_dec_to_input=False, d_out=12).save_model(tmp_path)
        assert "a transcoder rebuilds another activation than it reads" in said(tmp_path)

    @pytest.mark.parametrize("k", [None, 0, 41, 2.5, "4"])
    def test_topk_needs_its_k(self, tmp_path, k):
        """Without it, SAELens takes 100."""
        theirs("topk", k=4).save_model(tmp_path)
        rewrite(tmp_path, **({"k": k} if k is not None else {"drop": "k"}))
        assert f"has k = {k!r}; needed is a whole number up to d_sae" in said(tmp_path)

    @pytest.mark.parametrize(
        "settings",
        [
            {"normalize_activations": "layer_norm"},
            {"normalize_activations": "constant_norm_rescale"},
            {"apply_b_dec_to_input": False},
            {"dtype": "float16"},
            {"dtype": "bfloat16"},
            {"device": "cuda"},
        ],
    )
    def test_what_is_honoured(self, saved, settings):
        expected = SAE.load_from_disk(saved, device="cpu", dtype="float32")
        rewrite(saved, {"model_from_pretrained_kwargs": {"fold_ln": True, "revision": "main"}}, **settings)
        sae = read_sae(saved)
        assert sae.W_dec.dtype == torch.float32 and sae(X).isfinite().all() and sae.encode(X).count_nonzero()
        assert torch.allclose(sae(X), expected(X), atol=1e-4) == ("dtype" in settings or "device" in settings)


class TestDecoderNorms:
    @pytest.mark.parametrize(
        "architecture, settings",
        [
            ("standard", {}),
            ("jumprelu", {}),
            ("gated", {}),
            ("topk", {"k": 4}),
            ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
            ("standard", {"apply_b_dec_to_input": False}),
            ("jumprelu", {"normalize_activations": "layer_norm"}),
        ],
    )
    def test_are_folded(self, tmp_path, architecture, settings):
        before = theirs(architecture, **settings)
        norm = torch.logspace(-1, 2, 40)
        before.W_dec.data *= (norm / before.W_dec.norm(dim=1))[:, None]
        before.save_model(tmp_path)
        sae = read_sae(tmp_path)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
        torch.testing.assert_close(sae(X), before(X), atol=1e-3, rtol=1e-4)
        f = before.encode(X) * (1 if settings.get("rescale_acts_by_decoder_norm") else norm)
        torch.testing.assert_close(sae.encode(X), f, atol=1e-3, rtol=1e-4)
        assert torch.equal(copy.deepcopy(sae).to("cpu")(X), sae(X))
        if settings in ({}, {"k": 4}) or architecture == "topk":
            torch.testing.assert_close(from_saelens(sae)(X), before(X), atol=1e-3, rtol=1e-4)

    @pytest.mark.parametrize("name", ["2-res", "2-mlp-post"])
    def test_ranks_of_an_embedded_sae(self, tmp_path, name):
        """`W_enc, b_enc, threshold × c; W_dec / c`, with a factor for each feature, is the same function."""
        expected = load_sae(get_spec("mini"), name)
        factor = torch.logspace(-2, 2, expected.cfg.d_sae)[torch.randperm(expected.cfg.d_sae)]
        other = copy.deepcopy(expected)
        for weights, by in (
            (other.W_enc, factor),
            (other.b_enc, factor),
            (other.threshold, factor),
            (other.W_dec, 1 / factor[:, None]),
        ):
            weights.data *= by
        other.save_model(tmp_path)
        sae, x = read_sae(tmp_path), torch.randn(20, expected.cfg.d_in) * 8
        assert not torch.equal(other.encode(x).argmax(1), expected.encode(x).argmax(1))
        assert torch.equal(sae.encode(x).argmax(1), expected.encode(x).argmax(1))
        torch.testing.assert_close(sae(x), expected(x), atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("architecture", ["relu", "topk", "gated", "jumprelu"])
    def test_rows_of_norm_1_stay_to_the_bit(self, tmp_path, architecture):
        save_saelens(make_sae(SaeConfig(12, 40, architecture, k=4)), tmp_path / "one", SAEMetadata(hook_name=HOOK))
        loaded, plain = read_sae(tmp_path / "one"), SAE.load_from_disk(tmp_path / "one", dtype="float32")
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))

    def test_a_row_of_zeros(self, tmp_path):
        before = theirs("jumprelu")
        before.W_dec.data[3] = 0
        before.save_model(tmp_path)
        sae = read_sae(tmp_path)
        torch.testing.assert_close(sae(X), before(X))
        assert sae.encode(X)[:, 3].max() < 1e-6 < before.encode(X)[:, 3].max()


class TestSavedInTraining:
    @pytest.mark.parametrize(
        "architecture, settings",
        [
            ("standard", {}),
            ("gated", {}),
            ("jumprelu", {}),
            ("topk", {"k": 4}),
            ("batchtopk", {"k": 4.0}),
            ("batchtopk", {"k": 4, "rescale_acts_by_decoder_norm": False}),
            ("matryoshka_batchtopk", {"k": 4, "matryoshka_widths": [10, 40]}),
        ],
    )
    def test_loads_in_its_inference_form(self, tmp_path, architecture, settings):
        trained = theirs(architecture, training=True, **settings)
        trained.save_model(tmp_path / "training")
        trained.save_inference_model(tmp_path / "inference")
        sae, plain = read_sae(tmp_path / "training"), SAE.load_from_disk(tmp_path / "inference", dtype="float32")
        assert not isinstance(sae, TrainingSAE) and sae.cfg.metadata.hook_name == HOOK
        torch.testing.assert_close(sae(X), plain(X), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(read_sae(tmp_path / "inference")(X), plain(X), atol=1e-4, rtol=1e-4)
        assert sae.encode(X).count_nonzero() and plain.cfg.architecture() == sae.cfg.architecture()

    def test_thresholds_as_logarithms(self, tmp_path):
        trained = theirs("jumprelu", training=True)
        trained.save_model(tmp_path)
        weights = load_file(tmp_path / "sae_weights.safetensors")
        weights["log_threshold"] = weights.pop("threshold").log()
        save_file(weights, tmp_path / "sae_weights.safetensors")
        torch.testing.assert_close(read_sae(tmp_path)(X), trained(X), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        "architecture, settings",
        [
            ("standard", {}),
            ("gated", {}),
            ("jumprelu", {}),
            ("topk", {"k": 4}),
            ("topk", {"k": 4, "rescale_acts_by_decoder_norm": False}),
        ],
    )
    def test_a_checkpoint_in_scaled_units(self, tmp_path, architecture, settings):
        scaled = {"normalize_activations": "expected_average_only_in"}
        trained = theirs(architecture, training=True, **settings, **scaled)
        trained.save_model(tmp_path)
        assert "fold what training measured" in said(tmp_path)
        scaler = '{"scaling_factor": 0.25, "has_whitening": false}'
        (tmp_path / "activation_scaler.json").write_text(scaler, encoding="utf-8")
        sae = read_sae(tmp_path)
        torch.testing.assert_close(sae(X), trained(X * 0.25) / 0.25, atol=1e-3, rtol=1e-4)
        assert sae.cfg.normalize_activations == "none"
        (tmp_path / "activation_scaler.json").write_text('{"scaling_fac', encoding="utf-8")
        assert "activation_scaler.json' is damaged" in said(tmp_path)


class TestFolders:
    @pytest.fixture
    def home(self, tmp_path):
        for name in ("a", "b"):
            save_saelens(make_sae(SaeConfig(32, 64, k=4)), tmp_path / "saes" / name, SAEMetadata(hook_name=HOOK))
        return tmp_path / "saes"

    @pytest.mark.parametrize("below, names", [("", ["a", "b"]), ("b", ["b"])])
    def test_prism_saes_is_an_sae_or_holds_some(self, llama, home, monkeypatch, below, names):
        monkeypatch.setenv("PRISM_SAES", str(home / below))
        spec = get_spec(str(llama))
        assert list(spec.saes) == names and load_sae(spec).cfg.d_sae == 64

    def test_prism_saes_from_here(self, llama, home, monkeypatch):
        monkeypatch.chdir(home / "a")
        monkeypatch.setenv("PRISM_SAES", ".")
        assert list(get_spec(str(llama)).saes) == ["a"]

    @pytest.mark.parametrize(
        "below, words", [("", "holds no SAE"), ("nowhere", "is no folder"), ("a/cfg.json", "is no folder")]
    )
    def test_prism_saes_names_nothing(self, llama, tmp_path, home, monkeypatch, below, words):
        monkeypatch.setenv("PRISM_SAES", str(home / below if below else tmp_path))
        with pytest.raises(ValueError, match=f"PRISM_SAES names '.*', which {words}; needed is a folder with cfg.json"):
            get_spec(str(llama))

    def test_a_damaged_one_among_them_is_named(self, llama, home, monkeypatch):
        (home / "b" / "cfg.json").write_text("[]", encoding="utf-8")
        monkeypatch.setenv("PRISM_SAES", str(home))
        with pytest.raises(ValueError, match="b/cfg.json' does not hold the settings"):
            get_spec(str(llama))
