"""Imported once by the server that forks test ranks; the slow imports of a training process."""

from colossal_llama import host

host.install_if_needed()

import pandas  # noqa: E402, F401  pyarrow imports it when the first row is read
import torch.utils.tensorboard  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import colossal_llama.loop  # noqa: E402, F401  after the accelerator is set, as in a real run
