"""FeatureMatrix agrees with dense arithmetic, survives bad files and full disks, and stays small."""

import errno
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from scipy.sparse import csr_matrix

from prism import data, features, models
from prism.data import CATEGORIES, TokenBatch
from prism.fast import SparseEncoder
from prism.features import FeatureMatrix, encode_activations, encode_features, peak_reader, word_features
from prism.features.encoding import channel_features

HOOK = "blocks.1.hook_resid_pre"


def make(dense, texts=None, categories=None) -> FeatureMatrix:
    """A matrix from a dense array; all tokens of one text unless `texts` says otherwise."""
    dense = np.asarray(dense, np.float32)
    texts = np.zeros(len(dense), int) if texts is None else np.asarray(texts)
    table = pd.DataFrame(
        {
            "text": texts,
            "position": np.arange(1, len(dense) + 1),
            "token_id": np.arange(len(dense)) % 50,
            "token": pd.Categorical([f" t{i % 50}" for i in range(len(dense))]),
        }
    )
    if categories is not None:
        table["category"] = pd.Categorical(np.asarray(categories)[texts], categories=list(dict.fromkeys(categories)))
    return FeatureMatrix(csr_matrix(dense), table)


SMALL = make([[1, 0, 0], [3, 0, 2], [0, 0, 5]], [0, 0, 1], ["python", "math"])


@st.composite
def matrices(draw):
    dense = draw(
        hnp.arrays(
            np.float32,
            st.tuples(st.integers(1, 12), st.integers(1, 6)),
            elements=st.one_of(st.just(0.0), st.floats(0.125, 100, width=32)),
        )
    )
    texts = np.sort(draw(hnp.arrays(np.int64, len(dense), elements=st.integers(0, 4))))
    return dense, texts


# the matrix


def test_hand_case():
    assert (SMALL.n_tokens, SMALL.d_sae, SMALL.n_texts) == (3, 3, 2)
    assert SMALL.firing_counts().tolist() == [2, 0, 2]
    assert SMALL.density() == pytest.approx([2 / 3, 0, 2 / 3])
    assert SMALL.l0() == pytest.approx(4 / 3)
    assert SMALL.max_activation().tolist() == [3, 0, 5]
    assert SMALL.text_max().toarray().tolist() == [[3, 0, 2], [0, 0, 5]]
    assert SMALL.text_categories().tolist() == ["python", "math"]
    assert SMALL.column(2).tolist() == [0, 2, 5] and SMALL.column(2).dtype == np.float32


@given(matrices())
def test_everything_equals_the_dense_computation(case):
    dense, texts = case
    matrix = make(dense, texts)
    assert matrix.n_texts == texts.max() + 1
    pooled = np.zeros((matrix.n_texts, matrix.d_sae), np.float32)
    np.maximum.at(pooled, texts, dense)
    peaks = matrix.text_max()
    assert np.array_equal(peaks.toarray(), pooled)
    assert peaks.has_canonical_format and (peaks.data > 0).all() and peaks.dtype == np.float32
    assert np.array_equal(matrix.firing_counts(), (dense > 0).sum(0))
    assert matrix.l0() == pytest.approx((dense > 0).sum(1).mean())
    assert np.array_equal(matrix.max_activation(), dense.max(0))
    for feature in range(matrix.d_sae):
        assert np.array_equal(matrix.column(feature), dense[:, feature])
        top = matrix.top_tokens(feature, 3)
        assert top["activation"].tolist() == sorted(dense[dense[:, feature] > 0, feature].tolist(), reverse=True)[:3]


