"""What docs/parity.md compares: every configuration with its flags, the plain PyTorch loop beside it, and the table."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from colossal_llama.batches import BatchReader, Shape
from data_tools.bins import open_bins
from tests.colossal_llama.runs import ROW_LENGTH

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "parity.md"

ROWS_PER_STEP, EPOCHS, SEED = 4, 2, 42
LR, WARMUP, DECAY, CLIP = 5e-4, 4, 0.1, 0.5  # the clip is active on every step
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}  # relative; docs/parity.md says why
NORM_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
LR_TOLERANCE = 1e-12

BOTH, BF16 = ("fp32", "bf16"), ("bf16",)
VARIANTS = ("plain", "accumulated", "checkpointed", "frozen", "all three")


@dataclass(frozen=True)
class Configuration:
    """One way to share a step of ROWS_PER_STEP rows among ranks."""

    name: str
    flags: dict[str, Any]
    precisions: tuple[str, ...] = BOTH
    """Those that the plugin has."""
    world_size: int = 2
    dp_size: int = 2


def _three_d(name: str, precisions: tuple[str, ...], world_size: int, dp_size: int, **flags: Any) -> Configuration:
    return Configuration(f"3d {name}", {"plugin": "3d", "zero": 0, **flags}, precisions, world_size, dp_size)


CONFIGURATIONS = [
    Configuration("ddp", {"plugin": "ddp"}),
    Configuration("zero2", {"plugin": "zero2"}),
    Configuration("zero2_cpu", {"plugin": "zero2_cpu"}),
    Configuration("gemini", {"plugin": "gemini"}, BF16),
    Configuration("gemini_auto", {"plugin": "gemini_auto"}, BF16),
    _three_d("dp=2 zero 0", BOTH, 2, 2),
    _three_d("dp=2 zero 1", BF16, 2, 2, zero=1),
    _three_d("dp=2 zero 2", BF16, 2, 2, zero=2),
    _three_d("tp=2", BOTH, 2, 1, tp=2),
    _three_d("tp=2 zero 2", BF16, 2, 1, tp=2, zero=2),
    _three_d("pp=2", BOTH, 2, 1, pp=2),
    _three_d("tp=2 pp=2", BOTH, 4, 1, tp=2, pp=2),
    _three_d("pp=2 dp=2 zero 1", BF16, 4, 2, pp=2, zero=1),
    _three_d("sp=2 split_gather", BOTH, 2, 1, tp=2, sp=2, sp_mode="split_gather"),
    _three_d("sp=2 ring", BOTH, 2, 1, tp=2, sp=2, sp_mode="ring"),
    _three_d("sp=2 all_to_all", BOTH, 2, 1, sp=2, sp_mode="all_to_all"),
]

PLAIN_LOOP = Configuration("plain PyTorch loop", {}, BF16, 1, 1)
"""bf16 weights and gradients, fp32 masters: how far the number format alone leads away."""


@dataclass(frozen=True)
class Case:
    """A configuration in one precision and variant."""

    configuration: Configuration
    precision: str
    variant: str

    @property
    def name(self) -> str:
        """For pytest's -k: words without blanks and signs."""
        words = f"{self.configuration.name} {self.precision} {self.variant}"
        return re.sub(r"[ =]+", "-", words)

    @property
    def accumulates(self) -> bool:
        """Whether micro-batches of single rows are added up."""
        return self.variant in ("accumulated", "all three")

    @property
    def checkpoints(self) -> bool:
        """Whether activations are recomputed."""
        return self.variant in ("checkpointed", "all three")

    @property
    def freezes(self) -> bool:
        """Whether only the embeddings train."""
        return self.variant in ("frozen", "all three")

    def flags(self, steps: int) -> dict[str, Any]:
        """The flags of train.py, but for model, data and save_dir."""
        rows = ROWS_PER_STEP // self.configuration.dp_size
        switches = {"use_grad_checkpoint": self.checkpoints, "freeze_non_embeds_params": self.freezes}
        return {
            **self.configuration.flags,
            **{name: True for name, is_on in switches.items() if is_on},
            "micro_batch_size": 1 if self.accumulates else rows,
            "accumulation_steps": rows if self.accumulates else 1,
            "mixed_precision": self.precision,
            "max_length": ROW_LENGTH,
            "max_steps": steps,
            "num_epochs": EPOCHS,
            "lr": LR,
            "warmup_steps": WARMUP,
            "weight_decay": DECAY,
            "gradient_clipping": CLIP,
            "seed": SEED,
        }


def cases_of(configuration: Configuration) -> list[Case]:
    """All precisions and variants of it, in the table's order."""
    return [Case(configuration, precision, variant) for precision in configuration.precisions for variant in VARIANTS]


@dataclass(frozen=True)
class Curve:
    """Values of every step."""

    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Deviation:
    """Largest relative deviations over all steps."""

    loss: float
    grad_norm: float
    lr: float

    def is_within(self, precision: str) -> bool:
        """Whether all three are within the tolerances of `precision`."""
        bounds = (LOSS_TOLERANCE[precision], NORM_TOLERANCE[precision], LR_TOLERANCE)
        return all(value <= bound for value, bound in zip((self.loss, self.grad_norm, self.lr), bounds, strict=True))


