"""What a process of the tests needs: the server of `tests.warm` imports it, and forks all others."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import monai.networks.nets  # noqa: E402, F401
import torch  # noqa: E402
import torch.distributed.device_mesh  # noqa: E402, F401

import lampseg.cli  # noqa: E402, F401
import lampseg.commands.predict  # noqa: E402, F401
import lampseg.commands.train  # noqa: E402, F401
import lampseg.parallel.spatial  # noqa: E402, F401
from lampseg.networks import UNet  # noqa: E402
from lampseg.partition import record_for  # noqa: E402

torch.set_num_threads(1)
# The first recording imports as much again.
record_for(UNet(filters=2, depth=1, out_channels=2), shape=(1, 1, 16, 16, 16), precision="float32", device="cpu")
