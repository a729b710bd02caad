"""How fast the machines are: ranges, because nobody knows before the run.

Peaks and bandwidths are the makers' data sheets. The shares of the peak come from public runs
(llm-foundry 46 to 64 % for decoders of 125M to 30B on eight A100 80GB; Gopher 32.5 % on TPU v3) and
are set lower, because rows are short, models small and encoder-decoders have no flash kernel. None
of the ranges was measured on these machines with this project's code.
"""

import os
from dataclasses import dataclass

from pipestill.cloud.pipeline_steps import Step
from pipestill.cloud.prices import Range

# accelerator type → operations a second (bf16, or fp16 where there is no bf16) and bytes a second,
# of one counted unit: a GPU, or a TPU core, of which a chip has two
ACCELERATORS = {
    "NVIDIA_A100_80GB": (312e12, 2.0e12),
    "NVIDIA_TESLA_A100": (312e12, 1.55e12),
    "NVIDIA_H100_80GB": (989e12, 3.35e12),
    "NVIDIA_H100_MEGA_80GB": (989e12, 3.35e12),
    "NVIDIA_L4": (121e12, 0.30e12),
    "NVIDIA_TESLA_V100": (125e12, 0.90e12),
    "NVIDIA_TESLA_T4": (65e12, 0.32e12),
    "TPU_V3": (61.5e12, 0.45e12),
    "TPU_V2": (23e12, 0.30e12),
}
CPU_FLOPS = 82e9  # one thread with AVX-512, fp32, long rows; measured
CPU_BYTES = 8e9  # one thread's share of the memory bandwidth
TPU_HOST_CPUS = 96


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, as training and as generation use it.

    Training uses all its devices; generation a GPU a process, of which there are up to `processes`,
    or the processors where there is none (also beside a TPU). Shares are of the peak; `step` and
    `token` are the least seconds of a training step and of one decoded token of a batch; `start` is
    until a task's code runs.
    """

    name: str
    train_peak: float
    share: Range
    share_two_stacks: Range
    step: Range
    one_peak: float
    one_bytes: float
    prefill_share: Range
    decode_share: Range
    token: Range
    start: Range
    weight_bytes: int
    processes: int = 1

    def training(self, flops: float, steps: float, two_stacks: bool) -> Range:
        """Seconds of a training run."""
        share = self.share_two_stacks if two_stacks else self.share
        return share.under(flops / self.train_peak).at_least(self.step * steps)

    def generating(
        self, prefill_flops: float, flops: float, weights: float, tokens: float, batch: float
    ) -> Range:
        """Seconds to read prompts and to decode `tokens` tokens a row, in batches, one after other.

        Args:
            prefill_flops: operations that read all prompts.
            flops: operations that decode all tokens.
            weights: parameters that each decoded token reads.
            tokens: decoded, over all rows.
            batch: rows at a time.
        """
        rounds = tokens / max(batch, 1.0)
        seconds = max(rounds * weights * self.weight_bytes / self.one_bytes, flops / self.one_peak)
        decoding = self.decode_share.under(seconds).at_least(self.token * rounds)
        return self.prefill_share.under(prefill_flops / self.one_peak) + decoding


_JOB_START = Range(240, 540, 1500)  # machine, image of several GB, import
_TASK_START = Range(60, 150, 420)
_LOCAL_START = Range(4, 8, 20)


def machine_of(step: Step, *, local: bool) -> Machine | None:
    """The machine of a step; None where its accelerator's speed is not known here."""
    if not step.is_job:
        return cpu_machine(
            local_cpus() if local else step.cpu, _LOCAL_START if local else _TASK_START
        )
    if step.accelerator_type not in ACCELERATORS:
        return None
    peak, bandwidth = ACCELERATORS[step.accelerator_type]
    tpu = step.accelerator_type.startswith("TPU")
    host = cpu_machine(TPU_HOST_CPUS, _JOB_START)
    return Machine(
        name=f"{step.machine_type} ({step.accelerator_count} × {step.accelerator_type})",
        train_peak=peak * step.accelerator_count,
        share=Range(0.08, 0.20, 0.33) if tpu else Range(0.10, 0.30, 0.55),
        share_two_stacks=Range(0.05, 0.15, 0.30) if tpu else Range(0.06, 0.20, 0.40),
        step=Range(0.10, 0.30, 1.0) if tpu else Range(0.05, 0.15, 0.5),
        one_peak=host.one_peak if tpu else peak,
        one_bytes=host.one_bytes if tpu else bandwidth,
        prefill_share=host.prefill_share if tpu else Range(0.08, 0.25, 0.55),
        decode_share=host.decode_share if tpu else Range(0.05, 0.15, 0.50),
        token=host.token if tpu else Range(0.008, 0.025, 0.07),
        start=_JOB_START,
        weight_bytes=host.weight_bytes if tpu else 2,
        processes=1 if tpu else step.accelerator_count,
    )


def cpu_machine(cpus: int, start: Range) -> Machine:
    """Processors alone, fp32."""
    share = Range(0.15, 0.40, 0.80)
    return Machine(
        name=f"{cpus} CPUs",
        train_peak=CPU_FLOPS * cpus,
        share=share,
        share_two_stacks=share,
        step=Range(0.01, 0.03, 0.1),
        one_peak=CPU_FLOPS * cpus,
        one_bytes=CPU_BYTES * min(cpus, 16),
        prefill_share=share,
        decode_share=Range(0.08, 0.25, 0.60),
        token=Range(0.002, 0.006, 0.02),
        start=start,
        weight_bytes=4,
    )


def local_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
