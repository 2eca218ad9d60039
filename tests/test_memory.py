"""Peak memory at GPT-2's size: phase 2's pipeline with 24,576 features, in a process of its own."""

import json
import subprocess
import sys

import pytest

PIPELINE = """
import json, resource, sys, tempfile
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from prism.analysis import confirm, find_features_for_concept, permutation_null, specialists
from prism.data import DATA, load_texts, token_table, tokenize
from prism.features import encode_features
from prism.models import harvest

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(DATA / "model")
hf = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=256)).eval()  # 12 layers of 768, as GPT-2
with tempfile.TemporaryDirectory() as folder:
    hf.config.save_pretrained(folder)
    model = TransformerBridge.boot_transformers(folder, hf_model=hf, tokenizer=tokenizer, device="cpu")
model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
sae = StandardSAE(StandardSAEConfig(d_in=768, d_sae=24_576, metadata=SAEMetadata(hook_name="blocks.6.hook_resid_pre")))
torch.nn.init.normal_(sae.W_enc, std=768 ** -0.5)

def matrix(split):
    frame = load_texts(split)
    batch = tokenize(frame["text"].tolist(), tokenizer, 256)
    table = token_table(batch, tokenizer, frame["category"])
    with torch.no_grad():
        sae.b_enc.fill_(0.0)
        x = next(harvest(model, batch.tokens[:2], "blocks.6.hook_resid_pre"))[batch.keep[:2]]
        pre = (x @ sae.W_enc).flatten()
        sae.b_enc.fill_(-pre.kthvalue(pre.numel() - 50 * len(x)).values.item())  # about 50 features a token
    return encode_features(model, sae, batch, table)

found_on, held = matrix("discover"), matrix("confirm")
found = specialists(found_on, k=3)
null = permutation_null(found_on, n=1000)
confirm(found, held)
find_features_for_concept(found_on.select((found_on.table["category"] == "math").to_numpy()), found_on)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak": peak, "l0": found_on.l0(), "d_sae": found_on.d_sae}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through getrusage")
def test_phase_2_pipeline_with_24576_features_stays_below_2500_mb():
    done = subprocess.run([sys.executable, "-c", PIPELINE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    print(f"peak {measured['peak'] / 1e6:,.0f} MB at L0 {measured['l0']:.0f}")
    assert measured["d_sae"] == 24_576 and 5 < measured["l0"] < 500
    assert measured["peak"] < 2.5e9
