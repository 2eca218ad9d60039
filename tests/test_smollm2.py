"""The real language model, where it was fetched: what it computes, how its text is cut, and what its passes cost."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prism import evaluation as ev
from prism import fast, models
from prism.data import load_texts, tokenize
from prism.explorer import Explorer, steer
from prism.explorer.steer import EXAMPLES
from prism.models import SMOLLM2, load_model
from prism.models.fetching import SMOLLM2_WHEEL, is_fetched

pytestmark = pytest.mark.skipif(
    not is_fetched(SMOLLM2_WHEEL), reason="smollm2 is not on this machine; `prism fetch smollm2` brings it"
)
BITS = {
    "python": 0.68,
    "urls": 1.24,
    "math": 1.28,
    "nonenglish": 2.35,
    "social": 2.45,
    "formal": 1.04,
    "conversational": 1.36,
}  # (a byte; texts of `discover`, without the prediction of their first token)


@pytest.fixture(scope="module")
def smollm2():
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def explorer():
    return Explorer("smollm2")


@pytest.fixture(scope="module")
def batch(smollm2):
    texts = load_texts().groupby("category").head(1)["text"].tolist()
    return tokenize(texts, smollm2.tokenizer, SMOLLM2.context)


def likeliest(model, text: str) -> str:
    ids = tokenize([text], model.tokenizer, SMOLLM2.context).tokens
    return model.tokenizer.decode([int(model(ids, return_type="logits")[0, -1].argmax())])


class TestModel:
    def test_logits_equal_transformers(self, smollm2, batch):
        reference = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder, dtype=torch.float32).eval()
        for ids, keep in zip(batch.tokens, batch.keep, strict=True):
            ids = ids[: 1 + int(keep.sum())][None]
            mine, theirs = smollm2(ids, return_type="logits"), reference(ids).logits
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm()

    def test_it_knows_things(self, smollm2):
        assert likeliest(smollm2, "The capital of France is") == " Paris"
        assert likeliest(smollm2, "Water freezes at 0 degrees") == " Celsius"

    @torch.no_grad()
    def test_bits_per_byte(self, smollm2):
        for category, texts in load_texts().groupby("category")["text"]:
            batch = tokenize(texts.tolist(), smollm2.tokenizer, SMOLLM2.context)
            seen = ev.Predictions(smollm2, batch.tokens)
            bits = seen.nats(seen.clean, batch.keep[:, :-1] & batch.keep[:, 1:]).sum() / math.log(2)
            assert bits / sum(len(text.encode()) for text in texts) == pytest.approx(BITS[category], abs=0.006)

    def test_a_text_begins_with_the_best_token(self, smollm2):
        """The file's own BOS, <|im_start|>, makes ordinary text dearer."""
        texts = load_texts()["text"].tolist()[::7]
        batch, tokenizer = tokenize(texts, smollm2.tokenizer, SMOLLM2.context), smollm2.tokenizer
        assert tokenizer.bos_token == "<|endoftext|>" and tokenizer.bos_token_id == 0
        tokens, nats = batch.tokens.clone(), []
        for bos in (0, tokenizer.convert_tokens_to_ids("<|im_start|>")):
            tokens[:, 0] = bos
            seen = ev.Predictions(smollm2, tokens)
            nats.append(seen.nats(seen.clean, batch.keep[:, 1:]).sum())
        assert nats[0] < nats[1]