def deviation(curve: Curve, reference: Curve) -> Deviation:
    """How far `curve` lies from `reference`. Raises ValueError if they have different numbers of steps."""

    def largest(values: list[float], expected: list[float]) -> float:
        # `not <=`: a value that is no number is infinitely far away
        gaps = [abs(value - wanted) / abs(wanted) for value, wanted in zip(values, expected, strict=True)]
        return max(gap if gap <= math.inf else math.inf for gap in gaps)

    return Deviation(
        largest(curve.loss, reference.loss),
        largest(curve.grad_norm, reference.grad_norm),
        largest(curve.lr, reference.lr),
    )


def curve_of(lines: list[dict[str, Any]]) -> Curve:
    """metrics.jsonl -> the curve."""
    return Curve(*([line[name] for line in lines] for name in ("loss", "grad_norm", "lr")))


def plain_loop(case: Case, steps: int, model_dir: Path, bins_dir: Path) -> Curve:
    """transformers' model and torch's AdamW and clipping on one process; the schedule written out. No Booster.

    In fp32 a step is one batch with transformers' own loss. In bf16, weights and gradients are bf16, summed over
    micro-batches of single rows where the case accumulates, and AdamW works on fp32 copies.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[case.precision]
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=dtype)
    if case.checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not case.freezes or name in ("model.embed_tokens.weight", "lm_head.weight")
    working = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [torch.nn.Parameter(parameter.detach().float().clone()) for parameter in working]
    groups = [
        {"params": [one for one in masters if one.dim() == 2], "weight_decay": DECAY},
        {"params": [one for one in masters if one.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=LR, betas=(0.9, 0.95))
    curve = Curve()
    for step, (ids, labels) in enumerate(_batches(bins_dir, steps)):
        for group in optimizer.param_groups:
            group["lr"] = _lr(step, steps)
        num_tokens = (labels[:, 1:] != -100).sum()
        total = 0.0
        for rows in range(0, ROWS_PER_STEP, 1 if case.accumulates else ROWS_PER_STEP):
            part = slice(rows, rows + 1 if case.accumulates else None)
            logits = model(input_ids=ids[part]).logits[:, :-1].float().flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, labels[part, 1:].flatten(), reduction="sum") / num_tokens
            loss.backward()
            total += loss.item()
        for master, parameter in zip(masters, working, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, working, strict=True):
                parameter.copy_(master)
        curve.loss.append(total)
        curve.grad_norm.append(norm.item())
        curve.lr.append(_lr(step, steps))
    assert min(curve.grad_norm) > CLIP, "the clip must be active for the comparison to cover it"
    return curve


def _batches(bins_dir: Path, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    reader = BatchReader(
        open_bins([bins_dir]), Shape(ROWS_PER_STEP, 1, dp_size=1, dp_rank=0), SEED, ROW_LENGTH, 0, 10**6
    )
    batches = [(batch.input_ids, batch.labels) for _, (batch,) in zip(range(steps), reader.steps_from(0), strict=False)]
    assert len(batches) == steps
    return batches


def _lr(step: int, steps: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - WARMUP) / (steps - 1 - WARMUP)))
    return LR * ((step + 1) / WARMUP if step < WARMUP else 0.1 + 0.9 * cosine)


HEADER = f"| configuration | processes | precision | {' | '.join(VARIANTS)} |\n|---|---|---|{'---|' * len(VARIANTS)}\n"
TABLE = re.compile(re.escape(HEADER) + r"((?:\|.*\n)*)")
NOT_MEASURED = "not measured"

Cells = dict[tuple[str, str], dict[str, str]]
"""(configuration, precision) -> variant -> `loss / gradient norm`"""


def cell_of(measured: Deviation) -> str:
    """What the table says of a case."""
    return f"{measured.loss:.1e} / {measured.grad_norm:.1e}"


def read_cell(cell: str) -> tuple[float, float]:
    """The reverse of `cell_of`: (loss, gradient norm). Raises ValueError for NOT_MEASURED."""
    loss, norm = cell.split(" / ")
    return float(loss), float(norm)


def read_table(text: str) -> Cells:
    """The table of docs/parity.md as it stands."""
    match = TABLE.search(text)
    assert match, f"{DOCUMENT.name} has lost the head of its table"
    cells: Cells = {}
    for line in match[1].splitlines():
        name, _, precision, *found = (cell.strip() for cell in line.strip("|").split("|"))
        cells[name, precision] = dict(zip(VARIANTS, found, strict=True))
    return cells


def write_table(text: str, cells: Cells) -> str:
    """`text` with a table of all configurations in place of its own; what `cells` lacks is NOT_MEASURED."""
    lines = [
        f"| {one.name} | {one.world_size} | {precision} | "
        + " | ".join(cells.get((one.name, precision), {}).get(variant, NOT_MEASURED) for variant in VARIANTS)
        + " |\n"
        for one in (PLAIN_LOOP, *CONFIGURATIONS)
        for precision in one.precisions
    ]
    return TABLE.sub(lambda _: HEADER + "".join(lines), text)


def record(case: Case, measured: Deviation) -> None:
    """Write one case into the table; the others stay as they are, so that a soak may be cut short or done in parts."""
    text = DOCUMENT.read_text(encoding="utf-8")
    cells = read_table(text)
    cells.setdefault((case.configuration.name, case.precision), {})[case.variant] = cell_of(measured)
    DOCUMENT.write_text(write_table(text, cells), encoding="utf-8")
