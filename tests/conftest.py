"""One thread for each process: ranks, and stages that run as threads, share few cores.

With OpenMP's own choice every stage's thread had a team of its own, whose members span while they waited: the tests of
the stages took 20 times as long.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