@given(matrices(), st.integers(1, 6), st.integers(1, 8))
def test_statistics_equal_a_loop_over_features(case, k, at_once):
    dense, texts = case
    dense = np.round(dense)  # so that there are ties
    matrix, before = make(dense, texts), features.matrix.SORTED_AT_ONCE
    try:
        features.matrix.SORTED_AT_ONCE = at_once
        statistics = matrix.statistics(k)
    finally:
        features.matrix.SORTED_AT_ONCE = before
    assert statistics.top_rows.shape == statistics.top_values.shape == (matrix.d_sae, k)
    for feature, column in enumerate(dense.T):
        strongest = [row for row in sorted(range(len(column)), key=lambda row: -column[row]) if column[row] > 0][:k]
        assert statistics.counts[feature] == sum(column > 0)
        assert statistics.sums[feature] == pytest.approx(sum(column.tolist()))
        assert statistics.maxima[feature] == max(column)
        assert statistics.top_rows[feature].tolist() == strongest + [-1] * (k - len(strongest))
        assert statistics.top_values[feature].tolist() == [column[r] for r in strongest] + [0] * (k - len(strongest))


def test_statistics_agree_with_the_single_questions():
    dense = np.maximum(np.random.default_rng(0).normal(-1, 1, (500, 40)), 0)
    dense[:, 7] = 0
    matrix = make(dense)
    statistics = matrix.statistics()
    assert np.array_equal(statistics.counts, matrix.firing_counts())
    assert np.array_equal(statistics.maxima, matrix.max_activation())
    for feature in range(40):
        rows = statistics.top_rows[feature]
        assert (
            matrix.table["position"].iloc[rows[rows >= 0]].tolist() == matrix.top_tokens(feature)["position"].tolist()
        )
    assert (statistics.top_rows[7] == -1).all() and statistics.sums[7] == 0
    assert make(np.zeros((0, 4))).statistics().counts.tolist() == [0] * 4
    with pytest.raises(ValueError, match="at least 1, not 0"):
        matrix.statistics(0)


def test_top_tokens_are_best_first_with_ties_in_text_order():
    matrix = make([[1.0], [4.0], [0.0], [4.0]], [0, 0, 1, 2], ["a", "b", "c"])
    top = matrix.top_tokens(0)
    assert top["position"].tolist() == [2, 4, 1] and top["activation"].tolist() == [4, 4, 1]
    assert list(top) == ["text", "position", "token_id", "token", "category", "activation"]


def test_a_feature_that_never_fires_is_no_error():
    assert SMALL.column(1).tolist() == [0, 0, 0]
    assert SMALL.top_tokens(1).empty and "activation" in SMALL.top_tokens(1)


@pytest.mark.parametrize("feature, nearest", [(3, 2), (10**9, 2), (-1, 0)])
def test_a_feature_out_of_range_names_the_range_and_the_nearest(feature, nearest):
    for call in (SMALL.column, SMALL.top_tokens):
        with pytest.raises(IndexError, match=rf"no feature {feature}; choose from 0 to 2 \(the nearest is {nearest}\)"):
            call(feature)


def test_no_tokens_and_one_text():
    empty = make(np.zeros((0, 4)))
    assert (empty.n_tokens, empty.n_texts, empty.l0()) == (0, 0, 0)
    assert empty.text_max().shape == (0, 4) and empty.density().tolist() == [0] * 4
    one = make([[1.0, 0.0], [2.0, 0.0]], categories=["math"])
    assert one.text_max().toarray().tolist() == [[2, 0]] and one.text_categories().tolist() == ["math"]


def test_select_takes_tokens_and_renumbers_texts():
    matrix = make(np.eye(4), [0, 1, 1, 2], ["python", "math", "python"])
    part = matrix.select(matrix.table["category"] == "python")
    assert part.table["text"].tolist() == [0, 1] and part.text_categories().tolist() == ["python", "python"]
    assert part.values.toarray().tolist() == np.eye(4)[[0, 3]].tolist()
    assert matrix.select(np.zeros(4, bool)).n_texts == 0
    with pytest.raises(ValueError, match="True or False for each of 4"):
        matrix.select(np.array([0, 1]))


