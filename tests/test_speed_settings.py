"""What the engine sets for speed, and that it changes no result."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.device import choose_layout
from models.build import build_system
from models.losses import LossWeights
from tests.run_on_disk import ROOT


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is set")
def test_the_memory_of_a_freed_tensor_serves_the_next() -> None:
    """In a process of its own: blocks that other tests freed would be taken first."""
    program = """
import resource, torch
from engine.device import keep_freed_memory

def faults_of_filling(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
size = 64 << 20
faults_of_filling(2 * size)
print(faults_of_filling(size) / (size / resource.getpagesize()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.1


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_layout_changes_no_loss(vae: Path, on_gpu: bool) -> None:
    torch.manual_seed(0)
    plain = build_system(
        vae_model="litevae", guidance_method=None, vae_weights=vae, loss_weights=LossWeights()
    )
    system = copy.deepcopy(plain)
    choose_layout(system, on_gpu)

    def channels_last(part: str) -> bool:
        weights = [p for p in system.parts()[part].parameters() if p.dim() == 4 and p.shape[-1] > 1]
        return all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    assert channels_last("model")
    assert channels_last("vae_model") == on_gpu
    batch = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32).round(), torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(system(*batch), plain(*batch), rtol=1e-4, atol=1e-5)