class TestTokenizer:
    def test_digits_stand_alone(self, smollm2):
        assert smollm2.tokenizer.tokenize("In 1998: 3.1") == ["In", "Ġ", "1", "9", "9", "8", ":", "Ġ", "3", ".", "1"]

    @pytest.mark.parametrize(
        "text",
        [
            "  two  spaces ",
            "\tx = 1\n\n    y",
            "def f(x):\n    return x[0] ** 2  # ½ Ⅷ ٣",
            "naïve café – “quoted”",
            "😀👩‍👩‍👧 🏳️‍🌈",
            "日本語の文章。한국어 中文",
            "مرحبا שלום",
            "Привет, мир!",
            "\r\n\x00",
            "<|im_end|> is text",
        ],
    )
    def test_nothing_is_lost(self, smollm2, text):
        from prism.data import token_ids

        ids = token_ids(smollm2.tokenizer, text)
        assert smollm2.tokenizer.decode(ids) == text
        assert min(ids) >= 17  # no special token comes of text

    def test_every_labelled_text_survives_and_fits(self, smollm2):
        from prism.data import token_ids

        for split in ("discover", "confirm"):
            for text in load_texts(split)["text"]:
                ids = token_ids(smollm2.tokenizer, text)
                assert smollm2.tokenizer.decode(ids) == text and len(ids) < SMOLLM2.context

    def test_chat_template(self, smollm2):
        chat = [{"role": "user", "content": "Hi"}]
        text = smollm2.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


class TestPasses:
    def test_every_site_equals_the_bridge(self, smollm2, batch):
        hooks = [f"blocks.{layer}.{site}" for layer in (0, 15, 29) for site in fast.passes.SITES]
        caught = models.activations_at(smollm2, batch.tokens, hooks)
        _, cache = smollm2.run_with_cache(batch.tokens, names_filter=hooks)
        for hook in hooks:
            assert (caught[hook] - cache[hook]).norm() <= 1e-5 * cache[hook].norm(), hook

    @torch.no_grad()
    @pytest.mark.parametrize("layer", [7, 15, 23])
    def test_a_splice_resumes_to_the_same(self, smollm2, batch, layer):
        hook, part = f"blocks.{layer}.hook_resid_pre", batch[:3]
        mask = part.keep[:, :-1] & part.keep[:, 1:]
        whole = ev.predictions.splice(smollm2, part.tokens, hook, part.keep, lambda x: 0.9 * x)
        seen = ev.Predictions(smollm2, part.tokens, [hook])
        nats = seen.nats(seen.changed(hook, part.keep, lambda x: 0.9 * x), mask)
        np.testing.assert_allclose(nats, ev.predictions.sequence_nats(whole, part.tokens, mask), rtol=1e-5)

    @torch.no_grad()
    def test_logits_never_fill_the_memory(self, smollm2, monkeypatch):
        sizes, logits = [], fast.passes.StrippedPass.logits

        def counted(self, states):
            out = logits(self, states)
            sizes.append(out.numel() * out.element_size())
            return out

        monkeypatch.setattr(fast.passes.StrippedPass, "logits", counted)
        tokens = torch.randint(17, 49_152, (4, SMOLLM2.context), generator=torch.Generator().manual_seed(0))
        seen = ev.Predictions(smollm2, tokens)
        seen.measure({"clean": seen.clean, "same": seen.clean}, torch.ones(4, SMOLLM2.context - 1).bool(), ["same"])
        assert len(sizes) > 3 and 4 * max(sizes) <= 2**27  # with their copies below 128 MB

    def test_bulk_work_stays_near(self, smollm2, batch, monkeypatch):
        monkeypatch.setenv("PRISM_DTYPE", "bfloat16")
        low = load_model(SMOLLM2, bulk=True)
        assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
        x, near = (models.kept_activations(model, "blocks.15.hook_resid_pre", batch) for model in (smollm2, low))
        error = (near - x).norm(dim=1) / x.norm(dim=1)
        assert error.median() < 0.02 and error.quantile(0.99) < 0.06


class TestExplorer:
    """Of the app's default SAE; the first time, the sample is read: minutes."""

    @pytest.mark.parametrize("one", EXAMPLES["smollm2"], ids=lambda one: one.title)
    def test_prepared_examples_show_their_feature(self, explorer, one):
        assert explorer.reading(one.sae).statistics.counts[one.feature] > 0
        own, steered, control = steer(explorer, one.prompt, one.feature, "add", one.strength, sae=one.sae)
        fires = [int((run.activations > 0).sum()) for run in (own, steered, control)]
        assert fires[1] > 0 and fires[0] == fires[2] == 0
        assert steered.nats - own.nats < 2.5  # nats a token
