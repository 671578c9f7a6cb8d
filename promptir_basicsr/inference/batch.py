"""Restore the files of a plan and report progress."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from promptir_basicsr.core.console import plain_console
from promptir_basicsr.core.errors import SaveError
from promptir_basicsr.core.messages import first_line, printable
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.inference.plan import Job, Plan, Size
from promptir_basicsr.inference.restorer import Restorer
from promptir_basicsr.pictures.io import measure_picture, read_picture, write_picture
from promptir_basicsr.pictures.picture import Picture, PictureError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""


@dataclass
class Outcome:
    """Result of a run: `failed` has a message for each file that could not be restored."""

    restored: int = 0
    failed: list[str] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0
    interrupted: bool = False


class Reporter:
    """Report progress: a progress bar in a terminal, a line per file elsewhere."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._count = plan, len(plan.jobs)
        self._console = plain_console(stderr=True)
        self._bar = Progress(
            TextColumn('{task.fields[done]} of {task.fields[count]}', markup=False),
            BarColumn(),
            TextColumn('{task.percentage:.0f} %'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn('{task.description}', markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task('', total=sum(map(_weight, plan.jobs)), done=0, count=self._count)
        self._before = 0.0
        self._above = self._console.is_terminal and sys.stdout.isatty()

    def __enter__(self) -> 'Reporter':
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bar if both are in a terminal."""
        line = printable(line)
        if self._above:
            self._console.print(line)
        else:
            _write(sys.stdout, line)

    def tell_network(self, restorer: 'Restorer') -> None:
        """Print the network found in the file of weights, and the device."""
        checkpoint = restorer.checkpoint
        self.say(f'{checkpoint.path}: {" ".join(checkpoint.notes)} Device: {restorer.device}.')

    def tell_plan(self) -> None:
        """Print what would be done."""
        for job in self._plan.jobs:
            self.say(f'{_arrow(job)}  {_shown(job.size) if job.size else "its size cannot be read"}')
        self._tell_left_out()
        self.say(f'{self._count:,} to be restored{_others(self._plan)}. Nothing was done.')

    def started(self, jobs: Sequence[Job]) -> None:
        self._bar.update(self._task, description=printable(os.path.basename(jobs[0].source)))

    def advanced(self, jobs: Sequence[Job], done: int, total: int) -> None:
        """Update the progress of the network for these files."""
        part = sum(map(_weight, jobs)) * min(done / max(total, 1), 1)
        self._bar.update(self._task, completed=self._before + part)

    def ended(self, jobs: Sequence[Job], outcome: Outcome) -> None:
        """Mark these files as finished."""
        self._before += sum(map(_weight, jobs))
        done = outcome.restored + len(outcome.failed)
        self._bar.update(self._task, completed=self._before, done=done)

    def restored(self, job: Job, picture: Picture, seconds: float) -> None:
        notes = f'  ({"; ".join(picture.notes)})' if picture.notes else ''
        if notes or not self._above:
            self.say(f'{_arrow(job)}  {_shown(picture.size)}, {seconds:.1f} s{notes}')

    def tell_outcome(self, outcome: Outcome) -> int:
        """Print the last lines and return the exit status."""
        speed = outcome.pixels / 1e6 / outcome.seconds if outcome.seconds else 0.0
        failed = f', {len(outcome.failed):,} failed' if outcome.failed else ''
        if outcome.failed and self._above:  # elsewhere their lines are still visible
            self._console.print('\n'.join(['Not restored:', *(f'  {printable(line)}' for line in outcome.failed)]))
        self._tell_left_out()
        self.say(
            f'{outcome.restored:,} restored{failed}{_others(self._plan)}, {outcome.seconds:.1f} s, '
            f'{speed:.3g} megapixels/s'
        )
        if outcome.interrupted:
            left = self._count - outcome.restored - len(outcome.failed)
            self._console.print(
                f'Interrupted, {left:,} left; all files are complete. --skip-existing continues with the rest.'
            )
            return INTERRUPTED
        return 1 if outcome.failed else 0

    def failed(self, message: str) -> None:
        """Report a file that could not be restored: above the bar, or once on standard error."""
        if self._above:
            self.say(f'failed: {message}')
        else:
            self._console.print(printable(f'failed: {message}'))

    def _tell_left_out(self) -> None:
        for line in self._plan.left_out:
            self._console.print(printable(line))


def restore_files(
    restorer: 'Restorer',
    plan: Plan,
    reporter: Reporter,
    degradation: Any = None,
    strength: float = 1.0,
    batch: int = 1,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Outcome:
    """Restore all files; an error of one file does not stop the others.

    The next files are read and the last ones written while the network runs.

    Args:
        batch: maximum batch size for images of equal size.
        max_pixels: larger images are not read.
    """
    run = _Run(restorer, reporter, degradation, strength, overwrite, max_pixels)
    begun = time.perf_counter()
    pool = ThreadPoolExecutor(2, thread_name_prefix='pictures')
    try:
        run.all(_batches(plan.jobs, batch), pool)
    except KeyboardInterrupt:
        run.outcome.interrupted = True
    finally:
        pool.shutdown(wait=True)  # restored images are still written
        run.collect(everything=True)
    run.outcome.seconds = time.perf_counter() - begun
    return run.outcome


def measured(plan: Plan) -> Plan:
    """Return the plan with the sizes of the sources that their headers contain."""
    return replace(plan, jobs=[replace(job, size=measure_picture(job.source)) for job in plan.jobs])


def _batches(jobs: Iterable[Job], batch: int) -> list[list[Job]]:
    """Group files of equal size, in the order of the first of each group."""
    groups: dict[object, list[Job]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault((batch > 1 and job.size) or number, []).append(job)
    return [group[start : start + batch] for group in groups.values() for start in range(0, len(group), batch)]


class _Run:
    def __init__(
        self,
        restorer: 'Restorer',
        reporter: Reporter,
        degradation: Any,
        strength: float,
        overwrite: bool,
        max_pixels: int,
    ) -> None:
        self.outcome = Outcome()
        self._max_pixels = max_pixels
        self._restorer, self._reporter, self._overwrite = restorer, reporter, overwrite
        self._told = (degradation, strength)
        self._written: deque[tuple[Job, Picture, float, Future[None]]] = deque()

    def all(self, batches: Sequence[Sequence[Job]], pool: ThreadPoolExecutor) -> None:
        coming = deque(pool.submit(_read, jobs, self._max_pixels) for jobs in batches[:1])
        for number, jobs in enumerate(batches):
            self._reporter.started(jobs)
            read = coming.popleft().result()
            coming += [pool.submit(_read, after, self._max_pixels) for after in batches[number + 1 : number + 2]]
            for together in self._equal(read):
                self._restore(together, pool)
            self.collect()
            self._reporter.ended(jobs, self.outcome)

    def collect(self, everything: bool = False) -> None:
        """Collect files that were written; at most one batch waits for the disk."""
        while self._written and (everything or len(self._written) > 1 or self._written[0][3].done()):
            job, picture, seconds, writing = self._written.popleft()
            try:
                writing.result()
            except (PictureError, SaveError) as error:
                self._fail(str(error))
                continue
            except Exception as error:  # any error; the other files continue
                self._fail(f"'{job.target}' could not be written: {first_line(error)}")
                continue
            self.outcome.restored += 1
            self.outcome.pixels += picture.size[0] * picture.size[1]
            self._reporter.restored(job, picture, seconds)

    def _equal(self, read: Iterable[tuple[Job, 'Picture | PictureError']]) -> Iterator[list[tuple[Job, Picture]]]:
        """Group images by their real size, which may differ from that in the header."""
        groups: dict[Size, list[tuple[Job, Picture]]] = {}
        for job, picture in read:
            if isinstance(picture, PictureError):
                self._fail(str(picture))
            else:
                groups.setdefault(picture.size, []).append((job, picture))
        yield from groups.values()

    def _restore(self, together: Sequence[tuple[Job, Picture]], pool: ThreadPoolExecutor) -> None:
        jobs, begun = [job for job, _ in together], time.perf_counter()
        try:
            images = self._restorer.restore_batch(
                [picture.image for _, picture in together],
                *self._told,
                progress=lambda done, total: self._reporter.advanced(jobs, done, total),
            )
        except (RuntimeError, ValueError, MemoryError) as error:
            if len(together) > 1:  # caused by one of them, or by their number
                for one in together:
                    self._restore([one], pool)
                return
            self._fail(f"'{jobs[0].source}' could not be restored: {first_line(error)}")
            return
        seconds = (time.perf_counter() - begun) / len(together)
        for (job, picture), image in zip(together, images, strict=True):
            restored = picture.with_image(image)
            self._written.append((job, restored, seconds, pool.submit(_write_new, job, restored, self._overwrite)))

    def _fail(self, message: str) -> None:
        self.outcome.failed.append(message)
        self._reporter.failed(message)


def _read(jobs: Sequence[Job], max_pixels: int) -> list[tuple[Job, 'Picture | PictureError']]:
    read: list[tuple[Job, Picture | PictureError]] = []
    for job in jobs:
        try:
            read.append((job, read_picture(job.source, max_pixels)))
        except PictureError as error:
            read.append((job, error))
    return read


def _write_new(job: Job, picture: Picture, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(job.target):
        raise PictureError(f"'{job.target}' was created meanwhile by another program; it was not replaced.")
    write_picture(job.target, picture, job.kind or picture.format)


def _weight(job: Job) -> int:
    height, width = job.size or (1, 1)
    return height * width


def _arrow(job: Job) -> str:
    return f'{job.source} -> {job.target}'


def _shown(size: Size) -> str:
    return f'{size[1]}x{size[0]}'


def _others(plan: Plan) -> str:
    present = f', {plan.present:,} existing skipped' if plan.present else ''
    return present + (f', other files: {plan.foreign:,}' if plan.foreign else '')


def _write(stream: Any, line: str) -> None:
    try:
        stream.write(line + '\n')
        stream.flush()
    except BrokenPipeError:  # closed by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
