"""What a step leaves on disk and on the screen: metrics, samples, fork tokens, findings, trackers."""

from klent.control.organ import StepRecord
from klent.io.files import append_line, read_steps
from klent.measure.diagnostics import fork_words
from klent.measure.watch import Watch
from klent.runs.console import TrainConsole
from klent.runs.folder import RunFolder
from klent.runs.samples import Decoder, sample_rows
from klent.runs.trackers import Trackers


class Recorder:
    """Writes each step's row of metrics, its fork tokens and samples, and says what is new in them.

    Args:
        folder: the run's.
        decoder: turns ids into the text that samples show.
        trackers: get each row too.
        console: gets each row and each new finding.
    """

    def __init__(
        self,
        folder: RunFolder,
        decoder: Decoder,
        trackers: Trackers,
        console: TrainConsole,
    ) -> None:
        self.folder = folder
        self.decoder = decoder
        self.trackers = trackers
        self.console = console
        self.watch = Watch()

    def begin(self) -> None:
        """Read the rows of the steps done before."""
        self.watch = Watch(read_steps(self.folder.metrics, on_damage=self.console.warn))
        for _ in read_steps(self.folder.eval, on_damage=self.console.warn):  # read elsewhere, in silence
            pass

    def record(self, step: StepRecord) -> None:
        """Write the step down; from here on it has happened."""
        step.row |= self.watch.see(step.row)
        append_line(self.folder.metrics, step.row)
        forks = fork_words(step.batch, self.decoder)
        append_line(self.folder.forks, {"step": step.number, "forks": forks})
        result, chosen = step.result, step.result.chosen
        coefficient = None if result.before is None else result.coefficient
        before = None if result.before is None else result.before.logp
        rows = sample_rows(step.number, step.batch, coefficient, self.decoder, chosen=chosen, logp=before)
        for sample in rows:
            append_line(self.folder.samples, sample)
        self.trackers.log(step.row)
        self.console.step(step.row)
        for finding in self.watch.news():
            self.console.warn(finding)

    def close(self) -> None:
        """Close the trackers."""
        self.trackers.close()