def test_a_matrix_that_does_not_fit_its_table_is_refused():
    table = SMALL.table
    with pytest.raises(ValueError, match="2 rows of values but 3"):
        FeatureMatrix(SMALL.values[:2], table)
    with pytest.raises(ValueError, match="lacks token"):
        FeatureMatrix(SMALL.values, table.drop(columns="token"))
    with pytest.raises(ValueError, match="out of order"):
        FeatureMatrix(SMALL.values, table.assign(text=[1, 0, 0]))
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="above zero, and no NaN"):
            make([[bad]])
    with pytest.raises(ValueError, match="csr_matrix"):
        FeatureMatrix(SMALL.values.tocsc(), table)


def test_categories_that_are_missing_are_named():
    with pytest.raises(ValueError, match="no categories"):
        make([[1.0]]).text_categories()
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        make(np.ones((2, 1)), [0, 2], ["a", "b", "c"]).text_categories()


# encoding


def batch_of(lengths, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 20, (len(lengths), width), generator=generator)
    keep = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        keep[row, 1 : 1 + length] = True
    return TokenBatch(tokens, keep)


class Tokenizer:
    """Decodes an id to its number."""

    def decode(self, ids):
        return f"<{ids[0]}>"

    def convert_ids_to_tokens(self, token):
        return f"<{token}>"


class Sae:
    """Six features of four channels: a linear map and a ReLU, that remembers its largest input."""

    def __init__(self, d_in=4, d_sae=6):
        metadata = SimpleNamespace(hook_name=HOOK)
        self.cfg = SimpleNamespace(d_in=d_in, d_sae=d_sae, metadata=metadata)
        self.weight = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(1))
        self.rows = 0

    def encode(self, x):
        self.rows = max(self.rows, len(x))
        return torch.relu(x @ self.weight)


@pytest.fixture
def acts(monkeypatch):
    """Activations that the stand-in for the model gives, [5, 7, 4]; changed in place by tests."""
    x = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(2))

    def harvest(model, tokens, hook_name, batch_size=32, progress=None):
        assert hook_name == HOOK and len(tokens) == len(x)
        yield from x.split(batch_size)

    monkeypatch.setattr(models.harvesting, "harvest", harvest)
    return x


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_encode_features_equals_the_dense_computation(acts, batch_size):
    batch, sae = batch_of([6, 1, 3, 2, 6]), Sae()
    table = data.token_table(batch, Tokenizer(), list(CATEGORIES[:5]))
    matrix = encode_features(None, sae, batch, table, batch_size)
    np.testing.assert_allclose(matrix.values.toarray(), sae.encode(acts[batch.keep]).numpy(), rtol=1e-5)
    assert matrix.values.indices.dtype == matrix.values.indptr.dtype == np.int32
    assert matrix.values.has_sorted_indices and matrix.values.dtype == np.float32
    assert matrix.table is table and matrix.text_categories().tolist() == list(CATEGORIES[:5])


