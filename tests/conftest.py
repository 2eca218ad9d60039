"""Settings for every test: one thread, no network, the same random examples each time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PRISM_MODEL", None)  # tests name the model that they want
os.environ.pop("PRISM_PNG", None)
os.environ.pop("PRISM_DATA", None)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same numbers on every machine

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("prism", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("prism")


@pytest.fixture(scope="session")
def mini():
    """The embedded language model, loaded once."""
    from prism.models import get_spec, load_model

    return load_model(get_spec("mini"))
