"""Settings for every test: one thread, no network, the same random examples each time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["PRISM_MODEL"] = "mini"  # notebooks that run as tests; a test of the default takes it away
os.environ.pop("PRISM_PNG", None)
os.environ.pop("PRISM_DATA", None)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same numbers on every machine

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("prism", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("prism")


@pytest.fixture(scope="session", autouse=True)
def _no_marks_in_outputs(tmp_path_factory):
    """The reader's progress is not for tests to touch, nor for what they start."""
    os.environ["PRISM_PROGRESS"] = str(tmp_path_factory.mktemp("progress") / "progress.sqlite")


@pytest.fixture(scope="session")
def mini():
    """The embedded language model, loaded once."""
    from prism.models import get_spec, load_model

    return load_model(get_spec("mini"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A folder with a Llama-style model (RMSNorm, rotary positions) of random weights."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prism.data import DATA

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    end = tokenizer.bos_token_id
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def sentencepiece(request):
    """A tokenizer as Llama's or T5's: a word begins with '▁', and a text's first space is dropped in decoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from prism.data import load_corpus

    special = ["<unk>", "<s>", "</s>"]
    if request.param == "bpe":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(pieces)
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(load_corpus("mini", 60)["text"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
