"""Open reproduction of R1-AQA: GRPO for audio question answering with Qwen2-Audio (arXiv 2503.11197)."""

import logging

__version__ = "0.1.0"

# peft imports bitsandbytes where it is installed, which then misses a kernel for 4 bits on CPUs, whatever is run; here,
# because a command's own imports come before anything else of it
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.msg)
