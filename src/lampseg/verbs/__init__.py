"""The verbs of the command line, one to a file: each a dataclass of its options, with a method that runs it."""

from lampseg.verbs.benchmark import Benchmark
from lampseg.verbs.calibrate import Calibrate
from lampseg.verbs.compare import Compare
from lampseg.verbs.demo import Demo
from lampseg.verbs.demo_data import DemoData
from lampseg.verbs.evaluate import Evaluate
from lampseg.verbs.inspect import Inspect
from lampseg.verbs.plan import Plan
from lampseg.verbs.predict import Predict
from lampseg.verbs.report import Report
from lampseg.verbs.reproduce import Reproduce
from lampseg.verbs.train import Train

Verb = (
    Plan | Train | Predict | Evaluate | Report | Compare | Inspect | Reproduce | Calibrate | Benchmark | DemoData | Demo
)

__all__ = ["Verb"]