def test_encoding_is_never_dense_beyond_a_chunk(acts, monkeypatch):
    monkeypatch.setattr(features.encoding, "ENCODE_TOKENS", 4)
    batch, sae = batch_of([6] * 5), Sae()
    encode_features(None, sae, batch, data.token_table(batch, Tokenizer()))
    assert sae.rows == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_refused_with_their_place(acts, bad):
    batch = batch_of([6] * 5)
    table = data.token_table(batch, Tokenizer())
    acts[:, 0] = bad  # BOS: not looked at
    encode_features(None, Sae(), batch, table, 2)
    acts[3, 5, 1] = bad
    with pytest.raises(ValueError, match="text 3, position 5"):
        encode_features(None, Sae(), batch, table, 2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        channel_features(None, HOOK, batch, table)


def test_an_sae_that_makes_nan_is_refused(acts):
    sae = Sae()
    sae.weight[0, 0] = float("nan")
    batch = batch_of([6] * 5)
    with pytest.raises(ValueError, match="check the SAE's weights"):
        encode_features(None, sae, batch, data.token_table(batch, Tokenizer()))


def test_the_embedded_sae_encodes_as_one_dense_pass(mini):
    sae = models.load_sae(models.get_spec("mini"))
    batch = data.tokenize(["def add(a, b):\n    return a + b", "Where were you last night?"], mini.tokenizer, 64)
    matrix = encode_features(mini, sae, batch, data.token_table(batch, mini.tokenizer), batch_size=1)
    (x,) = models.harvest(mini, batch.tokens, sae.cfg.metadata.hook_name)
    with torch.no_grad():
        dense = sae.encode(x[batch.keep]).numpy()
    np.testing.assert_allclose(matrix.values.toarray(), dense, atol=1e-3)
    assert matrix.n_tokens == batch.n_tokens and 1 < matrix.l0() < sae.cfg.d_in


def test_one_text_is_read_as_in_a_matrix_of_many(mini):
    sae, texts = models.load_sae(models.get_spec("mini")), ["def add(a, b):\n    return a + b", "Where were you?"]
    batch = data.tokenize(texts, mini.tokenizer, 64)
    peaks = encode_features(mini, sae, batch, data.token_table(batch, mini.tokenizer)).text_max().toarray()
    read, silent = peak_reader(mini, sae, 64), int(peaks.max(0).argmin())
    matrix = encode_features(mini, sae, batch, data.token_table(batch, mini.tokenizer))
    for feature in (int(peaks[0].argmax()), int(peaks[1].argmax()), silent):
        tried = read(feature, *texts)
        np.testing.assert_allclose(tried["activation"], peaks[:, feature], atol=0.051)
        assert list(tried.index) == texts and read(feature, texts[1]).equals(tried.iloc[[1]])
        for text, on in enumerate(tried["on"]):
            rows = np.flatnonzero(matrix.table["text"] == text)
            values = matrix.column(feature)[rows]
            assert on == (matrix.table["token"].iloc[rows[values.argmax()]] if values.any() else "")
    for text, says in ((" ", "is empty"), ("word " * 99, "the longest that fits is 63")):
        with pytest.raises(ValueError, match=says):
            read(0, text)


def saelens_sae(architecture, **settings):
    """An SAE of SAELens' own classes with random weights, about a tenth of whose features fire."""
    kinds = {
        "standard": (StandardSAE, StandardSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "topk": (TopKSAE, TopKSAEConfig),
        "gated": (GatedSAE, GatedSAEConfig),
    }
    kind, config = kinds[architecture]
    sae = kind(config(d_in=16, d_sae=128, **settings))
    torch.manual_seed(3)
    for name, parameter in sae.named_parameters():
        torch.nn.init.normal_(
            parameter.data, mean=-1.0 if name == "b_enc" else 0.3 if name == "threshold" else 0, std=0.3
        )
    return sae.requires_grad_(False).eval()


@pytest.mark.parametrize("blocks", [1, 64, 1000])
@pytest.mark.parametrize(
    "architecture, settings",
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("standard", {"normalize_activations": "constant_norm_rescale"}),
        ("standard", {"dtype": "bfloat16"}),
        ("jumprelu", {}),
        ("topk", {"k": 5}),
        ("gated", {}),
    ],
    ids=str,
)
def test_the_numbers_are_the_saes_own_to_the_last_bit(architecture, settings, blocks, monkeypatch):
    monkeypatch.setattr(features.encoding, "ENCODE_TOKENS", 96)
    sae = saelens_sae(architecture, **settings)
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(4))
    table = make(np.zeros((300, 1))).table
    matrix = encode_activations(sae, x.split(blocks), table)
    chunks = [chunk for block in x.split(blocks) for chunk in block.split(96)]
    expected = torch.cat([sae.encode(chunk) for chunk in chunks]).float().numpy()
    assert np.array_equal(matrix.values.toarray(), expected)
    assert 1 < matrix.l0() < 64 and matrix.table is table


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize("bias", [-3.5, 0.5], ids=["few fire", "most fire"])
def test_a_screen_finds_the_same_features(architecture, bias, monkeypatch):
    monkeypatch.setattr("prism.fast.screening.SMALL", 0)
    sae, x = saelens_sae(architecture), torch.randn(300, 16, generator=torch.Generator().manual_seed(4))
    sae.b_enc.fill_(bias)
    if architecture == "jumprelu":
        sae.threshold[::3] = -1.0
    encode = SparseEncoder(sae, 96, screened=True)
    assert encode.screen is not None
    for chunk in x.split(96):
        found, expected = encode(chunk), sae.encode(chunk)
        dense = torch.zeros(expected.shape).index_put_((found.row, found.feature), found.value)
        torch.testing.assert_close(dense, expected)
        assert torch.equal(dense > 0, expected > 0)
    assert (encode.pause > 0) == (bias > 0), "where most fire, the screen steps back"
    assert len(encode(chunk[:0]).value) == 0
    chunk[3, 3] = 1e36
    torch.testing.assert_close(
        encode(chunk).value.sort().values, sae.encode(chunk)[sae.encode(chunk) > 0].sort().values
    )


