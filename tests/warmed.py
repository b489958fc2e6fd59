"""What a process of the tests needs: the server of `tests.warm` imports it, and forks all others."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Asks for GPUs without starting CUDA: a process that was forked after that start could not use them.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import monai.networks.nets  # noqa: F401
import torch
import torch.distributed.device_mesh

import lampseg.cli
import lampseg.commands.predict
import lampseg.commands.train
import lampseg.parallel.spatial  # noqa: F401
from lampseg.networks import UNet
from lampseg.partition import record_for

torch.set_num_threads(1)
if not torch.cuda.is_available():  # where there are GPUs, fake tensors start CUDA
    # The first recording imports as much again.
    record_for(UNet(filters=2, depth=1, out_channels=2), shape=(1, 1, 16, 16, 16), precision="float32", device="cpu")
