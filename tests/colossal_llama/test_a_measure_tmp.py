"""A"""
from __future__ import annotations
import json
import pytest, torch
from tests.conftest import *
from tests.colossal_llama.parity import CONFIGURATIONS, cases_of
from colossal_llama.probe import *

@pytest.mark.parametrize("conf", CONFIGURATIONS, ids=lambda c: c.name.replace(" ","-").replace("=",""))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["plain", "accumulated"])
def test_measure(conf, precision, variant, train, tiny_model_dir, tiny_bins_dir, tmp_path):
    if precision not in conf.precisions: return
    case = next(c for c in cases_of(conf) if c.precision == precision and c.variant == variant)
    save_dir = tmp_path / "run"
    train(conf.world_size, save_dir, pretrained=tiny_model_dir, dataset=tiny_bins_dir, **{**case.flags(3), "lr": 2e-3, "warmup_steps": 1})
    from transformers import AutoModelForCausalLM
    (cp,) = save_dir.glob("epoch-*")
    told = read_probe(cp)
    for dt in ("auto", torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(cp/"modeling", torch_dtype=dt).eval()
        again = model_probe(model, told.input_ids, told.positions)
        d = difference(told, again)
        with open("/tmp/A_work/measured.jsonl","a") as f:
            f.write(json.dumps([case.name, str(dt), str(model.dtype), d.nats, d.mean_nats, d.relative, told.logits.std(-1).mean().item(), told.nats.mean().item()])+"\n")