def test_features_that_are_not_a_number_are_an_error(monkeypatch):
    monkeypatch.setattr("prism.fast.screening.SMALL", 0)
    for screened in (False, True):
        sae = saelens_sae("standard")
        sae.W_enc[3, 3] = torch.nan
        with pytest.raises(ValueError, match="features are NaN"):
            SparseEncoder(sae, 96, screened)(torch.ones(2, 16))


def test_a_hook_on_the_sae_is_honoured():
    sae, x = saelens_sae("standard"), torch.randn(20, 16, generator=torch.Generator().manual_seed(4))
    table = make(np.zeros((20, 1))).table
    assert encode_activations(sae, [x], table).l0() > 1
    sae.hook_sae_acts_post.add_hook(lambda features, hook: features[:, :1] * torch.ones(128))
    assert np.array_equal(encode_activations(sae, [x], table).values.toarray(), sae.encode(x).numpy())


def test_activations_and_table_must_match():
    with pytest.raises(ValueError, match="20 rows of values but 3"):
        encode_activations(saelens_sae("standard"), [torch.zeros(20, 16)], SMALL.table)


def test_batch_and_table_must_match(acts):
    batch = batch_of([6] * 5)
    other = data.token_table(batch_of([5] * 5), Tokenizer())
    for call in (
        lambda: encode_features(None, Sae(), batch, other),
        lambda: word_features(batch, other, 20),
        lambda: channel_features(None, HOOK, batch, other),
    ):
        with pytest.raises(ValueError, match="keeps 30 tokens, the table has 25"):
            call()


def test_channel_features_are_the_standardised_channels(acts):
    acts[..., 3] = 7.0  # a constant channel has nothing to say
    batch = batch_of([6, 1, 3, 2, 6])
    matrix = channel_features(None, HOOK, batch, data.token_table(batch, Tokenizer()))
    x = acts[batch.keep].numpy()
    z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    z[:, 3] = 0
    expected = np.hstack([np.maximum(z, 0), np.maximum(-z, 0)])
    np.testing.assert_allclose(matrix.values.toarray(), expected, atol=1e-5)
    sparse = channel_features(None, HOOK, batch, data.token_table(batch, Tokenizer()), l0=1.5)
    assert sparse.l0() == pytest.approx(1.5)
    assert sparse.values.data.min() == pytest.approx(np.sort(np.abs(z).ravel())[-27], rel=1e-4)
    assert channel_features(None, HOOK, batch, data.token_table(batch, Tokenizer()), l0=99).l0() == 3


def test_word_features_are_one_hot():
    batch = batch_of([6, 1, 3])
    matrix = word_features(batch, data.token_table(batch, Tokenizer()), 20)
    assert np.array_equal(matrix.values.toarray(), np.eye(20)[batch.tokens[batch.keep].numpy()])
    with pytest.raises(ValueError, match="outside a vocabulary of 3"):
        word_features(batch, matrix.table, 3)


