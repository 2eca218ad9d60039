"""`prism gallery` on the embedded model: which features, which files, which links, which errors."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from prism import cli
from prism.data import CATEGORIES, token_table, tokenize
from prism.explorer import gallery
from prism.explorer import sample as texts
from prism.features import FeatureMatrix, encode_features
from prism.models import get_spec, load_model, load_sae


@pytest.fixture(scope="module")
def sample():
    """28 labelled texts (4 a category) and 2 others; features 0 to 6 fire in one category, 7 to 38 anywhere, 39 never.

    Feature c fires on all four texts of category c.
    """
    dense = np.zeros((30 * 4, 40), np.float32)
    for text in range(28):
        dense[4 * text, text // 4] = 1 + text
    rng = np.random.default_rng(0)
    for feature in range(7, 39):
        dense[rng.permutation(len(dense))[: 3 * (feature - 6)], feature] = 1
    text = np.repeat(np.arange(30), 4)
    table = pd.DataFrame(
        {
            "text": text,
            "position": np.tile(np.arange(1, 5), 30),
            "token_id": 0,
            "token": "x",
            "category": np.array([*np.repeat(CATEGORIES, 4), texts.CORPUS, texts.CORPUS])[text],
        }
    )
    return texts.Sample(FeatureMatrix(sp.csr_matrix(dense), table), text < 28, text % 2 == 1)


def test_features_are_chosen_by_the_stated_rules(sample):
    chosen = gallery.choose_features(sample, 20)
    kinds = [rule.split(":")[0] for rule in chosen.values()]
    assert len(chosen) == 20 and 39 not in chosen
    assert list(chosen)[:7] == list(range(7)), "the best of each category first"
    assert chosen[0] == "specialist: Python code" and chosen[6] == "specialist: Conversational"
    assert kinds == sorted(kinds, key=["specialist", "most frequent", "median density", "random"].index)
    assert [f for f, rule in chosen.items() if rule == "most frequent"] == [38, 37]
    density = sample.matrix.density()
    middle = [f for f, rule in chosen.items() if rule == "median density"]
    assert np.allclose(density[middle], np.median(density[density > 0]), rtol=0.1)
    assert chosen == gallery.choose_features(sample, 20)
    said = gallery.rules(chosen)
    assert sum(int(rule.split()[0]) for rule in said) == 20 and len(said) == len(set(kinds)) == 4


def test_every_number_of_features_that_fire_can_be_had(sample):
    for n in (1, 2, 3, 10, 39):
        assert len(gallery.choose_features(sample, n)) == n
    with pytest.raises(ValueError, match="40 pages; 39 features fire in these texts, give at most as many"):
        gallery.choose_features(sample, 40)


def test_page_names_are_addresses_as_they_stand():
    specs = SimpleNamespace(name='my model#1 "x"?'), SimpleNamespace(name="2/res")
    assert gallery.page_name(*specs, 7) == "my-model-1-x-_2-res_7.html"


@pytest.fixture(scope="module")
def written(tmp_path_factory, monkeypatch_module) -> Path:
    monkeypatch_module.setattr(texts, "EXPLAIN_DOCUMENTS", 12)
    monkeypatch_module.setattr(texts, "SCORE_DOCUMENTS", 8)
    out = tmp_path_factory.mktemp("gallery") / "new" / "folder"
    assert cli.main(["gallery", "--model", "mini", "--n", "6", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_gallery_has_the_pages_that_its_index_lists(written):
    index = (written / "index.html").read_text(encoding="utf-8")
    pages = re.findall(r'<li><a href="([^"#]+)"', index)
    assert len(pages) == len(set(pages)) == 6
    assert sorted(path.name for path in written.iterdir()) == sorted([*pages, "index.html"])
    assert "3 specialists of a category" in index and "3 random" in index and "mini, the embedded" in index
    assert re.search(r"specialist: .* · detection [01]\.\d\d · fires on \d", index), "some explanation is scored"
    assert index.count("automatic:</span>") == 6 and index.count('class="prism-tokens prism-window"') == 6


def test_pages_link_only_to_pages_that_are_there(written):
    for path in written.iterdir():
        page = path.read_text(encoding="utf-8")
        targets = {link for link in re.findall(r'href="([^"]+)"', page) if not link.startswith("#")}
        assert all((written / link).is_file() for link in targets), targets
        assert not re.search(r"<script|<img|<iframe|<link|@import|url\(|\bsrc=", page)
        if path.name != "index.html":
            assert "index.html" in targets
            for head in ("Explanation", "Density", "Categories", "Writes towards", "Nearest directions"):
                assert f"{head}</h2>" in page


def test_features_are_explained_where_they_can_be(sample):
    """All that fire are explained; those that fire in enough different contexts are scored."""
    assert sample.explained(0).sentence and sample.scores(0) == {}
    assert sample.explained(39) is None and sample.scores(39) == {}, "it never fires"
    alone = replace(sample, held=sample.matrix.table["text"].to_numpy() < 4, _explained={})
    assert not alone._counter.examples.fires(0).any()
    assert alone.explained(0) is not None, "silent but in the held-out texts: counted on all"
    dense, text = np.zeros((4000, 1), np.float32), np.repeat(np.arange(80), 50)
    ids = np.random.default_rng(0).integers(1, 50, 4000)
    dense[ids == 7] = 1
    table = pd.DataFrame({"text": text, "position": np.tile(np.arange(1, 51), 80), "token_id": ids})
    wide = FeatureMatrix(sp.csr_matrix(dense), table.assign(token=[f" {'abcdefg'[i % 7]}{i}" for i in ids]))
    wide = texts.Sample(wide, text < 0, text % 2 == 1)
    assert wide.explained(0).sentence.startswith('Fires on " a7"') and wide.explained(0) is wide.explained(0)
    scores = wide.scores(0)
    assert scores["detection"] > 0.95 and scores["fuzzing"] > 0.95


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "minni"], "did you mean 'mini'"),
        (["--model", "mini", "--sae", "2-ress"], "did you mean '2-res'"),
        (["--model", "mini", "--n", "0"], "0 pages; give at least 1"),
        (["--model", "mini", "--n", "99999"], "99,999 pages; the SAE '2-res' has 3,072 features, give at most as many"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(tmp_path, capsys, arguments, says):
    assert cli.main(["gallery", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert cli.main(["gallery", "--model", "mini", "--n", "1", "--out", str(tmp_path / "file" / "x")]) == 1
    error = capsys.readouterr().err
    assert "cannot make the folder" in error and "choose another one" in error and error.count("\n") == 1
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_neurons_reach_the_logits_through_the_output_weights(mini):
    for hook, d_in in (("blocks.2.mlp.hook_post", mini.cfg.d_mlp), ("blocks.2.hook_resid_pre", mini.cfg.d_model)):
        sae = SimpleNamespace(cfg=SimpleNamespace(d_in=d_in, metadata=SimpleNamespace(hook_name=hook)))
        assert texts._unembedding(mini, sae).shape == (d_in, mini.cfg.d_vocab)
    odd = SimpleNamespace(cfg=SimpleNamespace(d_in=7, metadata=SimpleNamespace(hook_name="blocks.0.attn.hook_z")))
    assert texts._unembedding(mini, odd) is None


def test_a_context_that_is_too_short_is_said():
    spec = get_spec("mini")
    model, sae = load_model(spec), load_sae(spec)
    with pytest.raises(ValueError, match="mini cannot read the labelled texts: text 0 has .* fits is 63"):
        texts.read_sample(replace(spec, context=64), model, sae)


def test_texts_of_like_length_go_together_and_nothing_else_changes(mini):
    sae = load_sae(get_spec("mini"))
    some = ["One two three. " * n for n in (9, 1, 5, 12, 2, 7, 3, 8, 4, 11)]
    batch = tokenize(some, mini.tokenizer, 256)
    table = token_table(batch, mini.tokenizer, [*"abcdefghij"])
    for limit in (None, 247.0):  # of massive tokens; half of these are above it
        sae.cfg.metadata.massive_norm = limit
        found, plain = texts._by_length(mini, sae, batch, table, ""), encode_features(mini, sae, batch, table)
        assert (
            found.table.equals(plain.table)
            and found.massive == plain.massive
            and (limit is None) == (not found.massive)
        )
        assert abs(found.values - plain.values).max() < 1e-3


class TestTheSampleIsKept:
    @pytest.fixture
    def few(self, tmp_path, monkeypatch):
        for name in ("EXPLAIN_DOCUMENTS", "SCORE_DOCUMENTS"):
            monkeypatch.setattr(texts, name, 2)
        monkeypatch.setattr(texts, "CACHE", tmp_path)
        return tmp_path / "samples"

    @staticmethod
    def forbid(monkeypatch):
        monkeypatch.setattr(texts, "encode_features", lambda *_, **__: pytest.fail("the model ran"))

    @staticmethod
    def same(a, b):
        assert (a.matrix.values != b.matrix.values).nnz == 0 and a.matrix.table.equals(b.matrix.table)
        assert (a.held == b.held).all() and (a.labelled == b.labelled).all()

    def test_a_second_start_runs_no_model(self, few, mini, monkeypatch):
        spec = get_spec("mini")
        sae = load_sae(spec)
        first = texts.read_sample(spec, mini, sae)
        assert len(list(few.iterdir())) == 1
        self.forbid(monkeypatch)
        self.same(first, texts.read_sample(spec, mini, load_sae(spec)))

    @pytest.mark.parametrize("what", ["weights", "constant", "texts"])
    def test_what_changed_is_read_anew(self, few, mini, monkeypatch, what):
        spec = get_spec("mini")
        texts.read_sample(spec, mini, load_sae(spec))
        sae = load_sae(spec)
        if what == "weights":
            sae.b_enc.data[7] += 1.0
        elif what == "constant":
            sae.cfg.metadata.massive_norm = 1e9
        else:
            monkeypatch.setattr(texts, "SCORE_DOCUMENTS", 3)
        self.forbid(monkeypatch)
        with pytest.raises(pytest.fail.Exception, match="the model ran"):
            texts.read_sample(spec, mini, sae)

    def test_a_damaged_file_is_made_anew(self, few, mini):
        spec = get_spec("mini")
        sae = load_sae(spec)
        first = texts.read_sample(spec, mini, sae)
        [file] = few.iterdir()
        file.write_bytes(file.read_bytes()[:1_000])
        self.same(first, texts.read_sample(spec, mini, sae))
        assert file.stat().st_size > 1_000

    def test_a_folder_that_cannot_be_written_costs_a_line(self, few, mini, capsys):
        few.write_text("mine", encoding="utf-8")
        spec = get_spec("mini")
        assert texts.read_sample(spec, mini, load_sae(spec)).matrix.n_tokens
        assert "not kept for the next start" in capsys.readouterr().err and few.read_text(encoding="utf-8") == "mine"