# files


@given(matrices())
def test_save_and_load_are_inverse(tmp_path_factory, case):
    matrix = make(*case, categories=["math", "python", "urls", "zzz", "formal"])
    path = tmp_path_factory.mktemp("saved") / "matrix.safetensors"
    matrix.save(path)
    again = FeatureMatrix.load(path)
    assert again.values.shape == matrix.values.shape
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(again.values, name), getattr(matrix.values, name))
    pd.testing.assert_frame_equal(again.table, matrix.table, check_categorical=False)
    assert [p.name for p in path.parent.iterdir()] == ["matrix.safetensors"]


def test_the_key_is_checked(tmp_path):
    path = SMALL.save(tmp_path / "m.safetensors", key="layer 2")
    assert FeatureMatrix.load(path, key="layer 2").n_tokens == FeatureMatrix.load(path).n_tokens == 3
    with pytest.raises(ValueError, match="made with layer 2, but layer 3 is needed"):
        FeatureMatrix.load(path, key="layer 3")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_error(tmp_path, keep):
    path = SMALL.save(tmp_path / "m.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="m.safetensors"):
        FeatureMatrix.load(path)


def test_foreign_and_damaged_files_are_one_clear_error(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("not one of ours", encoding="utf-8")
    with pytest.raises(ValueError, match="m.safetensors"):
        FeatureMatrix.load(path)
    data.save_activations(path, {"acts": torch.zeros(2)}, "k")
    with pytest.raises(ValueError, match="holds acts: no FeatureMatrix"):
        FeatureMatrix.load(path)
    whole = data.load_activations(SMALL.save(path))
    for name, bad in {
        "indices": torch.tensor([0, 0, 2, 9], dtype=torch.int32),
        "table": whole["table"][:50],
        "indptr": torch.tensor([0, 9], dtype=torch.int32),
        "d_sae": torch.zeros(0),
        "data": torch.full((4,), float("nan")),
    }.items():
        data.save_activations(path, whole | {name: bad}, "k")
        with pytest.raises(ValueError, match="is damaged"):
            FeatureMatrix.load(path)
    with pytest.raises(FileNotFoundError):
        FeatureMatrix.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_failed_write_leaves_nothing_behind_and_the_old_file_whole(tmp_path, monkeypatch, existing, step):
    path = tmp_path / "m.safetensors"
    if existing:
        SMALL.save(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*arguments, **options):
        if step == "write":
            with open(arguments[1], "wb") as file:
                file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((data, "save_file") if step == "write" else (data.os, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        make(np.eye(5)).save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# size


def test_a_million_tokens_fit_in_a_gigabyte():
    """100,000 tokens at L0 50, their bytes counted and scaled by ten."""
    n, rng = 100_000, np.random.default_rng(0)
    indices = np.sort(rng.integers(0, 24_576 // 50, (n, 50)) + np.arange(50) * (24_576 // 50), axis=1).astype(np.int32)
    indptr = np.arange(0, 50 * n + 1, 50, dtype=np.int32)
    values = csr_matrix((np.ones(50 * n, np.float32), indices.ravel(), indptr), (n, 24_576))
    names = pd.Categorical.from_codes(rng.integers(0, 5000, n), [f" token{i}" for i in range(5000)])
    counts = {name: np.arange(n, dtype=np.int32) // 100 for name in ("text", "position", "token_id")}
    matrix = FeatureMatrix(values, pd.DataFrame(counts | {"token": names}))
    arrays = sum(getattr(matrix.values, name).nbytes for name in ("data", "indices", "indptr"))
    assert matrix.l0() == 50
    assert 10 * (arrays + int(matrix.table.memory_usage(deep=True).sum())) < 450e6
    assert matrix.text_max().shape == (1000, 24_576)
